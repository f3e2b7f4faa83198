// Owning buffers behind the views of attention tests: padded strides, poison, seeded normal
// numbers.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include <waterweight/reference/h2o.hpp>
#include <waterweight/types.hpp>

namespace testing_heads {

constexpr double kPoison = -12345.0;

/// [batch, tokens, heads, head_dim] with gaps between heads, tokens and sequences.
struct Heads {
  Heads(int batch, int tokens, int heads, int head_dim)
      : head_stride(head_dim + 3),
        token_stride(heads * head_stride + 5),
        batch_stride(tokens * token_stride + 7),
        data(static_cast<std::size_t>(batch * batch_stride), kPoison),
        view{data.data(), batch, tokens, heads, head_dim, batch_stride, token_stride, head_stride} {
  }
  Heads(const Heads&) = delete;

  void fill(std::mt19937& random, double deviation = 1) {
    std::normal_distribution<double> normal(0, deviation);
    for (int b = 0; b < view.batch; ++b)
      for (int t = 0; t < view.tokens; ++t)
        for (int h = 0; h < view.heads; ++h)
          for (int d = 0; d < view.head_dim; ++d) at(b, t, h)[d] = normal(random);
  }
  double* at(int b, int t, int h) { return waterweight::reference::head_data(view, b, t, h); }
  std::vector<double> vector(int b, int t, int h) {
    return {at(b, t, h), at(b, t, h) + view.head_dim};
  }

  /// The same memory seen as a single token of every sequence.
  waterweight::heads_view<double> token(int t) {
    auto one = view;
    one.data += t * token_stride;
    one.tokens = 1;
    return one;
  }

  std::int64_t head_stride, token_stride, batch_stride;
  std::vector<double> data;
  waterweight::heads_view<double> view;
};

inline std::vector<float> inverse_frequencies(int dims) {
  std::vector<float> result;
  for (int i = 0; i < dims / 2; ++i) {
    result.push_back(static_cast<float>(std::pow(10000.0, -2.0 * i / dims)));
  }
  return result;
}

/// A cache of one layer with everything poisoned.
struct Cache {
  Cache(int batch, int kv_heads, int capacity, int head_dim, bool scored = true)
      : k(static_cast<std::size_t>(batch) * kv_heads * capacity * head_dim, kPoison),
        v(k),
        score(static_cast<std::size_t>(batch) * kv_heads * capacity, static_cast<float>(kPoison)),
        position(score.size(), -99),
        free_slot(static_cast<std::size_t>(batch) * kv_heads, -99),
        step(static_cast<std::size_t>(batch), -99),
        length(step),
        cache{k.data(), v.data(), batch, kv_heads, capacity, head_dim},
        state{scored ? score.data() : nullptr, position.data(), free_slot.data(), step.data(),
              length.data()} {}
  Cache(const Cache&) = delete;

  std::size_t slot(int b, int h, int s) const {
    return (static_cast<std::size_t>(b) * cache.kv_heads + h) * cache.capacity + s;
  }

  std::vector<double> k, v;
  std::vector<float> score;
  std::vector<std::int32_t> position, free_slot, step, length;
  waterweight::kv_cache_view<double> cache;
  waterweight::h2o_state_view state;
};

}  // namespace testing_heads
