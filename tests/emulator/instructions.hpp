// Instructions that need neither a barrier, nor a copy, nor a warp: loads, counters, exp2.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "tests/emulator/fiber.hpp"
#include "tests/emulator/memory.hpp"

namespace emulator {

/// At once, but others may run before and behind it.
template <class T, class Update>
T read_and_update(T* target, Update update) {
  maybe_yield();
  const T before = *target;
  *target = update(before);
  ++progress;
  maybe_yield();
  return before;
}

inline void count_up_global(unsigned& before, unsigned* counter) {
  before = read_and_update(counter, [](unsigned count) { return count + 1; });
}
inline void count_up_shared(int& before, std::uint32_t address) {
  before = read_and_update(shared_at<int>(address), [](int count) { return count + 1; });
}

/// Of what nobody writes while the kernel runs; source: of as many bytes.
template <class Value, class Source>
void load_constant(Value& value, const Source* source) {
  static_assert(sizeof(Value) == sizeof(Source));
  std::memcpy(&value, source, sizeof(value));
}

template <class Word>
void load_shared(Word& a, Word& b, Word& c, Word& d, std::uint32_t address) {
  maybe_yield();
  if (address % 16 != 0) fault("load at an odd address");
  const Word* const words = shared_at<Word>(address);
  a = words[0];
  b = words[1];
  c = words[2];
  d = words[3];
}

template <class Word>
void load_shared_if(Word& a, Word& b, Word& c, Word& d, std::uint32_t address, int wanted) {
  if (wanted != 0) load_shared(a, b, c, d, address);
}

inline void upper_half(std::uint32_t& half, std::uint32_t word) { half = word >> 16; }

inline void exp2_approximate(float& y, float x) {
  y = std::exp2(x);
  if (std::fabs(y) < 0x1p-126f) y = 0;
}

}  // namespace emulator
