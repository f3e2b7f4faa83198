// How a decode step divides the card, by the number of sequences.
#include <gtest/gtest.h>

#include "examples/pythia/model/cuda_step_fork.hpp"

namespace {

using pythia::StepFork;
using pythia::WeightType;

constexpr int kSms = 132;
constexpr int kScoredSlots = 505;

StepFork fork_of(int batch, WeightType weights = WeightType::int8, bool parallel = true,
                 int capability = 90, int scored_slots = kScoredSlots) {
  pythia::Config config;
  config.parallel_residual = parallel;
  waterweight::device_info device;
  device.compute_capability = capability;
  device.sm_count = kSms;
  return pythia::step_fork(config, weights, batch, scored_slots, device);
}

StepFork fork_of_slots(int batch, int scored_slots) {
  return fork_of(batch, WeightType::int8, true, 90, scored_slots);
}

TEST(StepForkTest, SharesTheWholeCardAtEveryBatch) {
  for (int batch = 1; batch <= 128; ++batch) {
    const StepFork fork = fork_of(batch);
    EXPECT_GT(fork.mlp_sms, 0) << batch;
    EXPECT_GT(fork.projection_sms, 0) << batch;
    if (fork.attention_blocks > 0) {
      EXPECT_EQ(kSms, fork.mlp_sms + fork.attention_blocks) << batch;
    }
    if (!fork.qkv_ahead) {
      EXPECT_EQ(kSms, fork.mlp_sms + fork.projection_sms) << batch;
    }
  }
}

// The wgmma kernel multiplies from two tokens on, but for 16-bit weights.
TEST(StepForkTest, FewSequencesHaveHalfTheCardForTheirMlpWhereNoWeightsAreStreamed) {
  for (int batch : {2, 3, 8, 9}) EXPECT_EQ(kSms / 2, fork_of(batch).mlp_sms) << batch;
  EXPECT_EQ(72, fork_of(1).mlp_sms);
  for (int batch : {1, 2, 8}) {
    EXPECT_EQ(72, fork_of(batch, WeightType::fp16).mlp_sms) << batch;
  }
}

// 512 heads in six rounds: fewer blocks would need a seventh.
TEST(StepForkTest, ManySequencesStreamThroughTheirShareOfTheCard) {
  for (int batch : {10, 16, 24, 40, 41, 64, 128}) {
    EXPECT_EQ(batch <= 40 ? 86 : 92, fork_of(batch).attention_blocks) << batch;
  }
}

TEST(StepForkTest, QkvGoesAheadOnAllSmsWhereAttentionBehindItTakesLongest) {
  for (int batch : {1, 9, 10, 12, 13, 16, 128}) {
    const StepFork fork = fork_of(batch);
    EXPECT_EQ(batch > 12, fork.qkv_ahead) << batch;
    EXPECT_EQ(batch > 12, fork.projection_sms == kSms) << batch;
  }
}

TEST(StepForkTest, ClustersAttendForFewSequencesAndWhereTheStreamingKernelHasNoCode) {
  for (int batch : {1, 8, 9}) EXPECT_EQ(0, fork_of(batch).attention_blocks) << batch;
  for (int batch : {10, 32, 64}) {
    EXPECT_GT(fork_of_slots(batch, 512).attention_blocks, 0) << batch;
    for (int scored_slots : {0, 513}) {
      const StepFork fork = fork_of_slots(batch, scored_slots);
      EXPECT_EQ(0, fork.attention_blocks) << batch;
      EXPECT_FALSE(fork.qkv_ahead) << batch;
    }
  }
}

TEST(StepForkTest, TheMlpStartsEarlyWhereItCannotTakeTheSmsOfStreamedHeads) {
  for (int batch : {1, 2, 9, 10, 64}) {
    EXPECT_EQ(batch < 10, fork_of(batch).mlp_early) << batch;
    EXPECT_TRUE(fork_of_slots(batch, 513).mlp_early) << batch;
  }
}

TEST(StepForkTest, LeavesTheStepWholeWhereDividingDoesNotPay) {
  EXPECT_EQ(0, fork_of(1, WeightType::int8, false).mlp_sms);
  EXPECT_EQ(0, fork_of(1, WeightType::int8, true, 80).mlp_sms);
  EXPECT_GT(fork_of(8, WeightType::fp16).mlp_sms, 0);
  EXPECT_EQ(0, fork_of(9, WeightType::fp16).mlp_sms);
}

}  // namespace
