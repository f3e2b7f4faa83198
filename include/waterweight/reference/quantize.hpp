// Symmetric absmax quantization per output channel, on the host. Every operation is one IEEE fp32
// operation in a fixed order, so a device can match it bit for bit.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <limits>

#include <waterweight/reference/access.hpp>
#include <waterweight/types.hpp>

WATERWEIGHT_NAMESPACE_BEGIN
namespace reference {

/// The scale of a row from its largest magnitude, fp32: absmax / 127. Zero where that quotient is
/// below the least normal float (absmax < 1.5e-36): such a row counts as all zero, because dividing
/// by a subnormal scale would be inexact or, on a device that flushes subnormals, infinite.
inline float quantization_scale(float absmax) {
  const float scale = absmax / 127.0f;
  return scale < FLT_MIN ? 0.0f : scale;
}

/// round-half-even(value / scale) for finite `value` with |value| <= absmax of its row; 0 for scale
/// 0.
inline std::int8_t quantize_value(float value, float scale) {
  if (scale == 0.0f) return 0;
  const float rounded = std::nearbyint(value / scale);
  return static_cast<std::int8_t>(rounded > 127.0f    ? 127.0f
                                  : rounded < -127.0f ? -127.0f
                                                      : rounded);
}

/// Quantizes w [N, K] into q [N, K] int8 in [-127, 127] and q.scale [N] fp32: w ~ scale * q.
/// Elements are taken as fp32 (a double is rounded to it first).
/// - A row of zeros, or with absmax / 127 below the least normal float: scale 0 and zeros.
/// - A row with a NaN or an infinity: scale is a quiet NaN and all q are 0, so that whatever is
///   computed from it is NaN and never plausible.
/// Returns the lowest row with a NaN or an infinity, or -1. Needs w.rows == q.rows, w.cols ==
/// q.cols.
template <class T>
std::int64_t quantize_per_channel(matrix_view<T> w, mutable_int8_weight_view q) {
  std::int64_t first_bad_row = -1;
  for (std::int64_t n = 0; n < w.rows; ++n) {
    const T* row = w.data + n * w.ld;
    std::int8_t* quantized = q.data + n * q.ld;
    float absmax = 0;
    bool finite = true;
    for (std::int64_t k = 0; k < w.cols; ++k) {
      const float magnitude = std::fabs(widen<float>(row[k]));
      finite = finite && magnitude <= FLT_MAX;  // false for NaN too
      absmax = magnitude > absmax ? magnitude : absmax;
    }
    if (!finite && first_bad_row < 0) first_bad_row = n;
    const float scale = finite ? quantization_scale(absmax) : 0.0f;
    for (std::int64_t k = 0; k < w.cols; ++k) {
      quantized[k] = scale == 0.0f ? std::int8_t{0} : quantize_value(widen<float>(row[k]), scale);
    }
    q.scale[n] = finite ? scale : std::numeric_limits<float>::quiet_NaN();
  }
  return first_bad_row;
}

/// w[n, k] = scale[n] * q[n, k], one fp32 product rounded to T.
template <class T>
void dequantize(int8_weight_view q, matrix_view<T> w) {
  for (std::int64_t n = 0; n < q.rows; ++n) {
    for (std::int64_t k = 0; k < q.cols; ++k) {
      const float value = q.scale[n] * static_cast<float>(q.data[n * q.ld + k]);
      w.data[n * w.ld + k] = static_cast<T>(value);
    }
  }
}

}  // namespace reference
WATERWEIGHT_NAMESPACE_END
