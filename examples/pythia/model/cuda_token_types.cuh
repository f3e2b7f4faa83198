// What the one-launch token kernel (cuda_token_kernel.cuh) is given: weights, exchange buffers, and
// which tiles of which product each block computes.
#pragma once

#include <cuda_runtime.h>

#include <climits>
#include <cstddef>
#include <cstdint>
#include <waterweight/device/flagged.cuh>
#include <waterweight/device/half_tile.cuh>
#include <waterweight/device/weight_ring.cuh>
#include <waterweight/types.hpp>

#include "examples/pythia/model/cuda_reduce.cuh"
#include "examples/pythia/model/cuda_sampling.cuh"
#include "examples/pythia/model/cuda_token_shares.hpp"
#include "examples/pythia/model/cuda_token_times.hpp"
#include "examples/pythia/model/cuda_weights.hpp"

namespace pythia {

// The warps of a block and their jobs, in the order of thread numbers.
constexpr int kTokenAttentionThreads = 128;
constexpr int kTokenStagingThreads = 256;
constexpr int kTokenMultiplyWarps = 6;
constexpr int kTokenProducers = 2;
// Registers of a thread: what a launch gives to each, and what the roles make of it among
// themselves, a warpgroup at a time. A multiplying warp holds a tile, 80 of a thread at the most;
// a thread of attention the results of up to 16 splits, as flagged words 32.
constexpr int kTokenLaunchRegisters = 96;
constexpr int kTokenAttentionRegisters = 88;
constexpr int kTokenStagingRegisters = 64;
constexpr int kTokenStreamRegisters = 128;
constexpr int kTokenFirstStager = kTokenAttentionThreads;
constexpr int kTokenFirstMultiplier = kTokenFirstStager + kTokenStagingThreads;
constexpr int kTokenProducer = kTokenFirstMultiplier + 32 * kTokenMultiplyWarps;
constexpr int kTokenThreads = kTokenProducer + 32 * kTokenProducers;
static_assert(kTokenAttentionThreads % 128 == 0 && kTokenStagingThreads % 128 == 0 &&
              kTokenThreads % 128 == 0 && kTokenThreads * kTokenLaunchRegisters <= 65536);
static_assert(kTokenAttentionThreads * kTokenAttentionRegisters +
                  kTokenStagingThreads * kTokenStagingRegisters +
                  (kTokenThreads - kTokenFirstMultiplier) * kTokenStreamRegisters <=
              kTokenThreads * kTokenLaunchRegisters);
constexpr int kAttentionBarrier = 1;
constexpr int kStagingBarrier = 2;

/// A row of the down projection in tiles: its K is this many times that of the others.
constexpr int kTokenParts = 4;

constexpr int kMaxTokenLayers = 64;
constexpr int kMaxTokenUnits = 32;   ///< splits of heads a block may attend over in a layer
constexpr int kMaxTokenGroups = 16;  ///< groups of residual rows (a tile's) a block may own
constexpr int kMaxRingSlots = 64;
constexpr int kLeastInFlight = 2;
constexpr int kLeastRingSlots =
    kTokenMultiplyWarps + kLeastInFlight;  ///< ring_most_in_flight() allows those

/// What a warp multiplies at a time, by the type of the weights: INT8 ones are multiplied in fixed
/// point (device/fixed_point_tile.cuh), 16-bit ones as they are (device/half_tile.cuh), in tiles of
/// as many bytes.
template <class Element>
struct TokenTile {
  static constexpr bool kQuantized = sizeof(Element) == 1;
  static constexpr int kRows = kQuantized ? waterweight::kTileRows : waterweight::kHalfTileRows;
  /// Shared memory that an activation takes: planes, or itself.
  static constexpr int kStagedBytes = kQuantized ? waterweight::kPlanes : 2;
  /// Of `hidden` elements of K.
  WATERWEIGHT_HOST_DEVICE static constexpr int bytes(int hidden) {
    return kRows * hidden * static_cast<int>(sizeof(Element));
  }
};

template <class T>
struct TokenLinear {
  const std::byte* weight = nullptr;  ///< of the Element the kernel is compiled for
  const float* scale = nullptr;       ///< of INT8 weights
  const T* bias = nullptr;
};

constexpr int kLinearsOfLayer = 4;

/// One layer; in the entry after the last one, the head as qkv and the last LayerNorm.
template <class T>
struct TokenLayer {
  TokenLinear<T> linear[kLinearsOfLayer];  ///< by TileKind
  CudaLayerNorm attention_norm, mlp_norm;
  T* k = nullptr;
  T* v = nullptr;
  float* score = nullptr;  ///< null: full attention
  std::int32_t* position = nullptr;
  std::int32_t* free_slot = nullptr;
};

/// Vectors that blocks pass to each other within a token, each in two copies that layers use in
/// turn: a copy is written again two layers later, and nobody gets there before all blocks have
/// read it, because every layer needs every block's part of the one before.
struct TokenExchange {
  waterweight::flagged_word* x;          ///< [2, hidden] fp32: the residual stream
  waterweight::flagged_word* qkv;        ///< [2, 3 * hidden / 2] pairs of T
  waterweight::flagged_word* attention;  ///< [2, hidden / 2] pairs of T
  waterweight::flagged_word* mlp;        ///< [2, intermediate / 2] pairs of T
  waterweight::flagged_word* stat;       ///< [2, heads, splits, 2] fp32: maximum and sum
  waterweight::flagged_word* partial;    ///< [2, heads, splits, head_dim] fp32
  float* logit;                          ///< [2, heads, capacity]
  unsigned* arrived;                     ///< [layers, heads] splits done; zero between tokens
  std::uint32_t* tokens;                 ///< one: tokens computed so far, of which epochs are made
};

/// How a token ends, after its logits: in the kernel, or in what is launched behind it.
struct TokenEnding {
  bool choose = false;    ///< take the best token and advance the sequence
  SamplingTarget target;  ///< used with `choose`, like the next two
  std::int32_t* step = nullptr;
  std::int32_t* length = nullptr;
  Candidate* best = nullptr;    ///< [blocks]
  unsigned* arrived = nullptr;  ///< one: blocks done; zero between tokens
};

template <class T>
struct TokenParameters {
  const TokenLayer<T>* layers;  ///< [layer_count + 1], device memory
  const T* embedding;
  const std::int32_t* token;  ///< to be fed
  float* logits;              ///< [vocab]
  TokenExchange exchange;
  int layer_count, hidden, inner, heads, vocab, capacity, splits, most_slots;
  float eps;
  bool gelu_tanh;
  waterweight::rotary_view rotary;
  waterweight::h2o_policy policy;
  const std::int32_t* step;
  const std::int32_t* length;
  int ring_slots;
  TilesInFlight in_flight;
  int tiles_ahead;  ///< of a producer that finds the ring full, from there to L2
  TokenEnding ending;
  TokenTimes* times = nullptr;  ///< [blocks], of the timed form
};

/// Dynamic shared memory of a block.
struct TokenShared {
  std::size_t first_planes, second_planes, layers, attention, merge, total;

