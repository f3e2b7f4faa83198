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

#ifdef WW_LOG
__device__ long long* g_log;
#endif
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

#ifdef WW_LOG
__device__ __forceinline__ void log_time(int event, int launch) {
  long long t;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
  long long* l = g_log;
  if (l) l[(launch * 132 + blockIdx.x) * 8 + event] = t;
}
#define WW_T(e) log_time(e, plan.trigger >> 16)
#else
#define WW_T(e)
#endif

inline constexpr int kStreamMaxInboxes = 4;

/// The block's mbarriers.
struct stream_barriers {
  std::uint64_t summed[kStreamBuffers];       ///< the warps' sums are there
  std::uint64_t free[kStreamBuffers];         ///< and have been read
  std::uint64_t received[kStreamMaxInboxes];  ///< the sums of all blocks are there
  std::uint64_t credit[kStreamMaxCluster][kStreamMaxInboxes];  ///< that block can take more

  /// By one thread. `warps`: those that have sums.
  __device__ __forceinline__ void init(int warps, int cluster) {
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

/// What of the product a block computes: tiles `cluster`, `cluster` + clusters, ... of the rows
/// over K in [k_begin, k_begin + k_count).
struct stream_share {
  int rank, cluster, clusters;
  int groups;  ///< of rows that are multiplied together
  int k_begin, k_count;

  __device__ __forceinline__ stream_share(const stream_plan& plan, int cols)
      : rank(cluster_rank()), cluster(cluster_index()), clusters(plan.clusters) {
    groups = (plan.tiles + (cluster < plan.longer ? kStreamTiles : kStreamTiles - 1)) / kStreamTiles;
    k_begin = rank * plan.slab;
    k_count = min(plan.slab, cols - k_begin);
  }

  /// From a tile of this block to the next.
  __device__ __forceinline__ int row_step() const { return clusters * kStreamTile; }
  /// Row `row` of the q-th group; past the last tile it is no row of W.
  __device__ __forceinline__ int channel(int q, int row) const {
    return (cluster + (q * kStreamTiles + row / kStreamTile) * clusters) * kStreamTile +
           row % kStreamTile;
  }
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

/// A token's activations of this warp times the power of 2 that takes the largest into [2^14, 2^15):
/// all that is not smaller by 2^28 stays exact. NaN and infinity make the token NaN.
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
    return {__shfl_sync(0xffffffffu, factor, 4 * m) |
            __shfl_sync(0xffffffffu, factor, 4 * m + 4) << 16};
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
  static constexpr int kChains = NTiles == 1 ? 2 : 1;  ///< independent sums, for the latency of mma

  __device__ __forceinline__ stream_warp(const weight_operand<std::int8_t>& w,
                                         const stream_share& share, std::byte* ring)
      : ring_(ring + warp() * kDepth * kPartBytes), row_step_(share.row_step()) {
    const int row = share.channel(0, lane() / 8);
    left_ = w.rows - row;
    // Neighbouring rows lie in different halves of the banks.
    place_ = lane() / 8 * kStreamPart + (lane() % 8 ^ lane() / 8 % 2 * 4) * 16;
    const int k = first_k() + lane() % 8 * 16;
    source_ = w.data + row * w.ld + share.k_begin + k;
    step_ = row_step_ * w.ld;
#pragma unroll
    for (int i = 0; i < kParts; ++i) present_[i] = k + kStreamPart * i < share.k_count;
  }

  /// Asks for the next part of a group: with each instruction 128 bytes of the four rows of a tile.
  template <int Part>
  __device__ __forceinline__ void request() {
    if (present_[Part]) {
      std::byte* const target = ring_ + place_ + requested_;
#pragma unroll
      for (int i = 0; i < kStreamTiles; ++i) {
        if (i * row_step_ < left_) {
          cp_async_16(target + i * kStreamTile * kStreamPart,
                      source_ + i * step_ + Part * kStreamPart, 16);
        }
      }
    }
    cp_async_commit();
    requested_ = after(requested_);
    if constexpr (Part + 1 == kParts) {
      left_ -= kStreamTiles * row_step_;
      source_ += kStreamTiles * step_;
    }
  }

  /// Asks for as much as the ring holds.
  __device__ __forceinline__ void begin() { request_from<0, 0>(); }

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

  /// Multiplies the next group and asks for as much again. What the ring holds beyond K meets zeros.
  template <int Phase>
  __device__ __forceinline__ void multiply() {
#pragma unroll
    for (int j = 0; j < NTiles; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        acc_[0][j][e] = e % 2 == 0 ? start_[j].x : start_[j].y;
        if constexpr (kChains > 1) acc_[kChains - 1][j][e] = 0.0f;
      }
    }
    multiply_part<0, Phase>();
    if constexpr (kParts > 1) multiply_part<1, Phase>();
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
  __device__ static __forceinline__ int after(int place) {
    return place + kPartBytes == kDepth * kPartBytes ? 0 : place + kPartBytes;
  }

  template <int Part, int Count>
  __device__ __forceinline__ void request_from() {
    if constexpr (Count < kDepth) {
      request<Part>();
      request_from<(Part + 1) % kParts, Count + 1>();
    }
  }

  /// Phase: which part of a group is asked for when its first part has been multiplied.
  template <int Part, int Phase>
  __device__ __forceinline__ void multiply_part() {
    cp_async_wait<kDepth - 1>();
    __syncwarp();
    const std::byte* const first = ring_ + used_ + group() * kStreamPart;
    uint4 low[kPartChunks], high[kPartChunks];
#pragma unroll
    for (int c = 0; c < kPartChunks; ++c) {
      const std::byte* const row = first + (4 * c + quad() ^ group() % 2 * 4) * 16;
      low[c] = *reinterpret_cast<const uint4*>(row);
      high[c] = *reinterpret_cast<const uint4*>(row + 8 * kStreamPart);
    }
    __syncwarp();
    used_ = after(used_);
    request<(Part + Phase) % kParts>();
#pragma unroll
    for (int c = 0; c < kPartChunks; ++c) {
      const std::uint32_t first_row[4] = {low[c].x, low[c].y, low[c].z, low[c].w};
      const std::uint32_t second_row[4] = {high[c].x, high[c].y, high[c].z, high[c].w};
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

  std::byte* ring_;
  const std::int8_t* source_;
  std::int64_t step_;
  int row_step_, left_;          ///< rows from this lane's next one to the end of W
  int place_;                    ///< of this lane in four rows of a part
  int requested_ = 0, used_ = 0;  ///< next part of the ring, bytes
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
      sum[j] = make_float4(sum[j].x + next.x, sum[j].y + next.y, sum[j].z + next.z,
                           sum[j].w + next.w);
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
  __device__ __forceinline__ void request_scales(int i, int q) {
    const int lane = threadIdx.x % 32, n = share.channel(q, lane);
    if (lane < kStreamGroup && n < w.rows) {
      cp_async_4(scales[i % kStreamScales] + lane, w.scale + n, true);
    }
    cp_async_commit();
  }

  __device__ __forceinline__ float scale(int i) const {
    cp_async_wait<kStreamScales - 1>();
    __syncwarp();
    return scales[i % kStreamScales][threadIdx.x % 32 / 2];
  }

  template <int NTiles>
  __device__ __forceinline__ void store(const float4 (&sum)[NTiles], float scale, int q) const {
    const int lane = threadIdx.x % 32, n = share.channel(q, lane / 2);
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

#endif

/// Requires rows of X and W that start on 16-byte boundaries, K % 16 == 0, m_count <= 8 * NTiles, a
/// grid of plan.cluster * plan.clusters blocks. `early`: weights and scales may be read before
/// earlier kernels have ended.
template <class T, class Out, class Epilogue, int NTiles>
__global__ void __launch_bounds__(kStreamThreads, 2)
    stream_kernel(const T* x, std::int64_t x_ld, weight_operand<std::int8_t> w, Out* y,
                  std::int64_t y_ld, int m_count, Epilogue epilogue, stream_plan plan, bool early) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  constexpr int kSums = stream_sums(NTiles);
  using worker = stream_warp<T, NTiles>;
  extern __shared__ __align__(16) std::byte memory[];
  __shared__ __align__(8) stream_barriers barriers;
  __shared__ float scales[kStreamScales][kStreamGroup];
  float* const sums = reinterpret_cast<float*>(memory + stream_ring_bytes(NTiles));
  float* const inbox = sums + kStreamBuffers * kStreamWarps * kSums;
  const stream_share share(plan, w.cols);
  const int warps = (share.k_count + worker::kRowBytes - 1) / worker::kRowBytes;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  if (threadIdx.x == 0) WW_T(0);
  // Parameters come through a cache that is cold at every launch: not when they are first needed.
  asm volatile("" ::"l"(x), "l"(x_ld), "l"(y), "l"(y_ld), "r"(m_count), "r"(plan.inboxes),
               "r"(plan.trigger));
  if (!early) wait_for_earlier_kernels();
  worker mine(w, share, memory);
  if (warp < warps) {
    mine.begin();
  } else if (warp == kStreamWarps && lane == 0) {
    barriers.init(warps, plan.cluster);
  }
  __syncthreads();
  if (plan.cluster > 1) cluster_arrive_relaxed();

  if (warp < warps) {
    wait_for_earlier_kernels();
    if (threadIdx.x == 0) WW_T(1);
    // Not at once: blocks of the next kernel compete for memory. Not too late: a block that has
    // ended leaves room for two of them.
    const int trigger = share.groups - (plan.trigger & 0xffff);
    if (trigger <= 0) launch_dependents();
    mine.load(x, x_ld, m_count, share);
    for (int q = 0; q < share.groups; ++q) {
      if (q == trigger) {
        launch_dependents();
        if (threadIdx.x == 0) WW_T(2);
      }
      mine.template multiply<worker::kDepth % worker::kParts>();
      if (threadIdx.x == 0 && q == 0) WW_T(3);
      const int buffer = q % kStreamBuffers;
      mbarrier_wait(barriers.free + buffer, (q / kStreamBuffers & 1) ^ 1);
      mine.write_sums(sums + (buffer * kStreamWarps + warp) * kSums);
      __syncwarp();
      if (lane == 0) mbarrier_arrive(barriers.summed + buffer);
    }
    if (threadIdx.x == 0) WW_T(4);
  } else if (warp >= kStreamWarps) {
    stream_output<Out, Epilogue> output{w, share, scales, y, y_ld, m_count, epilogue};
    const bool adds = warp == kStreamWarps, alone = plan.cluster == 1;
    const int first = alone ? 0 : share.rank;
    if (alone == adds) {
      for (int i = 0; i < kStreamScales - 1; ++i) {
        output.request_scales(i, first + i * plan.cluster);
      }
    }
    if (!alone) cluster_wait();
    if (adds) {
      for (int q = 0; q < share.groups; ++q) {
        const int buffer = q % kStreamBuffers;
        mbarrier_wait(barriers.summed + buffer, q / kStreamBuffers & 1);
        float4 sum[NTiles] = {};
        stream_add(sum, sums + buffer * kStreamWarps * kSums, warps);
        __syncwarp();
        if (lane == 0) mbarrier_arrive(barriers.free + buffer);
        if (alone) {
          output.request_scales(q + kStreamScales - 1, q + kStreamScales - 1);
          if (q == 0) wait_for_earlier_kernels();
          output.store(sum, output.scale(q), q);
        } else {
          // The blocks of the cluster finish groups in turn.
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
      }
    } else if (!alone) {
      wait_for_earlier_kernels();
      int i = 0;
      for (int q = first; q < share.groups; q += plan.cluster, ++i) {
        const int box = i % plan.inboxes;
        if (lane == 0) {
          mbarrier_arrive_expect(barriers.received + box,
                                 plan.cluster * kSums * static_cast<int>(sizeof(float)));
        }
        output.request_scales(i + kStreamScales - 1, q + (kStreamScales - 1) * plan.cluster);
        __syncwarp();
        mbarrier_wait(barriers.received + box, i / plan.inboxes & 1);
        float4 sum[NTiles] = {};
        stream_add(sum, inbox + box * plan.cluster * kSums, plan.cluster);
        __syncwarp();
        // Whoever will not send again may have ended.
        if (lane < plan.cluster && q + plan.inboxes * plan.cluster < share.groups) {
          mbarrier_arrive_at(shared_address(&barriers.credit[share.rank][box]), lane);
        }
        output.store(sum, output.scale(i), q);
      }
    }
    if (lane == 0 && adds) WW_T(5);
  }
  if (plan.cluster > 1 && warp < kStreamWarps) cluster_wait();
#endif
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
