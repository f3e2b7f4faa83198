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

#include <waterweight/detail/arch/bulk_copy.cuh>
#include <waterweight/detail/arch/cluster.cuh>
#include <waterweight/detail/arch/convert.cuh>
#include <waterweight/detail/arch/dependent_launch.cuh>
#include <waterweight/detail/arch/mbarrier.cuh>
#include <waterweight/detail/arch/memory.cuh>
#include <waterweight/detail/gemm/stream_plan.cuh>
#include <waterweight/detail/gemm/weights.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

inline constexpr int kStreamMaxInboxes = 4;

/// The block's mbarriers.
struct stream_barriers {
  std::uint64_t summed[kStreamBuffers];                        ///< the warps' sums are there
  std::uint64_t free[kStreamBuffers];                          ///< and have been read
  std::uint64_t claimed[kStreamClaims];                        ///< a claim is there
  std::uint64_t received[kStreamMaxInboxes];                   ///< the sums of all blocks are there
  std::uint64_t credit[kStreamMaxCluster][kStreamMaxInboxes];  ///< that block can take more

  /// By one warp, of which each lane has one claim's barrier. `warps`: those that have sums.
  __device__ __forceinline__ void init(int warps, int cluster) {
    static_assert(kStreamClaims == 32, "a lane each");
    mbarrier_init(claimed + threadIdx.x % 32, 1);
    mbarrier_init_fence();
    if (threadIdx.x % 32 != 0) return;
    for (int i = 0; i < kStreamBuffers; ++i) {
      mbarrier_init(summed + i, warps);
      mbarrier_init(free + i, 1);
    }
    if (cluster > 1) {
      for (int i = 0; i < kStreamMaxInboxes; ++i) {
        mbarrier_init(received + i, 1);
        for (int rank = 0; rank < cluster; ++rank) mbarrier_init(&credit[rank][i], 1);
      }
    }
    mbarrier_init_fence();
  }
};

/// What of the product a block computes: groups of rows over K in [k_begin, k_begin + k_count).
struct stream_share {
  int rank, cluster, clusters;
  int k_begin, k_count;
  bool claims;
  int total;                        ///< groups there are; of its own where shares are equal
  int row0, group_step, tile_step;  ///< rows: of group 0, from group to group, from tile to tile

  __device__ __forceinline__ stream_share(const stream_plan& plan, int rows, int cols)
      : rank(cluster_rank()),
        cluster(cluster_index()),
        clusters(plan.clusters),
        claims(plan.claims) {
    k_begin = rank * plan.slab;
    k_count = min(plan.slab, cols - k_begin);
    if (claims) {
      total = (rows + kStreamGroup - 1) / kStreamGroup;
      row0 = 0;
      group_step = kStreamGroup;
      tile_step = kStreamTile;
    } else {
      total =
          (plan.tiles + (cluster < plan.longer ? kStreamTiles : kStreamTiles - 1)) / kStreamTiles;
      row0 = cluster * kStreamTile;
      group_step = clusters * kStreamGroup;
      tile_step = clusters * kStreamTile;
    }
  }

  /// Row `row` of a group; past the last tile it is no row of W.
  __device__ __forceinline__ int channel(int group, int row) const {
    return row0 + group * group_step + row / kStreamTile * tile_step + row % kStreamTile;
  }
};

/// The groups that a block takes, one after another: at or above share.total there is none, nor any
/// after it. The first `known` are so from the start, or all of them; claims follow.
class stream_schedule {
 public:
  __device__ __forceinline__ stream_schedule(const stream_share& share, int known,
                                             std::uint64_t* claimed, const int* claim)
      : share_(share), known_(known), claimed_(claimed), claim_(claim) {}

  /// The i-th; i must not decrease from call to call.
  __device__ __forceinline__ int operator()(int i) {
    for (; at_ < i && group_ < share_.total; ++at_) group_ = read(at_ + 1);
    return group_;
  }

  /// The same by itself: up to the first i for which there is none.
  __device__ __forceinline__ int read(int i) const {
    if (!share_.claims) return i;
    if (i < known_) return share_.cluster + i * share_.clusters;
    const int entry = (i - known_) % kStreamClaims;
    mbarrier_wait(claimed_ + entry, (i - known_) / kStreamClaims & 1);
    return *static_cast<const volatile int*>(claim_ + entry);
  }

 private:
  const stream_share& share_;
  int known_;
  std::uint64_t* claimed_;
  const int* claim_;
  int at_ = -1, group_ = 0;
};

