// The warpgroups of the wgmma kernel that multiply, and what they do with their sums.
#pragma once

#include <waterweight/detail/arch/cluster.cuh>
#include <waterweight/detail/arch/dequant.cuh>
#include <waterweight/detail/arch/mbarrier.cuh>
#include <waterweight/detail/arch/named_barrier.cuh>
#include <waterweight/detail/arch/tma.cuh>
#include <waterweight/detail/arch/wgmma.cuh>
#include <waterweight/detail/gemm/mma_consumer.cuh>
#include <waterweight/detail/gemm/wgmma_halves.cuh>
#include <waterweight/detail/gemm/wgmma_output.cuh>
#include <waterweight/detail/gemm/wgmma_parts.cuh>
#include <waterweight/detail/gemm/wgmma_producer.cuh>

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
    return row0 + threadIdx.x / 128 * P.group_rows() + threadIdx.x % 128 / 32 * 16 +
           threadIdx.x % 32 / 4;
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

  /// d += the sums over `stages` stages.
  __device__ __forceinline__ void multiply(int stages) {
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
  }

  /// d = the sums over `stages` >= 1 stages of K. `exchange` is this warpgroup's.
  __device__ __forceinline__ void accumulate(int stages, [[maybe_unused]] std::byte* exchange) {
    if constexpr (P.mma()) {
      mma_consumer<T, Tile>{ring}.accumulate(stages, exchange, d);
    } else {
#pragma unroll
      for (int i = 0; i < P.tokens / 2; ++i) d[i] = 0.0f;
      multiply(stages);
      wgmma_wait<0>();
      wgmma_pin(d);
      release();
    }
  }

  /// Hands a tile to the copy engine, chunk by chunk; `staging` is this warpgroup's.
  template <class Out, class Epilogue>
  __device__ __forceinline__ void store(std::byte* staging,
                                        const wgmma_output<Element, Out, Epilogue>& output,
                                        const CUtensorMap& y_map, int row0, int token0) {
    constexpr int kPlaces = L.staging / (P.chunk * 64 * static_cast<int>(sizeof(Out)));
    // What is unrolled: an epilogue may be long, but what it reads should be read together. Floats
    // take twice the registers, which the largest tile alone has.
    constexpr int kStep = P.mma() || (sizeof(Out) == 4 && P.tokens < 256) ? 16 : 32;
    constexpr int kUnrolled = P.chunk % 64 == 0 ? 1 : P.tokens / P.chunk;
    const int n0 = row0 + threadIdx.x / 128 * P.group_rows();
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
      if (leader) {
        // The tile before may have had fewer chunks than there are places: its last copy, from any
        // place, is then one of the last kPlaces - 1.
        if (chunk == 0) {
          tma_store_wait_read<0>();
        } else {
          tma_store_wait_read<kPlaces - 1>();
        }
      }
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
      if (!output.aligned || P.group_rows() != 64) {
        place.template store_directly<P.group_rows()>(output, m0, n0, P.chunk);
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
    // What the epilogue reads for these is read together. Of 64 tokens a block owns few groups.
    constexpr int kTogether = P.tokens > 64 ? 4 : 2;
    const int n0 = row0 + threadIdx.x / 128 * P.group_rows();
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
      place.template store_directly<P.group_rows()>(output, m0, n0, 8 * count);
    }
  }

  /// Adds and stores this block's half of a tile, round by round.
  template <class Out, class Epilogue>
  __device__ __forceinline__ void store(std::byte* incoming,
                                        const wgmma_output<Element, Out, Epilogue>& output,
                                        const wgmma_halves<Element, Tile>& halves, int row0,
                                        int token0) {
    constexpr int kTokens = 8 * wgmma_halves<Element, Tile>::kRoundGroups;
    static_assert(kTokens * 64 * 4 <= L.staging,
                  "a round's values lie over the first round's sums");
    const int n0 = row0 + threadIdx.x / 128 * P.group_rows();
    const int n = channel(row0);
    const float scales[2] = {kUnit * output.scale(n), kUnit * output.scale(n + 8)};
    const int barrier = 1 + threadIdx.x / 128;
    const wgmma_staging<Out, kTokens> place{incoming};
    // The other block has made its barriers.
    cluster_wait();
    halves.send(d);
    float own[4 * halves.kShare];
    halves.keep(d, own);
#pragma unroll 1
    for (int round = 0; round < halves.kRounds; ++round) {
      const int first = round * kTokens, m0 = token0 + halves.first_token() + first;
      float sums[kTokens / 2];
      halves.wait(round);
      if (n0 >= output.w.rows || m0 >= output.m_count) continue;
      halves.add(own, sums, round);
      named_barrier(barrier, 128);
      place.write(sums, 0, [&](float sum, int half, int token) {
        return output.finish(sum, scales[half], m0 + token, n + 8 * half);
      });
      named_barrier(barrier, 128);
      place.template store_directly<P.group_rows()>(output, m0, n0,
                                                    min(kTokens, halves.tokens() - first));
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

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
