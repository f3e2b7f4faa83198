// What the lanes of a warp do together.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>

#include "tests/emulator/fiber.hpp"

namespace emulator {

enum Collective : int { kSync, kShuffle, kBallot, kReduce, kMultiply };

/// Every lane brings words and gets those of all; lanes in different collectives are a fault.
inline const std::uint32_t (*together(Collective operation,
                                      std::initializer_list<std::uint32_t> words))[kMostWords] {
  Warp& warp = *current->warp;
  if (warp.arrived == 0) warp.operation = operation;
  if (warp.operation != operation) fault("lanes of a warp in different collectives");
  const unsigned phase = warp.phase;
  auto* const table = warp.words[phase % 2];
  int count = 0;
  for (const std::uint32_t word : words) table[current->lane][count++] = word;
  ++progress;
  if (++warp.arrived == kWarpLanes) {
    warp.arrived = 0;
    ++warp.phase;
    for (Fiber* lane : warp.lanes) {
      if (lane != current && lane->state == FiberState::waiting) wake(lane);
    }
  } else {
    while (warp.phase == phase) wait("its warp");
  }
  return table;
}

template <class T>
T shuffle(T value, int from) {
  static_assert(sizeof(T) == sizeof(std::uint32_t));
  std::uint32_t word;
  std::memcpy(&word, &value, sizeof(word));
  std::memcpy(&value, together(kShuffle, {word})[from], sizeof(word));
  return value;
}

template <class Combine>
std::uint32_t reduce(std::uint32_t value, Combine combine) {
  const auto* const table = together(kReduce, {value});
  std::uint32_t result = table[0][0];
  for (int lane = 1; lane < kWarpLanes; ++lane) result = combine(result, table[lane][0]);
  return result;
}

}  // namespace emulator
