// A warp of the streaming kernel that multiplies: its part of K, with its activations in registers.
#pragma once

#include <waterweight/detail/arch/memory.cuh>
#include <waterweight/detail/gemm/stream_barriers.cuh>
#include <waterweight/detail/gemm/weights.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

/// Weights as operands of mma, of type T: kUnit times what the sums are short of, kOffset what they
/// are too large by for each weight. Two k16 steps' worth of 16-bit weights, four of INT8.
template <class T, class Element>
struct stream_operand {
  static constexpr int kSteps = 2;
  static constexpr float kUnit = 1.0f;
  static constexpr bool kOffset = false;
  __device__ static __forceinline__ void pairs(const std::uint32_t (&words)[4], int step,
                                               std::uint32_t& pair01, std::uint32_t& pair23) {
    pair01 = words[2 * step];
    pair23 = words[2 * step + 1];
  }
};

template <>
struct stream_operand<__nv_bfloat16, std::int8_t> {
  static constexpr int kSteps = 4;
  static constexpr float kUnit = scaled_dequantizer<__nv_bfloat16>::kUnit;
  static constexpr bool kOffset = false;
  __device__ static __forceinline__ void pairs(const std::uint32_t (&words)[4], int step,
                                               std::uint32_t& pair01, std::uint32_t& pair23) {
    scaled_dequantizer<__nv_bfloat16>::four(words[step], pair01, pair23);
  }
};

/// A weight plus 128 is a byte, and a byte is, as it stands, the bits of a subnormal __half, which
/// tensor cores multiply like any other: three instructions for four weights. What the 128 add to a
/// sum depends on the activations alone and is taken off beforehand.
template <>
struct stream_operand<__half, std::int8_t> {
  static constexpr int kSteps = 4;
  static constexpr float kUnit = 0x1p24f;
  static constexpr bool kOffset = true;
  static constexpr std::uint32_t kMinusOffset = 0x80808080u;  ///< a pair of -128 * 2^-24
  __device__ static __forceinline__ void pairs(const std::uint32_t (&words)[4], int step,
                                               std::uint32_t& pair01, std::uint32_t& pair23) {
    const std::uint32_t u = words[step] ^ 0x80808080u;
    pair01 = __byte_perm(u, 0, 0x4140);
    pair23 = __byte_perm(u, 0, 0x4342);
  }
};

template <class T, class Element, int NTiles>
class stream_multiplier {
 public:
  using operand = stream_operand<T, Element>;
  static constexpr int kChunks = stream_chunks(NTiles, sizeof(Element));
  static constexpr int kSteps = operand::kSteps;
  static constexpr int kSets = NTiles == 1 ? 2 : 1;  ///< of sums: shorter chains of mma

  __device__ __forceinline__ stream_multiplier(const stream_plan& plan, const stream_share& share)
      : first_(threadIdx.x / 32 * plan.warp_chunks * kStreamChunk + quad() * 16),
        bytes_(share.k_bytes),
        chunks_(min(plan.warp_chunks, (share.k_bytes + kStreamChunk - 1) / kStreamChunk -
                                          static_cast<int>(threadIdx.x) / 32 * plan.warp_chunks)),
        pitch_(plan.pitch()) {}

