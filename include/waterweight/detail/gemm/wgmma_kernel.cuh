// The GEMM of many rows on Hopper: wgmma fed by TMA.
//
// W is wgmma's A operand, 64 rows per warpgroup, because A alone may come from registers, where
// INT8 turns into 16 bit; X is B and stays in shared memory as TMA lays it. The sums are those of
// Y^T. One warp copies stages of 64 or 128 K elements ahead of the consumers; these convert the next
// block's weights while the tensor cores work on the current one. 16-bit weights go the same way
// with A in shared memory and nothing to convert.
//
// Where tiles fill the card, blocks are persistent: TMA stores one tile while the next is computed,
// and clusters of two may share their rows of X. Where they do not, a cluster shares one tile: each
// block sums a part of K, and the parts are added in the order of K through distributed shared
// memory.
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
    tma_load(to.stage, w_map, s.row0, stage * L.stage_k(), to.filled);
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
          tma_load(to.x(block) + part * kShare * kWgmmaBlockK * 2, x_map,
                   s.token0 + part * kShare, column, to.filled);
        }
      }
    }
  }

  /// The weights of the first stages may be on their way before earlier kernels have ended.
  __device__ __forceinline__ void run(ring to, bool early_weights) const {
    if (!early_weights) wait_for_earlier_kernels();
    bool first = true;
    schedule.for_each_segment([&](const wgmma_segment& s) {
      int stage = s.begin;
      if (first) {
        first = false;
        const int ahead = min(L.stages, s.end - s.begin);
        ring early = to;
        for (int i = 0; i < ahead; ++i, early.advance()) load_w(early, s, stage + i);
        wait_for_earlier_kernels();
        launch_dependents();
        for (int i = 0; i < ahead; ++i, to.advance()) load_x(to, s, stage + i);
        stage += ahead;
      }
      for (; stage < s.end; ++stage, to.advance()) {
        mbarrier_wait(to.free(), to.parity ^ 1);
        load_w(to, s, stage);
        load_x(to, s, stage);
      }
    });
  }
};

/// A warpgroup that multiplies.
template <class T, class Element, wgmma_tile Tile>
struct wgmma_consumer {
  static constexpr wgmma_policy P = wgmma_policy_of(Tile);
  static constexpr wgmma_layout L = wgmma_layout_of(P, sizeof(Element));
  using instruction = wgmma<T, P.tokens>;
  using fragments = std::uint32_t[kWgmmaBlockK / 16][4];
  wgmma_ring<Element, Tile> ring;
  int sharing;             ///< blocks that write to this one's stages
  std::uint32_t used = 0;  ///< barrier of the stage before the current one: free
  float d[P.tokens / 2];

  /// The calling warp has read the stage before the current one: tells whoever writes to it.
  __device__ __forceinline__ void release() const {
    const int lane = threadIdx.x % 32;
    if (P.multicast > 1 && sharing > 1) {
      if (lane < P.multicast) mbarrier_arrive_at(used, lane);
    } else {
      if (lane == 0) mbarrier_arrive(used);
    }
  }

