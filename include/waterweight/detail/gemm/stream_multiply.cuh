// A warp of the streaming kernel that multiplies: its part of K, with its activations in registers.
#pragma once

#include <waterweight/detail/arch/memory.cuh>
#include <waterweight/detail/arch/named_barrier.cuh>
#include <waterweight/detail/gemm/stream_barriers.cuh>
#include <waterweight/detail/gemm/weights.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

/// Weights as operands of mma, of type T: kUnit times what the sums are short of, kOffset what they
/// are too large by for each weight. Two k16 steps' worth of 16-bit weights, four of INT8.
template <class T, class Element>
struct stream_operand {
  static constexpr int kSteps = 2;
  static constexpr float kUnit = 1.0f;
  static constexpr bool kOffset = false;
  __device__ static __forceinline__ void pairs(const std::uint32_t (&words)[4], int step,
                                               std::uint32_t& pair01, std::uint32_t& pair23) {
    pair01 = words[2 * step];
    pair23 = words[2 * step + 1];
  }
};

template <>
struct stream_operand<__nv_bfloat16, std::int8_t> {
  static constexpr int kSteps = 4;
  static constexpr float kUnit = scaled_dequantizer<__nv_bfloat16>::kUnit;
  static constexpr bool kOffset = false;
  __device__ static __forceinline__ void pairs(const std::uint32_t (&words)[4], int step,
                                               std::uint32_t& pair01, std::uint32_t& pair23) {
    scaled_dequantizer<__nv_bfloat16>::four(words[step], pair01, pair23);
  }
};

/// A weight plus 128 is a byte, and a byte is, as it stands, the bits of a subnormal __half, which
/// tensor cores multiply like any other: three instructions for four weights. What the 128 add to a
/// sum depends on the activations alone: it is computed beforehand and taken off at the end.
template <>
struct stream_operand<__half, std::int8_t> {
  static constexpr int kSteps = 4;
  static constexpr float kUnit = 0x1p24f;
  static constexpr bool kOffset = true;
  static constexpr std::uint32_t kMinusOffset = 0x80808080u;  ///< a pair of -128 * 2^-24
  __device__ static __forceinline__ void pairs(const std::uint32_t (&words)[4], int step,
                                               std::uint32_t& pair01, std::uint32_t& pair23) {
    const std::uint32_t u = words[step] ^ 0x80808080u;
    pair01 = __byte_perm(u, 0, 0x4140);
    pair23 = __byte_perm(u, 0, 0x4342);
  }
};

template <class T, class Element, int NTiles>
class stream_multiplier {
 public:
  using operand = stream_operand<T, Element>;
  static constexpr int kChunks = stream_chunks(sizeof(Element));
  static constexpr int kFewerChunks = stream_fewer_chunks(sizeof(Element));
  static constexpr int kSteps = operand::kSteps;
  static constexpr int kSets = NTiles == 1 ? 2 : 1;  ///< of sums: shorter chains of mma

  __device__ __forceinline__ stream_multiplier(const stream_plan& plan, const stream_share& share)
      : first_(threadIdx.x / 32 * plan.warp_chunks * kStreamChunk + quad() * 16),
        bytes_(share.k_bytes),
        chunks_(min(plan.warp_chunks, (share.k_bytes + kStreamChunk - 1) / kStreamChunk -
                                          static_cast<int>(threadIdx.x) / 32 * plan.warp_chunks)),
        pitch_(plan.pitch()) {}

