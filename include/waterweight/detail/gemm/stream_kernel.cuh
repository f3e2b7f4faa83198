// Few tokens times weights on Hopper: the weights stream through a ring in shared memory, the
// activations stay in registers.
//
// Eight warps of a block split its K. Each keeps its part of the activations in registers for the
// whole kernel, as the B operand of mma.m16n8k16, and takes its part of 16 rows of W at a time from
// the ring: a lane has 16 consecutive bytes of two rows, converts them in registers and feeds the
// k16 steps for which it holds the activations of equal K. A ninth warp adds up the sums and
// finishes the output, a tenth fills the ring by bulk copies. Where K is long, a cluster splits
// it, each block copies its slab of the rows, in boxes of a tensor map where slabs fill K, and the
// blocks finish groups of rows in turn.
//
// Where the caller allows it, the next kernel's block moves in beside this one and fills its ring
// while this one finishes: memory hardly stops between dependent launches.
#pragma once

#include <waterweight/detail/arch/dependent_launch.cuh>
#include <waterweight/detail/arch/tma.cuh>
#include <waterweight/detail/gemm/stream_multiply.cuh>
#include <waterweight/detail/gemm/stream_output.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

/// Fills the ring: one warp.
template <class Element, stream_rows Rows>
class stream_filler {
 public:
  __device__ __forceinline__ stream_filler(const weight_operand<Element>& w,
                                           const CUtensorMap& w_map, const stream_plan& plan,
                                           const stream_share& share, stream_barriers& barriers,
                                           std::byte* ring)
      : first_(reinterpret_cast<const std::byte*>(w.data) + share.k_begin),
        ld_(w.ld * static_cast<int>(sizeof(Element))),
        rows_(w.rows),
        first_tiles_(min(plan.first, share.tiles)),
        known_(min(plan.slots, share.tiles)),
        w_map_(w_map),
        plan_(plan),
        share_(share),
        barriers_(barriers),
        ring_(ring),
        policy_(evict_first_policy()) {}

  /// The first tiles: before activations are there.
  __device__ __forceinline__ void begin() const {
    for (int tile = 0; tile < first_tiles_; ++tile) push(tile, tile);
  }

  /// Asks for the tiles after those to be brought into L2: memory has time until activations are
  /// there and room is made in the ring.
  __device__ __forceinline__ void look_ahead() const {
    const int lane = threadIdx.x % 32;
    for (int tile = first_tiles_; tile < min(first_tiles_ + plan_.look_ahead, share_.tiles);
         ++tile) {
      const int row = share_.row_of(tile) + lane;
      if (lane < kStreamTile && row < rows_) bulk_prefetch(first_ + row * ld_, share_.k_bytes);
    }
  }

  /// The others. The next kernel starts when the copies that were asked for before have arrived.
  __device__ __forceinline__ void run() const {
    for (int tile = first_tiles_; tile < known_; ++tile) push(tile, tile);
    if (known_ == share_.tiles) complete_last_group();
    const int last = plan_.left == kStreamAtOnce ? -1 : max(known_, share_.tiles - plan_.left);
    stream_turn at;
    for (int tile = known_; tile < share_.tiles; ++tile) {
      if (tile == last) launch_dependents();
      mbarrier_wait(barriers_.empty + at.place, at.parity);
      push(tile, at.place);
      at.advance(plan_.slots);
    }
    if (known_ < share_.tiles) {
      complete_last_group();
    } else if (last >= 0) {
      launch_dependents();
    }
  }

 private:
  __device__ __forceinline__ std::uint64_t* full(int tile) const {
    return barriers_.full + tile / kStreamTiles % kStreamMaxGroups;
  }

  /// For the tiles that the last group lacks.
  __device__ __forceinline__ void complete_last_group() const {
    const int lacking = share_.groups() * kStreamTiles - share_.tiles;
    if (static_cast<int>(threadIdx.x) % 32 < lacking) mbarrier_arrive(full(share_.tiles - 1));
  }

