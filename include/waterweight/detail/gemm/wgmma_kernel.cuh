// The GEMM of many rows on Hopper: wgmma fed by TMA.
//
// W is wgmma's A operand, 64 rows per warpgroup, because A alone may come from registers, where
// INT8 turns into 16 bit; X is B and stays in shared memory as TMA lays it. The sums are those of
// Y^T. One warp copies stages of 64 or 128 K elements ahead of the consumers; these convert the
// next block's weights while the tensor cores work on the current one. 16-bit weights go the same
// way with A in shared memory and nothing to convert.
//
// Where tiles fill the card, blocks are persistent: TMA stores one tile while the next is computed,
// and clusters of two may share their rows of X. Where they do not, a cluster shares one tile: each
// block sums a part of K, and the parts are added in the order of K; two blocks may exchange
// halves.
#pragma once

#include <waterweight/detail/arch/bulk_copy.cuh>
#include <waterweight/detail/arch/cluster.cuh>
#include <waterweight/detail/arch/dependent_launch.cuh>
#include <waterweight/detail/arch/mbarrier.cuh>
#include <waterweight/detail/arch/mma.cuh>
#include <waterweight/detail/arch/tma.cuh>
#include <waterweight/detail/arch/wgmma.cuh>
#include <waterweight/detail/gemm/wgmma_consumer.cuh>
#include <waterweight/detail/gemm/wgmma_halves.cuh>
#include <waterweight/detail/gemm/wgmma_output.cuh>
#include <waterweight/detail/gemm/wgmma_parts.cuh>
#include <waterweight/detail/gemm/wgmma_producer.cuh>
#include <waterweight/detail/gemm/wgmma_schedule.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

/// Compiled for anything but sm_90a it is empty, and has no static shared memory: what the host
/// knows it by. splits: see wgmma_cut.
template <class T, class Element, class Out, class Epilogue, wgmma_tile Tile>
__global__ void __launch_bounds__(wgmma_policy_of(Tile).threads(), wgmma_policy_of(Tile).residents)
    wgmma_gemm_kernel([[maybe_unused]] const __grid_constant__ CUtensorMap w_map,
                      [[maybe_unused]] const __grid_constant__ CUtensorMap x_map,
                      [[maybe_unused]] const __grid_constant__ CUtensorMap y_map,
                      [[maybe_unused]] wgmma_output<Element, Out, Epilogue> output,
                      [[maybe_unused]] int splits, [[maybe_unused]] wgmma_start start) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr wgmma_policy P = wgmma_policy_of(Tile);
  constexpr wgmma_layout L = wgmma_layout_of(P, sizeof(Element));
  extern __shared__ std::byte dynamic_shared[];
  using halves_type = wgmma_halves<Element, Tile>;
  // Two for each stage, those for sums.
  constexpr int kBarriers = 2 * L.stages + (halves_type::kUsed ? halves_type::kRounds : 1);
  __shared__ alignas(16) std::uint64_t barriers[kBarriers];
  const std::uint32_t unaligned = shared_address(dynamic_shared);
  const std::uint32_t padding = (1024 - unaligned % 1024) % 1024;

  std::uint32_t first_stage = unaligned + padding, first_barrier = shared_address(barriers);
  // Opaque to the compiler, which would compute them again at every use.
  asm volatile("" : "+r"(first_stage), "+r"(first_barrier));
  const wgmma_ring<Element, Tile> ring{first_stage, first_barrier};
  const wgmma_schedule<Tile> schedule(output.m_count, output.w.rows, output.w.cols, L.stage_k(),
                                      splits);
  const bool halves = halves_type::kUsed && splits == 2;
  if (threadIdx.x == 0) {
    tma_prefetch_map(w_map);
    tma_prefetch_map(x_map);
    tma_prefetch_map(y_map);
    for (int i = 0; i < L.stages; ++i) {
      mbarrier_init(barriers + 2 * i, 1);
      mbarrier_init(barriers + 2 * i + 1, P.readers() * schedule.sharing());
    }
    for (int i = 2 * L.stages; i < kBarriers; ++i) mbarrier_init(barriers + i, 1);
    mbarrier_init_fence();
  }
  // A block may copy into another's shared memory as soon as its barriers are there.
  if (schedule.sharing() > 1) {
    cluster_arrive_relaxed();
    cluster_wait();
  } else {
    if (halves) cluster_arrive_relaxed();
    __syncthreads();
  }

  if (threadIdx.x >= P.consumers()) {
    if constexpr (P.wide()) set_register_limit<P.producer_registers(), false>();
    if (threadIdx.x == P.consumers()) {
      wgmma_producer<Element, Tile>{w_map, x_map, schedule}.run(ring, start);
    }
    __syncwarp();
    if (halves) {
      cluster_wait();
    } else if (splits > 1) {
      cluster_arrive_relaxed();
      cluster_wait();
    }
  } else {
    if constexpr (P.wide()) set_register_limit<P.consumer_registers(), true>();
    if (start == wgmma_start::beside_earlier) {
      // Every block of the first launch has waited for what came before it: nothing more to wait
      // for, but what this SM's L1 holds may be older.
      __threadfence();
    } else {
      wait_for_earlier_kernels();
    }
    wgmma_consumer<T, Element, Tile> consumer{ring, schedule.sharing()};
    schedule.for_each_segment([&](const wgmma_segment& s, auto split) {
      constexpr wgmma_policy policy = wgmma_policy_of(Tile);
      constexpr wgmma_layout layout = wgmma_layout_of(policy, sizeof(Element));
      std::byte* const staging = dynamic_shared + padding + layout.ring_bytes() +
                                 threadIdx.x / 128 * (layout.staging + layout.exchange);
      if constexpr (decltype(split)::value) {
        const std::uint32_t sums_barrier = first_barrier + 16 * layout.stages;
        const int tokens = min(policy.tokens, output.m_count - s.token0);
        const wgmma_parts<Tile> parts{schedule.rank,    splits,
                                      (tokens + 7) / 8, wgmma_parts<Tile>::share_of(splits),
                                      first_stage,      sums_barrier};
        if (threadIdx.x == 0) {
          if (halves) {
            halves_type::expect(sums_barrier);
          } else {
            parts.expect();
          }
        }
        consumer.accumulate(s.end - s.begin, staging + layout.staging);
        if constexpr (halves_type::kUsed) {
          if (halves) {
            const halves_type exchange{schedule.rank, shared_address(staging), sums_barrier};
            consumer.store(staging, output, exchange, s.row0, s.token0);
            return;
          }
        }
        // The others' stages, where sums go, have been read.
        cluster_arrive_relaxed();
        cluster_wait();
        parts.send(consumer.d);
        consumer.store(staging, output, parts, s.row0, s.token0);
      } else {
        consumer.accumulate(s.end - s.begin, staging + layout.staging);
        consumer.store(staging, output, y_map, s.row0, s.token0);
      }
    });
    tma_store_wait_read<0>();
  }
  // Who waits for this kernel waits for the first launch too.
  if (start == wgmma_start::beside_earlier) wait_for_earlier_kernels();
  // Nobody leaves while another block may still copy into its shared memory.
  if (schedule.sharing() > 1) {
    cluster_arrive_relaxed();
    cluster_wait();
  }
#endif
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