  /// Loads this warp's activations: X must be final. Through L1, so that the halves of a sector
  /// that a lane loads one after the other are asked of L2 once, behind all the weights under way:
  /// past L1, eight tokens, H200: 7680 x 2560 6.2 us, through it 5.5; 2560 x 2560 3.6, 3.0. `cols`:
  /// of a part, with 1 << fold of them to a row of X.
  __device__ __forceinline__ void load(const T* x, std::int64_t x_ld, int m_count, int cols,
                                       int fold, const stream_share& share) {
    constexpr int kVectors = kSteps / 2, kElement = static_cast<int>(sizeof(Element));
#pragma unroll
    for (int j = 0; j < NTiles; ++j) {
      const int m = 8 * j + group();
      const int token = m >> fold, part = m - (token << fold);
      const T* const row = x + token * x_ld + part * cols + (share.k_begin + first_) / kElement;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const bool present = token < m_count && c < chunks_ && first_ + c * kStreamChunk < bytes_;
#pragma unroll
        for (int i = 0; i < kVectors; ++i) {
          const uint4 v = present ? load_in_order(row + c * kStreamChunk / kElement + 8 * i)
                                  : make_uint4(0, 0, 0, 0);
          x_[c][j][4 * i] = v.x;
          x_[c][j][4 * i + 1] = v.y;
          x_[c][j][4 * i + 2] = v.z;
          x_[c][j][4 * i + 3] = v.w;
        }
      }
    }
    if constexpr (operand::kOffset) {
      constexpr std::uint32_t kOffset = operand::kMinusOffset;
      constexpr std::uint32_t kOffsets[4] = {kOffset, kOffset, kOffset, kOffset};
#pragma unroll
      for (int j = 0; j < NTiles; ++j) {
        float acc[4][4] = {};  // four chains: activations have just come, all is waiting
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
#pragma unroll
          for (int step = 0; step < kSteps; ++step) {
            mma_m16n8k16<T>(acc[step % 4], kOffsets, x_[c][j][2 * step], x_[c][j][2 * step + 1]);
          }
        }
        offset_[j] = make_float2((acc[0][0] + acc[1][0]) + (acc[2][0] + acc[3][0]),
                                 (acc[0][1] + acc[1][1]) + (acc[2][1] + acc[3][1]));
      }
    }
  }

  /// Multiplies one group of rows after another: the first `Chunks` of this warp's chunks, which
  /// are all that it has. Exact: that it has so many, and K fills them. Sums go to this warp's part
  /// of `sums`.
  template <int Chunks, bool Exact>
  __device__ __forceinline__ void run(const stream_plan& plan, const stream_share& share,
                                      stream_barriers& barriers, const std::byte* ring,
                                      float* sums) {
    constexpr int kSumBytes = stream_sums(NTiles) * static_cast<int>(sizeof(float));
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, tile_bytes = plan.tile_bytes();
    const int ring_bytes = plan.slots * tile_bytes;
    const auto wrapped = [&](int at) { return at < ring_bytes ? at : at - ring_bytes; };
    // Of rows g and g + 8 of a group, in the ring.
    int low = group() / kStreamTile * tile_bytes;
    int high = wrapped(low + kStreamTiles / 2 * tile_bytes);
    // Lanes 0 to 3 tell of a tile each that its slot is empty, where another tile is to follow: an
    // arrival of every lane that has read is 64 for each warp and group.
    int following = lane < kStreamTiles ? share.tiles - plan.slots - lane : 0;
    std::uint32_t emptied = shared_address(barriers.empty + lane % kStreamTiles);
    const std::uint32_t empty_end = shared_address(barriers.empty + plan.slots);
    // Kept in registers: what they are made of takes its time.
    std::uint32_t full = shared_address(barriers.full), free = shared_address(barriers.free);
    std::uint32_t weights = shared_address(ring) + group() % kStreamTile * pitch_ + first_;
    std::uint32_t to = shared_address(sums) + warp * kSumBytes + group() * 32 + quad() * 8;
    int summing = 32 * (share.warps + 1);
    asm volatile("" : "+r"(full), "+r"(free), "+r"(weights), "+r"(to), "+r"(summing));
    const auto groups = static_cast<unsigned>(share.groups());
    for (unsigned q = 0; q < groups; ++q) {
      const unsigned buffer = q % kStreamBuffers;
      mbarrier_wait(full + q % kStreamMaxGroups * 8, q / kStreamMaxGroups & 1);
      multiply<Chunks, Exact>(weights + low, weights + high, [&](std::uint32_t word) {
        if (following > 0) mbarrier_arrive(emptied + after_loading(word, plan.slots));
        // A branch: what is before it the compiler does not put behind the products that follow.
        mbarrier_wait(free + buffer * 8, (q / kStreamBuffers & 1) ^ 1);
      });
      low = wrapped(low + kStreamTiles * tile_bytes);
      high = wrapped(high + kStreamTiles * tile_bytes);
      following -= kStreamTiles;
      emptied += kStreamTiles * 8;
      if (emptied >= empty_end) emptied -= plan.slots * 8;
      write_sums(to + buffer * kStreamWarps * kSumBytes);
      named_barrier_arrive(stream_summed(buffer), summing);
    }
  }

 private:
  __device__ static __forceinline__ int group() { return threadIdx.x % 32 / 4; }
  __device__ static __forceinline__ int quad() { return threadIdx.x % 4; }

  /// A lane has group() of the rows at `low` and `high`. Calls read(word) when the warp has loaded
  /// all that it needs of the ring, with some still to multiply; `word` is made of what every lane
  /// has loaded.
  template <int Chunks, bool Exact, class Read>
  __device__ __forceinline__ void multiply(std::uint32_t low, std::uint32_t high,
                                           const Read& read) {
    constexpr int kAhead = 2;  // chunks; there are no registers for more
    uint4 first[kAhead], second[kAhead];
#pragma unroll
    for (int c = 0; c < kAhead; ++c) {
      first[c] = weights_at<Exact>(low, c);
      second[c] = weights_at<Exact>(high, c);
    }
#pragma unroll
    for (int j = 0; j < NTiles; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
#pragma unroll
        for (int set = 0; set < kSets; ++set) acc_[set][j][e] = 0.0f;
      }
    }
