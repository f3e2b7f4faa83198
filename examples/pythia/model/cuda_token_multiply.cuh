// The multiplying warps of the token kernel and the warp that keeps them in weights.
//
// A tile is four output rows times `hidden` elements of K, and belongs to one warp. The down
// projection's K is `parts` times longer: its sums are integers, so the warps that have parts of
// the same rows add them up in shared memory, in any order, and the last one finishes the rows.
#pragma once

#include <waterweight/device/epilogue.cuh>
#include <waterweight/device/fixed_point_tile.cuh>
#include <waterweight/device/flagged.cuh>
#include <waterweight/device/weight_ring.cuh>

#include "examples/pythia/model/cuda_reduce.cuh"
#include "examples/pythia/model/cuda_token_stage.cuh"
#include "examples/pythia/model/cuda_token_types.cuh"

namespace pythia {

/// The residual rows a block owns, four at a time, and what has been summed for them.
struct TokenGroup {
  float x[waterweight::kTileRows];
  int sums[waterweight::kPlanes][waterweight::kTileRows];
  int arrived;  ///< of the attention output and the parts of the down projection
};

/// The residual rows of a block, in groups of four: [first, first + count).
struct GroupRange {
  int first, count;

  __device__ __forceinline__ GroupRange(int hidden) {
    const int groups = hidden / waterweight::kTileRows;
    const int block = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
    first = groups * block / blocks;
    count = groups * (block + 1) / blocks - first;
  }
};

/// Streams the block's tiles of the whole token. One warp.
template <class T>
class TokenProducer {
 public:
  __device__ __forceinline__ TokenProducer(const TokenParameters<T>& p, const TokenLayer<T>* layers,
                                           const waterweight::weight_ring& ring)
      : p_(p), layers_(layers), producer_(ring, p.most_in_flight) {}

  __device__ void run(const TokenShare* shares, GroupRange groups) {
    const int parts = p_.inner / p_.hidden;
    for (int layer = 0; layer < p_.layer_count; ++layer) {
      const TokenLayer<T>& weights = layers_[layer];
      const TokenShare share = shares[layer];
      rows(weights.linear[kQkvTile].weight, share.qkv_first, share.qkv_count);
      rows(weights.linear[kUpTile].weight, share.up_first, share.up_count);
      const std::int8_t* down = weights.linear[kDownTile].weight + tile_of(p_.inner, groups.first);
      for (int group = 0; group < groups.count; ++group) {
        for (int part = 0; part < parts; ++part) {
          producer_.push_rows(down + part * p_.hidden, p_.hidden, p_.inner);
        }
        down += waterweight::kTileRows * p_.inner;
      }
      rows(weights.linear[kDenseTile].weight, groups.first, groups.count);
    }
    rows(layers_[p_.layer_count].linear[kQkvTile].weight, shares[p_.layer_count].qkv_first,
         shares[p_.layer_count].qkv_count);
  }

 private:
  __device__ __forceinline__ static std::int64_t tile_of(int k, int index) {
    return std::int64_t{waterweight::kTileRows} * k * index;
  }

  __device__ __forceinline__ void rows(const std::int8_t* weight, int first, int count) {
    const int bytes = waterweight::kTileRows * p_.hidden;
    const std::int8_t* tile = weight + tile_of(p_.hidden, first);
    for (int i = 0; i < count; ++i, tile += bytes) producer_.push(tile, bytes);
  }

  const TokenParameters<T>& p_;
  const TokenLayer<T>* layers_;
  waterweight::ring_producer producer_;
};

template <class T>
class TokenMultiplier {
 public:
  __device__ __forceinline__ TokenMultiplier(const TokenParameters<T>& p,
                                             const TokenLayer<T>* layers, const TokenShare* shares,
                                             const waterweight::weight_ring& ring,
                                             StagedPlanes* staged, const std::int8_t* first_planes,
                                             const std::int8_t* second_planes, TokenGroup* groups,
                                             GroupRange range)
      : p_(p),
        layers_(layers),
        shares_(shares),
        ring_(ring),
        staged_(staged),
        first_(first_planes),
        second_(second_planes),
        groups_(groups),
        range_(range),
        parts_(p.inner / p.hidden),
        lane_(threadIdx.x % 32) {}

