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

/// The rows of a chunk in shared memory, `pitch` bytes apart; row `fresh` (if in 0 ... 15) lies at
/// `fresh_row` instead.
struct chunk_rows {
  const std::byte* rows;
  int pitch, fresh;
  const void* fresh_row;

  /// What the calling lane gives ldmatrix to read 16 elements of keys, 32 bytes further the next.
  __device__ __forceinline__ const std::byte* keys_of_lane() const {
    const int lane = threadIdx.x % 32;
    return at(lane % 8 + lane / 16 * 8) + lane / 8 % 2 * 16;
  }
  /// The same for values, transposed.
  __device__ __forceinline__ const std::byte* values_of_lane() const {
    const int lane = threadIdx.x % 32;
    return at(lane % 16) + lane / 16 * 16;
  }

 private:
  __device__ __forceinline__ const std::byte* at(int row) const {
    return row == fresh ? static_cast<const std::byte*>(fresh_row) : rows + row * pitch;
  }
};

/// The softmax of a chunk by itself. Lane 4 * g + t holds query head g and slots 2t, 2t + 1,
/// 2t + 8, 2t + 9.
template <class T>
struct chunk_softmax {
  float maximum;    ///< of the logits, in units of log2; -inf for an empty chunk
  float sum;        ///< of p
  float p[4] = {};  ///< exp2(logit - maximum); 0 for slots at or beyond `live`

  /// query: of store_query, for `heads` <= 8 heads, scaled.
  template <int HeadDim>
  __device__ __forceinline__ void compute(const T* query, int heads, const chunk_rows& keys,
                                          int live) {
    const int lane = threadIdx.x % 32, head = lane / 4, t = lane % 4;
    const auto* a_of_lane = reinterpret_cast<const uint4*>(query) + head * (HeadDim / 4) + t;
    const std::byte* const keys_of_lane = keys.keys_of_lane();
    float c[4][4] = {};  // two tiles, each in two chains of products
#pragma unroll
    for (int i = 0; i < HeadDim / 16; ++i) {
      const uint4 words = head < heads ? a_of_lane[i * 4] : make_uint4(0, 0, 0, 0);
      const std::uint32_t a[4] = {words.x, words.y, words.z, words.w};
      std::uint32_t b[4];
      ldmatrix_x4(b, keys_of_lane + i * 32);
      mma_m16n8k16<T>(c[i % 2], a, b[0], b[1]);
      mma_m16n8k16<T>(c[2 + i % 2], a, b[2], b[3]);
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

  /// p of the calling lane's query head to `head_p` [kChunkSlots], 8-byte aligned, and back.
  __device__ __forceinline__ void store(float* head_p) const {
    auto* const pairs = reinterpret_cast<float2*>(head_p) + threadIdx.x % 4;
    pairs[0] = make_float2(p[0], p[1]);
    pairs[kChunkSlots / 4] = make_float2(p[2], p[3]);
  }
  __device__ __forceinline__ void load(const float* head_p) {
    const auto* const pairs = reinterpret_cast<const float2*>(head_p) + threadIdx.x % 4;
    const float2 low = pairs[0], high = pairs[kChunkSlots / 4];
    p[0] = low.x;
    p[1] = low.y;
    p[2] = high.x;
    p[3] = high.y;
  }

  /// output[head * HeadDim ...] = sum of p * values, for heads < `heads`. Rows at or beyond `live`
  /// count as zeros, whatever lies there.
  template <int HeadDim>
  __device__ __forceinline__ void weigh(const chunk_rows& values, int live, int heads,
                                        float* output) const {
    const int lane = threadIdx.x % 32, head = lane / 4, t = lane % 4;
    const std::byte* const values_of_lane = values.values_of_lane();
    const std::uint32_t mask[2] = {pair_mask(live - 2 * t), pair_mask(live - 2 * t - 8)};
    const split_pair<T> first(p[0], p[1]), second(p[2], p[3]);
    const std::uint32_t a[4] = {first.high, first.low, second.high, second.low};
    float* const to = output + head * HeadDim + 2 * t;
#pragma unroll
    for (int i = 0; i < HeadDim / 16; ++i) {
      std::uint32_t b[4];
      ldmatrix_x4_trans(b, values_of_lane + i * 32);
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        float c[4] = {};
        mma_m16n8k16<T>(c, a, b[2 * tile] & mask[0], b[2 * tile + 1] & mask[1]);
        if (head < heads) {
          *reinterpret_cast<float2*>(to + 16 * i + 8 * tile) =
              make_float2(c[0] + c[2], c[1] + c[3]);
        }
      }
    }
  }

 private:
  __device__ __forceinline__ static std::uint32_t pair_mask(int live) {
    return live >= 2 ? 0xffffffffu : live == 1 ? 0x0000ffffu : 0u;
  }
};

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
