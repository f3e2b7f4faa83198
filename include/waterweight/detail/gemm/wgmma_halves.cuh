// How two blocks that share K of a tile add their sums: each keeps half of the tokens and sends the
// other half through distributed shared memory, in rounds that the owner adds and stores as they
// come.
#pragma once

#include <waterweight/detail/arch/cluster.cuh>
#include <waterweight/detail/arch/mbarrier.cuh>
#include <waterweight/detail/gemm/wgmma_policy.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// Sums travel as threads hold them, in groups of 8 tokens: four floats of every consumer, which
/// the same thread of the other block receives. They arrive where a warpgroup otherwise stages
/// finished values: nobody has to wait until the other block has read its stages.
template <class Element, wgmma_tile Tile>
struct wgmma_halves {
  static constexpr wgmma_policy P = wgmma_policy_of(Tile);
  static constexpr wgmma_layout L = wgmma_layout_of(P, sizeof(Element));
  static constexpr int kGroups = P.tokens / 8;
  static constexpr int kShare = (kGroups + 1) / 2;  ///< groups of the first block
  static constexpr int kRoundGroups = 4;
  static constexpr int kRounds = (kShare + kRoundGroups - 1) / kRoundGroups;
  static constexpr int kGroupBytes = 128 * 16;  ///< of a warpgroup
  static constexpr bool kUsed = P.halves() && kShare * kGroupBytes <= L.staging;
  static constexpr int kBarriers = kUsed ? P.warpgroups * kRounds : 0;  ///< of all warpgroups

  int rank;
  std::uint32_t incoming;  ///< shared address of this warpgroup's sums, the same in both blocks
  std::uint32_t barriers;  ///< likewise: of this warpgroup's mbarriers, one for each round

  /// What arrives at each of a block's barriers. By the thread that made them: number `i`.
  __device__ __forceinline__ static void expect(std::uint32_t barrier, int i) {
    mbarrier_arrive_expect(barrier,
                           min(kRoundGroups, kShare - i % kRounds * kRoundGroups) * kGroupBytes);
  }

  /// Sends the other block its half. This block's own is what d starts with afterwards.
  template <int Registers>
  __device__ __forceinline__ void send(float (&d)[Registers]) const {
    const std::uint32_t to = cluster_address(incoming + threadIdx.x % 128 * 16, 1 - rank);
    const std::uint32_t arrival = cluster_address(barriers, 1 - rank);
#pragma unroll
    for (int j = 0; j < kShare; ++j) {
      float sent[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float low = d[4 * j + e];
        const float high = j + kShare < kGroups ? d[(4 * (j + kShare) + e) % Registers] : 0.0f;
        sent[e] = rank == 0 ? high : low;
        d[4 * j + e] = rank == 0 ? low : high;
      }
      send_float4_to(to + j * kGroupBytes, make_float4(sent[0], sent[1], sent[2], sent[3]),
                     arrival + 8 * (j / kRoundGroups));
    }
  }

  /// The tokens of this block's half, from the tile's first.
  __device__ __forceinline__ int first_token() const { return rank * 8 * kShare; }
  __device__ __forceinline__ int tokens() const {
    return rank == 0 ? 8 * kShare : P.tokens - 8 * kShare;
  }

  __device__ __forceinline__ void wait(int round) const { mbarrier_wait(barriers + 8 * round, 0); }

  /// The whole sums of the groups of a round, once they are there; after the last group anything.
  template <int Registers>
  __device__ __forceinline__ void add(const float (&d)[Registers], float (&sums)[4 * kRoundGroups],
                                      int round) const {
    float4 parts[kRoundGroups];
#pragma unroll
    for (int i = 0; i < kRoundGroups; ++i) {
      const int group = min(round * kRoundGroups + i, kShare - 1);
      asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                   : "=f"(parts[i].x), "=f"(parts[i].y), "=f"(parts[i].z), "=f"(parts[i].w)
                   : "r"(incoming + group * kGroupBytes + threadIdx.x % 128 * 16)
                   : "memory");
    }
    own<0>(d, sums, round);
#pragma unroll
    for (int i = 0; i < kRoundGroups; ++i) {
      sums[4 * i] += parts[i].x;
      sums[4 * i + 1] += parts[i].y;
      sums[4 * i + 2] += parts[i].z;
      sums[4 * i + 3] += parts[i].w;
    }
  }

 private:
  /// This block's own sums of a round. Registers have no run-time index: one branch per round.
  template <int Round, int Registers>
  __device__ __forceinline__ void own(const float (&d)[Registers], float (&sums)[4 * kRoundGroups],
                                      int round) const {
    if (round == Round) {
#pragma unroll
      for (int i = 0; i < 4 * kRoundGroups; ++i) {
        const int from = Round * 4 * kRoundGroups + i;
        sums[i] = from < 4 * kShare ? d[from % Registers] : 0.0f;
      }
    } else if constexpr (Round + 1 < kRounds) {
      own<Round + 1>(d, sums, round);
    }
  }
};

#endif  // sm_90a

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
