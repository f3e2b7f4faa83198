// The softmax mass each key of a prompt received: H2O's initial scores, without an N x N matrix.
#pragma once

#include <waterweight/detail/arch/dependent_launch.cuh>
#include <waterweight/detail/arch/named_barrier.cuh>
#include <waterweight/detail/attention/common.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

/// Rows are keys here: a sum over queries is then a sum in registers. A warp owns two groups of 16
/// keys, whose fragments stay in registers, so that of a tile only the queries are read from shared
/// memory, each fragment of them for twice the tensor work. Four warps are a team.
inline constexpr int kColumnTeamWarps = 4;
inline constexpr int kColumnTeamThreads = 32 * kColumnTeamWarps;
inline constexpr int kColumnRowTiles = 2;
inline constexpr int kColumnWarpKeys = 16 * kColumnRowTiles;
inline constexpr int kColumnKeys = kColumnWarpKeys * kColumnTeamWarps;

/// The query tiles that a block's keys meet are dealt out to so many parts, each with sums of its
/// own that are added up in the end: the order does not depend on how many teams share the parts.
inline constexpr int kColumnParts = 4;

/// Teams of a block: two, or four where every block has an SM to itself, within the 99 KiB that a
/// block may have on sm_86 and sm_89. 128 registers per thread, which all head_dims but the largest
/// can do with, let 16 warps reside on an SM. On an H200 (32 heads of 80, 512 / 2048 / 8192 tokens,
/// behind the forward pass) two take 9.7 / 42 / 569 us, four 5.7 / 51 / 607, and blocks of one 14.8
/// / 69 / 546: the longest walk of short prompts is then as long as all of an SM's work.
inline constexpr int kColumnFewestTeams = 2;
template <int HeadDim>
inline constexpr int kColumnMostTeams = HeadDim <= 80 ? 4 : kColumnFewestTeams;

/// Queries per step.
template <int HeadDim>
inline constexpr int kColumnQueries = HeadDim <= 128 ? 64 : 32;

/// Two tiles of queries with an offset per query.
template <int HeadDim>
inline constexpr int kColumnTeamBytes = 2 *
                                        (kPaddedHeadDim<HeadDim> * 2 + 4) * kColumnQueries<HeadDim>;

template <int HeadDim>
constexpr int column_shared_bytes(int teams) {
  return teams * kColumnTeamBytes<HeadDim> + kColumnParts * kColumnKeys * 4;
}

/// A warp's keys: the A fragments of its rows.
template <int HeadDim>
using column_keys = std::uint32_t[kColumnRowTiles][HeadDim / 16][4];

/// Loads kColumnWarpKeys rows from row0 of one head; rows at or beyond `rows` are zeros. Straight
/// from global memory: each row is read once.
template <class T, int HeadDim>
__device__ __forceinline__ void load_keys(column_keys<HeadDim>& a, const T* head,
                                          std::int64_t row_stride, int row0, int rows) {
  const int lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
#pragma unroll
  for (int r = 0; r < kColumnRowTiles; ++r) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = row0 + 16 * r + 8 * h + group;
      const T* pairs = head + row * row_stride + 2 * quad;
#pragma unroll
      for (int step = 0; step < HeadDim / 16; ++step) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          a[r][step][2 * half + h] =
              row < rows ? *reinterpret_cast<const std::uint32_t*>(pairs + 16 * step + 8 * half)
                         : 0u;
        }
      }
    }
  }
}

/// The tiles of queries that a team walks, part after part: those at or below the diagonal of every
/// query head of the group.
class column_walk {
 public:
  /// Tiles first to last - 1 (one at least) of `heads` heads, from the first tile of `part`.
  __device__ __forceinline__ column_walk(int first, int last, int heads, int part)
      : part_(part), tile_(first + part), first_(first), last_(last), heads_(heads) {
    settle();
  }
  __device__ __forceinline__ bool more() const { return part_ < kColumnParts && head_ < heads_; }
  __device__ __forceinline__ int part() const { return part_; }
  __device__ __forceinline__ int head() const { return head_; }
  __device__ __forceinline__ int tile() const { return tile_; }

  /// To the next tile, of a part that is `teams` further on where this one ends. True if it is not
  /// kColumnParts tiles on in the same head.
  __device__ __forceinline__ bool advance(int teams) {
    tile_ += kColumnParts;
    if (tile_ < last_) return false;
    settle();
    if (head_ == heads_) {
      part_ += teams;
      head_ = 0;
      tile_ = first_ + part_;
      settle();
    }
    return true;
  }

 private:
  /// Tiles behind a head's last are those of the next head.
  __device__ __forceinline__ void settle() {
    for (; tile_ >= last_ && head_ < heads_; ++head_) tile_ -= last_ - first_;
  }
  int part_, head_ = 0, tile_, first_, last_, heads_;
};