  /// This warp's INT8 weights of a block of the current stage as fragments of A. Rows of 128 bytes
  /// lie under the 128-byte swizzle, 16-byte vector j of row r at j ^ r % 8; rows of 64 bytes under
  /// the 64-byte one, at j ^ r / 2 % 4. The eight rows of a load are in different banks either way.
  __device__ __forceinline__ void convert(fragments& a, int block) const {
    constexpr int kPitch = L.stage_k();
    const int lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
    const int flip = kPitch == 128 ? group : group / 2 % 4;
    const std::uint32_t row =
        ring.stage + (threadIdx.x / 32 * 16 + group) * kPitch + 2 * quad;
#pragma unroll
    for (int j = 0; j < kWgmmaBlockK / 16; ++j) {
      const std::uint32_t vector = row + 16 * ((block * (kWgmmaBlockK / 16) + j) ^ flip);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        std::uint32_t two;
        asm volatile("ld.shared.u16 %0, [%1];"
                     : "=r"(two)
                     : "r"(vector + e % 2 * 8 * kPitch + e / 2 * 8));
        a[j][e] = dequantize_two<T>(two);
      }
    }
  }

  __device__ __forceinline__ void multiply(const fragments& a, int block) {
    const std::uint32_t x = ring.x(block) >> 4;
    const std::uint32_t rows = threadIdx.x / 128 * 64 * kWgmmaBlockK * 2;
    const std::uint32_t w = (ring.stage + rows) >> 4;
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < kWgmmaBlockK / 16; ++j) {
      if constexpr (is_quantized_v<Element>) {
        instruction::multiply(d, a[j], wgmma_descriptor(x + 2 * j));
      } else {
        instruction::multiply(d, wgmma_descriptor(w + 2 * j), wgmma_descriptor(x + 2 * j));
      }
    }
    wgmma_commit();
  }

  /// The first block of the current stage, once it is filled.
  __device__ __forceinline__ void receive(fragments& a) const {
    mbarrier_wait(ring.filled, ring.parity);
    if constexpr (is_quantized_v<Element>) convert(a, 0);
  }

  /// Starts the products of a block of the current stage; as soon as those before are done,
  /// releases their stage and prepares the next block.
  template <int Block>
  __device__ __forceinline__ void step(const fragments& now, fragments& next, bool first,
                                       bool last) {
    multiply(now, Block);
    wgmma_wait<1>();
    if (Block == 0 && !first) release();
    if constexpr (Block + 1 < L.blocks) {
      convert(next, Block + 1);
    } else {
      used = ring.free();
      ring.advance();
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
    const int n0 = row0 + threadIdx.x / 128 * 64;
    if (n0 >= output.w.rows) return;
    const int n = n0 + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
    const float scales[2] = {output.scale(n), output.scale(n + 8)};
    const bool leader = threadIdx.x % 128 == 0;
    const int barrier = 1 + threadIdx.x / 128;
#pragma unroll 1
    for (int chunk = 0; chunk < P.tokens / P.chunk; ++chunk) {
      const int m0 = token0 + chunk * P.chunk;
      if (m0 >= output.m_count) break;
      float sums[P.chunk / 2];
      select<0>(chunk, sums);
      const wgmma_staging<Out, P.chunk> place{staging +
                                              chunk % kPlaces * (L.staging / kPlaces)};
      if (leader) tma_store_wait_read<kPlaces - 1>();
      named_barrier(barrier, 128);
      place.write(sums, [&](float sum, int half, int token) {
        return output.finish(sum, scales[half], m0 + token, n + 8 * half);
      });
      shared_to_async_fence();
      named_barrier(barrier, 128);
      if (!output.aligned) {
        place.store_unaligned(output, m0, n0);
      } else if (leader) {
        place.store(y_map, m0, n0, output.w.rows);
        tma_store_commit();
      }
    }
  }

  /// The sums of a chunk. Registers have no run-time index: one branch per chunk.
  template <int Chunk>
  __device__ __forceinline__ void select(int chunk, float (&sums)[P.chunk / 2]) const {
    if (chunk == Chunk) {
#pragma unroll
      for (int i = 0; i < P.chunk / 2; ++i) sums[i] = d[Chunk * (P.chunk / 2) + i];
    } else if constexpr ((Chunk + 1) * P.chunk < P.tokens) {
      select<Chunk + 1>(chunk, sums);
    }
  }
};

/// After all blocks of the cluster have written their parts to `sums`: adds them, a share of the
/// tokens in each block, and stores.
template <wgmma_tile Tile, int Parts, class Output>
__device__ __forceinline__ void wgmma_store_parts(const float* sums, const Output& output, int rank,
                                                  int row0, int token0) {
  constexpr wgmma_policy P = wgmma_policy_of(Tile);
  constexpr int kPitch = wgmma_sum_pitch(P.rows()), kVectors = P.rows() / 4;
  const int tokens = min(P.tokens, output.m_count - token0);
  const int begin = tokens * rank / Parts, end = tokens * (rank + 1) / Parts;
#pragma unroll 2
  for (int i = begin * kVectors + static_cast<int>(threadIdx.x); i < end * kVectors;
       i += P.consumers()) {
    const int token = i / kVectors, channel = i % kVectors * 4;
    const std::uint32_t address = shared_address(sums + token * kPitch + channel);
    float4 part[Parts];
#pragma unroll
    for (int p = 0; p < Parts; ++p) part[p] = load_cluster_float4(address, p);
#pragma unroll
    for (int p = 1; p < Parts; ++p) {
      part[0] = make_float4(part[0].x + part[p].x, part[0].y + part[p].y, part[0].z + part[p].z,
                            part[0].w + part[p].w);
    }
    if (row0 + channel < output.w.rows) {
      output.store_four(part[0], token0 + token, row0 + channel);
    }
  }
}