/// The bytes of `four` (q0 lowest) plus 128, times 2^-24, as pairs (q0, q2) and (q1, q3) of __half:
/// such numbers are the subnormal ones, whose bits are the byte itself.
__device__ __forceinline__ void offset_four(std::uint32_t four, std::uint32_t& pair02,
                                            std::uint32_t& pair13) {
  pair02 = (four & 0x00ff00ffu) ^ 0x00800080u;
  pair13 = __byte_perm(four, 0, 0x4341) ^ 0x00800080u;
}

inline constexpr float kStreamUnit = 0x1p24f;  ///< what sums of offset_four() are multiplied by

/// Activations as __half in the order of offset_four(), and what takes sums back to their scale.
template <class T>
struct stream_sum_factor;
template <class T>
struct stream_activation_scale;

template <>
struct stream_sum_factor<__half> {
  __device__ __forceinline__ float apply(float sum, int) const { return sum * kStreamUnit; }
};

template <>
struct stream_activation_scale<__half> {
  template <class X>
  __device__ __forceinline__ stream_activation_scale(const X&, int) {}
  __device__ __forceinline__ void apply(std::uint32_t& first, std::uint32_t& second) const {
    const std::uint32_t pair01 = first, pair23 = second;
    first = __byte_perm(pair01, pair23, 0x5410);
    second = __byte_perm(pair01, pair23, 0x7632);
  }
  __device__ __forceinline__ stream_sum_factor<__half> factor_of(int) const { return {}; }
};

template <>
struct stream_sum_factor<__nv_bfloat16> {
  std::uint32_t tokens;  ///< powers of 2 as a pair of bf16
  __device__ __forceinline__ float apply(float sum, int i) const {
    const float2 factors = unpack_pair<__nv_bfloat16>(tokens);
    return sum * kStreamUnit * (i == 0 ? factors.x : factors.y);
  }
};

/// A token's activations of this warp times the power of 2 that takes the largest into [2^14,
/// 2^15): all that is not smaller by 2^28 stays exact. NaN and infinity make the token NaN.
template <>
struct stream_activation_scale<__nv_bfloat16> {
  float inverse;
  std::uint32_t factor;  ///< its bits as bf16

  template <int Chunks, int NTiles>
  __device__ __forceinline__ stream_activation_scale(const std::uint32_t (&x)[Chunks][NTiles][8],
                                                     int j) {
    std::uint32_t largest = 0;  // exponents and mantissas, of either element
#pragma unroll
    for (int c = 0; c < Chunks; ++c) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        largest = __vmaxu2(largest, x[c][j][i] & 0x7fff7fffu);
      }
    }
    largest = max(largest & 0xffffu, largest >> 16);
    largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
    largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
    // Both factors are normal numbers: exponents 127 +- (14 - e), e at least -112.
    const int exponent = max(static_cast<int>(largest >> 7), 15);
    inverse = __uint_as_float(static_cast<std::uint32_t>(127 + 14 + 127 - exponent) << 23);
    factor = static_cast<std::uint32_t>(exponent - 14) << 7;
    if (exponent == 255) inverse = __uint_as_float(0x7fffffffu);
  }
  __device__ __forceinline__ void apply(std::uint32_t& first, std::uint32_t& second) const {
    const float2 a = unpack_pair<__nv_bfloat16>(first), b = unpack_pair<__nv_bfloat16>(second);
    first = pack_pair<__half>(a.x * inverse, b.x * inverse);
    second = pack_pair<__half>(a.y * inverse, b.y * inverse);
  }
  /// For the sums of tokens m and m + 1, which this lane has; lane 4 * m has the first's scale.
  __device__ __forceinline__ stream_sum_factor<__nv_bfloat16> factor_of(int m) const {
    return {__shfl_sync(0xffffffffu, factor, 4 * m) | __shfl_sync(0xffffffffu, factor, 4 * m + 4)
                                                          << 16};
  }
};

/// One of the warps that multiply: its part of K.
template <class T, int NTiles>
class stream_warp {
 public:
  static constexpr int kRowBytes = stream_row_bytes(NTiles), kDepth = stream_depth(NTiles);
  static constexpr int kParts = kRowBytes / kStreamPart;  ///< of a group
  static constexpr int kPartBytes = kStreamGroup * kStreamPart;
  static constexpr int kPartChunks = kStreamPart / kStreamChunk;
  static constexpr int kChunks = kRowBytes / kStreamChunk;
  static constexpr int kChains = 1;  ///< independent sums, for the latency of mma