/// Where the offset of a query is kept: the four that a lane needs of 16 queries lie side by side.
__device__ __forceinline__ int column_offset_slot(int query) {
  return query / 16 * 16 + query % 8 / 2 * 4 + query % 16 / 8 * 2 + query % 2;
}

/// Adds exp(score - lse) of a tile of queries to the sums of a warp's keys; lane = 4 * g + t keeps
/// its share of keys g and g + 8 of each group. matrices, offsets: where this lane reads the B
/// fragments and the offsets (-lse in powers of two) of the first 16 queries. Sixteen queries at a
/// time, in a loop: other warps' products run beside the exponentials of this one. Exponentials and
/// loads from shared memory share a queue: the offsets are loaded at once, and ahead of all else.
/// With Masked, queries above a key give it nothing: `ahead` is this lane's first query (2t) less
/// its first key (g).
template <bool Masked, class T, int HeadDim>
__device__ __forceinline__ void add_weights(float (&sum)[kColumnRowTiles][2],
                                            column_keys<HeadDim>& keys, std::uint32_t matrices,
                                            std::uint32_t offsets, float scale_log2, int ahead) {
#pragma unroll 1
  for (int first = 0; first < kColumnQueries<HeadDim>; first += 16) {
    const float4 four = load_shared(offsets);
    float s[kColumnRowTiles][2][4] = {};
#pragma unroll
    for (int step = 0; step < HeadDim / 16; ++step) {
      std::uint32_t b[4];
      ldmatrix_x4(b, matrices + 32 * step);
#pragma unroll
      for (int r = 0; r < kColumnRowTiles; ++r) {
        mma_m16n8k16<T>(s[r][0], keys[r][step], b[0], b[1]);
        mma_m16n8k16<T>(s[r][1], keys[r][step], b[2], b[3]);
      }
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float pair[2] = {j == 0 ? four.x : four.z, j == 0 ? four.y : four.w};
#pragma unroll
      for (int r = 0; r < kColumnRowTiles; ++r) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float p = fast_exp2(fmaf(s[r][j][e], scale_log2, pair[e % 2]));
          const bool seen = 16 * r + 8 * (e / 2) <= ahead + first + 8 * j + e % 2;
          if (!Masked || seen) sum[r][e / 2] += p;
        }
      }
    }
    matrices += 16 * 2 * kPaddedHeadDim<HeadDim>;
    offsets += 16 * 4;
  }
}

