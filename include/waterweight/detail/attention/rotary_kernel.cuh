// Rotary embedding of whole prompts.
#pragma once

#include <waterweight/detail/arch/dependent_launch.cuh>
#include <waterweight/detail/attention/common.cuh>
#include <waterweight/device/rotary.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

inline constexpr int kRotaryThreads = 256;

/// One thread turns pair i of head h of `x` and of `y`, which has at most as many heads or is null:
/// both turn by the same angle. Grid: x = pairs of all heads, y = token, z = sequence.
template <class T>
__global__ void __launch_bounds__(kRotaryThreads)
    rotary_kernel(heads_view<T> x, heads_view<T> y, rotary_view rotary,
                  const std::int32_t* first_position) {
  follow_earlier_kernels();
  const int half = rotary.dims / 2, pair = blockIdx.x * kRotaryThreads + threadIdx.x;
  if (pair >= half * x.heads) return;
  const int head = pair / half, i = pair % half;
  const int token = blockIdx.y, sequence = blockIdx.z;
  const int position = (first_position == nullptr ? 0 : first_position[sequence]) + token;
  float sine, cosine;
  sincosf(static_cast<float>(position) * rotary.inv_freq[i], &sine, &cosine);
  const auto apply = [&](const heads_view<T>& heads) {
    T* const element = heads.data + sequence * heads.batch_stride + token * heads.token_stride +
                       head * heads.head_stride + i;
    const float2 turned =
        rotate_pair(make_float2(to_float(element[0]), to_float(element[half])), sine, cosine);
    element[0] = from_float<T>(turned.x);
    element[half] = from_float<T>(turned.y);
  };
  apply(x);
  if (y.data != nullptr && head < y.heads) apply(y);
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
