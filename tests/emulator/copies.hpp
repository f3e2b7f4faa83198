// Copies and stores that land later than they are issued, in any order.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <unordered_set>
#include <vector>

#include "tests/emulator/barrier.hpp"
#include "tests/emulator/fiber.hpp"
#include "tests/emulator/memory.hpp"

namespace emulator {

/// A bulk copy, or without `from` a store of `word`.
struct Transfer {
  void* to;
  const void* from;
  std::uint64_t word;
  std::uint32_t bytes, barrier;
};
inline std::vector<Transfer> under_way;
inline std::unordered_set<const void*> stored;  ///< targets of the stores among them

/// Who waits for a flagged word waits for its pair.
inline std::uint64_t pair_of(const void* word) {
  return reinterpret_cast<std::uintptr_t>(word) / 16 * 16;
}

inline void land(std::size_t index) {
  const Transfer transfer = under_way[index];
  under_way[index] = under_way.back();
  under_way.pop_back();
  ++progress;
  if (transfer.from != nullptr) {
    std::memcpy(transfer.to, transfer.from, transfer.bytes);
    shared_at<Mbarrier>(transfer.barrier)->settle(static_cast<int>(transfer.bytes));
  } else {
    stored.erase(transfer.to);
    std::memcpy(transfer.to, &transfer.word, sizeof(transfer.word));
    wake_at(pair_of(transfer.to));
  }
}

/// What a copy's target holds until the copy has landed.
inline void poison(void* target, std::size_t bytes) {
  std::memset(target, static_cast<int>(0x80 | schedule->random.below(128)), bytes);
}

inline void check_copy(std::uint32_t to, const void* from, std::uint32_t bytes) {
  if (bytes == 0) return;
  if (to % 16 != 0 || reinterpret_cast<std::uintptr_t>(from) % 16 != 0) {
    fault("copy at an odd address");
  }
  if (!global_memory->holds(from, bytes)) fault("copy from outside of global memory");
}

inline void evict_first_policy(std::uint64_t& policy) { policy = 0; }

inline void bulk_copy(std::uint32_t to, const void* from, std::uint32_t bytes,
                      std::uint32_t barrier, std::uint64_t /*policy*/ = 0) {
  if (bytes == 0 || bytes % 16 != 0) fault("bulk copy of an odd size");
  check_copy(to, from, bytes);
  poison(shared_at<void>(to), bytes);
  under_way.push_back({shared_at<void>(to), from, 0, bytes, barrier});
  maybe_yield();
}

/// Nothing but a check: the machine ignores a prefetch from where there is nothing.
inline void bulk_prefetch(const void* from, std::uint32_t bytes) {
  if (bytes == 0 || bytes % 16 != 0) fault("bulk prefetch of an odd size");
  check_copy(0, from, bytes);
}

template <class Word>
void store_flagged(Word* target, std::uint64_t word) {
  maybe_yield();
  if (!stored.insert(target).second) {  // stores to one word stay in order
    const auto before = std::find_if(under_way.begin(), under_way.end(), [&](const Transfer& t) {
      return t.from == nullptr && t.to == target;
    });
    land(static_cast<std::size_t>(before - under_way.begin()));
    stored.insert(target);
  }
  under_way.push_back({target, nullptr, word, sizeof(word), 0});
  if (schedule->stores_at_once) land(under_way.size() - 1);
}

/// Who gets the same answer from an address again and again waits for a store to it.
inline void poll(const std::uint64_t* address, int words) {
  constexpr int kPatience = 4;
  maybe_yield();
  const auto* const now = static_cast<const volatile std::uint64_t*>(address);
  const std::uint64_t hash = reinterpret_cast<std::uintptr_t>(address) / 8 * 0x9e3779b97f4a7c15ull;
  Poll& seen = current->polls[hash >> (64 - kPollBits)];
  const auto same = [&] {
    return seen.address == address && seen.first == now[0] && seen.last == now[words - 1];
  };
  if (same() && seen.count >= kPatience) wait_at(pair_of(address), "a flagged word");
  if (same()) {
    ++seen.count;
    return;
  }
  const bool pushed_out = seen.address != nullptr && seen.address != address;
  seen = {address, now[0], now[words - 1], 1};
  if (pushed_out) leave();  // two that push each other out must not keep the turn
}

template <class Word>
void load_flagged(std::uint64_t& word, const Word* source) {
  const auto* const address = reinterpret_cast<const std::uint64_t*>(source);
  poll(address, 1);
  word = *address;
}

template <class Word>
void load_flagged_pair(std::uint64_t& first, std::uint64_t& second, const Word* source) {
  const auto* const address = reinterpret_cast<const std::uint64_t*>(source);
  if (reinterpret_cast<std::uintptr_t>(address) % 16 != 0) fault("pair at an odd address");
  poll(address, 2);
  first = address[0];
  second = address[1];
}

inline void land(const AsyncCopy& copy) {
  if (copy.bytes != 0) std::memcpy(copy.to, copy.from, static_cast<std::size_t>(copy.bytes));
  std::memset(copy.to + copy.bytes, 0, static_cast<std::size_t>(16 - copy.bytes));
}

/// cp.async of 16 bytes, of which `bytes` are read and the rest is zero.
inline void async_copy(std::uint32_t to, const void* from, int bytes) {
  check_copy(to, from, static_cast<std::uint32_t>(bytes));
  const AsyncCopy copy{shared_at<std::byte>(to), from, bytes, current->async_group};
  if (!schedule->async_copies_late && schedule->random.one_in(2)) {
    land(copy);
    return;
  }
  poison(copy.to, 16);
  current->async_copies.push_back(copy);
}

inline void async_copy_commit() { ++current->async_group; }

/// Until at most `groups` are under way.
inline void async_copy_wait(int groups) {
  maybe_yield();
  auto& copies = current->async_copies;
  const auto rest = std::stable_partition(copies.begin(), copies.end(), [&](const AsyncCopy& copy) {
    return copy.group < current->async_group - groups;
  });
  std::for_each(copies.begin(), rest, [](const AsyncCopy& copy) { land(copy); });
  copies.erase(copies.begin(), rest);
}

}  // namespace emulator
