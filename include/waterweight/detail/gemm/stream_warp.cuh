// A warp of the streaming kernel that multiplies: its activations in registers, its ring of
// weights.
#pragma once

#include <waterweight/detail/arch/memory.cuh>
#include <waterweight/detail/gemm/stream_schedule.cuh>
#include <waterweight/detail/gemm/stream_weights.cuh>
#include <waterweight/detail/gemm/weights.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

/// One of the warps that multiply: its part of K.
template <class T, int NTiles>
class stream_warp {
 public:
  static constexpr int kRowBytes = stream_row_bytes(NTiles), kDepth = stream_depth(NTiles);
  static constexpr int kParts = kRowBytes / kStreamPart;  ///< of a group
  static constexpr int kPartBytes = kStreamGroup * kStreamPart;
  static constexpr int kPartChunks = kStreamPart / kStreamChunk;
  static constexpr int kChunks = kRowBytes / kStreamChunk;

  __device__ __forceinline__ stream_warp(const weight_operand<std::int8_t>& w,
                                         const stream_share& share, std::byte* ring)
      : part_(ring + warp() * kDepth * kPartBytes),
        ld_(static_cast<int>(w.ld / 16)),
        tile_step_(share.tile_step) {
    const int row = share.row0 + lane() / 8, k = first_k() + lane() % 8 * 16;
    // Neighbouring rows lie in different halves of the banks.
    place_ = lane() / 8 * kStreamPart + (lane() % 8 ^ lane() / 8 % 2 * 4) * 16;
    first_ = w.data + row * w.ld + share.k_begin + k;
    rows_ = w.rows - row;
#pragma unroll
    for (int i = 0; i < kParts; ++i) present_[i] = k + kStreamPart * i < share.k_count;
  }

  /// What request() asks for parts of from now on: the group that begins `step` rows further than
  /// group 0.
  __device__ __forceinline__ void aim(int step) {
    aimed_ = step;
    left_ = rows_ - step;
  }

  /// Nothing more to ask for.
  __device__ __forceinline__ void rest() { left_ = 0; }

  /// Asks for a part of a group, in the place of the oldest one: with each instruction 128 bytes of
  /// the four rows of a tile.
  template <int Part>
  __device__ __forceinline__ void request() {
    if (present_[Part]) {
#pragma unroll
      for (int i = 0; i < kStreamTiles; ++i) {
        if (i * tile_step_ < left_) {
          cp_async_16(part_ + oldest_ + place_ + i * kStreamTile * kStreamPart,
                      first_ + vectors(aimed_ + i * tile_step_) + Part * kStreamPart, 16);
        }
      }
    }
    cp_async_commit();
    oldest_ = oldest_ + kPartBytes == kDepth * kPartBytes ? 0 : oldest_ + kPartBytes;
  }

  __device__ __forceinline__ void request_group() {
    request<0>();
    if constexpr (kParts > 1) request<1>();
  }

  /// Loads this warp's activations: X must be final.
  __device__ __forceinline__ void load(const T* x, std::int64_t x_ld, int m_count,
                                       const stream_share& share) {
#pragma unroll
    for (int j = 0; j < NTiles; ++j) {
      const int m = 8 * j + group();
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const int k = first_k() + c * kStreamChunk + quad() * 16;
        const bool present = m < m_count && k < share.k_count;
        const T* source = x + m * x_ld + share.k_begin + k;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint4 v = present ? load_l2(source + 8 * half) : make_uint4(0, 0, 0, 0);
          x_[c][j][4 * half] = v.x;
          x_[c][j][4 * half + 1] = v.y;
          x_[c][j][4 * half + 2] = v.z;
          x_[c][j][4 * half + 3] = v.w;
        }
      }
    }
#pragma unroll
    for (int j = 0; j < NTiles; ++j) {
      const stream_activation_scale<T> scale(x_, j);
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
#pragma unroll
        for (int step = 0; step < 4; ++step) {
          scale.apply(x_[c][j][2 * step], x_[c][j][2 * step + 1]);
        }
      }
      factor_[j] = scale.factor_of(2 * quad());
    }
    // What the offset of the weights adds to every row, taken off beforehand.
    constexpr std::uint32_t kOffset = 0x80808080u;
    constexpr std::uint32_t kOffsets[4] = {kOffset, kOffset, kOffset, kOffset};
