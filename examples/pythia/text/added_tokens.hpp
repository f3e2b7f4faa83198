// Finds tokens that are matched in the text as they are, before any word is split.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace pythia {

class AddedTokenMatcher {
 public:
  struct Match {
    std::size_t begin = 0;
    std::size_t end = 0;
    std::int32_t id = 0;
  };

  /// `content` must not be empty.
  void add(std::string_view content, std::int32_t id);

  /// The leftmost match at or after `from`, the longest of those that start there.
  std::optional<Match> find(std::string_view text, std::size_t from) const;

 private:
  // A trie over bytes: node 0 is the root, edges are keyed by node and byte.
  static std::uint64_t edge(std::uint32_t node, char byte);

  std::unordered_map<std::uint64_t, std::uint32_t> edges_;
  std::vector<std::int32_t> id_at_ = {-1};  // per node, -1 where no token ends
  std::array<bool, 256> starts_ = {};       // bytes that begin a token
};

}  // namespace pythia
