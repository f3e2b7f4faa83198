// Rotary position embedding on the host, half-split as in GPT-NeoX (see rotary_view).
#pragma once

#include <cmath>
#include <cstdint>

#include <waterweight/reference/access.hpp>
#include <waterweight/types.hpp>

WATERWEIGHT_NAMESPACE_BEGIN
namespace reference {

/// The angle of pair i at an absolute position: one fp32 product, as checkpoints were trained with.
inline float rotary_angle(const rotary_view& rotary, int i, std::int64_t position) {
  return static_cast<float>(position) * rotary.inv_freq[i];
}

/// Turns one head of head_dim elements: in -> out, in Acc, rounded once when stored. `out` may be
/// `in`.
template <class Acc, class T, class Out>
void rotate_head(const T* in, Out* out, int head_dim, const rotary_view& rotary,
                 std::int64_t position) {
  const int half = rotary.dims / 2;
  for (int i = 0; i < half; ++i) {
    const Acc angle = static_cast<Acc>(rotary_angle(rotary, i, position));
    const Acc cosine = std::cos(angle);
    const Acc sine = std::sin(angle);
    const Acc a = widen<Acc>(in[i]);
    const Acc b = widen<Acc>(in[i + half]);
    out[i] = static_cast<Out>(a * cosine - b * sine);
    out[i + half] = static_cast<Out>(b * cosine + a * sine);
  }
  for (int d = rotary.dims; d < head_dim; ++d) out[d] = static_cast<Out>(widen<Acc>(in[d]));
}

/// Turns every head of a view; token t of each sequence stands at first_position + t. `out` may be
/// the same memory as `in`. rotary.inv_freq is host memory here.
template <class Acc, class T, class Out>
void apply_rotary(heads_view<T> in, const rotary_view& rotary, std::int64_t first_position,
                  heads_view<Out> out) {
  for (int b = 0; b < in.batch; ++b) {
    for (int t = 0; t < in.tokens; ++t) {
      for (int h = 0; h < in.heads; ++h) {
        rotate_head<Acc>(head_data(in, b, t, h), head_data(out, b, t, h), in.head_dim, rotary,
                         first_position + t);
      }
    }
  }
}

}  // namespace reference
WATERWEIGHT_NAMESPACE_END
