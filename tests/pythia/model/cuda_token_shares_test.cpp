// How the tiles of a token are divided: each one once, and evenly.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "examples/pythia/model/cuda_token_shares.hpp"

namespace {

using pythia::share_token_tiles;
using pythia::TokenShare;
using pythia::TokenTiles;

TokenTiles tiles_of(int layers, int hidden, int vocab) {
  return {layers, 3 * hidden / 4, hidden, hidden / 4, 4, vocab / 4};
}

void expect_exact(const TokenTiles& tiles, int blocks) {
  const std::vector<TokenShare> shares = share_token_tiles(tiles, blocks);
  const auto entries = static_cast<std::size_t>(tiles.layers) + 1;
  ASSERT_EQ(shares.size(), entries * static_cast<std::size_t>(blocks));
  std::vector<int> had(static_cast<std::size_t>(blocks), 0);
  for (int layer = 0; layer <= tiles.layers; ++layer) {
    const bool head = layer == tiles.layers;
    int qkv = 0;
    int up = 0;
    for (int block = 0; block < blocks; ++block) {
      const TokenShare& share =
          shares[static_cast<std::size_t>(block) * entries + static_cast<std::size_t>(layer)];
      EXPECT_EQ(share.qkv_first, qkv);
      EXPECT_EQ(share.up_first, up);
      EXPECT_GE(share.qkv_count, 0);
      EXPECT_GE(share.up_count, 0);
      qkv += share.qkv_count;
      up += share.up_count;
      had[static_cast<std::size_t>(block)] += share.qkv_count + share.up_count;
    }
    EXPECT_EQ(qkv, head ? tiles.head : tiles.qkv);
    EXPECT_EQ(up, head ? 0 : tiles.up);
    const auto [least, most] = std::minmax_element(had.begin(), had.end());
    EXPECT_LE(*most - *least, 1) << "layer " << layer;
    for (int block = 0; block < blocks; ++block) {
      const int groups = tiles.groups * (block + 1) / blocks - tiles.groups * block / blocks;
      had[static_cast<std::size_t>(block)] += groups * (1 + tiles.parts);
    }
  }
}

TEST(CudaTokenShares, EveryTileOnceAndEvenly) {
  expect_exact(tiles_of(32, 2560, 50304), 132);
  expect_exact(tiles_of(24, 1024, 50304), 132);
  expect_exact(tiles_of(36, 5120, 50688), 114);
  expect_exact(tiles_of(4, 256, 2048), 64);
  expect_exact(tiles_of(1, 128, 512), 1);
}

TEST(CudaTokenShares, NothingWhereItCannotBeEven) {
  // The only row group of one block is more than its share of all that there is.
  EXPECT_TRUE(share_token_tiles({2, 1, 1, 3, 40, 1}, 2).empty());
}

}  // namespace
