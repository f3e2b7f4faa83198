// Runs a grid: a fiber per thread, one warp at a time, drawn at random.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "tests/emulator/copies.hpp"
#include "tests/emulator/fiber.hpp"
#include "tests/emulator/memory.hpp"

namespace emulator {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};
inline Index thread_index, block_index, grid_size, block_size;

/// Pages that cost nothing until they are written.
class Pages {
 public:
  Pages(std::size_t bytes, int flags) : bytes_(bytes) {
    memory_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);
    if (memory_ == MAP_FAILED) throw std::bad_alloc();
  }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  ~Pages() { munmap(memory_, bytes_); }

  std::byte* begin() const { return static_cast<std::byte*>(memory_); }

 private:
  std::size_t bytes_;
  void* memory_;
};

class Grid {
 public:
  Grid(unsigned blocks, unsigned threads, std::function<void()> kernel)
      : kernel_(std::move(kernel)),
        blocks_(blocks),
        warps_(blocks * threads / kWarpLanes),
        fibers_(blocks * threads),
        stacks_(fibers_.size() * kStackBytes, 0),
        shared_(blocks * kSharedBytes, MAP_32BIT) {
    grid_size.x = blocks;
    block_size.x = threads;
    running_ = this;
    ready.clear();
    sleepers.clear();
    waiters.clear();
    under_way.clear();
    stored.clear();
    found.clear();
    auto* const words = reinterpret_cast<std::uint32_t*>(shared_.begin());
    for (std::size_t i = 0; i < blocks * kSharedBytes / 4; ++i) words[i] = schedule->random();
    for (unsigned b = 0; b < blocks; ++b) {
      blocks_[b].index = b;
      blocks_[b].shared = shared_.begin() + b * kSharedBytes;
    }
    for (std::size_t i = 0; i < fibers_.size(); ++i) {
      Fiber& fiber = fibers_[i];
      Warp& warp = warps_[i / kWarpLanes];
      fiber.warp = &warp;
      fiber.lane = static_cast<int>(i % kWarpLanes);
      fiber.thread = static_cast<unsigned>(i % threads);
      warp.block = &blocks_[i / threads];
      warp.role = static_cast<int>(fiber.thread) / kWarpLanes;
      warp.lanes[fiber.lane] = &fiber;
      prepare_stack(i);
    }
    for (Warp& warp : warps_) {
      warp.slow = warp.role == schedule->slow_role ||
                  (schedule->slow_period != 0 && schedule->random.one_in(schedule->slow_period));
      warp.queued = true;
      ready.push_back(&warp);
    }
  }

  void run() {
    while (done_ < fibers_.size()) {
      if (!under_way.empty() &&
          (ready.empty() || schedule->random.one_in(schedule->landing_period))) {
        land_some();
        continue;
      }
      if (!sleepers.empty() && (ready.empty() || schedule->random.one_in(1024))) wake_sleepers();
      if (ready.empty()) throw Fault("deadlock" + waiting());
      run_warp(take_warp());
      if (!found.empty()) throw Fault(found);
    }
    while (!under_way.empty()) land(0);
    for (std::size_t i = 0; i < fibers_.size(); ++i) {
      if (*stack_end(i) != kCanary) throw Fault("a fiber needs more than kStackBytes");
    }
  }

 private:
  static constexpr std::size_t kStackBytes = 24 * 1024;
  static constexpr std::uint64_t kCanary = 0xfeedfacecafebeef;
  static inline Grid* running_ = nullptr;

  static void fiber_main() {
    running_->kernel_();
    current->state = FiberState::done;
    ++running_->done_;
    ++progress;
    for (;;) leave();
  }

  std::uint64_t* stack_end(std::size_t fiber) {
    return reinterpret_cast<std::uint64_t*>(stacks_.begin() + fiber * kStackBytes);
  }

  /// As emulator_switch_stack leaves one: six registers and where to go on.
  void prepare_stack(std::size_t fiber) {
    *stack_end(fiber) = kCanary;
    // A function is entered with a stack pointer that is 8 above a multiple of 16.
    std::uint64_t* const entry = stack_end(fiber + 1) - 4;
    *entry = reinterpret_cast<std::uintptr_t>(&fiber_main);
    fibers_[fiber].stack = entry - 6;
  }

  /// One copy or store, now and then all of them.
  void land_some() {
    const auto any = [] {
      return schedule->random.below(static_cast<std::uint32_t>(under_way.size()));
    };
    const bool all = schedule->random.one_in(256);
    do {
      land(any());
    } while (all && !under_way.empty());
  }

  void wake_sleepers() {
    if (ready.empty()) {
      if (progress == progress_before_) throw Fault("deadlock" + waiting());
      progress_before_ = progress;
    }
    for (Fiber* fiber : sleepers) wake(fiber);
    sleepers.clear();
  }

  static Warp& take_warp() {
    const auto any = [] {
      return schedule->random.below(static_cast<std::uint32_t>(ready.size()));
    };
    std::size_t index = any();
    for (int i = 0; i < 6 && ready[index]->slow && !schedule->random.one_in(schedule->slow_factor);
         ++i) {
      index = any();
    }
    Warp& warp = *ready[index];
    ready[index] = ready.back();
    ready.pop_back();
    warp.queued = false;
    return warp;
  }

  /// A turn of every lane that has one.
  static void run_warp(Warp& warp) {
    const unsigned first = schedule->random.below(kWarpLanes);
    block_index.x = warp.block->index;
    bool more = false;
    for (unsigned i = 0; i < kWarpLanes && found.empty(); ++i) {
      Fiber& lane = *warp.lanes[(first + i) % kWarpLanes];
      if (lane.state != FiberState::ready) continue;
      current = &lane;
      thread_index.x = lane.thread;
      emulator_switch_stack(&scheduler_stack, lane.stack);
    }
    for (const Fiber* lane : warp.lanes) more = more || lane->state == FiberState::ready;
    if (more && !warp.queued) {
      warp.queued = true;
      ready.push_back(&warp);
    }
  }

  /// How many threads of which warps wait for what.
  std::string waiting() const {
    std::map<std::pair<int, std::string>, int> threads;
    for (const Fiber& fiber : fibers_) {
      if (fiber.state == FiberState::waiting) ++threads[{fiber.warp->role, fiber.reason}];
    }
    std::string text;
    for (const auto& [who, count] : threads) {
      text += "\n" + std::to_string(count) + " threads of warps " + std::to_string(who.first) +
              " wait for " + who.second;
    }
    return text;
  }

  std::function<void()> kernel_;
  std::vector<Block> blocks_;
  std::vector<Warp> warps_;
  std::vector<Fiber> fibers_;
  Pages stacks_, shared_;
  std::size_t done_ = 0;
  std::uint64_t progress_before_ = ~std::uint64_t{0};
};

/// Throws Fault. Afterwards, as on a device, all that the kernel stored is there.
inline void launch(const GlobalMemory& memory, unsigned blocks, unsigned threads,
                   std::uint64_t seed, std::function<void()> kernel) {
  global_memory = &memory;
  schedule.emplace(seed, threads / kWarpLanes);
  Grid(blocks, threads, std::move(kernel)).run();
}

}  // namespace emulator
