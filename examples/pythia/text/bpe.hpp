// Byte-pair encoding of one word by ranked merges.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace pythia {

struct Merge {
  std::int32_t left = 0;
  std::int32_t right = 0;
  std::int32_t result = 0;
};

class Bpe {
 public:
  /// `byte_ids[b]` is the id a byte starts as, -1 where it has none. `merges` are in rank order.
  Bpe(const std::array<std::int32_t, 256>& byte_ids, const std::vector<Merge>& merges);

  /// Appends the ids of a word. Each step applies the merge of lowest rank, the leftmost where it
  /// occurs more than once. O(n log n) in the length of the word. Bytes without an id are dropped.
  void encode(std::string_view word, std::vector<std::int32_t>& ids) const;

 private:
  struct Rule {
    std::int32_t rank;
    std::int32_t result;
  };
  const Rule* find(std::int32_t left, std::int32_t right) const;

  std::array<std::int32_t, 256> byte_ids_;
  std::unordered_map<std::uint64_t, Rule> rules_;
};

}  // namespace pythia