  __device__ __forceinline__ void push(int tile, int slot) const {
    const int lane = threadIdx.x % 32, row = share_.row_of(tile);
    const int count = min(kStreamTile, rows_ - row);
    std::byte* const to = ring_ + slot * plan_.tile_bytes();
    if (Rows == stream_rows::slabs && plan_.boxes) {
      if (lane == 0) {  // rows past the last one are zeros, which count too
        mbarrier_arrive_expect(full(tile), kStreamTile * share_.k_bytes);
        tma_load_slab(shared_address(to), w_map_, row, share_.rank, shared_address(full(tile)),
                      policy_);
      }
    } else if (Rows != stream_rows::slabs && plan_.whole_rows) {
      if (lane == 0) {
        mbarrier_arrive_expect(full(tile), count * share_.k_bytes);
        bulk_copy(to, first_ + row * ld_, count * share_.k_bytes, full(tile), policy_);
      }
    } else {
      if (lane == 0) mbarrier_arrive_expect(full(tile), count * share_.k_bytes);
      __syncwarp();
      if (lane < count) {
        bulk_copy(to + lane * plan_.pitch(), first_ + (row + lane) * ld_, share_.k_bytes,
                  full(tile), policy_);
      }
    }
  }

  const std::byte* first_;  ///< of this block's part of row 0
  std::int64_t ld_;         ///< bytes
  int rows_, first_tiles_, known_;
  const CUtensorMap& w_map_;
  const stream_plan& plan_;
  const stream_share& share_;
  stream_barriers& barriers_;
  std::byte* ring_;
  std::uint64_t policy_;
};

#endif

