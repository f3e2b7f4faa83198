// How the blocks of a cluster that share K of a tile add their sums: each owns some of the tokens
// and gets from the others what they have for these, through distributed shared memory.
#pragma once

#include <waterweight/detail/arch/cluster.cuh>
#include <waterweight/detail/arch/mbarrier.cuh>
#include <waterweight/detail/gemm/wgmma_policy.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// Sums travel as threads hold them, in groups of 8 tokens: four floats of every consumer. Each
/// block owns so many of the groups in order that the last ones may own fewer, or none.
template <wgmma_tile Tile>
struct wgmma_parts {
  static constexpr wgmma_policy P = wgmma_policy_of(Tile);
  static constexpr int kGroupBytes = P.consumers() * 16;

  int rank, blocks;
  int groups;             ///< of the tile that have tokens
  int share;              ///< groups that a block owns at most: see share_of
  std::uint32_t buffer;   ///< shared address, the same in all blocks; a tile of floats
  std::uint32_t barrier;  ///< shared address of an mbarrier, the same in all blocks

  __device__ __forceinline__ static int share_of(int blocks) {
    return (P.tokens / 8 + blocks - 1) / blocks;
  }
  __device__ __forceinline__ int first_group() const { return rank * share; }
  __device__ __forceinline__ int owned() const {
    return max(min(share, groups - first_group()), 0);
  }

  /// Where this thread's sums of a group, counted from the owner's first, have their place: parts
  /// of one group lie together.
  __device__ __forceinline__ std::uint32_t place(int from_rank, int group) const {
    return buffer + (group * blocks + from_rank) * kGroupBytes + threadIdx.x * 16;
  }

  /// By one thread, before any block sends.
  __device__ __forceinline__ void expect() const {
    mbarrier_arrive_expect(barrier, (blocks - 1) * owned() * kGroupBytes);
  }

  /// Sends each block its part. The buffers of all must be free.
  template <int Registers>
  __device__ __forceinline__ void send(const float (&d)[Registers]) const {
    int owner = 0, end = share;
    std::uint32_t to = place(rank, 0);
#pragma unroll
    for (int j = 0; j < Registers / 4; ++j) {
      if (j >= groups) break;
      if (j == end) {
        ++owner;
        end += share;
        to = place(rank, 0);
      }
      const float4 sums = make_float4(d[4 * j], d[4 * j + 1], d[4 * j + 2], d[4 * j + 3]);
      if (owner == rank) {
        asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to), "f"(sums.x), "f"(sums.y),
                     "f"(sums.z), "f"(sums.w)
                     : "memory");
      } else {
        send_float4(to, sums, barrier, owner);
      }
      to += blocks * kGroupBytes;
    }
  }

  /// The whole sums of owned groups from `group` on, once all parts are there: added in the order
  /// of K. After the last owned group anything.
  template <int Registers>
  __device__ __forceinline__ void add(float (&sums)[Registers], int group) const {
    constexpr int kCount = Registers / 4;
    std::uint32_t from[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) from[i] = place(0, min(group + i, owned() - 1));
#pragma unroll
    for (int i = 0; i < Registers; ++i) sums[i] = 0.0f;
#pragma unroll 2
    for (int block = 0; block < blocks; ++block) {
      float4 parts[kCount];
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                     : "=f"(parts[i].x), "=f"(parts[i].y), "=f"(parts[i].z), "=f"(parts[i].w)
                     : "r"(from[i] + block * kGroupBytes)
                     : "memory");
      }
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        sums[4 * i] += parts[i].x;
        sums[4 * i + 1] += parts[i].y;
        sums[4 * i + 2] += parts[i].z;
        sums[4 * i + 3] += parts[i].w;
      }
    }
  }
};

#endif  // sm_90a

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
