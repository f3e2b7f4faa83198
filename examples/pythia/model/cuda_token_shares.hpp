// Divides the tiles of a token among the blocks of the token kernel.
#pragma once

#include <cstdint>
#include <vector>

namespace pythia {

/// Tiles of four rows that one block computes of a layer's first two products: [first, first +
/// count). The entry after the last layer holds, as qkv, those of the head.
struct TokenShare {
  int qkv_first, qkv_count, up_first, up_count;
};

/// The tiles of a token: counts of the products of `hidden` elements of K.
struct TokenTiles {
  int layers;
  int qkv;  ///< of a layer, like the next two
  int up;
  int groups;  ///< of residual rows: one tile of the attention output and `parts` of down each
  int parts;
  int head;
};

/// Block b owns the groups [groups * b / blocks, groups * (b + 1) / blocks) in every layer, so some
/// blocks own one more than others. The other tiles even that out: after each layer's first two
/// products, and at the end, all blocks have had the same number of tiles, to within one.
/// Returns [blocks, layers + 1], or nothing where that cannot be.
inline std::vector<TokenShare> share_token_tiles(const TokenTiles& tiles, int blocks) {
  const auto first_of = [blocks](std::int64_t total, int block) { return total * block / blocks; };
  const auto share_of = [&](std::int64_t total, int block) {
    return first_of(total, block + 1) - first_of(total, block);
  };
  const auto entries = static_cast<std::size_t>(tiles.layers) + 1;
  std::vector<TokenShare> shares(entries * static_cast<std::size_t>(blocks));
  const int first_two = tiles.qkv + tiles.up;
  std::int64_t before = 0;  // what all blocks together have had up to the previous entry
  for (int layer = 0; layer <= tiles.layers; ++layer) {
    const bool head = layer == tiles.layers;
    const int rest = layer == 0 ? 0 : tiles.groups * (1 + tiles.parts);
    const std::int64_t after = before + rest + (head ? tiles.head : first_two);
    const int qkv = head ? tiles.head : tiles.qkv, all = head ? tiles.head : first_two;
    std::int64_t first = 0, first_qkv = 0;
    for (int block = 0; block < blocks; ++block) {
      const std::int64_t owned = layer == 0 ? 0 : share_of(tiles.groups, block) * (1 + tiles.parts);
      const std::int64_t next = first + share_of(after, block) - share_of(before, block) - owned;
      if (next < first) return {};
      const std::int64_t next_qkv = next * qkv / all;
      shares[static_cast<std::size_t>(block) * entries + static_cast<std::size_t>(layer)] = {
          static_cast<int>(first_qkv), static_cast<int>(next_qkv - first_qkv),
          static_cast<int>(first - first_qkv),
          static_cast<int>(next - next_qkv - (first - first_qkv))};
      first = next;
      first_qkv = next_qkv;
    }
    before = after;
  }
  return shares;
}

}  // namespace pythia
