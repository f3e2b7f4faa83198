// One warp's share of a decode step on the tensor cores: 16 slots of a KV head, and up to eight
// query heads that share it.
//
// The query heads are rows of A: head g rounded to T in row g, and in row g + 8 what the rounding
// left. The sum of both rows of C is then as exact as fp32 queries would make it, at no cost, since
// a decode step has rows to spare. The probabilities, which come out as C, go into the product with
// the values the same way, and C has the layout of A: nothing is exchanged between lanes.
#pragma once

#include <cstdint>

#include <waterweight/detail/arch/convert.cuh>
#include <waterweight/detail/arch/mma.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

inline constexpr int kChunkSlots = 16;
inline constexpr int kChunkHeads = 8;

/// Two elements of a row g of A and of row g + 8.
template <class T>
struct split_pair {
  std::uint32_t high, low;

  __device__ __forceinline__ split_pair(float a, float b) : high(pack_pair<T>(a, b)) {
    const float2 rounded = unpack_pair<T>(high);
    low = pack_pair<T>(a - rounded.x, b - rounded.y);
  }
};

/// Query heads in shared memory in the order in which lanes read them as A: [heads, HeadDim / 16,
/// 4 lanes] of 16 bytes. Element d as T, and the rest of it two elements further.
template <class T, int HeadDim>
__device__ __forceinline__ void store_query(T* query, int head, int d, float x) {
  const unsigned k = static_cast<unsigned>(d) % 16;
  T* const to = query + head * 2 * HeadDim + d / 16u * 32 + k % 8 / 2 * 8 + k / 8 * 4 + k % 2;
  const T high = from_float<T>(x);
  to[0] = high;
  to[2] = from_float<T>(x - to_float(high));
}

/// The keys or the values of a chunk as B, for every 16 elements of head_dim two n8 tiles.
template <int HeadDim>
struct chunk_rows {
  std::uint32_t b[HeadDim / 16][4];

  /// rows: 16 rows in shared memory, `pitch` bytes apart; row `fresh` (if in 0 ... 15) comes from
  /// `fresh_row` instead.
  __device__ __forceinline__ void load_keys(const std::byte* rows, int pitch, int fresh,
                                            const void* fresh_row) {
    const int lane = threadIdx.x % 32, row = lane % 8 + lane / 16 * 8;
    const std::byte* at = row_of(rows, pitch, row, fresh, fresh_row) + lane / 8 % 2 * 16;
#pragma unroll
    for (int i = 0; i < HeadDim / 16; ++i) ldmatrix_x4(b[i], at + i * 32);
  }

  /// Rows at or beyond `live` become zeros, whatever lies there.
  __device__ __forceinline__ void load_values(const std::byte* rows, int pitch, int fresh,
                                              const void* fresh_row, int live) {
    const int lane = threadIdx.x % 32;
    const std::byte* at = row_of(rows, pitch, lane % 16, fresh, fresh_row) + lane / 16 * 16;
#pragma unroll
    for (int i = 0; i < HeadDim / 16; ++i) ldmatrix_x4_trans(b[i], at + i * 32);
    if (live >= kChunkSlots) return;
    const int row = lane % 4 * 2;
    const std::uint32_t first = pair_mask(live - row), second = pair_mask(live - row - 8);
#pragma unroll
    for (int i = 0; i < HeadDim / 16; ++i) {
      b[i][0] &= first;
      b[i][1] &= second;
      b[i][2] &= first;
      b[i][3] &= second;
    }
  }

 private:
  __device__ __forceinline__ static const std::byte* row_of(const std::byte* rows, int pitch,
                                                            int row, int fresh,
                                                            const void* fresh_row) {
    return row == fresh ? static_cast<const std::byte*>(fresh_row) : rows + row * pitch;
  }
  __device__ __forceinline__ static std::uint32_t pair_mask(int live) {
    return live >= 2 ? 0xffffffffu : live == 1 ? 0x0000ffffu : 0u;
  }
};

/// The softmax of a chunk by itself. Lane 4 * g + t holds query head g and slots 2t, 2t + 1,
/// 2t + 8, 2t + 9.
template <class T>
struct chunk_softmax {
  float maximum;  ///< of the logits, in units of log2; -inf for an empty chunk
  float sum;      ///< of p
  float p[4];     ///< exp2(logit - maximum); 0 for slots at or beyond `live`

  /// query: of store_query, for `heads` <= 8 heads, scaled.
  template <int HeadDim>
  __device__ __forceinline__ void compute(const T* query, int heads,
                                          const chunk_rows<HeadDim>& keys, int live) {
    const int lane = threadIdx.x % 32, head = lane / 4, t = lane % 4;
    const auto* a_of_lane = reinterpret_cast<const uint4*>(query) + head * (HeadDim / 4) + t;
    float c[4][4] = {};  // two tiles, each in two chains of products
#pragma unroll
    for (int i = 0; i < HeadDim / 16; ++i) {
      const uint4 words = head < heads ? a_of_lane[i * 4] : make_uint4(0, 0, 0, 0);
      const std::uint32_t a[4] = {words.x, words.y, words.z, words.w};
      mma_m16n8k16<T>(c[i % 2], a, keys.b[i][0], keys.b[i][1]);
      mma_m16n8k16<T>(c[2 + i % 2], a, keys.b[i][2], keys.b[i][3]);
    }
    float logit[4];
    maximum = -INFINITY;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int tile = i / 2 * 2, e = i % 2;
      logit[i] = (c[tile][e] + c[tile + 1][e]) + (c[tile][e + 2] + c[tile + 1][e + 2]);
      if (slot(i) < live) maximum = fmaxf(maximum, logit[i]);  // a NaN is below everything
    }
    maximum = fmaxf(maximum, __shfl_xor_sync(0xffffffffu, maximum, 1));
    maximum = fmaxf(maximum, __shfl_xor_sync(0xffffffffu, maximum, 2));
#pragma unroll
    for (int i = 0; i < 4; ++i) p[i] = slot(i) < live ? fast_exp2(logit[i] - maximum) : 0.0f;
    sum = (p[0] + p[1]) + (p[2] + p[3]);
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
  }

  /// Of p[i], within the chunk.
  __device__ __forceinline__ static int slot(int i) {
    return static_cast<int>(threadIdx.x % 4) * 2 + i % 2 + i / 2 * 8;
  }

  /// output[head * HeadDim ...] = sum of p * values, for heads < `heads`.
  template <int HeadDim>
  __device__ __forceinline__ void weigh(const chunk_rows<HeadDim>& values, int heads,
                                        float* output) const {
    const int lane = threadIdx.x % 32, head = lane / 4, t = lane % 4;
    const split_pair<T> first(p[0], p[1]), second(p[2], p[3]);
    const std::uint32_t a[4] = {first.high, first.low, second.high, second.low};
    float* const to = output + head * HeadDim + 2 * t;
#pragma unroll
    for (int i = 0; i < HeadDim / 8; ++i) {
      float c[4] = {};
      mma_m16n8k16<T>(c, a, values.b[i / 2][i % 2 * 2], values.b[i / 2][i % 2 * 2 + 1]);
      if (head < heads) {
        *reinterpret_cast<float2*>(to + 8 * i) = make_float2(c[0] + c[2], c[1] + c[3]);
      }
    }
  }
};

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
