// The GEMM of many rows on Hopper: wgmma fed by TMA.
//
// W is wgmma's A operand, 64 rows per warpgroup, because A alone may come from registers, where
// INT8 turns into 16 bit; X is B and stays in shared memory as TMA lays it. The sums are those of
// Y^T. One warp copies stages of 64 K elements ahead of the consumers; these convert the next
// stage's weights while the tensor cores work on the current one. 16-bit weights go the same way
// with A in shared memory and nothing to convert.
//
// Where the tiles of many tokens fill the card, blocks are persistent, clusters of two share their
// rows of X, and the last rounds of tiles may be shared out evenly through the workspace. Where
// they do not, a cluster shares one tile: each block sums a part of K, and the parts are added in
// the order of K through distributed shared memory.
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
#include <waterweight/detail/gemm/wgmma_schedule.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// The ring of stages in shared memory and where in it a warp is. A stage holds blocks of W, then
/// as many of X.
template <class Element, wgmma_tile Tile>
struct wgmma_ring {
  static constexpr wgmma_policy P = wgmma_policy_of(Tile);
  static constexpr wgmma_layout L = wgmma_layout_of(P, sizeof(Element));

  std::uint32_t first, first_barrier;    ///< shared addresses
  std::uint32_t stage = first;           ///< of the current stage
  std::uint32_t filled = first_barrier;  ///< of its barriers: filled, then free
  std::uint32_t parity = 0;

