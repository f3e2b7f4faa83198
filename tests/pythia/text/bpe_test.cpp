// The merge queue against the plain definition of BPE.
#include "examples/pythia/text/bpe.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>

namespace {

using pythia::Bpe;
using pythia::Merge;
using Ids = std::vector<std::int32_t>;

// Quadratic, but obviously right: find the best pair, merge its leftmost occurrence, repeat.
Ids merge_plainly(Ids ids, const std::vector<Merge>& merges) {
  for (;;) {
    std::size_t best_rank = merges.size(), best_at = 0;
    for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
      for (std::size_t rank = 0; rank < best_rank; ++rank) {
        if (merges[rank].left == ids[i] && merges[rank].right == ids[i + 1]) {
          best_rank = rank;
          best_at = i;
        }
      }
    }
    if (best_rank == merges.size()) return ids;
    ids[best_at] = merges[best_rank].result;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(best_at) + 1);
  }
}

TEST(Bpe, AgreesWithTheDefinition) {
  std::mt19937 random(3);
  std::array<std::int32_t, 256> byte_ids;
  byte_ids.fill(-1);
  for (int i = 0; i < 3; ++i) byte_ids[static_cast<std::size_t>('a' + i)] = i;
  for (int round = 0; round < 200; ++round) {
    std::vector<Merge> merges;
    const auto add = [&](std::int32_t left, std::int32_t right) {
      for (const Merge& merge : merges) {
        if (merge.left == left && merge.right == right) return;
      }
      merges.push_back({left, right, static_cast<std::int32_t>(3 + merges.size())});
    };
    for (int i = 0; i < 12; ++i) {
      const auto known = static_cast<std::uint32_t>(3 + merges.size());
      add(static_cast<std::int32_t>(random() % known), static_cast<std::int32_t>(random() % known));
    }
    std::shuffle(merges.begin(), merges.end(), random);
    const Bpe bpe(byte_ids, merges);

    for (int length = 0; length < 40; ++length) {
      std::string word;
      Ids plain;
      for (int i = 0; i < length; ++i) {
        plain.push_back(static_cast<std::int32_t>(random() % 3));
        word += static_cast<char>('a' + plain.back());
      }
      Ids ids = {-7};  // appended to, not replaced
      bpe.encode(word, ids);
      ASSERT_EQ(ids.front(), -7);
      ids.erase(ids.begin());
      ASSERT_EQ(ids, merge_plainly(plain, merges)) << word;
    }
  }
}

TEST(Bpe, DropsBytesWithoutAnId) {
  std::array<std::int32_t, 256> byte_ids;
  byte_ids.fill(-1);
  byte_ids['a'] = 5;
  Ids ids;
  Bpe(byte_ids, {}).encode("xaxax", ids);
  EXPECT_EQ(ids, (Ids{5, 5}));
}

}  // namespace