  __device__ __forceinline__ stream_warp(const weight_operand<std::int8_t>& w,
                                         const stream_share& share, std::byte* ring)
      : part_(ring + warp() * kDepth * kPartBytes),
        ld_(static_cast<int>(w.ld / 16)),
        tile_step_(share.tile_step) {
    const int row = share.row0 + lane() / 8, k = first_k() + lane() % 8 * 16;
    // Neighbouring rows lie in different halves of the banks.
    place_ = lane() / 8 * kStreamPart + (lane() % 8 ^ lane() / 8 % 2 * 4) * 16;
    first_ = w.data + row * w.ld + share.k_begin + k;
    rows_ = w.rows - row;
#pragma unroll
    for (int i = 0; i < kParts; ++i) present_[i] = k + kStreamPart * i < share.k_count;
  }

  /// What request() asks for parts of from now on: the group that begins `step` rows further than
  /// group 0.
  __device__ __forceinline__ void aim(int step) {
    aimed_ = step;
    left_ = rows_ - step;
  }

  /// Nothing more to ask for.
  __device__ __forceinline__ void rest() { left_ = 0; }

  /// Asks for a part of a group, in the place of the oldest one: with each instruction 128 bytes of
  /// the four rows of a tile.
  template <int Part>
  __device__ __forceinline__ void request() {
    if (present_[Part]) {
#pragma unroll
      for (int i = 0; i < kStreamTiles; ++i) {
        if (i * tile_step_ < left_) {
          cp_async_16(part_ + oldest_ + place_ + i * kStreamTile * kStreamPart,
                      first_ + vectors(aimed_ + i * tile_step_) + Part * kStreamPart, 16);
        }
      }
    }
    cp_async_commit();
    oldest_ = oldest_ + kPartBytes == kDepth * kPartBytes ? 0 : oldest_ + kPartBytes;
  }

  __device__ __forceinline__ void request_group() {
    request<0>();
    if constexpr (kParts > 1) request<1>();
  }

  /// Loads this warp's activations: X must be final.
  __device__ __forceinline__ void load(const T* x, std::int64_t x_ld, int m_count,
                                       const stream_share& share) {
#pragma unroll
    for (int j = 0; j < NTiles; ++j) {
      const int m = 8 * j + group();
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const int k = first_k() + c * kStreamChunk + quad() * 16;
        const bool present = m < m_count && k < share.k_count;
        const T* source = x + m * x_ld + share.k_begin + k;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint4 v = present ? load_l2(source + 8 * half) : make_uint4(0, 0, 0, 0);
          x_[c][j][4 * half] = v.x;
          x_[c][j][4 * half + 1] = v.y;
          x_[c][j][4 * half + 2] = v.z;
          x_[c][j][4 * half + 3] = v.w;
        }
      }
    }
#pragma unroll
    for (int j = 0; j < NTiles; ++j) {
      const stream_activation_scale<T> scale(x_, j);
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
#pragma unroll
        for (int step = 0; step < 4; ++step) {
          scale.apply(x_[c][j][2 * step], x_[c][j][2 * step + 1]);
        }
      }
      factor_[j] = scale.factor_of(2 * quad());
    }
    // What the offset of the weights adds to every row, taken off beforehand.
    constexpr std::uint32_t kOffset = 0x80808080u;
    constexpr std::uint32_t kOffsets[4] = {kOffset, kOffset, kOffset, kOffset};
