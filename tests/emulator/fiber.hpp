// CUDA threads as fibers of one OS thread: who may run, and who waits for what.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "tests/emulator/schedule.hpp"

extern "C" void emulator_switch_stack(void** save, void* to);

namespace emulator {

/// What the emulator finds wrong with a kernel: a deadlock, or a use of an instruction that the
/// hardware leaves undefined.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Warp;

struct AsyncCopy {
  std::byte* to;
  const void* from;
  int bytes, group;
};

/// The last answer to a load of a flagged word, and how often it came.
struct Poll {
  const std::uint64_t* address;
  std::uint64_t first, last;
  int count;
};
constexpr int kPollBits = 5;

enum class FiberState { ready, waiting, asleep, done };

struct Fiber {
  void* stack = nullptr;
  Warp* warp = nullptr;
  int lane = 0;
  unsigned thread = 0;
  FiberState state = FiberState::ready;
  const char* reason = "";  ///< of waiting
  std::vector<AsyncCopy> async_copies;
  int async_group = 0;
  Poll polls[1 << kPollBits] = {};  ///< by hash of the address
};

struct NamedBarrier {
  int arrived = 0, expected = 0;
  unsigned phase = 0;
  std::vector<Fiber*> waiting;
};

struct Block {
  unsigned index = 0;
  std::byte* shared = nullptr;
  std::size_t static_bytes = 0;
  std::vector<std::byte*> statics;  ///< by number of the __shared__ variable
  NamedBarrier barriers[16];
};

constexpr int kWarpLanes = 32;
constexpr int kMostWords = 6;  ///< that a lane brings to a collective

struct Warp {
  Block* block = nullptr;
  int role = 0;  ///< number in its block
  Fiber* lanes[kWarpLanes] = {};
  bool queued = false, slow = false;
  // The collective that its lanes are in. Words have two copies, because a lane may be in the next
  // one before the others have read theirs.
  int arrived = 0, operation = 0;
  unsigned phase = 0;
  std::uint32_t words[2][kWarpLanes][kMostWords] = {};
};

inline std::optional<Schedule> schedule;
inline Fiber* current = nullptr;
inline void* scheduler_stack = nullptr;
inline std::vector<Warp*> ready;
inline std::vector<Fiber*> sleepers;
inline std::unordered_map<std::uint64_t, std::vector<Fiber*>> waiters;  ///< by address
inline std::uint64_t progress = 0;  ///< of anything that a sleeper might look at
inline std::string found;           ///< the fault of a fiber, for the scheduler to throw

inline void leave() { emulator_switch_stack(&current->stack, scheduler_stack); }

/// Ends the run. An exception cannot leave a fiber, so the scheduler throws it.
[[noreturn]] inline void fault(const char* what) {
  found = std::string(what) + ", block " + std::to_string(current->warp->block->index) +
          " thread " + std::to_string(current->thread);
  for (;;) leave();
}

inline void wake(Fiber* fiber) {
  fiber->state = FiberState::ready;
  if (fiber->warp->queued) return;
  fiber->warp->queued = true;
  ready.push_back(fiber->warp);
}

/// Until somebody wakes this fiber.
inline void wait(const char* reason) {
  current->state = FiberState::waiting;
  current->reason = reason;
  leave();
}

inline void wait_at(std::uint64_t address, const char* reason) {
  waiters[address].push_back(current);
  wait(reason);
}

inline void wake_at(std::uint64_t address) {
  const auto here = waiters.find(address);
  if (here == waiters.end()) return;
  const std::vector<Fiber*> all = std::move(here->second);
  waiters.erase(here);
  for (Fiber* fiber : all) wake(fiber);
}

inline void maybe_yield() {
  if (schedule->yield_period != 0 && schedule->random.one_in(schedule->yield_period)) leave();
}

}  // namespace emulator
