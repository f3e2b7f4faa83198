// The multiplying warps of the token kernel and the warps that keep them in weights.
//
// A tile is four output rows of INT8 weights, or two of 16-bit ones, times `hidden` elements of K,
// and belongs to one warp. The down projection's K is `parts` times longer: the warps that have
// parts of the same rows leave their sums in shared memory, and the last one to do so finishes the
// rows. Sums of INT8 weights are integers and added up in any order, others in that of K.
#pragma once

#include <cstring>
#include <type_traits>
#include <waterweight/detail/arch/mbarrier.cuh>
#include <waterweight/device/epilogue.cuh>
#include <waterweight/device/fixed_point_tile.cuh>
#include <waterweight/device/flagged.cuh>
#include <waterweight/device/half_tile.cuh>
#include <waterweight/device/weight_ring.cuh>

#include "examples/pythia/model/cuda_reduce.cuh"
#include "examples/pythia/model/cuda_token_clock.cuh"
#include "examples/pythia/model/cuda_token_stage.cuh"
#include "examples/pythia/model/cuda_token_types.cuh"

namespace pythia {

/// The residual rows a block owns, a tile's at a time, and what has been summed for them.
template <class Element>
struct TokenGroup {
  static constexpr int kRows = TokenTile<Element>::kRows;

  float x[kRows];
  union {
    int sums[waterweight::kPlanes][kRows];  ///< of INT8 weights: of a plane
    float part_sums[kTokenParts][kRows];    ///< of 16-bit weights: of a part of K
  };
  int arrived;  ///< of the attention output and the parts of the down projection
};

/// Streams the block's tiles of the whole token: weights only, because a tile's place in time is
/// counted in copies to be started. One thread of each producer warp.
template <class T, class Element, int Hidden>
class TokenProducer {
 public:
  __device__ __forceinline__ TokenProducer(const TokenParameters<T>& p, const TokenLayer<T>* layers,
                                           const waterweight::weight_ring& ring)
      : layer_count_(p.layer_count),
        layers_(layers),
        index_((static_cast<int>(threadIdx.x) - kTokenProducer) / 32),
        reach_(p.tiles_ahead * kTokenProducers),
        producer_(ring, p.in_flight.at(p.length[0] + 1), index_, kTokenProducers) {}

  __device__ void run(const TokenShares& shares) {
    for (int layer = 0; layer < layer_count_; ++layer) {
      const TokenLinear<T>* const linear = layers_[layer].linear;
      rows(linear[kQkvTile], shares.qkv);
      rows(linear[kUpTile], shares.up);
      parts(linear[kDownTile], shares.groups);
      rows(linear[kDenseTile], shares.groups);
    }
    rows(layers_[layer_count_].linear[kQkvTile], shares.head);
  }

 private:
  static constexpr int kRows = TokenTile<Element>::kRows;
  static constexpr int kRowBytes = Hidden * static_cast<int>(sizeof(Element));
  static constexpr int kTileBytes = TokenTile<Element>::bytes(Hidden);

  /// Among all blocks' tiles, of all of K.
  __device__ __forceinline__ static std::int64_t tile_of(TokenShare share, int index) {
    return share.first + index * static_cast<int>(gridDim.x);
  }

  __device__ __forceinline__ void rows(const TokenLinear<T>& linear, TokenShare share) {
    const std::byte* tile = linear.weight + tile_of(share, index_) * kTileBytes;
    const int step = kTokenProducers * static_cast<int>(gridDim.x) * kTileBytes;
    int asked = index_;  // all before are in the ring or on their way to L2
    for (; index_ < share.count; index_ += kTokenProducers, tile += step) {
      // While the ring is full, memory would have nothing to do: it brings the product's next
      // tiles as far as L2.
      producer_.push(tile, kTileBytes, 0, [&] {
        asked = max(asked, index_);
        if (asked >= min(share.count, index_ + reach_)) return;
        waterweight::detail::bulk_prefetch(linear.weight + tile_of(share, asked) * kTileBytes,
                                           kTileBytes);
        asked += kTokenProducers;
      });
    }
    index_ -= share.count;
  }

  __device__ __forceinline__ void parts(const TokenLinear<T>& linear, TokenShare share) {
    for (; index_ < share.count * kTokenParts; index_ += kTokenProducers) {
      const std::int64_t tile = tile_of(share, index_ / kTokenParts);
      producer_.template push<kRows>(
          linear.weight + tile * (kTokenParts * kTileBytes) + index_ % kTokenParts * kRowBytes,
          kRowBytes, kTokenParts * kRowBytes);
    }
    index_ -= share.count * kTokenParts;
  }

  int layer_count_;
  const TokenLayer<T>* layers_;
  int index_;  ///< of the next tile of this warp, among those of a product
  int reach_;  ///< how many of both warps' tiles from that on are asked for
  waterweight::ring_producer producer_;
};

/// Clock: see cuda_token_clock.cuh.
template <class T, class Element, int Hidden, class Clock>
class TokenMultiplier {
 public:
  using Group = TokenGroup<Element>;

