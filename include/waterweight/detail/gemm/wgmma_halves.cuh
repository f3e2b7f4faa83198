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
  static constexpr int kRounds = kShare > 6 ? 2 : 1;
  static constexpr int kRoundGroups = (kShare + kRounds - 1) / kRounds;
  static constexpr int kGroupBytes = 128 * 16;  ///< of a warpgroup
  static constexpr bool kUsed = P.halves();
  static_assert(!kUsed || kShare * kGroupBytes <= L.staging, "sums arrive in the staging area");

  int rank;
  std::uint32_t incoming;  ///< shared address of this warpgroup's sums, the same in both blocks
  std::uint32_t barriers;  ///< likewise: of mbarriers, one for each round

  /// By one thread, at any time: what arrives in each round.
  __device__ __forceinline__ static void expect(std::uint32_t barriers) {
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      constexpr int kBytes = P.warpgroups * kGroupBytes;
      mbarrier_arrive_expect(barriers + 8 * round,
                             min(kRoundGroups, kShare - round * kRoundGroups) * kBytes);
    }
  }

  /// Sends the other block its half.
  template <int Registers>
  __device__ __forceinline__ void send(const float (&d)[Registers]) const {
    if (rank == 0) {
      send_from<kShare>(d);
    } else {
      send_from<0>(d);
    }
  }

  /// The tokens of this block's half, from the tile's first.
  __device__ __forceinline__ int first_token() const { return rank * 8 * kShare; }
  __device__ __forceinline__ int tokens() const {
    return rank == 0 ? 8 * kShare : P.tokens - 8 * kShare;
  }

  __device__ __forceinline__ void wait(int round) const { mbarrier_wait(barriers + 8 * round, 0); }

  /// own = this block's sums of its half, behind the tile's last group zeros.
  template <int Registers>
  __device__ __forceinline__ void keep(const float (&d)[Registers],
                                       float (&own)[4 * kShare]) const {
    if (rank == 0) {
#pragma unroll
      for (int i = 0; i < 4 * kShare; ++i) own[i] = d[i];
    } else {
#pragma unroll
      for (int i = 0; i < 4 * kShare; ++i) {
        own[i] = 4 * kShare + i < Registers ? d[4 * kShare + i] : 0.0f;
      }
    }
  }

  /// The whole sums of the groups of a round, once they are there; after the last group anything.
  __device__ __forceinline__ void add(const float (&own)[4 * kShare],
                                      float (&sums)[4 * kRoundGroups], int round) const {
    // Registers have no run-time index.
    if (kRounds == 1 || round == 0) {
#pragma unroll
      for (int i = 0; i < 4 * kRoundGroups; ++i) sums[i] = own[i];
    } else {
#pragma unroll
      for (int i = 0; i < 4 * kRoundGroups; ++i) {
        sums[i] = 4 * kRoundGroups + i < 4 * kShare ? own[4 * kRoundGroups + i] : 0.0f;
      }
    }
#pragma unroll
    for (int i = 0; i < kRoundGroups; ++i) {
      const int group = min(round * kRoundGroups + i, kShare - 1);
      float4 part;
      asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                   : "=f"(part.x), "=f"(part.y), "=f"(part.z), "=f"(part.w)
                   : "r"(incoming + group * kGroupBytes + threadIdx.x % 128 * 16)
                   : "memory");
      sums[4 * i] += part.x;
      sums[4 * i + 1] += part.y;
      sums[4 * i + 2] += part.z;
      sums[4 * i + 3] += part.w;
    }
  }

 private:
  /// Sends kShare groups from `First` on, those behind the tile's last as zeros.
  template <int First, int Registers>
  __device__ __forceinline__ void send_from(const float (&d)[Registers]) const {
    const std::uint32_t to = cluster_address(incoming + threadIdx.x % 128 * 16, 1 - rank);
    const std::uint32_t arrival = cluster_address(barriers, 1 - rank);
#pragma unroll
    for (int j = 0; j < kShare; ++j) {
      float4 sums = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (First + j < kGroups) {
        const float* const from = d + 4 * (First + j);
        sums = make_float4(from[0], from[1], from[2], from[3]);
      }
      send_float4_to(to + j * kGroupBytes, sums, arrival + 8 * (j / kRoundGroups));
    }
  }
};

#endif  // sm_90a

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