/// The same for a number of blocks known at run time.
template <wgmma_tile Tile, class Output>
__device__ __forceinline__ void wgmma_store_parts(const float* sums, const Output& output, int rank,
                                                  int blocks, int row0, int token0) {
  const auto with = [&](auto parts) {
    wgmma_store_parts<Tile, decltype(parts)::value>(sums, output, rank, row0, token0);
  };
  switch (blocks) {
    case 2:
      return with(std::integral_constant<int, 2>{});
    case 3:
      return with(std::integral_constant<int, 3>{});
    case 4:
      return with(std::integral_constant<int, 4>{});
    case 5:
      return with(std::integral_constant<int, 5>{});
    case 6:
      return with(std::integral_constant<int, 6>{});
    case 7:
      return with(std::integral_constant<int, 7>{});
    default:
      return with(std::integral_constant<int, 8>{});
  }
}

#endif  // sm_90a

/// Compiled for anything but sm_90a it is empty, and has no static shared memory: what the host
/// knows it by. splits: see wgmma_plan. early_weights: no kernel that may still run writes to W.
template <class T, class Element, class Out, class Epilogue, wgmma_tile Tile>
__global__ void __launch_bounds__(wgmma_policy_of(Tile).threads(), 1)
    wgmma_gemm_kernel([[maybe_unused]] const __grid_constant__ CUtensorMap w_map,
                      [[maybe_unused]] const __grid_constant__ CUtensorMap x_map,
                      [[maybe_unused]] const __grid_constant__ CUtensorMap y_map,
                      [[maybe_unused]] wgmma_output<Element, Out, Epilogue> output,
                      [[maybe_unused]] int splits, [[maybe_unused]] bool early_weights) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr wgmma_policy P = wgmma_policy_of(Tile);
  constexpr wgmma_layout L = wgmma_layout_of(P, sizeof(Element));
  extern __shared__ std::byte dynamic_shared[];
  __shared__ alignas(16) std::uint64_t barriers[2 * L.stages];
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
      wgmma_producer<Element, Tile>{w_map, x_map, schedule}.run(ring, early_weights);
    }
    __syncwarp();
    if (splits > 1) {
      cluster_arrive();
      cluster_wait();
    }
  } else {
    if constexpr (P.wide()) set_register_limit<P.consumer_registers(), true>();
    wait_for_earlier_kernels();
    wgmma_consumer<T, Element, Tile> consumer{ring, schedule.sharing()};
    schedule.for_each_segment([&](const wgmma_segment& s) {
      constexpr wgmma_policy policy = wgmma_policy_of(Tile);
      constexpr wgmma_layout layout = wgmma_layout_of(policy, sizeof(Element));
      consumer.accumulate(s.end - s.begin);
      if (splits == 1) {
        std::byte* const staging = dynamic_shared + padding + layout.ring_bytes() +
                                   threadIdx.x / 128 * layout.staging;
        consumer.store(staging, output, y_map, s.row0, s.token0);
      } else {
        // The stages, which other warpgroups may still read, are where partial sums go.
        named_barrier(1, policy.consumers());
        float* const sums = reinterpret_cast<float*>(dynamic_shared + padding);
        wgmma_write_sums(consumer.d, sums + threadIdx.x / 32 * 16,
                         wgmma_sum_pitch(policy.rows()));
        cluster_arrive();
        cluster_wait();
        wgmma_store_parts<Tile>(sums, output, schedule.rank, splits, s.row0, s.token0);
      }
    });
    tma_store_wait_read<0>();
  }
  // Nobody leaves while others of the cluster may still reach its shared memory.
  if (schedule.blocks > 1) {
    cluster_arrive_relaxed();
    cluster_wait();
  }
#endif
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