/// w: as the launcher folds it, of plan.fold. Requires rows of X and W that start on 16-byte
/// boundaries, K % 16 == 0, m_count <= 8 * NTiles, a grid of plan.cluster * plan.clusters blocks,
/// Rows == plan.rows(); w_map: of W, where the plan has boxes, and behind the parameters that are
/// needed first, which come through a cold cache. `early`: weights and scales may be read before
/// earlier kernels have ended.
template <class T, class Element, class Out, class Epilogue, int NTiles, stream_rows Rows>
__global__ void __launch_bounds__(kStreamThreads, stream_blocks(NTiles, sizeof(Element)))
    stream_kernel(const T* x, std::int64_t x_ld, weight_operand<Element> w, Out* y,
                  std::int64_t y_ld, int m_count, Epilogue epilogue, stream_plan plan, bool early,
                  const __grid_constant__ CUtensorMap w_map) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  constexpr int kSums = stream_sums(NTiles);
  constexpr bool kSplit = Rows == stream_rows::slabs;
  const int fold = Rows == stream_rows::parts ? plan.fold : 0;
  using multiplier = stream_multiplier<T, Element, NTiles>;
  extern __shared__ __align__(128) std::byte stream_memory[];
  __shared__ __align__(8) stream_barriers barriers;
  __shared__ float scales[kStreamScales][kStreamGroup];
  std::byte* const ring = stream_memory;
  float* const sums = reinterpret_cast<float*>(ring + plan.slots * plan.tile_bytes());
  float* const inbox = sums + kStreamBuffers * kStreamWarps * kSums;
  const stream_share share(plan, w.cols * static_cast<int>(sizeof(Element)));
  const int warps = share.warps, groups = share.groups();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const stream_filler<Element, Rows> filler(w, w_map, plan, share, barriers, ring);

  if (warp == kStreamWarps + 1) {
    if (lane == 0) {
      if (kSplit && plan.boxes) tma_prefetch_map(w_map);
      barriers.init_full();
    }
    __syncwarp();
    if (!early) wait_for_earlier_kernels();
    filler.begin();
  } else if (warp == kStreamWarps) {
    if (plan.left == kStreamAtOnce) launch_dependents();
    barriers.init_others(plan, warps);
  }
  // Parameters come through a cache that is cold at every launch: not when they are first needed.
  asm volatile("" ::"l"(x), "l"(x_ld), "l"(y), "l"(y_ld), "r"(m_count));
  __syncwarp();
  if constexpr (kSplit) {
    cluster_arrive_relaxed();
    cluster_wait();
  } else {
    __syncthreads();
  }

  if (warp == kStreamWarps + 1) {
    filler.look_ahead();
    wait_for_earlier_kernels();
    filler.run();
  } else if (warp < warps) {
    wait_for_earlier_kernels();
    multiplier mine(plan, share);
    mine.load(x, x_ld, m_count, w.cols, fold, share);
    const bool exact = share.k_bytes == warps * plan.warp_chunks * kStreamChunk;
    if (exact && plan.warp_chunks == multiplier::kChunks) {
      mine.template run<multiplier::kChunks, true>(plan, share, barriers, ring, sums);
    } else if (exact && plan.warp_chunks == multiplier::kFewerChunks) {
      mine.template run<multiplier::kFewerChunks, true>(plan, share, barriers, ring, sums);
    } else {
      mine.template run<multiplier::kChunks, false>(plan, share, barriers, ring, sums);
    }
  } else if (warp == kStreamWarps) {
    constexpr int kSumBytes = kSums * static_cast<int>(sizeof(float)), kAhead = kStreamScales / 2;
    const stream_output<Element, Out, Epilogue, NTiles> output{
        w, share, y, y_ld, m_count, epilogue, scales, fold, multiplier::operand::kUnit};
    // The blocks of a cluster finish groups in turn.
    const auto mine = [&](int i) { return kSplit ? i * plan.cluster + share.rank : i; };
    if (!early) wait_for_earlier_kernels();
    for (int i = 0; i < kAhead; ++i) output.request_scales(i, mine(i));
    wait_for_earlier_kernels();
    constexpr int lag = kSplit ? 1 : 0;
    stream_sum<NTiles> sum;
    for (int q = 0, i = 0; q < groups + lag; ++q) {
      if (q < groups) {
        const int buffer = q % kStreamBuffers;
        named_barrier(stream_summed(buffer), 32 * (warps + 1));
        sum.template add<kStreamWarps>(sums + buffer * kStreamWarps * kSums, warps);
        mbarrier_arrive(shared_address(barriers.free + buffer) +
                        after_loading(sum.word(), plan.slots));
        if constexpr (kSplit) {
          const int owner = q % plan.cluster, use = q / plan.cluster, box = use % kStreamInboxes;
          if (use >= kStreamInboxes) {
            mbarrier_wait(&barriers.credit[owner][box], (use / kStreamInboxes - 1) & 1);
          }
          float* const place = inbox + (box * plan.cluster + share.rank) * kSums + lane * 4;
#pragma unroll
          for (int j = 0; j < NTiles; ++j) {
            send_float4(shared_address(place + j * 128), sum.part[j],
                        shared_address(barriers.received + box), owner);
          }
        }
      }
      // With others' sums, one group later: they have had time.
      const int group = mine(i);
      if (group != q - lag) continue;
      if constexpr (kSplit) {
        const int box = i % kStreamInboxes;
        if (lane == 0) mbarrier_arrive_expect(barriers.received + box, plan.cluster * kSumBytes);
        mbarrier_wait(barriers.received + box, i / kStreamInboxes & 1);
        sum.template add<kStreamMaxCluster>(inbox + box * plan.cluster * kSums, plan.cluster);
        __syncwarp();
        // Who has no more to send may have ended.
        if (lane < plan.cluster && mine(i + kStreamInboxes) < groups) {
          const std::uint32_t credit = shared_address(&barriers.credit[share.rank][box]);
          mbarrier_arrive_at(credit + after_loading(sum.word(), plan.slots), lane);
        }
      }
      output.request_scales(i + kAhead, mine(i + kAhead));
      output.store(sum, output.template scale<kAhead>(i), group);
      ++i;
    }
  }
#endif
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
