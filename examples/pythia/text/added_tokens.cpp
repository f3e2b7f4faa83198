// See added_tokens.hpp.
#include "examples/pythia/text/added_tokens.hpp"

namespace pythia {

std::uint64_t AddedTokenMatcher::edge(std::uint32_t node, char byte) {
  return std::uint64_t{node} << 8 | static_cast<unsigned char>(byte);
}

void AddedTokenMatcher::add(std::string_view content, std::int32_t id) {
  starts_[static_cast<unsigned char>(content.front())] = true;
  std::uint32_t node = 0;
  for (const char byte : content) {
    const auto [it, inserted] =
        edges_.try_emplace(edge(node, byte), static_cast<std::uint32_t>(id_at_.size()));
    if (inserted) id_at_.push_back(-1);
    node = it->second;
  }
  id_at_[node] = id;
}

std::optional<AddedTokenMatcher::Match> AddedTokenMatcher::find(std::string_view text,
                                                                std::size_t from) const {
  for (std::size_t begin = from; begin < text.size(); ++begin) {
    if (!starts_[static_cast<unsigned char>(text[begin])]) continue;
    std::optional<Match> longest;
    std::uint32_t node = 0;
    for (std::size_t at = begin; at < text.size(); ++at) {
      const auto it = edges_.find(edge(node, text[at]));
      if (it == edges_.end()) break;
      node = it->second;
      if (id_at_[node] >= 0) longest = Match{begin, at + 1, id_at_[node]};
    }
    if (longest) return longest;
  }
  return std::nullopt;
}

}  // namespace pythia