#pragma unroll
    for (int c = 0; c < Chunks; ++c) {
      const int place = c % kAhead;
      const std::uint32_t first_row[4] = {first[place].x, first[place].y, first[place].z,
                                          first[place].w};
      const std::uint32_t second_row[4] = {second[place].x, second[place].y, second[place].z,
                                           second[place].w};
      if (c + kAhead < Chunks) {
        first[place] = weights_at<Exact>(low, c + kAhead);
        second[place] = weights_at<Exact>(high, c + kAhead);
      }
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        std::uint32_t a[4];
        operand::pairs(first_row, step, a[0], a[2]);
        operand::pairs(second_row, step, a[1], a[3]);
#pragma unroll
        for (int j = 0; j < NTiles; ++j) {
          mma_m16n8k16<T>(acc_[step % kSets][j], a, x_[c][j][2 * step], x_[c][j][2 * step + 1]);
        }
      }
      if (c + kAhead == Chunks) {
        std::uint32_t word = 0;
#pragma unroll
        for (int i = 0; i < kAhead; ++i) word |= first[i].w & second[i].w;
        read(__ballot_sync(0xffffffffu, word == 0));
      }
    }
#pragma unroll
    for (int j = 0; j < NTiles; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if constexpr (kSets > 1) acc_[0][j][e] += acc_[1][j][e];
        // Last: products need not wait for it, and the compiler keeps all in registers.
        if constexpr (operand::kOffset) acc_[0][j][e] += e % 2 == 0 ? offset_[j].x : offset_[j].y;
      }
    }
  }

  /// This lane's chunk c of a row. Past the end of K activations are zeros, and any weights will do
  /// that are finite and there: those at the beginning of the row. Where nothing is past it, chunks
  /// are immediate offsets.
  template <bool Exact>
  __device__ __forceinline__ uint4 weights_at(std::uint32_t lane_first, int c) const {
    const bool any = Exact || first_ + c * kStreamChunk < bytes_;
    return load_shared_in_order(lane_first + (any ? c * kStreamChunk : -first_));
  }

  /// As floats [NTiles][16 rows][8 tokens].
  __device__ __forceinline__ void write_sums(std::uint32_t to) const {
#pragma unroll
    for (int j = 0; j < NTiles; ++j) {
      const float(&sum)[4] = acc_[0][j];
      store_shared(to + j * 512, make_float2(sum[0], sum[1]));
      store_shared(to + j * 512 + 256, make_float2(sum[2], sum[3]));
    }
  }

  int first_;   ///< this lane's first byte of the slab
  int bytes_;   ///< of the slab
  int chunks_;  ///< of this warp
  int pitch_;
  std::uint32_t x_[kChunks][NTiles][2 * kSteps];
  float2 offset_[NTiles];
  float acc_[kSets][NTiles][4];
};

#endif

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
