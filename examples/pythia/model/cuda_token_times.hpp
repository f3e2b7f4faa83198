// What the token kernel spends its time on: the sums that its timed form leaves behind, and the
// rows of a profile made of them.
#pragma once

#include <cstdint>
#include <vector>

#include "examples/pythia/model/engine.hpp"

namespace pythia {

/// What kinds of tiles follow each other in a block's sequence.
enum TileKind { kQkvTile, kUpTile, kDownTile, kDenseTile, kHeadTile, kNoTile };

/// What the multiplying warps wait for once per layer.
enum StagedVector { kAttentionInput, kMlpInput, kDenseInput, kDownInput, kStagedVectors };

/// Of one block: clocks of its SM, unless it says otherwise, added up over warps and tokens. A
/// multiplying warp is always at one of `multiplying` or `waiting`.
struct alignas(128) TokenTimes {
  std::uint64_t multiplying[kNoTile];     ///< by TileKind, the wait for weights included
  std::uint64_t waiting[kStagedVectors];  ///< for that vector
  std::uint64_t nanoseconds;              ///< that the two above took together
  std::uint64_t warps;                    ///< that multiplied, of each token
  std::uint64_t attending;                ///< by one warp, from having q, k and v
  std::uint64_t attended;                 ///< tokens in which the block attended at all
};

/// What a token must move.
struct StepBytes {
  double multiplying[kNoTile] = {};  ///< by TileKind, all layers
  double attention = 0.0;
};

/// The rows of one launch of the token kernel that takes `seconds`: what its multiplying warps do,
/// a mean of all of them, what is left of the launch before and behind that, and attention beside
/// it, a mean of the blocks that attend. blocks: after at least one token.
std::vector<StepProfile::Part> token_parts(const std::vector<TokenTimes>& blocks,
                                           const StepBytes& bytes, double seconds);

}  // namespace pythia
