// Few tokens times INT8 weights on Hopper: the weights stream through a ring in shared memory, the
// activations stay in registers.
//
// Ten warps of a block split its K. Each keeps its part of the activations in registers for the
// whole kernel, as the B operand of mma.m16n8k16, copies its part of every row of weights into a
// ring of its own and meets nobody until it has sums. A lane takes 16 consecutive bytes of two rows
// of W, converts them in registers and feeds four k16 steps, for which it holds the same 16
// activations. An eleventh warp adds up the sums and finishes the output.
//
// A block takes half an SM. Where the caller allows it, the next kernel's block moves in and fills
// its ring while this one finishes: memory does not stop between dependent launches.
#pragma once

#include <waterweight/detail/arch/dependent_launch.cuh>
#include <waterweight/detail/gemm/stream_output.cuh>
#include <waterweight/detail/gemm/stream_warp.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

/// Requires rows of X and W that start on 16-byte boundaries, K % 16 == 0, m_count <= 8 * NTiles, a
/// grid of plan.cluster * plan.clusters blocks. `early`: weights and scales may be read before
/// earlier kernels have ended.
template <class T, class Out, class Epilogue, int NTiles>
__global__ void __launch_bounds__(kStreamThreads, 2)
    stream_kernel(const T* x, std::int64_t x_ld, weight_operand<std::int8_t> w, Out* y,
                  std::int64_t y_ld, int m_count, Epilogue epilogue, stream_plan plan, bool early,
                  stream_counters* counters) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  constexpr int kSums = stream_sums(NTiles), kKnown = stream_depth_groups(NTiles);
  constexpr int kSumBytes = kSums * static_cast<int>(sizeof(float));
  using worker = stream_warp<T, NTiles>;
  extern __shared__ __align__(16) std::byte memory[];
  __shared__ __align__(8) stream_barriers barriers;
  __shared__ int claim[kStreamClaims];
  __shared__ float scales[kStreamScales][kStreamGroup];
  float* const sums = reinterpret_cast<float*>(memory + stream_ring_bytes(NTiles));
  float* const inbox = sums + kStreamBuffers * kStreamWarps * kSums;
  const stream_share share(plan, w.rows, w.cols);
  stream_schedule schedule(share, kKnown, barriers.claimed, claim);
  const int warps = (share.k_count + worker::kRowBytes - 1) / worker::kRowBytes;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  // Parameters come through a cache that is cold at every launch: not when they are first needed.
  asm volatile("" ::"l"(x), "l"(x_ld), "l"(y), "l"(y_ld), "r"(m_count), "r"(plan.inboxes),
               "l"(counters));
  if (!early) wait_for_earlier_kernels();
  worker mine(w, share, memory);
  if (warp < warps) {
    for (int i = 0; i < kKnown; ++i) {
      mine.aim((share.claims ? share.cluster + i * share.clusters : i) * share.group_step);
      mine.request_group();
    }
  } else if (warp == kStreamWarps) {
    barriers.init(warps, plan.cluster);
  }
  __syncthreads();
  if (plan.cluster > 1) cluster_arrive_relaxed();

  if (warp < warps) {
    // The next kernel may start when there is no more to ask for: earlier, its blocks would compete
    // for memory; later, blocks of this one may have ended and left room for two of them.
    int groups = share.claims ? 1 << 30 : share.total;
    wait_for_earlier_kernels();
    if (groups <= kKnown) launch_dependents();
    mine.load(x, x_ld, m_count, share);
    for (int q = 0; q < groups; ++q) {
      const int ahead = q + kKnown;
      if (ahead < groups) {
        const int group = schedule.read(ahead);
        mine.aim(group * share.group_step);
        if (group >= share.total) groups = ahead;
      }
      if (ahead >= groups) {
        launch_dependents();
        mine.rest();
      }
      mine.multiply();
      const int buffer = q % kStreamBuffers;
      mbarrier_wait(barriers.free + buffer, (q / kStreamBuffers & 1) ^ 1);
      mine.write_sums(sums + (buffer * kStreamWarps + warp) * kSums);
      __syncwarp();
      if (lane == 0) mbarrier_arrive(barriers.summed + buffer);
    }
  } else if (warp >= kStreamWarps) {
    stream_output<Out, Epilogue> output{w, share, scales, y, y_ld, m_count, epilogue};
    const bool adds = warp == kStreamWarps, alone = plan.cluster == 1;
    // The blocks of a cluster finish groups in turn.
    if (!alone) cluster_wait();
    if (adds) {
      // Every claim of the next rounds may be sent.
      if (share.claims) mbarrier_arrive_expect(barriers.claimed + lane, 4);
      stream_claimer claimer(share, counters, kKnown, plan.cluster, claim, barriers.claimed);
      const bool claiming = share.claims && share.rank == 0 && lane == 0;
      if (claiming) {
        wait_for_earlier_kernels();
        claimer.begin();
      }
      __syncwarp();
      int group = schedule(0), next = schedule(1);
      if (alone) {
        output.request_scales(0, group);
        output.request_scales(1, next);
      }
      for (int q = 0; group < share.total; ++q) {
        const int buffer = q % kStreamBuffers;
        mbarrier_wait(barriers.summed + buffer, q / kStreamBuffers & 1);
        if (claiming) claimer.advance();
        __syncwarp();
        float4 sum[NTiles] = {};
        stream_add(sum, sums + buffer * kStreamWarps * kSums, warps);
        __syncwarp();
        if (lane == 0) mbarrier_arrive(barriers.free + buffer);
        if (alone) {
          output.request_scales(q + 2, schedule(q + 2));
          if (q == 0) wait_for_earlier_kernels();
          output.store(sum, output.template scale<2>(q), group);
        } else {
          const int owner = q % plan.cluster, use = q / plan.cluster;
          const int box = use % plan.inboxes;
          if (use >= plan.inboxes) {
            mbarrier_wait(&barriers.credit[owner][box], (use / plan.inboxes - 1) & 1);
          }
          float* const place = inbox + (box * plan.cluster + share.rank) * kSums + lane * 4;
#pragma unroll
          for (int j = 0; j < NTiles; ++j) {
            send(shared_address(place + j * 128), shared_address(barriers.received + box), owner,
                 sum[j]);
          }
        }
        // This claim has been read; its place is free for the one that comes a round later.
        if (share.claims && q >= kKnown && lane == 0) {
          mbarrier_arrive_expect(barriers.claimed + (q - kKnown) % kStreamClaims, 4);
        }
        group = next;
        next = schedule(q + 2);
      }
    } else if (!alone) {
      wait_for_earlier_kernels();
      int group = schedule(share.rank);
      output.request_scales(0, group);
      for (int i = 0; group < share.total; ++i) {
        const int box = i % plan.inboxes;
        if (lane == 0) mbarrier_arrive_expect(barriers.received + box, plan.cluster * kSumBytes);
        const int next = schedule(share.rank + (i + 1) * plan.cluster);
        output.request_scales(i + 1, next);
        mbarrier_wait(barriers.received + box, i / plan.inboxes & 1);
        float4 sum[NTiles] = {};
        stream_add(sum, inbox + box * plan.cluster * kSums, plan.cluster);
        __syncwarp();
        if (lane < plan.cluster) {
          mbarrier_arrive_at(shared_address(&barriers.credit[share.rank][box]), lane);
        }
        __syncwarp();
        output.store(sum, output.template scale<1>(i), group);
        group = next;
      }
    }
  }
  if (plan.cluster > 1) {
    __syncwarp();
    // Blocks must not end while others may write to their shared memory.
    if (warp < kStreamWarps) cluster_wait();
    cluster_arrive_relaxed();
    cluster_wait();
  }
#endif
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