  /// Computes every tile of this warp; returns the best of the logits this lane has seen, among ids
  /// below vocab_limit.
  __device__ Candidate run(std::uint32_t epoch, int vocab_limit) {
    const int warp = (static_cast<int>(threadIdx.x) - kTokenFirstMultiplier) / 32;
    TileWalk walk(shares_, p_.layer_count, range_.count, parts_, warp);
    ring_cursor_.advance(warp, ring_.slots);
    Candidate best{-INFINITY, INT32_MAX};
    Channel next = channel(walk);
    while (walk.kind != kNoTile) {
      const TileWalk tile = walk;
      const Channel mine = next;
      walk.advance(kTokenMultiplyWarps);
      if (walk.kind != kNoTile) next = channel(walk);  // on its way while this tile is multiplied
      multiply(tile, mine, epoch, vocab_limit, &best);
    }
    return best;
  }

 private:
  /// Scale and bias of an output row, in lane r and r + 4 for row r of the tile: of its own
  /// product, and in the upper lanes of an attention output tile of the down projection, because
  /// its warp may be the one to finish the residual.
  struct Channel {
    int row;
    float scale;
    std::uint32_t bias;  ///< of this row and its neighbour

    __device__ __forceinline__ float biased(float acc) const {
      const float2 pair = waterweight::detail::unpack_pair<T>(bias);
      // One rounding for both, as the epilogues of the device-wide GEMM have it.
      return fmaf(acc, scale, row % 2 == 0 ? pair.x : pair.y);
    }
  };