/// One block owns kColumnKeys keys of one KV head: it walks the queries at or below the diagonal of
/// every query head of the group, recomputes K Q^T, and adds exp(score - lse) along the rows.
/// Nobody else touches these sums, and the order is fixed: no atomics. Its teams share the parts,
/// which halves or quarters the longest walk. Grid: (KV heads, batch, key tiles). The first keys
/// meet the most queries: those of all heads start first, and shorter walks fill in as they end.
/// early: queries and keys may be read while the kernel ahead still runs.
template <class T, int HeadDim>
__global__ void __launch_bounds__(kColumnTeamThreads* kColumnMostTeams<HeadDim>,
                                  HeadDim > 80 && HeadDim <= 128 ? 2 : 1)
    column_sum_kernel(heads_view<const T> q, heads_view<const T> k, const std::int32_t* lengths,
                      const float* lse, float* column_sums, float scale_log2, bool early) {
  constexpr int kQueries = kColumnQueries<HeadDim>, kPitch = kPaddedHeadDim<HeadDim>;
  constexpr int kVectors = HeadDim / 8, kRows = kColumnTeamThreads / kVectors;  // copied at a time
  constexpr int kTileBytes = kQueries * kPitch * 2, kStageBytes = kTileBytes + kQueries * 4;
  static_assert(2 * kStageBytes == kColumnTeamBytes<HeadDim>);
  extern __shared__ __align__(16) std::byte shared[];
  if (!early) follow_earlier_kernels();
  const int team = threadIdx.x / kColumnTeamThreads, teams = blockDim.x / kColumnTeamThreads;
  const int thread = threadIdx.x % kColumnTeamThreads;
  const int lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  float* const parts = reinterpret_cast<float*>(shared + teams * kColumnTeamBytes<HeadDim>);

  const int kv_head = blockIdx.x, sequence = blockIdx.y, group_size = q.heads / k.heads;
  const int k0 = blockIdx.z * kColumnKeys, in_block = thread / 32 * kColumnWarpKeys;
  const int length = sequence_length(lengths, sequence, q.tokens);
  const int first_tile = k0 / kQueries, last_tile = (length + kQueries - 1) / kQueries;
  const int tiles = k0 < length ? (last_tile - first_tile) * group_size : 0;

  if (team < tiles) {
    column_walk next(first_tile, last_tile, group_size, team);
    // This thread's share of the next tile: every kRows-th row's vector, and one query's lse.
    const int row = thread / kVectors, column = thread % kVectors * 8;
    const T* source;
    const float* lse_source;
    // Where it goes, and what is read of a tile, in the first of two stages.
    const std::uint32_t base = shared_address(shared) + team * kColumnTeamBytes<HeadDim>;
    std::uint32_t target = base + (row * kPitch + column) * 2;
    std::uint32_t offset_target = base + kTileBytes + column_offset_slot(thread) * 4;
    std::uint32_t matrices = base + ((lane % 8 + lane / 16 * 8) * kPitch + lane / 8 % 2 * 8) * 2;
    std::uint32_t offsets = base + kTileBytes + quad * 16;
    // Or else they are worked out anew for every tile.
    asm volatile("" : "+r"(target), "+r"(offset_target), "+r"(matrices), "+r"(offsets));
    const auto locate = [&] {
      const int head = kv_head * group_size + next.head(), q0 = next.tile() * kQueries;
      source = q.data + sequence * q.batch_stride + head * q.head_stride +
               (q0 + row) * q.token_stride + column;
      lse_source = lse + (std::int64_t{sequence} * q.heads + head) * q.tokens + q0 + thread;
    };
    const auto fill = [&](std::uint32_t stage) {
      const T* from = source;
      const int left = length - next.tile() * kQueries - row;
      if (kColumnTeamThreads % kVectors == 0 || row < kRows) {
#pragma unroll
        for (int first = 0; first < kQueries; first += kRows, from += kRows * q.token_stride) {
          if (kQueries % kRows != 0 && first + kRows > kQueries && first + row >= kQueries) break;
          cp_async_16(target + stage + first * kPitch * 2, from, first < left ? 16 : 0);
        }
      }
      cp_async_commit();
    };
    float query_lse;  // on its way through a register, which spares a multiplication per use
    const auto load_lse = [&] {
      query_lse = INFINITY;  // no query: its weights are 0
      const bool exists = thread < kQueries && next.tile() * kQueries + thread < length;
      if (exists) query_lse = __ldcg(lse_source);
    };
    const auto store_offset = [&](std::uint32_t stage) {
      if (thread < kQueries) store_shared(offset_target + stage, -kLog2E * query_lse);
    };
    const auto advance = [&] {
      source += kColumnParts * kQueries * q.token_stride;
      lse_source += kColumnParts * kQueries;
      if (next.advance(teams) && next.more()) locate();
    };

    int warp_key = k0 + in_block;
    asm volatile("" : "+r"(warp_key));
    column_keys<HeadDim> keys;
    locate();
    fill(0);
    load_keys<T, HeadDim>(keys, k.data + sequence * k.batch_stride + kv_head * k.head_stride,
                          k.token_stride, warp_key, length);
    if (early) follow_earlier_kernels();
    load_lse();
    store_offset(0);
    int tile = next.tile(), part = next.part();
    advance();
    float sum[kColumnRowTiles][2] = {};
    for (std::uint32_t stage = 0;; stage ^= kStageBytes) {
      cp_async_wait<0>();
      named_barrier(1 + team, kColumnTeamThreads);  // tile arrived; the team has left the other
      const bool more = next.more();
      if (more) {
        fill(stage ^ kStageBytes);
        load_lse();
      }
      const int q0 = tile * kQueries, ahead = q0 + 2 * quad - (warp_key + group);
      if (q0 >= warp_key + kColumnWarpKeys - 1) {
        add_weights<false, T, HeadDim>(sum, keys, matrices + stage, offsets + stage, scale_log2,
                                       ahead);
      } else if (q0 + kQueries > warp_key) {  // the diagonal crosses
        add_weights<true, T, HeadDim>(sum, keys, matrices + stage, offsets + stage, scale_log2,
                                      ahead);
      }
      if (!more || next.part() != part) {
#pragma unroll
        for (int r = 0; r < kColumnRowTiles; ++r) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            float total = sum[r][h];
            total += __shfl_xor_sync(0xffffffffu, total, 1);
            total += __shfl_xor_sync(0xffffffffu, total, 2);
            if (quad == 0) parts[part * kColumnKeys + in_block + 16 * r + group + 8 * h] = total;
            sum[r][h] = 0.0f;
          }
        }
      }
      if (!more) break;
      store_offset(stage ^ kStageBytes);
      tile = next.tile();
      part = next.part();
      advance();
    }
  } else if (early) {
    follow_earlier_kernels();
  }
  __syncthreads();
  const int key = k0 + thread;
  if (team > 0 || key >= q.tokens) return;
  float total = 0.0f;  // stays 0 at or beyond the length
#pragma unroll
  for (int part = 0; part < kColumnParts; ++part) {
    if (part < tiles) total += parts[part * kColumnKeys + thread];
  }
  column_sums[(std::int64_t{sequence} * k.heads + kv_head) * q.tokens + key] = total;
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