  /// Loads this warp's activations: X must be final.
  __device__ __forceinline__ void load(const T* x, std::int64_t x_ld, int m_count,
                                       const stream_share& share) {
    constexpr int kVectors = kSteps / 2, kElement = static_cast<int>(sizeof(Element));
#pragma unroll
    for (int j = 0; j < NTiles; ++j) {
      const int m = 8 * j + group();
      const T* const row = x + m * x_ld + (share.k_begin + first_) / kElement;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const bool present = m < m_count && c < chunks_ && first_ + c * kStreamChunk < bytes_;
#pragma unroll
        for (int i = 0; i < kVectors; ++i) {
          const uint4 v =
              present ? load_l2(row + c * kStreamChunk / kElement + 8 * i) : make_uint4(0, 0, 0, 0);
          x_[c][j][4 * i] = v.x;
          x_[c][j][4 * i + 1] = v.y;
          x_[c][j][4 * i + 2] = v.z;
          x_[c][j][4 * i + 3] = v.w;
        }
      }
    }
    if constexpr (operand::kOffset) {
      constexpr std::uint32_t kOffset = operand::kMinusOffset;
      constexpr std::uint32_t kOffsets[4] = {kOffset, kOffset, kOffset, kOffset};
#pragma unroll
      for (int j = 0; j < NTiles; ++j) {
        float acc[2][4] = {};
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
#pragma unroll
          for (int step = 0; step < kSteps; ++step) {
            mma_m16n8k16<T>(acc[step % 2], kOffsets, x_[c][j][2 * step], x_[c][j][2 * step + 1]);
          }
        }
        start_[j] = make_float2(acc[0][0] + acc[1][0], acc[0][1] + acc[1][1]);
      }
    }
  }

  /// Multiplies rows g and g + 8 of a group, of which this lane has group() in slots at `low` and
  /// `high`; calls read(word) when it has what it needs of the ring: `word` is made of all of it.
  template <class Read>
  __device__ __forceinline__ void multiply(const std::byte* low, const std::byte* high,
                                           const Read& read) {
#pragma unroll
    for (int j = 0; j < NTiles; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        acc_[0][j][e] = !operand::kOffset ? 0.0f : e % 2 == 0 ? start_[j].x : start_[j].y;
        if constexpr (kSets > 1) acc_[1][j][e] = 0.0f;
      }
    }
    const int row = group() % kStreamTile * pitch_;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      // Lanes past the end of K have zeros to multiply by: any weights of the row will do.
      const int k = first_ + c * kStreamChunk < bytes_ ? first_ + c * kStreamChunk : 0;
      const uint4 first = *reinterpret_cast<const uint4*>(low + row + k);
      const uint4 second = *reinterpret_cast<const uint4*>(high + row + k);
      if (c + 1 == kChunks) read(first.w | second.w | word());
      const std::uint32_t first_row[4] = {first.x, first.y, first.z, first.w};
      const std::uint32_t second_row[4] = {second.x, second.y, second.z, second.w};
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        std::uint32_t a[4];
        operand::pairs(first_row, step, a[0], a[2]);
        operand::pairs(second_row, step, a[1], a[3]);
#pragma unroll
        for (int j = 0; j < NTiles; ++j) {
          mma_m16n8k16<T>(acc_[step % kSets][j], a, x_[c][j][2 * step], x_[c][j][2 * step + 1]);
        }
      }
    }
  }

  /// The sums as floats [NTiles][16 rows][8 tokens].
  __device__ __forceinline__ void write_sums(float* to) const {
#pragma unroll
    for (int j = 0; j < NTiles; ++j) {
      float sum[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        sum[e] = acc_[0][j][e];
        if constexpr (kSets > 1) sum[e] += acc_[1][j][e];
      }
      float* const mine = to + j * 128 + group() * 8 + quad() * 2;
      *reinterpret_cast<float2*>(mine) = make_float2(sum[0], sum[1]);
      *reinterpret_cast<float2*>(mine + 64) = make_float2(sum[2], sum[3]);
    }
  }

  __device__ static __forceinline__ int group() { return threadIdx.x % 32 / 4; }

 private:
  /// Made of all weights that were multiplied.
  __device__ __forceinline__ std::uint32_t word() const {
    std::uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < kSets; ++i) bits |= __float_as_uint(acc_[i][NTiles - 1][3]);
    return bits;
  }

  __device__ static __forceinline__ int quad() { return threadIdx.x % 4; }

  int first_;   ///< this lane's first byte of the slab
  int bytes_;   ///< of the slab
  int chunks_;  ///< of this warp
  int pitch_;
  std::uint32_t x_[kChunks][NTiles][2 * kSteps];
  float2 start_[NTiles];
  float acc_[kSets][NTiles][4];
};

#endif

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
