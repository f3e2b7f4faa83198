// How the blocks of a cluster that share K of a tile add their sums: each owns some of the tokens
// and gets from the others what they have for these, through distributed shared memory.
#pragma once

#include <waterweight/detail/arch/cluster.cuh>
#include <waterweight/detail/arch/mbarrier.cuh>
#include <waterweight/detail/gemm/wgmma_policy.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// Sums travel as threads hold them, in groups of 8 tokens: four floats of every consumer. The
/// groups of a tile that has tokens in all of them, or fewer, are dealt out in order.
template <wgmma_tile Tile>
struct wgmma_parts {
  static constexpr wgmma_policy P = wgmma_policy_of(Tile);
  static constexpr int kGroupBytes = P.consumers() * 16;

  int rank, blocks;
  int groups;             ///< of the tile
  std::uint32_t buffer;   ///< shared address, the same in all blocks; a tile of floats
  std::uint32_t barrier;  ///< shared address of an mbarrier, the same in all blocks

  __device__ __forceinline__ int first_group(int of_rank) const {
    return groups * of_rank / blocks;
  }
  __device__ __forceinline__ int owned() const { return first_group(rank + 1) - first_group(rank); }

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
    int owner = 0, first = 0, end = first_group(1);
#pragma unroll
    for (int j = 0; j < Registers / 4; ++j) {
      if (j >= groups) break;
      while (j >= end) {
        first = end;
        end = first_group(++owner + 1);
      }
      const float4 sums = make_float4(d[4 * j], d[4 * j + 1], d[4 * j + 2], d[4 * j + 3]);
      const std::uint32_t to = place(rank, j - first);
      if (owner == rank) {
        asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to), "f"(sums.x), "f"(sums.y),
                     "f"(sums.z), "f"(sums.w)
                     : "memory");
      } else {
        send_float4(to, sums, barrier, owner);
      }
    }
  }

  /// The whole sums of an owned group, once all parts are there: added in the order of K.
  __device__ __forceinline__ void add(float* sums, int group) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] = 0.0f;
#pragma unroll 4
    for (int from = 0; from < blocks; ++from) {
      float4 part;
      asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                   : "=f"(part.x), "=f"(part.y), "=f"(part.z), "=f"(part.w)
                   : "r"(place(from, group))
                   : "memory");
      sums[0] += part.x;
      sums[1] += part.y;
      sums[2] += part.z;
      sums[3] += part.w;
    }
  }
};

#endif  // sm_90a

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
