// Divides the tiles of a token among the blocks of the token kernel.
#pragma once

#include <waterweight/types.hpp>

namespace pythia {

/// Tiles first, first + blocks, ...: `count` of them. All blocks together so read memory in the
/// order in which it lies.
struct TokenShare {
  int first, count;
};

/// The share of `block` in `tiles` tiles: even to within one.
WATERWEIGHT_HOST_DEVICE constexpr TokenShare token_share(int tiles, int block, int blocks) {
  return {block, (tiles - block + blocks - 1) / blocks};
}

/// How many blocks share `row_groups`, on as many SMs or more: one less in 32 may be left out, if
/// all others then have as many groups each. Memory is as busy without them, and every block has
/// fewer to wait for.
WATERWEIGHT_HOST_DEVICE constexpr int token_blocks(int row_groups, int sms) {
  const int most = sms < row_groups ? sms : row_groups;
  const int each = (row_groups + most - 1) / most, even = row_groups / each;
  return row_groups % each == 0 && most - even <= most / 32 ? even : most;
}

/// How many tiles of weights a block has on their way from memory at a time.
struct TilesInFlight {
  int most;
  int beside_many;  ///< while many keys and values are under way too
  int many;         ///< live slots of the cache from which on that is so

  WATERWEIGHT_HOST_DEVICE constexpr int at(int live) const {
    return live < many ? most : beside_many;
  }
};

/// The live slots whose keys and values, of `bytes` each, are an eighth of a layer's weights, of
/// `weight_bytes` each.
constexpr int many_live(int hidden, int weight_bytes, int bytes) {
  constexpr int kSquares = 12;  // qkv 3, up 4, down 4, attention output 1
  return kSquares * hidden * weight_bytes / (8 * 2 * bytes);
}

/// The tiles of four rows that one block computes of each product of a layer, and of the head. qkv
/// and up are dealt out as one, because all blocks wait for the one that is the last to be done
/// with them. A group is a tile of the attention output and those of the same rows of the down
/// projection.
struct TokenShares {
  TokenShare qkv, up, groups, head;

  TokenShares() = default;
  WATERWEIGHT_HOST_DEVICE constexpr TokenShares(int qkv_tiles, int up_tiles, int row_groups,
                                                int head_tiles, int block, int blocks)
      : qkv(token_share(qkv_tiles, block, blocks)),
        up{block + qkv.count * blocks - qkv_tiles,
           token_share(qkv_tiles + up_tiles, block, blocks).count - qkv.count},
        groups(token_share(row_groups, block, blocks)),
        head(token_share(head_tiles, block, blocks)) {}
};

}  // namespace pythia