  __device__ __forceinline__ TokenMultiplier(const TokenParameters<T>& p,
                                             const TokenLayer<T>* layers, const TokenShares& shares,
                                             const waterweight::weight_ring& ring,
                                             StagedPlanes* staged, const std::int8_t* first_planes,
                                             const std::int8_t* second_planes, Group* groups)
      : p_(p),
        layers_(layers),
        shares_(shares),
        ring_(ring),
        staged_(staged),
        first_(first_planes),
        second_(second_planes),
        groups_(groups),
        lane_(threadIdx.x % 32) {}

  /// Computes every tile of this warp; returns the best of the logits this lane has seen, among ids
  /// below vocab_limit.
  __device__ Candidate run(std::uint32_t epoch, int vocab_limit) {
    const int warp = (static_cast<int>(threadIdx.x) - kTokenFirstMultiplier) / 32;
    ring_cursor_.advance(warp, ring_.slots);
    Candidate best{-INFINITY, INT32_MAX};
    clock_.start_multiplying();
    TileWalk walk(shares_, p_.layer_count, warp);
    clock_.turns(kNoTile, walk.kind);
    while (walk.kind != kNoTile) {
      const bool second = walk.kind == kDownTile || walk.kind == kDenseTile;
      done_until(2 * walk.layer + (second ? 1 : 0));
      multiply(walk, epoch + static_cast<std::uint32_t>(walk.layer), vocab_limit, &best);
      const int kind = clock_.now_at(walk.kind);
      walk.advance(kTokenMultiplyWarps);
      clock_.turns(kind, walk.kind);
    }
    clock_.finish_multiplying();
    done_until(2 * p_.layer_count);
    return best;
  }

 private:
  /// Says that this warp is through with that many halves of layers: what comes before down, and
  /// the rest.
  __device__ __forceinline__ void done_until(int halves) {
    for (; halves_done_ < halves; ++halves_done_) {
      if (lane_ == 0) waterweight::detail::mbarrier_arrive(staged_->done + halves_done_ % 2);
    }
  }

  /// Scale and bias of an output row, under way from memory until they are used.
  struct Channel {
    float scale = 1.0f;
    std::uint16_t bias_bits = 0;  // +0 in every type of 16 bits

    /// One rounding for both, as the epilogues of the device-wide GEMM have it.
    __device__ __forceinline__ float biased(float acc) const {
      T bias;
      memcpy(&bias, &bias_bits, sizeof(T));
      return fmaf(acc, scale, waterweight::detail::to_float(bias));
    }
  };

  static constexpr bool kQuantized = TokenTile<Element>::kQuantized;
  static constexpr int kRows = TokenTile<Element>::kRows;
  using Weights = std::conditional_t<kQuantized, waterweight::warp_tile<Hidden>,
                                     waterweight::warp_half_tile<T, Hidden>>;

