// What a seed decides: random numbers, and the habits of the machine that a run pretends to be.
#pragma once

#include <cstdint>

namespace emulator {

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15ull + 0x1234567) {
    for (int i = 0; i < 8; ++i) (*this)();
  }

  std::uint32_t operator()() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return static_cast<std::uint32_t>((state_ * 2685821657736338717ull) >> 32);
  }
  std::uint32_t below(std::uint32_t n) {
    return static_cast<std::uint32_t>((std::uint64_t{(*this)()} * n) >> 32);
  }
  bool one_in(std::uint32_t n) { return below(n) == 0; }

 private:
  std::uint64_t state_;
};

/// Habits that provoke different faults: memory that answers at once or late, warps that run until
/// they must wait or take turns at every instruction, warps far behind the others. 0: never.
struct Schedule {
  Random random;
  unsigned landing_period, yield_period, slow_period, slow_factor;
  int slow_role;           ///< this warp of every block is slow; -1: none
  bool stores_at_once;     ///< of flagged words
  bool async_copies_late;  ///< cp.async lands only when waited for

  explicit Schedule(std::uint64_t seed, unsigned warps) : random(seed) {
    constexpr unsigned kLandings[] = {1, 2, 8, 64, 512}, kYields[] = {0, 0, 64, 16, 4},
                       kSlow[] = {0, 0, 8, 64, 640};
    landing_period = kLandings[random.below(5)];
    yield_period = kYields[random.below(5)];
    slow_period = kSlow[random.below(5)];
    slow_factor = random.one_in(2) ? 16 : 400;
    slow_role = random.one_in(3) ? static_cast<int>(random.below(warps)) : -1;
    stores_at_once = random.one_in(4);
    async_copies_late = random.one_in(3);
  }
};

}  // namespace emulator