#pragma unroll
    for (int j = 0; j < NTiles; ++j) {
      float acc[4][4] = {};
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
#pragma unroll
        for (int step = 0; step < 4; ++step) {
          mma_m16n8k16<__half>(acc[step], kOffsets, x_[c][j][2 * step], x_[c][j][2 * step + 1]);
        }
      }
      start_[j] = make_float2((acc[0][0] + acc[1][0]) + (acc[2][0] + acc[3][0]),
                              (acc[0][1] + acc[1][1]) + (acc[2][1] + acc[3][1]));
    }
  }

  /// Multiplies the oldest group in the ring and asks for that aimed at in its place. What the ring
  /// holds beyond K meets zeros.
  __device__ __forceinline__ void multiply() {
#pragma unroll
    for (int j = 0; j < NTiles; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        acc_[0][j][e] = e % 2 == 0 ? start_[j].x : start_[j].y;
        if constexpr (kChains > 1) acc_[kChains - 1][j][e] = 0.0f;
      }
    }
    multiply_part<0>();
    if constexpr (kParts > 1) multiply_part<1>();
  }

  /// The sums as floats [NTiles][16 rows][8 tokens].
  __device__ __forceinline__ void write_sums(float* to) const {
#pragma unroll
    for (int j = 0; j < NTiles; ++j) {
      float sum[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        sum[e] = acc_[0][j][e];
        if constexpr (kChains > 1) sum[e] += acc_[kChains - 1][j][e];
        sum[e] = factor_[j].apply(sum[e], e % 2);
      }
      float* const mine = to + j * 128 + group() * 8 + quad() * 2;
      *reinterpret_cast<float2*>(mine) = make_float2(sum[0], sum[1]);
      *reinterpret_cast<float2*>(mine + 64) = make_float2(sum[2], sum[3]);
    }
  }

 private:
  __device__ static __forceinline__ int warp() { return threadIdx.x / 32; }
  __device__ static __forceinline__ int lane() { return threadIdx.x % 32; }
  __device__ static __forceinline__ int group() { return lane() / 4; }
  __device__ static __forceinline__ int quad() { return lane() % 4; }
  __device__ static __forceinline__ int first_k() { return warp() * kRowBytes; }
  /// Bytes of `rows` rows: they start on multiples of 16.
  __device__ __forceinline__ std::int64_t vectors(int rows) const {
    return static_cast<std::int64_t>(static_cast<std::uint32_t>(rows * ld_)) * 16;
  }

  template <int Part>
  __device__ __forceinline__ void multiply_part() {
    cp_async_wait<kDepth - 1>();
    __syncwarp();
    const std::byte* const first = part_ + oldest_ + group() * kStreamPart;
#pragma unroll
    for (int c = 0; c < kPartChunks; ++c) {
      const std::byte* const row = first + (4 * c + quad() ^ group() % 2 * 4) * 16;
      const uint4 low = *reinterpret_cast<const uint4*>(row);
      const uint4 high = *reinterpret_cast<const uint4*>(row + 8 * kStreamPart);
      if (c + 1 == kPartChunks) {
        __syncwarp();
        request<Part>();
      }
      const std::uint32_t first_row[4] = {low.x, low.y, low.z, low.w};
      const std::uint32_t second_row[4] = {high.x, high.y, high.z, high.w};
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        std::uint32_t a[4];
        offset_four(first_row[step], a[0], a[2]);
        offset_four(second_row[step], a[1], a[3]);
#pragma unroll
        for (int j = 0; j < NTiles; ++j) {
          const std::uint32_t(&x)[8] = x_[Part * kPartChunks + c][j];
          mma_m16n8k16<__half>(acc_[step % kChains][j], a, x[2 * step], x[2 * step + 1]);
        }
      }
    }
  }

  std::byte* part_;           ///< the warp's ring
  const std::int8_t* first_;  ///< this lane's vector of group 0
  int ld_, tile_step_;
  int aimed_;        ///< rows from group 0 to the group aimed at
  int rows_, left_;  ///< of W from there on
  int place_;        ///< of this lane in four rows of a part
  int oldest_ = 0;   ///< part of the ring, bytes
  bool present_[kParts];
  std::uint32_t x_[kChunks][NTiles][8];
  stream_sum_factor<T> factor_[NTiles];
  float2 start_[NTiles];
  float acc_[kChains][NTiles][4];
};

/// Adds sums of several sources, one after another in memory, in order. A lane has four tokens of
/// each eight for row lane / 2.
template <int NTiles>
__device__ __forceinline__ void stream_add(float4 (&sum)[NTiles], const float* from, int count) {
  const float* mine = from + threadIdx.x % 32 * 4;
#pragma unroll 5
  for (int i = 0; i < count; ++i) {
#pragma unroll
    for (int j = 0; j < NTiles; ++j) {
      const float4 next = *reinterpret_cast<const float4*>(mine + (i * NTiles + j) * 128);
      sum[j] =
          make_float4(sum[j].x + next.x, sum[j].y + next.y, sum[j].z + next.z, sum[j].w + next.w);
    }
  }
}

/// Turns sums into output: one warp.
template <class Out, class Epilogue>
struct stream_output {
  const weight_operand<std::int8_t>& w;
  const stream_share& share;
  float (&scales)[kStreamScales][kStreamGroup];
  Out* y;
  std::int64_t ld;
  int m_count;
  const Epilogue& epilogue;

