// Global memory, which knows what was allocated, and shared memory of the blocks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "tests/emulator/fiber.hpp"

namespace emulator {

/// What a kernel may read by copies; zero at first.
class GlobalMemory {
 public:
  template <class T>
  T* make(std::size_t count) {
    const std::size_t bytes = count * sizeof(T);
    const std::size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    auto* const begin = static_cast<std::byte*>(std::aligned_alloc(kAlignment, rounded));
    if (begin == nullptr) throw std::bad_alloc();
    std::memset(begin, 0, rounded);
    ranges_.push_back({Owner(begin), bytes});
    return reinterpret_cast<T*>(begin);
  }

  bool holds(const void* from, std::size_t bytes) const {
    const auto* const begin = static_cast<const std::byte*>(from);
    return std::any_of(ranges_.begin(), ranges_.end(), [&](const Range& range) {
      return begin >= range.begin.get() && begin + bytes <= range.begin.get() + range.bytes;
    });
  }

 private:
  static constexpr std::size_t kAlignment = 256;
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  using Owner = std::unique_ptr<std::byte, Free>;
  struct Range {
    Owner begin;
    std::size_t bytes;
  };
  std::vector<Range> ranges_;
};

inline const GlobalMemory* global_memory = nullptr;

constexpr std::size_t kDynamicSharedBytes = 228 * 1024;
constexpr std::size_t kSharedBytes = 256 * 1024;

/// Shared memory lies below 4 GiB, so that its addresses have 32 bits here too.
template <class T>
T* shared_at(std::uint32_t address) {
  return reinterpret_cast<T*>(static_cast<std::uintptr_t>(address));
}

inline std::byte* dynamic_shared() { return current->warp->block->shared; }

template <class T>
using Same = T;

inline std::size_t shared_variables = 0;

/// The current block's own variable. Variable: a type that only this declaration has.
template <class T, class Variable>
T& shared(Variable) {
  static const std::size_t number = shared_variables++;
  Block& block = *current->warp->block;
  if (block.statics.size() <= number) block.statics.resize(number + 1);
  std::byte*& place = block.statics[number];
  if (place == nullptr) {
    place = block.shared + kDynamicSharedBytes + block.static_bytes;
    block.static_bytes += (sizeof(T) + 15) / 16 * 16;
    if (kDynamicSharedBytes + block.static_bytes > kSharedBytes) fault("too much shared memory");
  }
  return *reinterpret_cast<T*>(place);
}

}  // namespace emulator