  /// Starts the loads: nothing here waits for them.
  __device__ __forceinline__ Channel channel(const TileWalk& tile) const {
    const TokenShare& share = shares_[tile.layer];
    const int index = tile.kind == kUpTile      ? share.up_first + tile.index
                      : tile.kind == kDenseTile ? range_.first + tile.index
                      : tile.kind == kDownTile  ? range_.first + tile.index / parts_
                                                : share.qkv_first + tile.index;
    Channel c{index * waterweight::kTileRows + lane_ % waterweight::kTileRows, 0.0f, 0};
    if (lane_ >= 2 * waterweight::kTileRows) return c;
    const bool other = tile.kind == kDenseTile && lane_ >= waterweight::kTileRows;
    const int kind = other ? kDownTile : tile.kind == kHeadTile ? kQkvTile : tile.kind;
    const TokenLinear<T>& linear = layers_[tile.layer].linear[kind];
    asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(c.scale) : "l"(linear.scale + c.row));
    if (linear.bias != nullptr) {
      asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(c.bias) : "l"(linear.bias + c.row / 2 * 2));
    }
    return c;
  }

  __device__ __forceinline__ void multiply(const TileWalk& tile, const Channel& c,
                                           std::uint32_t epoch, int vocab_limit, Candidate* best) {
    const StagedVector vector = tile.kind == kUpTile      ? kMlpInput
                                : tile.kind == kDenseTile ? kDenseInput
                                : tile.kind == kDownTile  ? kDownInput
                                                          : kAttentionInput;
    const int part = tile.kind == kDownTile ? tile.index % parts_ : 0;
    const bool second = tile.kind == kUpTile || tile.kind == kDownTile;
    const std::int8_t* planes = (second ? second_ : first_) + part * p_.hidden;
    const int pitch = tile.kind == kDownTile ? p_.inner : p_.hidden;

    waterweight::detail::mbarrier_wait(staged_->ready + vector, tile.layer & 1);
    const float step = staged_->step[vector];
    waterweight::detail::mbarrier_wait(ring_.full + ring_cursor_.slot, ring_cursor_.parity);
    const int sum = waterweight::warp_tile_sums(
        reinterpret_cast<const std::int8_t*>(ring_.slot(ring_cursor_.slot)), planes, pitch,
        p_.hidden);
    __syncwarp();
    if (lane_ == 0) waterweight::detail::mbarrier_arrive(ring_.empty + ring_cursor_.slot);
    ring_cursor_.advance(kTokenMultiplyWarps, ring_.slots);

    epoch += static_cast<std::uint32_t>(tile.layer);
    if (tile.kind == kDownTile) {
      TokenGroup& group = groups_[tile.index / parts_];
      const int plane = lane_ / waterweight::kTileRows;
      if (plane < waterweight::kPlanes) {
        atomicAdd(&group.sums[plane][lane_ % waterweight::kTileRows], sum);
      }
      arrive(group, c, epoch, tile.layer);
      return;
    }
    const float acc = step * waterweight::warp_tile_value(sum);
    if (tile.kind == kDenseTile) {
      TokenGroup& group = groups_[tile.index];
      if (lane_ < waterweight::kTileRows) {
        group.x[lane_] = c.biased(acc) + group.x[lane_];
      }
      Channel down = c;
      down.scale = __shfl_down_sync(0xffffffffu, c.scale, waterweight::kTileRows);
      down.bias = __shfl_down_sync(0xffffffffu, c.bias, waterweight::kTileRows);
      arrive(group, down, epoch, tile.layer);
    } else if (tile.kind == kHeadTile) {
      if (lane_ < waterweight::kTileRows) {
        const float value = acc * c.scale;
        p_.logits[c.row] = value;
        if (c.row < vocab_limit) *best = better(*best, {value, c.row});
      }
    } else {
      float y = c.biased(acc);
      if (tile.kind == kUpTile) {
        y = p_.gelu_tanh ? waterweight::gelu_tanh(y) : waterweight::gelu_erf(y);
      }
      const int copy = tile.layer & 1;
      store_pair(tile.kind == kUpTile ? p_.exchange.mlp + copy * (p_.inner / 2)
                                      : p_.exchange.qkv + copy * (3 * p_.hidden / 2),
                 c.row, y, epoch);
    }
  }

  /// Lanes 0 and 2 store what lanes 0 and 1, 2 and 3 have.
  __device__ __forceinline__ void store_pair(waterweight::flagged_word* target, int row, float y,
                                             std::uint32_t epoch) const {
    const float above = __shfl_down_sync(0xffffffffu, y, 1);
    if (lane_ == 0 || lane_ == 2) {
      waterweight::store_flagged(target + row / 2, waterweight::detail::pack_pair<T>(y, above),
                                 epoch);
    }
  }

  /// Adds one to a counter in shared memory and returns what it was: what the warp wrote before is
  /// visible to whoever counts on, and what others wrote before they counted is to this warp.
  __device__ __forceinline__ static int arrive_at(int* counter) {
    int before;
    asm volatile("atom.acq_rel.cta.shared.add.s32 %0, [%1], 1;"
                 : "=r"(before)
                 : "r"(waterweight::detail::shared_address(counter))
                 : "memory");
    return before;
  }

  /// One contribution to a group of residual rows is in shared memory; the last one adds them up
  /// and passes the rows on to the next layer.
  __device__ __forceinline__ void arrive(TokenGroup& group, const Channel& c, std::uint32_t epoch,
                                         int layer) const {
    __syncwarp();
    int before = 0;
    if (lane_ == 0) before = arrive_at(&group.arrived);
    before = __shfl_sync(0xffffffffu, before, 0);
    if (before < parts_) return;
    if (lane_ < waterweight::kTileRows) {
      const float step = staged_->step[kDownInput];
      const float sum =
          step * waterweight::fixed_point_sum(group.sums[0][lane_], group.sums[1][lane_],
                                              group.sums[2][lane_]);
      const float x = c.biased(sum) + group.x[lane_];
      group.x[lane_] = x;
#pragma unroll
      for (int plane = 0; plane < waterweight::kPlanes; ++plane) group.sums[plane][lane_] = 0;
      if (lane_ == 0) group.arrived = 0;
      waterweight::store_flagged(p_.exchange.x + ((layer + 1) & 1) * p_.hidden + c.row,
                                 __float_as_uint(x), epoch + 1);
    }
  }

  const TokenParameters<T>& p_;
  const TokenLayer<T>* layers_;
  const TokenShare* shares_;
  waterweight::weight_ring ring_;
  waterweight::ring_cursor ring_cursor_;
  StagedPlanes* staged_;
  const std::int8_t *first_, *second_;
  TokenGroup* groups_;
  GroupRange range_;
  int parts_, lane_;
};

}  // namespace pythia
