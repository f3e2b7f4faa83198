// The multiplying warps of the token kernel and the warps that keep them in weights.
//
// A tile is four output rows of INT8 weights, or two of 16-bit ones, times `hidden` elements of K,
// and belongs to one warp. The down projection's K is `parts` times longer: the warps that have
// parts of the same rows leave their sums in shared memory, and the last one to do so finishes the
// rows. Sums of INT8 weights are integers and added up in any order, others in that of K.
#pragma once

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

/// What a slot of the ring holds: a tile of `hidden` elements of K and behind it the scales and the
/// biases of its rows, 16 bytes of each, and for the attention output also those of the down
/// projection, because its warp may be the one to finish the residual.
constexpr int kTokenChannelPiece = 16;
constexpr int kTokenChannelBytes = 4 * kTokenChannelPiece;

/// Streams the block's tiles of the whole token: one of the warps that take turns at them.
template <class T, class Element, int Hidden>
class TokenProducer {
 public:
  __device__ __forceinline__ TokenProducer(const TokenParameters<T>& p, const TokenLayer<T>* layers,
                                           const waterweight::weight_ring& ring)
      : layer_count_(p.layer_count),
        layers_(layers),
        index_((static_cast<int>(threadIdx.x) - kTokenProducer) / 32),
        producer_(ring, p.most_in_flight, index_, kTokenProducers),
        lane_(static_cast<int>(threadIdx.x) % 32) {}

  __device__ void run(const TokenShares& shares) {
    for (int layer = 0; layer < layer_count_; ++layer) {
      const TokenLinear<T>* const linear = layers_[layer].linear;
      rows(linear[kQkvTile], shares.qkv);
      rows(linear[kUpTile], shares.up);
      parts(linear[kDownTile], shares.groups);
      Pieces dense = pieces<1>(linear[kDenseTile], kRowBytes);
      channels<3, 2>(linear[kDownTile], &dense);
      push_all(dense, shares.groups);
    }
    rows(layers_[layer_count_].linear[kQkvTile], shares.head);
  }

 private:
  /// What this lane brings of every tile of a product, and what all lanes do.
  struct Pieces {
    const std::byte* base = nullptr;
    int row_bytes = 0, offset = 0, bytes = 0, all = kTileBytes;

    __device__ __forceinline__ const std::byte* at(int row) const {
      return base + (std::int64_t{row} * row_bytes & ~std::int64_t{kTokenChannelPiece - 1});
    }
  };
  static constexpr int kRows = TokenTile<Element>::kRows;
  static constexpr int kRowBytes = Hidden * static_cast<int>(sizeof(Element));
  static constexpr int kTileBytes = TokenTile<Element>::bytes(Hidden);

  /// The first Lanes lanes bring the weights, the next two scales and biases. k: bytes of a row.
  template <int Lanes>
  __device__ __forceinline__ Pieces pieces(const TokenLinear<T>& linear, int k) const {
    Pieces mine;
    if (lane_ < Lanes) {
      mine.base = linear.weight + std::int64_t{lane_} * k;
      mine.row_bytes = k;
      mine.bytes = kTileBytes / Lanes;
      mine.offset = lane_ * mine.bytes;
    }
    channels<Lanes, 0>(linear, &mine);
    return mine;
  }

  /// Two lanes bring scales and biases to `Piece` and the next one behind the tile.
  template <int FirstLane, int Piece>
  __device__ __forceinline__ void channels(const TokenLinear<T>& linear, Pieces* mine) const {
    constexpr bool kScaled = TokenTile<Element>::kQuantized;
    mine->all += ((kScaled ? 1 : 0) + (linear.bias == nullptr ? 0 : 1)) * kTokenChannelPiece;
    const bool scale = kScaled && lane_ == FirstLane, bias = lane_ == FirstLane + 1;
    if (!scale && (!bias || linear.bias == nullptr)) return;
    mine->base = scale ? reinterpret_cast<const std::byte*>(linear.scale)
                       : reinterpret_cast<const std::byte*>(linear.bias);
    mine->row_bytes = scale ? sizeof(float) : sizeof(T);
    mine->bytes = kTokenChannelPiece;
    mine->offset = kTileBytes + (Piece + (scale ? 0 : 1)) * kTokenChannelPiece;
  }

  __device__ __forceinline__ void push_all(const Pieces& mine, TokenShare share) {
    const int blocks = static_cast<int>(gridDim.x);
    for (; index_ < share.count; index_ += kTokenProducers) {
      const int tile = share.first + index_ * blocks;
      producer_.push_pieces(mine.offset, mine.at(kRows * tile), mine.bytes, mine.all);
    }
    index_ -= share.count;
  }

  __device__ __forceinline__ void rows(const TokenLinear<T>& linear, TokenShare share) {
    push_all(pieces<1>(linear, kRowBytes), share);
  }

