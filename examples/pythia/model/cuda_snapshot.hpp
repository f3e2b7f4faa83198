// Slots of one sequence and layer, put in order for tests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "examples/pythia/model/engine.hpp"

namespace pythia {

/// positions, scores: [heads, capacity] (scores empty: none are kept); free_slot: [heads].
inline CacheSnapshot snapshot_of(const std::vector<std::int32_t>& positions,
                                 const std::vector<float>& scores,
                                 const std::vector<std::int32_t>& free_slot, int capacity) {
  CacheSnapshot snapshot;
  for (std::size_t head = 0; head < free_slot.size(); ++head) {
    std::map<std::int32_t, float> kept;
    for (int slot = 0; slot < capacity; ++slot) {
      const std::size_t i =
          head * static_cast<std::size_t>(capacity) + static_cast<std::size_t>(slot);
      if (positions[i] < 0 || slot == free_slot[head]) continue;
      kept[positions[i]] = scores.empty() ? 0.0f : scores[i];
    }
    auto& head_positions = snapshot.positions.emplace_back();
    auto& head_scores = snapshot.scores.emplace_back();
    for (const auto& [position, score] : kept) {
      head_positions.push_back(position);
      head_scores.push_back(score);
    }
  }
  return snapshot;
}

}  // namespace pythia
