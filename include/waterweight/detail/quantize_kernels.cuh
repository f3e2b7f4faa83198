// Kernels behind quantize_per_channel and dequantize.
#pragma once

#include <cstdint>

#include <waterweight/detail/arch/memory.cuh>
#include <waterweight/detail/launch.cuh>
#include <waterweight/detail/quantize_arithmetic.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

/// 16-byte vectors that a thread keeps in registers: all of them are under way together, and 80
/// registers let six blocks of four warps reside on an SM. On H200 with FP16 input of 10240 x 2560
/// this reaches 82 % of a copy, 8 vectors or 16 reach 75 to 80.
inline constexpr int kQuantizeVectors = 10;
inline constexpr int kQuantizeBlockWarps = 4;  ///< of a block, where a row takes no more
inline constexpr int kQuantizeMaxWarps = 16;
inline constexpr int kQuantizeThreads = 256;  ///< of the other kernels here

/// The operands of a quantization as the kernels take them.
template <class T>
struct quantize_operands {
  const T* w;
  std::int64_t w_ld;
  std::int8_t* q;
  std::int64_t q_ld;
  float* scale;
  int rows;
  int cols;
  int* bad_rows;

  /// What one thread per row does.
  __device__ __forceinline__ void report(const row_quantizer<T>& quantizer, int row) const {
    scale[row] = quantizer.scale();
    if (!quantizer.finite()) atomicAdd(bad_rows, 1);
  }
};

/// The maximum over a row's `warps` neighbouring warps of the block. Every thread of the block
/// calls it, `warps` is the same for all.
__device__ __forceinline__ std::uint32_t row_maximum(std::uint32_t mine, int warps) {
  __shared__ std::uint32_t warp_max[kQuantizeMaxWarps];
  mine = __reduce_max_sync(0xffffffffu, mine);
  if (warps == 1) return mine;
  const int warp = threadIdx.x / 32;
  if (threadIdx.x % 32 == 0) warp_max[warp] = mine;
  __syncthreads();
  for (int i = 0; i < warps; ++i) mine = max(mine, warp_max[warp / warps * warps + i]);
  return mine;
}

/// Rows that start on 16-byte boundaries: `warps` (a power of two) of the block take one and keep
/// it in registers between the search for its maximum and the rounding.
/// Needs cols <= warps * 32 * kQuantizeVectors vectors.
template <class T>
__global__ void __launch_bounds__(32 * kQuantizeMaxWarps)
    quantize_kernel(quantize_operands<T> operands, int warps) {
  constexpr int kElements = 16 / static_cast<int>(sizeof(T));
  const int lanes = 32 * warps, lane = threadIdx.x % lanes;
  const int row = blockIdx.x * (blockDim.x / lanes) + threadIdx.x / lanes;
  const bool present = row < operands.rows;
  const int vectors = present ? operands.cols / kElements : 0;
  const int tail =
      vectors * kElements + lane;  // the element behind the vectors that is this lane's
  const T* const from = operands.w + row * operands.w_ld;
  std::int8_t* const to = operands.q + row * operands.q_ld;

  uint4 kept[kQuantizeVectors];
  T last{};
#pragma unroll
  for (int i = 0; i < kQuantizeVectors; ++i) {
    const int vector = i * lanes + lane;
    kept[i] = make_uint4(0, 0, 0, 0);
    if (vector < vectors) kept[i] = load_streaming(from + vector * kElements);
  }
  if (present && tail < operands.cols) last = from[tail];

  row_magnitude<T> magnitude;
#pragma unroll
  for (int i = 0; i < kQuantizeVectors; ++i) magnitude.add(kept[i]);
  magnitude.add(last);
  const row_quantizer<T> quantizer(row_maximum(magnitude.bits(), warps));
  if (!present) return;
  if (lane == 0) operands.report(quantizer, row);

#pragma unroll
  for (int i = 0; i < kQuantizeVectors; ++i) {
    const int vector = i * lanes + lane;
    if (vector >= vectors) break;
    if constexpr (std::is_same_v<T, float>) {
      const float4 x = *reinterpret_cast<const float4*>(&kept[i]);
      *reinterpret_cast<std::uint32_t*>(to + 4 * vector) = quantizer.four(x.x, x.y, x.z, x.w);
    } else {
      const float2 a = unpack_pair<T>(kept[i].x), b = unpack_pair<T>(kept[i].y);
      const float2 c = unpack_pair<T>(kept[i].z), d = unpack_pair<T>(kept[i].w);
      *reinterpret_cast<uint2*>(to + 8 * vector) =
          make_uint2(quantizer.four(a.x, a.y, b.x, b.y), quantizer.four(c.x, c.y, d.x, d.y));
    }
  }
  if (tail < operands.cols) to[tail] = quantizer.one(last);
}

