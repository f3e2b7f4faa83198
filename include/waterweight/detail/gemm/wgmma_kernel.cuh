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
// block sums a part of K, and the parts are added in the order of K.
#pragma once

#include <waterweight/detail/arch/bulk_copy.cuh>
#include <waterweight/detail/arch/cluster.cuh>
#include <waterweight/detail/arch/dependent_launch.cuh>
#include <waterweight/detail/arch/dequant.cuh>
#include <waterweight/detail/arch/mbarrier.cuh>
#include <waterweight/detail/arch/mma.cuh>
#include <waterweight/detail/arch/tma.cuh>
#include <waterweight/detail/arch/wgmma.cuh>
#include <waterweight/detail/gemm/wgmma_output.cuh>
#include <waterweight/detail/gemm/wgmma_parts.cuh>
#include <waterweight/detail/gemm/wgmma_producer.cuh>
#include <waterweight/detail/gemm/wgmma_schedule.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// A warpgroup that multiplies.
template <class T, class Element, wgmma_tile Tile>
struct wgmma_consumer {
  static constexpr wgmma_policy P = wgmma_policy_of(Tile);
  static constexpr wgmma_layout L = wgmma_layout_of(P, sizeof(Element));
  using instruction = wgmma<T, P.tokens>;
  static constexpr int kSteps = kWgmmaBlockK / 16;
  using fragments = std::uint32_t[kSteps][4];
  static constexpr float kUnit =
      is_quantized_v<Element> ? scaled_dequantizer<T>::kUnit : 1.0f;  ///< of the sums
  wgmma_ring<Element, Tile> ring;
  int sharing;             ///< blocks that write to this one's stages
  std::uint32_t used = 0;  ///< barrier of the stage before the current one: free
  float d[P.tokens / 2];

  /// The first of this thread's channels of a tile; the other is 8 further.
  __device__ __forceinline__ static int channel(int row0) {
    return row0 + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
  }

  /// The calling warp has read the stage before the current one: tells whoever writes to it.
  __device__ __forceinline__ void release() const {
    const int lane = threadIdx.x % 32;
    if (P.multicast > 1 && sharing > 1) {
      if (lane < P.multicast) mbarrier_arrive_at(used, lane);
    } else {
      if (lane == 0) mbarrier_arrive(used);
    }
  }

