// mbarriers and named barriers.
#pragma once

#include <cstdint>

#include "tests/emulator/fiber.hpp"
#include "tests/emulator/memory.hpp"

namespace emulator {

/// What lies in the eight bytes that a kernel reserves for an mbarrier.
struct Mbarrier {
  std::uint32_t phase : 1, arrivals : 12, pending : 12;
  std::int32_t bytes;  ///< expected and not there yet

  /// Some have arrived, or `landed` bytes.
  void settle(int landed) {
    ++progress;
    bytes -= landed;
    if (pending != 0 || bytes != 0) return;
    phase ^= 1;
    pending = arrivals;
    wake_at(reinterpret_cast<std::uintptr_t>(this));
  }
};
static_assert(sizeof(Mbarrier) == sizeof(std::uint64_t));

inline void mbarrier_init(std::uint32_t address, std::uint32_t arrivals) {
  if (address % sizeof(Mbarrier) != 0) fault("mbarrier at an odd address");
  *shared_at<Mbarrier>(address) = {0, arrivals & 0xfff, arrivals & 0xfff, 0};
}

inline void mbarrier_arrive_expect(std::uint32_t address, std::uint32_t bytes) {
  maybe_yield();
  auto& barrier = *shared_at<Mbarrier>(address);
  if (barrier.pending == 0) fault("more arrivals at an mbarrier than its phase has");
  --barrier.pending;
  barrier.settle(-static_cast<int>(bytes));
  maybe_yield();
}

inline void mbarrier_arrive(std::uint32_t address) { mbarrier_arrive_expect(address, 0); }

inline void mbarrier_wait(std::uint32_t address, std::uint32_t parity) {
  maybe_yield();
  while (shared_at<Mbarrier>(address)->phase == parity) wait_at(address, "an mbarrier");
}

/// The time is up whenever chance says so.
inline void mbarrier_wait_for(std::uint32_t& done, std::uint32_t address, std::uint32_t parity,
                              std::uint32_t /*nanoseconds*/) {
  maybe_yield();
  done = shared_at<Mbarrier>(address)->phase != parity ? 1 : 0;
  if (done != 0 || schedule->random.one_in(2)) return;
  mbarrier_wait(address, parity);
  done = 1;
}

inline void bar_sync(int number, int threads) {
  maybe_yield();
  NamedBarrier& barrier = current->warp->block->barriers[number];
  if (barrier.arrived == 0) barrier.expected = threads;
  if (barrier.expected != threads) fault("a barrier with two counts of threads");
  ++progress;
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    ++barrier.phase;
    for (Fiber* fiber : barrier.waiting) wake(fiber);
    barrier.waiting.clear();
    maybe_yield();
    return;
  }
  const unsigned phase = barrier.phase;
  barrier.waiting.push_back(current);
  while (barrier.phase == phase) wait("a barrier");
}

}  // namespace emulator
