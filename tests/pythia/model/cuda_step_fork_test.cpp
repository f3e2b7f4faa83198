// How a decode step divides the card, by the number of sequences.
#include <gtest/gtest.h>

#include "examples/pythia/model/cuda_step_fork.hpp"

namespace {

using pythia::StepFork;
using pythia::WeightType;

StepFork fork_of(int batch, WeightType weights = WeightType::int8, bool parallel = true,
                 int capability = 90) {
  pythia::Config config;
  config.parallel_residual = parallel;
  waterweight::device_info device;
  device.compute_capability = capability;
  device.sm_count = 132;
  return pythia::step_fork(config, weights, batch, device);
}

TEST(StepForkTest, SharesTheWholeCardAtEveryBatch) {
  for (int batch = 1; batch <= 128; ++batch) {
    const StepFork fork = fork_of(batch);
    EXPECT_GT(fork.mlp_sms, 0) << batch;
    EXPECT_GT(fork.projection_sms, 0) << batch;
    EXPECT_EQ(132, fork.mlp_sms + fork.projection_sms) << batch;
  }
}

// 512 heads in six rounds: fewer blocks would need a seventh.
TEST(StepForkTest, SixteenSequencesStreamThroughTheirShare) {
  for (int batch : {9, 16}) {
    EXPECT_EQ(86, fork_of(batch).attention_blocks) << batch;
    EXPECT_EQ(86, fork_of(batch).projection_sms) << batch;
  }
}

TEST(StepForkTest, MoreSequencesStreamThroughEverySmThatIsFree) {
  for (int batch : {17, 32, 64}) {
    EXPECT_EQ(132, fork_of(batch).attention_blocks) << batch;
    EXPECT_EQ(66, fork_of(batch).mlp_sms) << batch;
  }
}

TEST(StepForkTest, ClustersAttendForFewSequencesAndForVeryMany) {
  for (int batch : {1, 8, 65, 128}) EXPECT_EQ(0, fork_of(batch).attention_blocks) << batch;
}

TEST(StepForkTest, LeavesTheStepWholeWhereDividingDoesNotPay) {
  EXPECT_EQ(0, fork_of(1, WeightType::int8, false).mlp_sms);
  EXPECT_EQ(0, fork_of(1, WeightType::int8, true, 80).mlp_sms);
  EXPECT_GT(fork_of(8, WeightType::fp16).mlp_sms, 0);
  EXPECT_EQ(0, fork_of(9, WeightType::fp16).mlp_sms);
}

}  // namespace