  /// ring: bytes of all slots. staged: of an activation. layer_bytes: of the table of layers.
  /// attention_bytes, merge_bytes: what those need.
  WATERWEIGHT_HOST_DEVICE TokenShared(std::size_t ring, int staged, int hidden, int inner,
                                      std::size_t layer_bytes, std::size_t attention_bytes,
                                      std::size_t merge_bytes) {
    const auto round = [](std::size_t bytes) { return (bytes + 127) / 128 * 128; };
    const auto planes = static_cast<std::size_t>(staged);
    first_planes = round(ring);
    second_planes = first_planes + round(planes * static_cast<std::size_t>(hidden));
    layers = second_planes + round(planes * static_cast<std::size_t>(inner));
    attention = layers + round(layer_bytes);
    merge = attention + round(attention_bytes);
    total = merge + round(merge_bytes);
  }
};

/// Goes through the tiles of a block in the order in which its ring brings them.
class TileWalk {
 public:
  int layer = 0;
  int kind = kQkvTile;
  int index;  ///< among the tiles of this kind and layer

  __device__ __forceinline__ TileWalk(const TokenShares& shares, int layers, int start)
      : index(start), shares_(shares), layers_(layers), count_(shares.qkv.count) {
    settle();
  }

  /// The share that the tile belongs to; of the down projection in tiles of all of K.
  __device__ __forceinline__ const TokenShare& share() const {
    return kind == kQkvTile    ? shares_.qkv
           : kind == kUpTile   ? shares_.up
           : kind == kHeadTile ? shares_.head
                               : shares_.groups;
  }

  __device__ __forceinline__ void advance(int by) {
    index += by;
    settle();
  }

 private:
  __device__ __forceinline__ void settle() {
    while (index >= count_) {
      index -= count_;
      if (kind == kDenseTile) {
        kind = ++layer < layers_ ? kQkvTile : kHeadTile;
      } else {
        kind = kind == kHeadTile ? kNoTile : kind + 1;
      }
      count_ = kind == kNoTile     ? INT_MAX
               : kind == kDownTile ? shares_.groups.count * kTokenParts
                                   : share().count;
    }
  }

  const TokenShares& shares_;
  int layers_, count_;
};

}  // namespace pythia