  /// This warp's INT8 weights of 16 K elements, number `k16` of the current stage, as loaded: pairs
  /// in the order of a fragment of A. Rows of 128 bytes lie under the 128-byte swizzle, 16-byte
  /// vector j of row r at j ^ r % 8; rows of 64 bytes under the 64-byte one, at j ^ r / 2 % 4. The
  /// eight rows of a load are in different banks either way.
  __device__ __forceinline__ void load(std::uint32_t (&raw)[4], int k16) const {
    constexpr int kPitch = L.stage_k();
    const int lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
    const int flip = kPitch == 128 ? group : group / 2 % 4;
    const std::uint32_t vector =
        ring.stage + (threadIdx.x / 32 * 16 + group) * kPitch + 2 * quad + 16 * (k16 ^ flip);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      asm volatile("ld.shared.u16 %0, [%1];"
                   : "=r"(raw[e])
                   : "r"(vector + e % 2 * 8 * kPitch + e / 2 * 8));
    }
  }

  __device__ __forceinline__ static void convert(std::uint32_t (&a)[4],
                                                 const std::uint32_t (&raw)[4]) {
#pragma unroll
    for (int e = 0; e < 4; ++e) a[e] = scaled_dequantizer<T>::two(raw[e]);
  }

  /// The first block of the current stage, once it is filled.
  __device__ __forceinline__ void receive(fragments& a) const {
    mbarrier_wait(ring.filled, ring.parity);
    if constexpr (is_quantized_v<Element>) {
#pragma unroll
      for (int j = 0; j < kSteps; ++j) {
        std::uint32_t raw[4];
        load(raw, j);
        convert(a[j], raw);
      }
    }
  }

  /// The block before the current one is done: its stage is released after the last of its blocks.
  template <int Block>
  __device__ __forceinline__ void retire(bool first) {
    wgmma_wait<1>();
    if (Block == 0 && !first) release();
    if (Block + 1 == L.blocks) {
      used = ring.free();
      ring.advance();
    }
  }

  /// Multiplies a block of the current stage and prepares the one after it. The tensor cores take
  /// an instruction with A in registers only when they are done with the one before: where these
  /// are short, INT8 weights are converted between them, or too little time would be left for it.
  template <int Block>
  __device__ __forceinline__ void step(const fragments& now, fragments& next, bool first,
                                       bool last) {
    constexpr bool kQuantized = is_quantized_v<Element>;
    constexpr bool kBetween = kQuantized && P.tokens < 256;
    const std::uint32_t x = ring.x(Block) >> 4;
    const std::uint32_t w =
        (ring.stage + threadIdx.x / 128 * 64 * kWgmmaBlockK * 2) >> 4;  // of 16-bit weights
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < (kBetween ? 1 : kSteps); ++j) {
      if constexpr (kQuantized) {
        instruction::multiply(d, now[j], wgmma_descriptor(x + 2 * j));
      } else {
        instruction::multiply(d, wgmma_descriptor(w + 2 * j), wgmma_descriptor(x + 2 * j));
      }
    }
    wgmma_commit();
    retire<Block>(first);
    if constexpr (kBetween) {
      constexpr int kNext = (Block + 1) % L.blocks * kSteps;
      if (Block + 1 == L.blocks && !last) mbarrier_wait(ring.filled, ring.parity);
      // After the last block this converts bytes of no meaning: a branch would cost more.
      std::uint32_t raw[2][4];
      load(raw[0], kNext);
#pragma unroll
      for (int j = 1; j < kSteps; ++j) {
        load(raw[j % 2], kNext + j);
        convert(next[j - 1], raw[(j - 1) % 2]);
        wgmma_fence();
        instruction::multiply(d, now[j], wgmma_descriptor(x + 2 * j));
      }
      wgmma_commit();
      convert(next[kSteps - 1], raw[(kSteps - 1) % 2]);
    } else {
      static_assert(L.blocks == 1, "the next block is in the next stage");
      if (!last) receive(next);
    }
  }

  /// d = the sums over `stages` >= 1 stages of K.
  __device__ __forceinline__ void accumulate(int stages) {
#pragma unroll
    for (int i = 0; i < P.tokens / 2; ++i) d[i] = 0.0f;
    fragments even, odd;
    receive(even);
    int k = 0;
#pragma unroll 1
    do {
      if constexpr (L.blocks == 2) {
        step<0>(even, odd, k == 0, false);
        step<1>(odd, even, false, k + 1 == stages);
      } else if constexpr (is_quantized_v<Element>) {
        step<0>(even, odd, k == 0, k + 1 == stages);
        if (++k < stages) step<0>(odd, even, false, k + 1 == stages);
      } else {
        step<0>(even, even, k == 0, k + 1 == stages);
      }
    } while (++k < stages);
    wgmma_wait<0>();
    wgmma_pin(d);
    release();
  }

  /// Hands a tile to the copy engine, chunk by chunk; `staging` is this warpgroup's.
  template <class Out, class Epilogue>
  __device__ __forceinline__ void store(std::byte* staging,
                                        const wgmma_output<Element, Out, Epilogue>& output,
                                        const CUtensorMap& y_map, int row0, int token0) {
    constexpr int kPlaces = L.staging / (P.chunk * 64 * static_cast<int>(sizeof(Out)));
    // What is unrolled: an epilogue may be long, but what it reads should be read together.
    constexpr int kStep = P.warpgroups > 2 && sizeof(Out) == 4 ? 16 : 32;
    constexpr int kUnrolled = P.chunk % 64 == 0 ? 1 : P.tokens / P.chunk;
    const int n0 = row0 + threadIdx.x / 128 * 64;
    if (n0 >= output.w.rows) return;
    const int n = channel(row0);
    const float scales[2] = {kUnit * output.scale(n), kUnit * output.scale(n + 8)};
    const bool leader = threadIdx.x % 128 == 0;
    const int barrier = 1 + threadIdx.x / 128;
#pragma unroll kUnrolled
    for (int chunk = 0; chunk < P.tokens / P.chunk; ++chunk) {
      const int m0 = token0 + chunk * P.chunk;
      if (m0 >= output.m_count) break;
      const wgmma_staging<Out, P.chunk> place{staging + chunk % kPlaces * (L.staging / kPlaces)};
      if (leader) tma_store_wait_read<kPlaces - 1>();
      named_barrier(barrier, 128);
#pragma unroll 1
      for (int first = 0; first < P.chunk; first += kStep) {
        float sums[kStep / 2];
        select<0>(chunk * P.chunk + first, sums);
        place.write(sums, first, [&](float sum, int half, int token) {
          return output.finish(sum, scales[half], m0 + token, n + 8 * half);
        });
      }
      shared_to_async_fence();
      named_barrier(barrier, 128);
      if (!output.aligned) {
        place.store_directly(output, m0, n0, P.chunk);
      } else if (leader) {
        place.store(y_map, m0, n0, output.w.rows);
        tma_store_commit();
      }
    }
  }

  /// Adds and stores what this block owns of a tile whose K is shared; `staging` is this
  /// warpgroup's.
  template <class Out, class Epilogue>
  __device__ __forceinline__ void store(std::byte* staging,
                                        const wgmma_output<Element, Out, Epilogue>& output,
                                        const wgmma_parts<Tile>& parts, int row0, int token0) {
    constexpr int kGroups = P.chunk / 8;
    constexpr int kTogether = 4;  // what the epilogue reads for these is read together
    const int n0 = row0 + threadIdx.x / 128 * 64;
    const int n = channel(row0);
    const float scales[2] = {kUnit * output.scale(n), kUnit * output.scale(n + 8)};
    const int barrier = 1 + threadIdx.x / 128;
    const wgmma_staging<Out, P.chunk> place{staging};
    mbarrier_wait(parts.barrier, 0);
    if (n0 >= output.w.rows) return;
    for (int begin = 0; begin < parts.owned(); begin += kGroups) {
      const int count = min(kGroups, parts.owned() - begin);
      const int m0 = token0 + 8 * (parts.first_group() + begin);
      if (begin > 0) named_barrier(barrier, 128);
#pragma unroll 1
      for (int group = 0; group < count; group += kTogether) {
        float sums[4 * kTogether];
        parts.add(sums, begin + group);
        place.write(sums, 8 * group, [&](float sum, int half, int token) {
          return output.finish(sum, scales[half], m0 + token, n + 8 * half);
        });
      }
      named_barrier(barrier, 128);
      place.store_directly(output, m0, n0, 8 * count);
    }
  }

  /// sums = those of d from token `first` on, which starts a step of a chunk; after the last token
  /// anything. Registers have no run-time index: one branch per step.
  template <int First, int Count>
  __device__ __forceinline__ void select(int first, float (&sums)[Count]) const {
    constexpr int kEnd = First + 2 * Count, kChunkEnd = (First / P.chunk + 1) * P.chunk;
    constexpr int kNext = kEnd < kChunkEnd ? kEnd : kChunkEnd;
    if (first == First) {
#pragma unroll
      for (int i = 0; i < Count; ++i) {
        sums[i] = First / 2 + i < P.tokens / 2 ? d[First / 2 + i] : 0.0f;
      }
    } else if constexpr (kNext < P.tokens) {
      select<kNext>(first, sums);
    }
  }
};

