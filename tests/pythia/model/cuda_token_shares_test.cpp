// How the tiles of a token are divided: each one once, and evenly.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "examples/pythia/model/cuda_token_shares.hpp"

namespace {

using pythia::TokenShare;
using pythia::TokenShares;

/// Counts who has each tile of one product, and how many each block has.
class Dealt {
 public:
  Dealt(int tiles, int blocks) : owners_(static_cast<std::size_t>(tiles), 0), blocks_(blocks) {}

  void add(const TokenShare& share) {
    counts.push_back(share.count);
    for (int i = 0; i < share.count; ++i) {
      const int tile = share.first + i * blocks_;
      ASSERT_GE(tile, 0);
      ASSERT_LT(static_cast<std::size_t>(tile), owners_.size());
      ++owners_[static_cast<std::size_t>(tile)];
    }
  }
  void expect_each_once() const {
    for (const int owners : owners_) ASSERT_EQ(owners, 1);
  }

  std::vector<int> counts;

 private:
  std::vector<int> owners_;
  int blocks_;
};

void expect_even(const std::vector<int>& counts) {
  const auto [least, most] = std::minmax_element(counts.begin(), counts.end());
  EXPECT_GE(*least, 0);
  EXPECT_LE(*most - *least, 1);
}

void expect_exact(int hidden, int vocab, int blocks) {
  SCOPED_TRACE(hidden);
  const int groups = hidden / 4, head_tiles = vocab / 4;
  Dealt qkv(3 * groups, blocks), up(4 * groups, blocks), rows(groups, blocks);
  Dealt head(head_tiles, blocks);
  std::vector<int> both;
  for (int block = 0; block < blocks; ++block) {
    const TokenShares shares(3 * groups, 4 * groups, groups, head_tiles, block, blocks);
    qkv.add(shares.qkv);
    up.add(shares.up);
    rows.add(shares.groups);
    head.add(shares.head);
    both.push_back(shares.qkv.count + shares.up.count);
  }
  for (const Dealt* product : {&qkv, &up, &rows, &head}) product->expect_each_once();
  for (const auto* counts : {&qkv.counts, &rows.counts, &head.counts, &both}) expect_even(*counts);
}

TEST(CudaTokenShares, EveryTileOnceAndEvenly) {
  expect_exact(2560, 50304, 132);
  expect_exact(1024, 50304, 132);
  expect_exact(5120, 50688, 114);
  expect_exact(256, 2048, 64);
  expect_exact(128, 512, 1);
}

TEST(CudaTokenShares, FewBlocksAreLeftOutWhereTheOthersAreEven) {
  EXPECT_EQ(pythia::token_blocks(640, 132), 128);
  EXPECT_EQ(pythia::token_blocks(512, 132), 128);
  EXPECT_EQ(pythia::token_blocks(660, 132), 132) << "even with all of them";
  EXPECT_EQ(pythia::token_blocks(640, 114), 114) << "not even with 107";
  EXPECT_EQ(pythia::token_blocks(192, 132), 132) << "a quarter would be left out";
  EXPECT_EQ(pythia::token_blocks(64, 132), 64);
}

TEST(CudaTokenShares, LessIsUnderWayFromManyLiveSlotsOn) {
  const pythia::TilesInFlight tiles{5, 4, 900};
  EXPECT_EQ(tiles.at(1), 5);
  EXPECT_EQ(tiles.at(899), 5);
  EXPECT_EQ(tiles.at(900), 4);
  EXPECT_EQ(tiles.at(2048), 4);
}

TEST(CudaTokenShares, ManySlotsAreAnEighthOfTheWeights) {
  for (const int hidden : {256, 1024, 2048, 2560, 5120}) {
    for (const int weight_bytes : {1, 2}) {
      const int slots = pythia::many_live(hidden, weight_bytes, 2);
      const double weights = 12.0 * hidden * hidden * weight_bytes;
      EXPECT_NEAR(8.0 * slots * 2 * hidden * 2, weights, 8.0 * 2 * hidden * 2) << hidden;
    }
  }
}

}  // namespace