  /// Scales are asked for well ahead: they queue behind all the weights under way. `i` counts the
  /// groups that this warp finishes.
  __device__ __forceinline__ void request_scales(int i, int group) {
    const int lane = threadIdx.x % 32, n = share.channel(group, lane);
    if (lane < kStreamGroup && group < share.total && n < w.rows) {
      cp_async_4(scales[i % kStreamScales] + lane, w.scale + n, true);
    }
    cp_async_commit();
  }

  /// That of the i-th, with `Later` asked for since.
  template <int Later>
  __device__ __forceinline__ float scale(int i) const {
    cp_async_wait<Later>();
    __syncwarp();
    return scales[i % kStreamScales][threadIdx.x % 32 / 2];
  }

  template <int NTiles>
  __device__ __forceinline__ void store(const float4 (&sum)[NTiles], float scale, int group) const {
    const int lane = threadIdx.x % 32, n = share.channel(group, lane / 2);
    if (n >= w.rows) return;
#pragma unroll
    for (int j = 0; j < NTiles; ++j) {
      const float values[4] = {sum[j].x, sum[j].y, sum[j].z, sum[j].w};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int m = 8 * j + lane % 2 * 4 + e;
        if (m < m_count) y[m * ld + n] = from_float<Out>(epilogue(values[e] * scale, m, n));
      }
    }
  }
};

/// Sends 16 bytes to the shared memory of a block of the cluster, announced at a barrier there.
__device__ __forceinline__ void send(std::uint32_t target, std::uint32_t barrier, int rank,
                                     float4 value) {
  asm volatile(
      "{\n"
      ".reg .b32 array, barrier;\n"
      "mapa.shared::cluster.u32 array, %0, %2;\n"
      "mapa.shared::cluster.u32 barrier, %1, %2;\n"
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [array], {%3,%4,%5,%6}, "
      "[barrier];\n"
      "}\n" ::"r"(target),
      "r"(barrier), "r"(rank), "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w)
      : "memory");
}
/// The same for one word.
__device__ __forceinline__ void send(std::uint32_t target, std::uint32_t barrier, int rank,
                                     int value) {
  asm volatile(
      "{\n"
      ".reg .b32 array, barrier;\n"
      "mapa.shared::cluster.u32 array, %0, %2;\n"
      "mapa.shared::cluster.u32 barrier, %1, %2;\n"
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [array], %3, [barrier];\n"
      "}\n" ::"r"(target),
      "r"(barrier), "r"(rank), "r"(value)
      : "memory");
}

/// Claims groups for a cluster: one thread of its first block.
class stream_claimer {
 public:
  __device__ __forceinline__ stream_claimer(const stream_share& share, stream_counters* counters,
                                            int known, int blocks, int* claim,
                                            std::uint64_t* claimed)
      : share_(share),
        counters_(counters),
        known_(known),
        blocks_(blocks),
        claim_(claim),
        claimed_(claimed) {}

  /// The first ones; earlier kernels must have ended.
  __device__ __forceinline__ void begin() {
    const int first = atomicAdd(&counters_->claimed, kStreamAhead);
    for (int i = 0; i < kStreamAhead && !ended_; ++i) hand_out(first + i);
    if (!ended_) next_ = atomicAdd(&counters_->claimed, 1);
  }

  /// Once for every group that has been multiplied: hands out what was asked for the last time.
  __device__ __forceinline__ void advance() {
    if (ended_) return;
    hand_out(next_);
    if (!ended_) next_ = atomicAdd(&counters_->claimed, 1);
  }

 private:
  __device__ __forceinline__ void hand_out(int i) {
    const int group = known_ * share_.clusters + i, entry = count_++ % kStreamClaims;
    for (int rank = 0; rank < blocks_; ++rank) {
      send(shared_address(claim_ + entry), shared_address(claimed_ + entry), rank, group);
    }
    if (group < share_.total) return;
    ended_ = true;
    if (atomicAdd(&counters_->ended, 1) == share_.clusters - 1) *counters_ = {0, 0};
  }

  const stream_share& share_;
  stream_counters* counters_;
  int known_, blocks_;
  int* claim_;
  std::uint64_t* claimed_;
  int next_ = 0, count_ = 0;
  bool ended_ = false;
};

#endif

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
      mbarrier_arrive_expect(barriers.claimed + lane, 4);
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
        if (q >= kKnown && lane == 0) {
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
