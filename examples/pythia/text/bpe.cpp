// See bpe.hpp.
#include "examples/pythia/text/bpe.hpp"

#include <cstddef>
#include <queue>
#include <tuple>

namespace pythia {
namespace {

constexpr std::size_t none = static_cast<std::size_t>(-1);

std::uint64_t pair_key(std::int32_t left, std::int32_t right) {
  return std::uint64_t{static_cast<std::uint32_t>(left)} << 32 | static_cast<std::uint32_t>(right);
}

// The symbols of a word form a linked list; a merge keeps the left one and unlinks the right one.
struct Symbol {
  std::int32_t id;  // -1: unlinked
  std::size_t previous;
  std::size_t next;
};

// A merge that was possible when it was queued.
struct Candidate {
  std::int32_t rank;
  std::size_t position;
  std::int32_t left;
  std::int32_t right;
  std::int32_t result;

  // std::priority_queue serves the greatest first.
  bool operator<(const Candidate& other) const {
    return std::tie(other.rank, other.position) < std::tie(rank, position);
  }
};

}  // namespace

Bpe::Bpe(const std::array<std::int32_t, 256>& byte_ids, const std::vector<Merge>& merges)
    : byte_ids_(byte_ids) {
  rules_.reserve(merges.size());
  std::int32_t rank = 0;
  for (const Merge& merge : merges) {
    rules_[pair_key(merge.left, merge.right)] = {rank++, merge.result};
  }
}

const Bpe::Rule* Bpe::find(std::int32_t left, std::int32_t right) const {
  const auto it = rules_.find(pair_key(left, right));
  return it == rules_.end() ? nullptr : &it->second;
}

void Bpe::encode(std::string_view word, std::vector<std::int32_t>& ids) const {
  std::vector<Symbol> symbols;
  symbols.reserve(word.size());
  for (const char c : word) {
    const std::int32_t id = byte_ids_[static_cast<unsigned char>(c)];
    if (id >= 0) symbols.push_back({id, symbols.size() - 1, symbols.size() + 1});
  }
  if (symbols.empty()) return;
  symbols.back().next = none;

  std::priority_queue<Candidate> queue;
  const auto offer = [&](std::size_t position) {
    if (position == none || symbols[position].next == none) return;
    const std::int32_t left = symbols[position].id;
    const std::int32_t right = symbols[symbols[position].next].id;
    if (const Rule* rule = find(left, right)) {
      queue.push({rule->rank, position, left, right, rule->result});
    }
  };
  for (std::size_t i = 0; i + 1 < symbols.size(); ++i) offer(i);

  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& left = symbols[best.position];
    // Another merge may have taken either side since.
    if (left.id != best.left || left.next == none || symbols[left.next].id != best.right) continue;
    Symbol& right = symbols[left.next];
    left.id = best.result;
    left.next = right.next;
    right.id = -1;
    if (left.next != none) symbols[left.next].previous = best.position;
    offer(left.previous);
    offer(best.position);
  }
  for (std::size_t i = 0; i != none; i = symbols[i].next) ids.push_back(symbols[i].id);
}

}  // namespace pythia
