// Which part of the product each block of the tiled kernel computes, in which order.
#pragma once

#include <cstdint>

#include <waterweight/config.hpp>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

/// Tile `index` of Y and tiles [begin, end) of its K.
struct tiled_segment {
  int index;
  int begin, end;
  int tile_end;  ///< where the tile of Y ends in the shared stretch
};

/// Blocks take whole tiles of Y, one after the other. If they share, only while there is one for
/// every block: the tiles left over, and a round of whole ones, are cut along K into equal
/// stretches, one for each block: the block with the first part of a tile adds what the following
/// blocks have summed, in their order. These did so first thing in their stretches, the other block
/// comes to it last. It waits for blocks that started before it: stretches are numbered against the
/// order in which blocks start.
struct tiled_schedule {
  int m_tiles, n_tiles;
  int depth;  ///< tiles of K
  int whole;  ///< tiles of Y that one block computes alone
  int rest;   ///< tiles of K of the others

  __device__ static __forceinline__ int block() { return gridDim.x - 1 - blockIdx.x; }

  /// Where the stretch of a block begins.
  __device__ __forceinline__ int stretch(int of_block) const {
    return rest * of_block / static_cast<int>(gridDim.x);
  }

  /// The i-th part of the product that this block computes, if there is one.
  __device__ __forceinline__ bool segment(int i, tiled_segment* s) const {
    const int blocks = gridDim.x, index = block() + i * blocks;
    if (index < whole) {
      *s = {index, 0, depth, 0};
      return true;
    }
    const int from = stretch(block()), to = stretch(block() + 1);
    const int part = i - whole / blocks;
    const int at = part == 0 ? from : (from / depth + part) * depth;
    if (at >= to) return false;
    const int tile = at / depth, begin = at - tile * depth, tile_end = (tile + 1) * depth;
    *s = {whole + tile, begin, begin + min(to, tile_end) - at, tile_end};
    return true;
  }
};

/// The schedule of a product for a grid of `blocks`. What is too long for its numbers is not
/// shared.
constexpr tiled_schedule make_tiled_schedule(std::int64_t m_tiles, std::int64_t n_tiles,
                                             std::int64_t depth, std::int64_t blocks, bool shared) {
  const std::int64_t count = m_tiles * n_tiles, rounds = count / blocks;
  std::int64_t whole = count;
  if (shared && count % blocks != 0) whole = rounds > 1 ? (rounds - 1) * blocks : 0;
  if ((count - whole) * depth >= (std::int64_t{1} << 31) / blocks) whole = count;
  return {static_cast<int>(m_tiles), static_cast<int>(n_tiles), static_cast<int>(depth),
          static_cast<int>(whole), static_cast<int>((count - whole) * depth)};
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
