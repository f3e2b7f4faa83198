// What becomes of the times that the blocks of the token kernel leave.
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "examples/pythia/model/cuda_token_times.hpp"

namespace {

using pythia::StepBytes;
using pythia::StepProfile;
using pythia::token_parts;
using pythia::TokenTimes;

constexpr std::uint64_t kWarps = 7, kTokens = 3;

/// A block whose clock ran at `clock_ghz` on the mean, and which attended or did not.
TokenTimes some_block(std::mt19937* random, double clock_ghz, bool attends) {
  std::uniform_int_distribution<std::uint64_t> some(1000, 900000);
  TokenTimes block = {};
  std::uint64_t clocks = 0;
  for (auto& each : block.multiplying) clocks += each = some(*random);
  for (auto& each : block.waiting) clocks += each = some(*random);
  block.nanoseconds = static_cast<std::uint64_t>(static_cast<double>(clocks) / clock_ghz);
  block.warps = kWarps * kTokens;
  block.attending = attends ? some(*random) : 0;
  block.attended = attends ? kTokens : 0;
  return block;
}

const StepProfile::Part& part_of(const std::vector<StepProfile::Part>& parts,
                                 const std::string& kind) {
  for (const auto& part : parts) {
    if (part.kind == kind) return part;
  }
  ADD_FAILURE() << "no part " << kind;
  return parts.front();
}

TEST(CudaTokenTimes, AreTheMeanOfAllWarpsInSeconds) {
  std::mt19937 random(1);
  std::vector<TokenTimes> blocks;
  for (int i = 0; i < 5; ++i) blocks.push_back(some_block(&random, 1.75, i < 2));
  StepBytes bytes;
  for (int i = 0; i < pythia::kNoTile; ++i) bytes.multiplying[i] = 1e6 * (i + 1);
  bytes.attention = 77.0;
  const double seconds = 5e-3;
  const std::vector<StepProfile::Part> parts = token_parts(blocks, bytes, seconds);

  std::vector<std::string> kinds;
  for (const auto& part : parts) kinds.push_back(part.kind);
  EXPECT_EQ(kinds, (std::vector<std::string>{"wait: norms", "qkv", "up", "wait: up", "down",
                                             "wait: attention", "dense", "head", "launch, choice",
                                             "attention"}));
  const auto expect_mean = [&](const char* kind, double moved, auto clocks_of) {
    double sum = 0.0;
    for (const TokenTimes& block : blocks) sum += static_cast<double>(clocks_of(block));
    const double warps = static_cast<double>(blocks.size() * kWarps * kTokens);
    const StepProfile::Part& part = part_of(parts, kind);
    EXPECT_NEAR(part.seconds, sum / warps / 1.75e9, 1e-5 * part.seconds) << kind;
    EXPECT_EQ(part.bytes, moved) << kind;
    EXPECT_EQ(part.launches, 0) << kind;
    EXPECT_FALSE(part.beside) << kind;
  };
  const auto product = [&](const char* kind, int tile) {
    expect_mean(kind, bytes.multiplying[tile],
                [tile](const TokenTimes& block) { return block.multiplying[tile]; });
  };
  product("qkv", pythia::kQkvTile);
  product("up", pythia::kUpTile);
  product("down", pythia::kDownTile);
  product("dense", pythia::kDenseTile);
  product("head", pythia::kHeadTile);
  expect_mean("wait: norms", 0.0, [](const TokenTimes& block) {
    return block.waiting[pythia::kAttentionInput] + block.waiting[pythia::kMlpInput];
  });
  expect_mean("wait: up", 0.0,
              [](const TokenTimes& block) { return block.waiting[pythia::kDownInput]; });
  expect_mean("wait: attention", 0.0,
              [](const TokenTimes& block) { return block.waiting[pythia::kDenseInput]; });

  // Of the two blocks that attend only.
  const StepProfile::Part& attention = part_of(parts, "attention");
  const double attending = static_cast<double>(blocks[0].attending + blocks[1].attending);
  EXPECT_NEAR(attention.seconds, attending / (2 * kTokens) / 1.75e9, 1e-5 * attention.seconds);
  EXPECT_EQ(attention.bytes, 77.0);
  EXPECT_TRUE(attention.beside);
}

TEST(CudaTokenTimes, AddUpToTheLaunch) {
  std::mt19937 random(2);
  const std::vector<TokenTimes> blocks = {some_block(&random, 1.5, true),
                                          some_block(&random, 1.9, false)};
  for (const double seconds : {1e-2, 1e-6}) {  // also if the launch seems shorter than its inside
    double sum = 0.0;
    int launches = 0;
    for (const auto& part : token_parts(blocks, StepBytes{}, seconds)) {
      if (!part.beside) sum += part.seconds;
      launches += part.launches;
    }
    EXPECT_NEAR(sum, seconds, 1e-9);
    EXPECT_EQ(launches, 1);
  }
}

TEST(CudaTokenTimes, NobodyAttended) {
  std::mt19937 random(3);
  const auto parts = token_parts({some_block(&random, 1.7, false)}, StepBytes{}, 1e-3);
  EXPECT_EQ(part_of(parts, "attention").seconds, 0.0);
}

}  // namespace