/// Any row: a block takes one, element by element, and reads it again (from L1 or L2) to round it.
template <class T>
__global__ void __launch_bounds__(kQuantizeThreads)
    quantize_any_kernel(quantize_operands<T> operands) {
  const int row = blockIdx.x;
  const T* const from = operands.w + row * operands.w_ld;
  std::int8_t* const to = operands.q + row * operands.q_ld;
  row_magnitude<T> magnitude;
  for (int k = threadIdx.x; k < operands.cols; k += kQuantizeThreads) magnitude.add(from[k]);
  const row_quantizer<T> quantizer(row_maximum(magnitude.bits(), kQuantizeThreads / 32));
  if (threadIdx.x == 0) operands.report(quantizer, row);
  for (int k = threadIdx.x; k < operands.cols; k += kQuantizeThreads) {
    to[k] = quantizer.one(from[k]);
  }
}

template <class T>
__global__ void __launch_bounds__(kQuantizeThreads)
    dequantize_kernel(const std::int8_t* __restrict__ q, std::int64_t q_ld,
                      const float* __restrict__ scale, T* w, std::int64_t w_ld, int cols) {
  const float row_scale = scale[blockIdx.x];
  for (int k = threadIdx.x; k < cols; k += kQuantizeThreads) {
    w[blockIdx.x * w_ld + k] =
        from_float<T>(row_scale * static_cast<float>(q[blockIdx.x * q_ld + k]));
  }
}

template <class T>
cudaError_t launch_quantize(const matrix_view<const T>& w, const mutable_int8_weight_view& q,
                            int* bad_rows, cudaStream_t stream) {
  static_assert(is_activation_v<T> || std::is_same_v<T, float>,
                "weights must be float, __half or __nv_bfloat16");
  const bool valid = valid_matrix(w) && valid_weights(q) && w.rows == q.rows && w.cols == q.cols &&
                     bad_rows != nullptr;
  if (!valid) return cudaErrorInvalidValue;
  const bool aligned = is_aligned(w.data, 16) && w.ld * sizeof(T) % 16 == 0 &&
                       is_aligned(q.data, 8) && q.ld % 8 == 0;
  const quantize_operands<T> operands{
      w.data,  w.ld, q.data, q.ld, q.scale, static_cast<int>(w.rows), static_cast<int>(w.cols),
      bad_rows};
  const std::int64_t vectors = w.cols * static_cast<std::int64_t>(sizeof(T)) / 16;
  int warps = 1;
  while (warps < kQuantizeMaxWarps && vectors > warps * 32 * kQuantizeVectors) warps *= 2;
  if (!aligned || vectors > warps * 32 * kQuantizeVectors) {
    return launch(quantize_any_kernel<T>, dim3(static_cast<unsigned>(w.rows)), kQuantizeThreads, 0,
                  stream, operands);
  }
  const int block_warps = warps > kQuantizeBlockWarps ? warps : kQuantizeBlockWarps;
  const std::int64_t blocks = ceil_div(w.rows, block_warps / warps);
  return launch(quantize_kernel<T>, dim3(static_cast<unsigned>(blocks)), 32 * block_warps, 0,
                stream, operands, warps);
}

template <class T>
cudaError_t launch_dequantize(const int8_weight_view& q, const matrix_view<T>& w,
                              cudaStream_t stream) {
  static_assert(is_activation_v<T> || std::is_same_v<T, float>,
                "weights must be float, __half or __nv_bfloat16");
  const bool valid = valid_matrix(w) && valid_weights(q) && w.rows == q.rows && w.cols == q.cols;
  if (!valid) return cudaErrorInvalidValue;
  return launch(dequantize_kernel<T>, dim3(static_cast<unsigned>(w.rows)), kQuantizeThreads, 0,
                stream, q.data, q.ld, q.scale, w.data, w.ld, static_cast<int>(w.cols));
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
