#include "examples/pythia/model/cuda_token_times.hpp"

#include <numeric>

namespace pythia {
namespace {

/// The blocks' sums in one.
TokenTimes total_of(const std::vector<TokenTimes>& blocks) {
  TokenTimes total = {};
  for (const TokenTimes& block : blocks) {
    for (int i = 0; i < kNoTile; ++i) total.multiplying[i] += block.multiplying[i];
    for (int i = 0; i < kStagedVectors; ++i) total.waiting[i] += block.waiting[i];
    total.nanoseconds += block.nanoseconds;
    total.warps += block.warps;
    total.attending += block.attending;
    total.attended += block.attended;
  }
  return total;
}

}  // namespace

std::vector<StepProfile::Part> token_parts(const std::vector<TokenTimes>& blocks,
                                           const StepBytes& bytes, double seconds) {
  const TokenTimes total = total_of(blocks);
  const std::uint64_t clocks = std::accumulate(
      total.waiting, total.waiting + kStagedVectors,
      std::accumulate(total.multiplying, total.multiplying + kNoTile, std::uint64_t{0}));
  // The clock's rate moves with load and power: what it was comes from the same warps.
  const double of_clock =
      1e-9 * static_cast<double>(total.nanoseconds) / static_cast<double>(clocks);
  const double of_warp = of_clock / static_cast<double>(total.warps);

  std::vector<StepProfile::Part> parts;
  double rest = seconds;
  const auto add = [&](const char* kind, double moved, std::uint64_t spent) {
    parts.push_back({kind, 0, moved, of_warp * static_cast<double>(spent)});
    rest -= parts.back().seconds;
  };
  const auto multiplied = [&](const char* kind, TileKind tile) {
    add(kind, bytes.multiplying[tile], total.multiplying[tile]);
  };
  add("wait: norms", 0.0, total.waiting[kAttentionInput] + total.waiting[kMlpInput]);
  multiplied("qkv", kQkvTile);
  multiplied("up", kUpTile);
  add("wait: up", 0.0, total.waiting[kDownInput]);
  multiplied("down", kDownTile);
  add("wait: attention", 0.0, total.waiting[kDenseInput]);
  multiplied("dense", kDenseTile);
  multiplied("head", kHeadTile);
  parts.push_back({"launch, choice", 1, 0.0, rest});
  const double attending = total.attended == 0 ? 0.0
                                               : of_clock * static_cast<double>(total.attending) /
                                                     static_cast<double>(total.attended);
  parts.push_back({"attention", 0, bytes.attention, attending, true});
  return parts;
}

}  // namespace pythia