  __device__ __forceinline__ std::uint32_t w(int block) const { return stage + block * L.w_bytes; }
  __device__ __forceinline__ std::uint32_t x(int block) const {
    return stage + L.blocks * L.w_bytes + block * L.x_bytes;
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

  /// One thread's work: fills stage after stage.
  __device__ __forceinline__ void produce(const CUtensorMap& w_map, const CUtensorMap& x_map,
                                          const wgmma_schedule<Tile>& schedule) {
    schedule.for_each_segment([&](const wgmma_segment& s) {
      for (int k = s.begin * L.blocks; k < s.end * L.blocks; k += L.blocks) {
        mbarrier_wait(free(), parity ^ 1);
        mbarrier_arrive_expect(filled, L.stage_bytes());
#pragma unroll
        for (int block = 0; block < L.blocks; ++block) {
          const int column = (k + block) * kWgmmaBlockK;
          tma_load(w(block), w_map, s.row0, column, filled);
          if constexpr (P.multicast > 1) {
            constexpr int kShare = P.tokens / P.multicast;
            const int from = kShare * schedule.rank;
            tma_load_multicast(x(block) + from * kWgmmaBlockK * 2, x_map, s.token0 + from, column,
                               filled, (1 << P.multicast) - 1);
          } else {
            tma_load(x(block), x_map, s.token0, column, filled);
          }
        }
        advance();
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
  std::uint32_t used = 0;  ///< barrier of the stage before the current one: free
  float d[P.tokens / 2];

  /// The calling warp has read the stage before the current one: tells whoever writes to it.
  __device__ __forceinline__ void release() const {
    const int lane = threadIdx.x % 32;
    if constexpr (P.multicast > 1) {
      if (lane < P.multicast) mbarrier_arrive_at(used, lane);
    } else {
      if (lane == 0) mbarrier_arrive(used);
    }
  }

  /// This warp's INT8 weights of a block of the current stage as fragments of A. Rows of 64 bytes
  /// lie under the 64-byte swizzle: the 16-byte vector j of row r is at j ^ (r / 2 % 4), so the
  /// eight rows of a load are in eight different vectors of the banks.
  __device__ __forceinline__ void convert(fragments& a, int block) const {
    const int lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
    const int row = threadIdx.x / 32 * 16 + group, flip = group / 2 % 4;
#pragma unroll
    for (int j = 0; j < kWgmmaBlockK / 16; ++j) {
      const int inside = row * kWgmmaBlockK + 16 * (j ^ flip) + 2 * quad;
      const std::uint32_t vector = ring.w(block) + inside;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        std::uint32_t two;
        asm volatile("ld.shared.u16 %0, [%1];"
                     : "=r"(two)
                     : "r"(vector + e % 2 * 8 * kWgmmaBlockK + e / 2 * 8));
        a[j][e] = dequantize_two<T>(two);
      }
    }
  }

  __device__ __forceinline__ void multiply(const fragments& a, int block) {
    const std::uint32_t x = ring.x(block) >> 4;
    const std::uint32_t rows = threadIdx.x / 128 * 64 * kWgmmaBlockK * 2;
    const std::uint32_t w = (ring.w(block) + rows) >> 4;
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
    launch_dependents();
  }

  /// Stores a tile, kWgmmaChunk tokens at a time through the warp's own `sums`: no warp waits for
  /// another, and the copies of the next tile go on meanwhile.
  template <class Output>
  __device__ __forceinline__ void store_chunks(float* sums, const Output& output, int row0,
                                               int token0) {
    constexpr int kPitch = wgmma_sum_pitch(16), kChunks = P.tokens / kWgmmaChunk;
    const int lane = threadIdx.x % 32, token = lane / 8, channel = lane % 8 * 2;
    const int n = row0 + threadIdx.x / 32 * 16 + channel;
    const float2 scale = output.scales(n);
#pragma unroll 1
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int m0 = token0 + chunk * kWgmmaChunk;
      if (m0 >= output.m_count) break;
      write_chunk<0>(chunk, sums);
      __syncwarp();
      output.template store<kWgmmaChunk / 4>(m0 + token, 4, n, scale, [&](int i) {
        return *reinterpret_cast<const float2*>(sums + (token + 4 * i) * kPitch + channel);
      });
      __syncwarp();
    }
  }

  /// Registers have no run-time index: one branch per chunk.
  template <int Chunk>
  __device__ __forceinline__ void write_chunk(int chunk, float* sums) const {
    constexpr int kGroups = kWgmmaChunk / 8;
    if (chunk == Chunk) {
      wgmma_write_sums<Chunk * kGroups, kGroups>(d, sums, wgmma_sum_pitch(16));
    } else if constexpr ((Chunk + 1) * kWgmmaChunk < P.tokens) {
      write_chunk<Chunk + 1>(chunk, sums);
    }
  }
};

/// After all blocks of the cluster have written their parts to `sums`: adds them, a share of the
/// tokens in each block, and stores.
template <wgmma_tile Tile, class Output>
__device__ __forceinline__ void wgmma_store_parts(const float* sums, const Output& output, int rank,
                                                  int blocks, int row0, int token0) {
  constexpr wgmma_policy P = wgmma_policy_of(Tile);
  constexpr int kWarpsPerGroup = P.consumers() / 32 / P.warpgroups;
  constexpr int kPitch = wgmma_sum_pitch(P.rows());
  const int warp = threadIdx.x / 32, row_group = warp % P.warpgroups;
  const int channel = 64 * row_group + threadIdx.x % 32 * 2, n = row0 + channel;
  const int tokens = min(P.tokens, output.m_count - token0);
  const int end = tokens * (rank + 1) / blocks;
  const float2 scale = output.scales(n);
  const std::uint32_t address = shared_address(sums + channel);
  constexpr int kTogether = 8;
  for (int t = tokens * rank / blocks + warp / P.warpgroups; t < end;
       t += kTogether * kWarpsPerGroup) {
    float2 sum[kTogether] = {};
    for (int part = 0; part < blocks; ++part) {
      float2 more[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const int token = min(t + i * kWarpsPerGroup, end - 1);
        more[i] = load_cluster_float2(address + token * kPitch * sizeof(float), part);
      }
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        sum[i] = make_float2(sum[i].x + more[i].x, sum[i].y + more[i].y);
      }
    }
    const int left = (end - t + kWarpsPerGroup - 1) / kWarpsPerGroup;
    output.template store<kTogether>(
        token0 + t, kWarpsPerGroup, n, scale, [&](int i) { return sum[i]; }, left);
  }
}

#endif  // sm_90a

/// Compiled for anything but sm_90a it is empty, and has no static shared memory: what the host
/// knows it by.
template <class T, class Element, class Out, class Epilogue, wgmma_tile Tile>
__global__ void __launch_bounds__(wgmma_policy_of(Tile).threads(),
                                  wgmma_policy_of(Tile).blocks_per_sm)
    wgmma_gemm_kernel([[maybe_unused]] const __grid_constant__ CUtensorMap w_map,
                      [[maybe_unused]] const __grid_constant__ CUtensorMap x_map,
                      [[maybe_unused]] wgmma_output<Element, Out, Epilogue> output,
                      [[maybe_unused]] wgmma_parts parts, [[maybe_unused]] int splits) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr wgmma_policy P = wgmma_policy_of(Tile);
  constexpr wgmma_layout L = wgmma_layout_of(P, sizeof(Element));
  extern __shared__ std::byte dynamic_shared[];
  __shared__ alignas(16) std::uint64_t barriers[2 * L.stages];
  const std::uint32_t unaligned = shared_address(dynamic_shared);
  const std::uint32_t padding = (1024 - unaligned % 1024) % 1024;
  float* const sums = reinterpret_cast<float*>(dynamic_shared + padding + L.sums);

  std::uint32_t first_stage = unaligned + padding, first_barrier = shared_address(barriers);
  // Opaque to the compiler, which would compute them again at every use.
  asm volatile("" : "+r"(first_stage), "+r"(first_barrier));
  wgmma_ring<Element, Tile> ring{first_stage, first_barrier};
  const wgmma_schedule<Tile> schedule(output.m_count, output.w.rows, output.w.cols, L.stage_k(),
                                      splits);
  if (threadIdx.x == 0) {
    tma_prefetch_map(w_map);
    tma_prefetch_map(x_map);
    for (int i = 0; i < L.stages; ++i) {
      mbarrier_init(barriers + 2 * i, 1);
      mbarrier_init(barriers + 2 * i + 1, P.consumers() / 32 * P.multicast);
    }
    mbarrier_init_fence();
  }
  // A block may copy into another's shared memory as soon as its barriers are there.
  if constexpr (P.multicast > 1) {
    cluster_arrive_relaxed();
    cluster_wait();
  } else {
    __syncthreads();
  }
  wait_for_earlier_kernels();

  if (threadIdx.x >= P.consumers()) {
    if constexpr (P.wide()) set_register_limit<P.producer_registers(), false>();
    if (threadIdx.x == P.consumers()) ring.produce(w_map, x_map, schedule);
    __syncwarp();
    if (!P.persistent && schedule.blocks > 1) {
      cluster_arrive();
      cluster_wait();
    }
  } else {
    if constexpr (P.wide()) set_register_limit<P.consumer_registers(), true>();
    wgmma_consumer<T, Element, Tile> consumer{ring};
    schedule.for_each_segment([&](const wgmma_segment& s) {
      constexpr wgmma_policy policy = wgmma_policy_of(Tile);
      float* const own_sums = sums + threadIdx.x / 32 * kWgmmaChunk * wgmma_sum_pitch(16);
      consumer.accumulate(s.end - s.begin);
      if constexpr (policy.persistent) {
        const auto slot = [&](int cluster) { return cluster * policy.multicast + schedule.rank; };
        if (s.begin > 0) {
          parts.give(consumer.d, slot(schedule.cluster));
          return;
        }
        if (s.end < schedule.stages) {
          std::int64_t from = schedule.stretch(schedule.cluster + 1);
          for (int next = schedule.cluster + 1; from < s.tile_end; ++next) {
            const std::int64_t to = schedule.stretch(next + 1);
            if (to > from) parts.take(consumer.d, slot(next));
            from = to;
          }
        }
        consumer.store_chunks(own_sums, output, s.row0, s.token0);
      } else {
        // The stages, which other warpgroups may still read, are where sums go.
        named_barrier(1, policy.consumers());
        if (schedule.blocks == 1) {
          consumer.store_chunks(own_sums, output, s.row0, s.token0);
        } else {
          wgmma_write_sums<0, policy.tokens / 8>(consumer.d, sums + threadIdx.x / 32 * 16,
                                                 wgmma_sum_pitch(policy.rows()));
          cluster_arrive();
          cluster_wait();
          wgmma_store_parts<Tile>(sums, output, schedule.rank, schedule.blocks, s.row0, s.token0);
        }
      }
    });
  }
  // Nobody leaves while others of the cluster may still reach its shared memory.
  if (P.multicast > 1 || (!P.persistent && schedule.blocks > 1)) {
    cluster_arrive_relaxed();
    cluster_wait();
  }
#endif
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