#pragma unroll
    for (int j = 0; j < NTiles; ++j) {
      float acc[2][4] = {};
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
#pragma unroll
        for (int step = 0; step < 4; ++step) {
          mma_m16n8k16<__half>(acc[step % 2], kOffsets, x_[c][j][2 * step], x_[c][j][2 * step + 1]);
        }
      }
      start_[j] = make_float2(acc[0][0] + acc[1][0], acc[0][1] + acc[1][1]);
    }
  }

  /// Multiplies the oldest group in the ring and asks for that aimed at in its place. What the ring
  /// holds beyond K meets zeros.
  __device__ __forceinline__ void multiply() {
#pragma unroll
    for (int j = 0; j < NTiles; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        acc_[j][e] = e % 2 == 0 ? start_[j].x : start_[j].y;
      }
    }
    multiply_part<0>();
    if constexpr (kParts > 1) multiply_part<1>();
  }

  /// The sums as floats [NTiles][16 rows][8 tokens].
  __device__ __forceinline__ void write_sums(float* to) const {
#pragma unroll
    for (int j = 0; j < NTiles; ++j) {
      float sum[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        sum[e] = factor_[j].apply(acc_[j][e], e % 2);
      }
      float* const mine = to + j * 128 + group() * 8 + quad() * 2;
      *reinterpret_cast<float2*>(mine) = make_float2(sum[0], sum[1]);
      *reinterpret_cast<float2*>(mine + 64) = make_float2(sum[2], sum[3]);
    }
  }

 private:
  __device__ static __forceinline__ int warp() { return threadIdx.x / 32; }
  __device__ static __forceinline__ int lane() { return threadIdx.x % 32; }
  __device__ static __forceinline__ int group() { return lane() / 4; }
  __device__ static __forceinline__ int quad() { return lane() % 4; }
  __device__ static __forceinline__ int first_k() { return warp() * kRowBytes; }
  /// Bytes of `rows` rows: they start on multiples of 16.
  __device__ __forceinline__ std::int64_t vectors(int rows) const {
    return static_cast<std::int64_t>(static_cast<std::uint32_t>(rows * ld_)) * 16;
  }

  template <int Part>
  __device__ __forceinline__ void multiply_part() {
    cp_async_wait<kDepth - 1>();
    __syncwarp();
    const std::byte* const first = part_ + oldest_ + group() * kStreamPart;
#pragma unroll
    for (int c = 0; c < kPartChunks; ++c) {
      const std::byte* const row = first + (4 * c + quad() ^ group() % 2 * 4) * 16;
      const uint4 low = *reinterpret_cast<const uint4*>(row);
      const uint4 high = *reinterpret_cast<const uint4*>(row + 8 * kStreamPart);
      if (c + 1 == kPartChunks) {
        __syncwarp();
        request<Part>();
      }
      const std::uint32_t first_row[4] = {low.x, low.y, low.z, low.w};
      const std::uint32_t second_row[4] = {high.x, high.y, high.z, high.w};
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        std::uint32_t a[4];
        offset_four(first_row[step], a[0], a[2]);
        offset_four(second_row[step], a[1], a[3]);
#pragma unroll
        for (int j = 0; j < NTiles; ++j) {
          const std::uint32_t(&x)[8] = x_[Part * kPartChunks + c][j];
          mma_m16n8k16<__half>(acc_[j], a, x[2 * step], x[2 * step + 1]);
        }
      }
    }
  }

  std::byte* part_;           ///< the warp's ring
  const std::int8_t* first_;  ///< this lane's vector of group 0
  int ld_, tile_step_;
  int aimed_;        ///< rows from group 0 to the group aimed at
  int rows_, left_;  ///< of W from there on
  int place_;        ///< of this lane in four rows of a part
  int oldest_ = 0;   ///< part of the ring, bytes
  bool present_[kParts];
  std::uint32_t x_[kChunks][NTiles][8];
  stream_sum_factor<T> factor_[NTiles];
  float2 start_[NTiles];
  float acc_[NTiles][4];
};

#endif

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
