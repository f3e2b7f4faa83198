// The ring of stages that the wgmma kernel reads, and the thread that fills it.
#pragma once

#include <waterweight/detail/arch/bulk_copy.cuh>
#include <waterweight/detail/arch/dependent_launch.cuh>
#include <waterweight/detail/arch/mbarrier.cuh>
#include <waterweight/detail/arch/tma.cuh>
#include <waterweight/detail/gemm/wgmma_policy.cuh>
#include <waterweight/detail/gemm/wgmma_schedule.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// The ring of stages in shared memory and where in it a warp is. A stage holds its part of W, then
/// blocks of X.
template <class Element, wgmma_tile Tile>
struct wgmma_ring {
  static constexpr wgmma_policy P = wgmma_policy_of(Tile);
  static constexpr wgmma_layout L = wgmma_layout_of(P, sizeof(Element));

  std::uint32_t first, first_barrier;    ///< shared addresses
  std::uint32_t stage = first;           ///< of the current stage
  std::uint32_t filled = first_barrier;  ///< of its barriers: filled, then free
  std::uint32_t parity = 0;

  __device__ __forceinline__ std::uint32_t x(int block) const {
    return stage + L.w_bytes + block * L.x_bytes;
  }
  __device__ __forceinline__ std::uint32_t free() const { return filled + 8; }

  __device__ __forceinline__ void advance() {
    stage += L.stage_bytes();
    filled += 16;
    if (filled == first_barrier + 16 * L.stages) {
      stage = first;
      filled = first_barrier;
      parity ^= 1;
    }
  }
};

/// The one thread that fills stage after stage.
template <class Element, wgmma_tile Tile>
struct wgmma_producer {
  static constexpr wgmma_policy P = wgmma_policy_of(Tile);
  static constexpr wgmma_layout L = wgmma_layout_of(P, sizeof(Element));
  const CUtensorMap& w_map;
  const CUtensorMap& x_map;
  const wgmma_schedule<Tile>& schedule;

  using ring = wgmma_ring<Element, Tile>;

  __device__ __forceinline__ void load_w(const ring& to, const wgmma_segment& s, int stage) const {
    mbarrier_arrive_expect(to.filled, L.stage_bytes());
    if constexpr (P.mma()) {
      // One tile has all tokens: no other block reads these weights.
      tma_load(to.stage, w_map, s.row0, stage * L.stage_k(), to.filled, evict_first_policy());
    } else {
      tma_load(to.stage, w_map, s.row0, stage * L.stage_k(), to.filled);
    }
  }

  __device__ __forceinline__ void load_x(const ring& to, const wgmma_segment& s, int stage) const {
#pragma unroll
    for (int block = 0; block < L.blocks; ++block) {
      const int column = stage * L.stage_k() + block * kWgmmaBlockK;
      if (schedule.sharing() > 1) {
        constexpr int kShare = P.tokens / P.multicast;
        const int from = kShare * schedule.rank;
        tma_load_multicast(to.x(block) + from * kWgmmaBlockK * 2, x_map, s.token0 + from, column,
                           to.filled, (1 << P.multicast) - 1);
      } else {
#pragma unroll
        for (int part = 0; part < P.multicast; ++part) {
          constexpr int kShare = P.tokens / P.multicast;
          tma_load(to.x(block) + part * kShare * kWgmmaBlockK * 2, x_map, s.token0 + part * kShare,
                   column, to.filled);
        }
      }
    }
  }

  /// The weights of the first stages may be on their way before earlier kernels have ended.
  __device__ __forceinline__ void run(ring to, wgmma_start start) const {
    if (start == wgmma_start::after_earlier_kernels) wait_for_earlier_kernels();
    bool first = true;
    schedule.for_each_segment([&](const wgmma_segment& s, auto) {
      int stage = s.begin;
      if (first) {
        first = false;
        const int ahead = min(P.early_stages(), s.end - s.begin);
        ring early = to;
        for (int i = 0; i < ahead; ++i, early.advance()) load_w(early, s, stage + i);
        if (start != wgmma_start::beside_earlier) wait_for_earlier_kernels();
        if constexpr (!P.mma()) launch_dependents();
        for (int i = 0; i < ahead; ++i, to.advance()) load_x(to, s, stage + i);
        stage += ahead;
      }
      for (; stage < s.end; ++stage, to.advance()) {
        mbarrier_wait(to.free(), to.parity ^ 1);
        load_w(to, s, stage);
        load_x(to, s, stage);
      }
    });
    // Few tokens take little but the loading of weights, which those of the next kernel would
    // share.
    if constexpr (P.mma()) launch_dependents();
  }
};

#endif  // sm_90a

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