  /// Asks for those of a row: in program order, so that they come while the tile is waited for.
  __device__ __forceinline__ static void ask(const TokenLinear<T>& linear, int row, Channel* c) {
    static_assert(sizeof(T) == sizeof(c->bias_bits));
    if (kQuantized)
      asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(c->scale) : "l"(linear.scale + row));
    if (linear.bias != nullptr)
      asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(c->bias_bits) : "l"(linear.bias + row));
  }

  __device__ __forceinline__ void multiply(const TileWalk& tile, std::uint32_t epoch,
                                           int vocab_limit, Candidate* best) {
    const StagedVector vector = tile.kind == kUpTile      ? kMlpInput
                                : tile.kind == kDenseTile ? kDenseInput
                                : tile.kind == kDownTile  ? kDownInput
                                                          : kAttentionInput;
    const bool down = tile.kind == kDownTile;
    // Of its rows: the down projection has several tiles of the same.
    const int index = down ? tile.index / kTokenParts : tile.index;
    const int row =
        (tile.share().first + index * static_cast<int>(gridDim.x)) * kRows + lane_ % kRows;
    const int part = tile.index % kTokenParts;  // of K
    int place = tile.kind == kUpTile || down ? static_cast<int>(second_ - first_) : 0;
    if (down) place += part * Hidden * (kQuantized ? 1 : static_cast<int>(sizeof(T)));
    // Or the compiler would keep an address for each kind of tile, of which there are too many.
    asm volatile("" : "+r"(place));
    const std::int8_t* const planes = first_ + place;
    const TokenLinear<T>* const linear = layers_[tile.layer].linear;

    Channel c, of_down;
    if (!down) ask(linear[tile.kind == kHeadTile ? kQkvTile : tile.kind], row, &c);
    // Whoever arrives last at the residual rows finishes them.
    if (down || tile.kind == kDenseTile) ask(linear[kDownTile], row, &of_down);
    waterweight::detail::mbarrier_wait(ring_.full + ring_cursor_.slot, ring_cursor_.parity);
    const std::byte* const slot = ring_.slot(ring_cursor_.slot);
    // All of it into registers: the ring goes on filling while this warp waits for its vector.
    const Weights weights(reinterpret_cast<const Element*>(slot));
    const std::uint32_t loaded = __reduce_xor_sync(0xffffffffu, weights.loaded());
    if (lane_ == 0) {
      waterweight::detail::mbarrier_arrive(ring_.empty + ring_cursor_.slot +
                                           waterweight::detail::after_loading(loaded, ring_.slots));
    }
    ring_cursor_.advance(kTokenMultiplyWarps, ring_.slots);

    clock_.wait(tile.kind, vector, staged_->ready + vector, tile.layer & 1);
    const float step = staged_->step[vector];
    int sum = 0;         // of INT8 weights
    float value = 0.0f;  // of 16-bit weights
    if constexpr (kQuantized) {
      sum = weights.sums(planes, down ? kTokenParts * Hidden : Hidden);
    } else {
      value = weights.sum(reinterpret_cast<const T*>(planes));
    }

    if (down) {
      if constexpr (kQuantized) {
        const int plane = lane_ / waterweight::tile_sum_lane(1, 0);
        const int r = lane_ % waterweight::tile_sum_lane(1, 0);
        if (plane < waterweight::kPlanes && r < kRows) {
          atomicAdd(&groups_[index].sums[plane][r], sum);
        }
      } else if (lane_ < kRows) {
        groups_[index].part_sums[part][lane_] = value;
      }
      arrive(groups_[index], row, of_down, epoch, tile.layer);
      return;
    }
    const float acc = kQuantized ? step * waterweight::warp_tile_value(sum) : value;
    if (tile.kind == kDenseTile) {
      if (lane_ < kRows) {
        groups_[index].x[lane_] = c.biased(acc) + groups_[index].x[lane_];
      }
      arrive(groups_[index], row, of_down, epoch, tile.layer);
    } else if (tile.kind == kHeadTile) {
      if (lane_ < kRows) {
        const float logit = acc * c.scale;
        p_.logits[row] = logit;
        if (row < vocab_limit) *best = better(*best, {logit, row});
      }
    } else {
      float y = c.biased(acc);
      if (tile.kind == kUpTile) {
        y = p_.gelu_tanh ? waterweight::gelu_tanh(y) : waterweight::gelu_erf(y);
      }
      const int copy = tile.layer & 1;
      store_pair(tile.kind == kUpTile ? p_.exchange.mlp + copy * (kTokenParts * Hidden / 2)
                                      : p_.exchange.qkv + copy * (3 * Hidden / 2),
                 row, y, epoch);
    }
  }

  /// Even lanes store what they and the next one have.
  __device__ __forceinline__ void store_pair(waterweight::flagged_word* target, int row, float y,
                                             std::uint32_t epoch) const {
    const float above = __shfl_down_sync(0xffffffffu, y, 1);
    if (lane_ < kRows && lane_ % 2 == 0) {
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
  __device__ __forceinline__ void arrive(Group& group, int row, const Channel& c,
                                         std::uint32_t epoch, int layer) const {
    __syncwarp();
    int before = 0;
    if (lane_ == 0) before = arrive_at(&group.arrived);
    before = __shfl_sync(0xffffffffu, before, 0);
    if (before < kTokenParts) return;
    if (lane_ < kRows) {
      float sum = 0.0f;
      if constexpr (kQuantized) {
        sum = staged_->step[kDownInput] * waterweight::fixed_point_sum(group.sums[0][lane_],
                                                                       group.sums[1][lane_],
                                                                       group.sums[2][lane_]);
#pragma unroll
        for (int plane = 0; plane < waterweight::kPlanes; ++plane) group.sums[plane][lane_] = 0;
      } else {
#pragma unroll
        for (int part = 0; part < kTokenParts; ++part) sum += group.part_sums[part][lane_];
      }
      const float x = c.biased(sum) + group.x[lane_];
      group.x[lane_] = x;
      if (lane_ == 0) group.arrived = 0;
      waterweight::store_flagged(p_.exchange.x + ((layer + 1) & 1) * Hidden + row,
                                 __float_as_uint(x), epoch + 1);
    }
  }

  const TokenParameters<T>& p_;
  const TokenLayer<T>* layers_;
  const TokenShares& shares_;
  waterweight::weight_ring ring_;
  waterweight::ring_cursor ring_cursor_;
  StagedPlanes* staged_;
  const std::int8_t *first_, *second_;
  Group* groups_;
  int lane_, halves_done_ = 0;
  Clock clock_;
};

}  // namespace pythia
