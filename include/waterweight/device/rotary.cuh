// Rotary position embedding of one pair of elements.
#pragma once

#include <waterweight/detail/arch/convert.cuh>
#include <waterweight/types.hpp>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN

/// Elements (i, i + dims / 2) of a head, turned by an angle. Everyone rounds in the same place, so
/// that a key has the same bits from a prompt and from a decode step.
__device__ __forceinline__ float2 rotate_pair(float2 pair, float sine, float cosine) {
  return make_float2(fmaf(pair.x, cosine, -(pair.y * sine)), fmaf(pair.y, cosine, pair.x * sine));
}

/// The same, turned by position * inv_freq[i].
__device__ __forceinline__ float2 rotate_pair(float2 pair, float inv_freq, int position) {
  float sine, cosine;
  sincosf(static_cast<float>(position) * inv_freq, &sine, &cosine);
  return rotate_pair(pair, sine, cosine);
}

/// Element d of a head after rotation; `head` holds the unrotated head_dim elements.
template <class T>
__device__ __forceinline__ float rotated_element(const T* head, int d, const rotary_view& rotary,
                                                 int position) {
  const float own = detail::to_float(head[d]);
  if (d >= rotary.dims) return own;
  const int half = rotary.dims / 2, i = d % half;
  const float2 pair = d < half ? make_float2(own, detail::to_float(head[d + half]))
                               : make_float2(detail::to_float(head[d - half]), own);
  const float2 turned = rotate_pair(pair, __ldg(rotary.inv_freq + i), position);
  return d < half ? turned.x : turned.y;
}

/// Element d of any head at one position, where several heads turn alike. Made before the position
/// is known, so that its frequency is on its way by then.
class element_rotation {
 public:
  __device__ __forceinline__ element_rotation(const rotary_view& rotary, int d) : partner_(d) {
    if (d >= rotary.dims) return;
    const int half = rotary.dims / 2;
    first_ = d < half;
    partner_ = first_ ? d + half : d - half;
    inv_freq_ = __ldg(rotary.inv_freq + (first_ ? d : partner_));
  }

  /// The element that turns together with d; d itself where nothing turns.
  __device__ __forceinline__ int partner() const { return partner_; }

  __device__ __forceinline__ void set_position(int position) {
    sincosf(static_cast<float>(position) * inv_freq_, &sine_, &cosine_);
    if (first_) sine_ = -sine_;
  }

  __device__ __forceinline__ float operator()(float own, float partner) const {
    return fmaf(own, cosine_, partner * sine_);
  }

 private:
  int partner_;
  bool first_ = false;
  float inv_freq_ = 0.0f, sine_ = 0.0f, cosine_ = 1.0f;
};

WATERWEIGHT_ARCH_NAMESPACE_END