  __device__ __forceinline__ void parts(const TokenLinear<T>& linear, TokenShare share) {
    const Pieces mine = pieces<kRows>(linear, kTokenParts * kRowBytes);
    const int next_part = lane_ < kRows ? kRowBytes : 0;
    const int blocks = static_cast<int>(gridDim.x);
    for (; index_ < share.count * kTokenParts; index_ += kTokenProducers) {
      const int tile = share.first + index_ / kTokenParts * blocks;
      producer_.push_pieces(mine.offset, mine.at(kRows * tile) + index_ % kTokenParts * next_part,
                            mine.bytes, mine.all);
    }
    index_ -= share.count * kTokenParts;
  }

  int layer_count_;
  const TokenLayer<T>* layers_;
  int index_;  ///< of the next tile of this warp, among those of a product
  waterweight::ring_producer producer_;
  int lane_;
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
        lane_(threadIdx.x % 32),
        clock_(p.times) {}

  /// Computes every tile of this warp; returns the best of the logits this lane has seen, among ids
  /// below vocab_limit.
  __device__ Candidate run(std::uint32_t epoch, int vocab_limit) {
    const int warp = (static_cast<int>(threadIdx.x) - kTokenFirstMultiplier) / 32;
    ring_cursor_.advance(warp, ring_.slots);
    Candidate best{-INFINITY, INT32_MAX};
    for (TileWalk walk(shares_, p_.layer_count, warp); walk.kind != kNoTile;
         walk.advance(kTokenMultiplyWarps)) {
      const bool second = walk.kind == kDownTile || walk.kind == kDenseTile;
      done_until(2 * walk.layer + (second ? 1 : 0));
      multiply(walk, epoch + static_cast<std::uint32_t>(walk.layer), vocab_limit, &best);
      clock_.multiplied(walk.kind);
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

  /// Scale and bias of an output row.
  struct Channel {
    float scale, bias;

    /// One rounding for both, as the epilogues of the device-wide GEMM have it.
    __device__ __forceinline__ float biased(float acc) const { return fmaf(acc, scale, bias); }
  };

  static constexpr bool kQuantized = TokenTile<Element>::kQuantized;
  static constexpr int kRows = TokenTile<Element>::kRows;
  using Weights = std::conditional_t<kQuantized, waterweight::warp_tile<Hidden>,
                                     waterweight::warp_half_tile<T, Hidden>>;

  /// Of row `row`, lane % kRows of its tile, as it lies in a slot.
  __device__ __forceinline__ Channel channel(const std::byte* pieces, int row,
                                             const TokenLinear<T>& linear) const {
    Channel c;
    c.scale = kQuantized ? reinterpret_cast<const float*>(pieces)[lane_ % kRows] : 1.0f;
    constexpr int kOfPiece = kTokenChannelPiece / sizeof(T);
    const T bias = reinterpret_cast<const T*>(pieces + kTokenChannelPiece)[row % kOfPiece];
    c.bias = linear.bias == nullptr ? 0.0f : waterweight::detail::to_float(bias);
    return c;
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
    const std::int8_t* planes = tile.kind == kUpTile || down ? second_ : first_;
    const int part = tile.index % kTokenParts;  // of K
    if (down) planes += part * Hidden * (kQuantized ? 1 : static_cast<int>(sizeof(T)));
    const TokenLinear<T>* const linear = layers_[tile.layer].linear;

    waterweight::detail::mbarrier_wait(ring_.full + ring_cursor_.slot, ring_cursor_.parity);
    const std::byte* const slot = ring_.slot(ring_cursor_.slot);
    const std::byte* const pieces = slot + TokenTile<Element>::bytes(Hidden);
    const Channel c = channel(pieces, row, linear[tile.kind == kHeadTile ? kQkvTile : tile.kind]);
    // The same for every other kind, and then not used.
    const Channel of_down = channel(
        tile.kind == kDenseTile ? pieces + 2 * kTokenChannelPiece : pieces, row, linear[kDownTile]);
    // All of it into registers: the ring goes on filling while this warp waits for its vector.
    const Weights weights(reinterpret_cast<const Element*>(slot));
    const std::uint32_t loaded = __reduce_xor_sync(0xffffffffu, weights.loaded());
    if (lane_ == 0) {
      waterweight::detail::mbarrier_arrive(ring_.empty + ring_cursor_.slot +
                                           waterweight::detail::after_loading(loaded, ring_.slots));
    }
    ring_cursor_.advance(kTokenMultiplyWarps, ring_.slots);

    clock_.multiplied(tile.kind);
    waterweight::detail::mbarrier_wait(staged_->ready + vector, tile.layer & 1);
    clock_.waited(vector);
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