#endif  // sm_90a

/// Compiled for anything but sm_90a it is empty, and has no static shared memory: what the host
/// knows it by. splits: see wgmma_cut.
template <class T, class Element, class Out, class Epilogue, wgmma_tile Tile>
__global__ void __launch_bounds__(wgmma_policy_of(Tile).threads(), 1)
    wgmma_gemm_kernel([[maybe_unused]] const __grid_constant__ CUtensorMap w_map,
                      [[maybe_unused]] const __grid_constant__ CUtensorMap x_map,
                      [[maybe_unused]] const __grid_constant__ CUtensorMap y_map,
                      [[maybe_unused]] wgmma_output<Element, Out, Epilogue> output,
                      [[maybe_unused]] int splits, [[maybe_unused]] wgmma_start start) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr wgmma_policy P = wgmma_policy_of(Tile);
  constexpr wgmma_layout L = wgmma_layout_of(P, sizeof(Element));
  extern __shared__ std::byte dynamic_shared[];
  __shared__ alignas(16) std::uint64_t barriers[2 * L.stages + 1];
  const std::uint32_t unaligned = shared_address(dynamic_shared);
  const std::uint32_t padding = (1024 - unaligned % 1024) % 1024;

  std::uint32_t first_stage = unaligned + padding, first_barrier = shared_address(barriers);
  // Opaque to the compiler, which would compute them again at every use.
  asm volatile("" : "+r"(first_stage), "+r"(first_barrier));
  const wgmma_ring<Element, Tile> ring{first_stage, first_barrier};
  const wgmma_schedule<Tile> schedule(output.m_count, output.w.rows, output.w.cols, L.stage_k(),
                                      splits);
  if (threadIdx.x == 0) {
    tma_prefetch_map(w_map);
    tma_prefetch_map(x_map);
    tma_prefetch_map(y_map);
    for (int i = 0; i < L.stages; ++i) {
      mbarrier_init(barriers + 2 * i, 1);
      mbarrier_init(barriers + 2 * i + 1, P.consumers() / 32 * schedule.sharing());
    }
    mbarrier_init(barriers + 2 * L.stages, 1);
    mbarrier_init_fence();
  }
  // A block may copy into another's shared memory as soon as its barriers are there.
  if (schedule.sharing() > 1) {
    cluster_arrive_relaxed();
    cluster_wait();
  } else {
    __syncthreads();
  }

  if (threadIdx.x >= P.consumers()) {
    if constexpr (P.wide()) set_register_limit<P.producer_registers(), false>();
    if (threadIdx.x == P.consumers()) {
      wgmma_producer<Element, Tile>{w_map, x_map, schedule}.run(ring, start);
    }
    __syncwarp();
    if (splits > 1) {
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
    schedule.for_each_segment([&](const wgmma_segment& s) {
      constexpr wgmma_policy policy = wgmma_policy_of(Tile);
      constexpr wgmma_layout layout = wgmma_layout_of(policy, sizeof(Element));
      std::byte* const staging =
          dynamic_shared + padding + layout.ring_bytes() + threadIdx.x / 128 * layout.staging;
      const int share = splits > 1 ? wgmma_parts<Tile>::share_of(splits) : 0;
      consumer.accumulate(s.end - s.begin);
      if (splits == 1) {
        consumer.store(staging, output, y_map, s.row0, s.token0);
      } else {
        const int tokens = min(policy.tokens, output.m_count - s.token0);
        const wgmma_parts<Tile> parts{schedule.rank,    splits,
                                      (tokens + 7) / 8, share,
                                      first_stage,      first_barrier + 16 * layout.stages};
        if (threadIdx.x == 0) parts.expect();
        // The others' stages, where sums go, have been read.
        cluster_arrive_relaxed();
        cluster_wait();
        parts.send(consumer.d);
        consumer.store(staging, output, parts, s.row0, s.token0);
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
