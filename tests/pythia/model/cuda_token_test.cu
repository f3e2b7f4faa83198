// Decoding in one launch per token against a launch per operation: the same tokens, scores and kept
// keys.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/pythia/model/cuda_fixture.cuh"

namespace {

using cuda_test::arbitrary_ids;
using cuda_test::CudaEngineTest;
using cuda_test::Ids;
using pythia::EngineOptions;
using pythia::Policy;
using pythia::SamplingOptions;
using pythia::Scores;
using pythia::WeightType;

EngineOptions small_budget(Policy policy) {
  EngineOptions options = cuda_test::with(WeightType::int8, policy);
  options.heavy = 12;
  options.recent = 20;
  options.max_tokens = 300;
  return options;
}

class CudaToken : public CudaEngineTest {
 protected:
  /// Both ways of decoding; skips where the device has only one.
  void make_both(const std::filesystem::path& model, EngineOptions options) {
    one_launch = cuda_test::engine(model, options);
    if (one_launch->decode_path() != "one launch per token") {
      GTEST_SKIP() << "this device or build has no token kernel";
    }
    options.one_launch_decode = false;
    many_launches = cuda_test::engine(model, options);
    ASSERT_EQ(many_launches->decode_path(), "a launch per operation");
  }

  void expect_equal_scores(const Ids& ids, int prompt) {
    const Scores one = one_launch->score_decoded(ids, prompt);
    const Scores many = many_launches->score_decoded(ids, prompt);
    EXPECT_EQ(one.argmax, many.argmax);
    ASSERT_EQ(one.nll.size(), many.nll.size());
    for (std::size_t i = 0; i < one.nll.size(); ++i) EXPECT_NEAR(one.nll[i], many.nll[i], 5e-3f);
    EXPECT_LT(host_test::relative_difference(one.last_logits, many.last_logits), 2e-3);
    for (int layer = 0; layer < one_launch->config().num_layers; ++layer) {
      const auto a = one_launch->cache_snapshot(0, layer);
      const auto b = many_launches->cache_snapshot(0, layer);
      EXPECT_EQ(a.positions, b.positions) << "layer " << layer;
      ASSERT_EQ(a.scores.size(), b.scores.size());
      for (std::size_t head = 0; head < a.scores.size(); ++head) {
        ASSERT_EQ(a.scores[head].size(), b.scores[head].size());
        for (std::size_t i = 0; i < a.scores[head].size(); ++i) {
          EXPECT_NEAR(a.scores[head][i], b.scores[head][i], 1e-2f);
        }
      }
    }
  }

  std::unique_ptr<pythia::Engine> one_launch, many_launches;
};

Ids text() { return host_test::golden("tiny_neox_logits.json")[0]["input_ids"]; }

TEST_F(CudaToken, GreedyTokensAreTheSame) {
  for (const Policy policy : {Policy::full, Policy::h2o, Policy::streaming, Policy::window}) {
    SCOPED_TRACE(static_cast<int>(policy));
    EngineOptions options = small_budget(policy);
    if (policy == Policy::streaming) options.sinks = 4;
    if (policy == Policy::streaming || policy == Policy::window) options.heavy = 0;
    make_both(host_test::tiny_neox(), options);
    if (IsSkipped()) return;
    EXPECT_EQ(host_test::generate(*one_launch, text(), 150),
              host_test::generate(*many_launches, text(), 150));
  }
}

TEST_F(CudaToken, SampledTokensAreTheSame) {
  make_both(host_test::tiny_neox(), small_budget(Policy::h2o));
  if (IsSkipped()) return;
  SamplingOptions sampling;
  sampling.temperature = 0.7f;
  sampling.top_k = 40;
  sampling.seed = 5;
  EXPECT_EQ(host_test::generate(*one_launch, text(), 60, sampling),
            host_test::generate(*many_launches, text(), 60, sampling));
}

TEST_F(CudaToken, ScoresAndKeptKeysAreTheSame) {
  for (const int every : {1, 4}) {
    EngineOptions options = small_budget(Policy::h2o);
    options.evict_every = every;
    make_both(host_test::tiny_neox(), options);
    if (IsSkipped()) return;
    Ids ids = text();
    const Ids more = host_test::generate(*many_launches, ids, 100);
    ids.insert(ids.end(), more.begin(), more.end());
    expect_equal_scores(ids, 20);
  }
}

TEST_F(CudaToken, SharedKeptSetsAndRandomDrawsFollowBehind) {
  for (const auto granularity : {waterweight::h2o_granularity::per_layer,
                                 waterweight::h2o_granularity::per_model}) {
    EngineOptions options = small_budget(Policy::h2o);
    options.granularity = granularity;
    make_both(host_test::tiny_neox(), options);
    if (IsSkipped()) return;
    EXPECT_EQ(host_test::generate(*one_launch, text(), 80),
              host_test::generate(*many_launches, text(), 80));
  }
  make_both(host_test::tiny_neox(), small_budget(Policy::random));
  EXPECT_EQ(host_test::generate(*one_launch, text(), 80),
            host_test::generate(*many_launches, text(), 80));
}

TEST_F(CudaToken, HeadDims128And256AndTanhGelu) {
  for (const char* model : {"hd128_gelutanh", "hd256"}) {
    SCOPED_TRACE(model);
    make_both(test_support::data_path(model), small_budget(Policy::h2o));
    if (IsSkipped()) return;
    expect_equal_scores(host_test::golden(std::string(model) + "/golden.json")[0]["input_ids"], 17);
  }
}

TEST_F(CudaToken, Bf16) {
  EngineOptions options = small_budget(Policy::h2o);
  options.activations = pythia::ActivationType::bf16;
  make_both(host_test::tiny_neox(), options);
  if (IsSkipped()) return;
  EXPECT_EQ(host_test::generate(*one_launch, text(), 40),
            host_test::generate(*many_launches, text(), 40));
}

TEST_F(CudaToken, TwoRunsAreEqualBitForBit) {
  make_both(host_test::tiny_neox(), small_budget(Policy::h2o));
  if (IsSkipped()) return;
  const Ids ids = arbitrary_ids(150, 2048, 7);
  const Scores first = one_launch->score_decoded(ids, 40);
  const Scores second = one_launch->score_decoded(ids, 40);
  EXPECT_EQ(first.nll, second.nll);
  EXPECT_EQ(first.last_logits, second.last_logits);
  EXPECT_EQ(host_test::generate(*one_launch, ids, 100), host_test::generate(*one_launch, ids, 100));
}

TEST_F(CudaToken, OtherSessionsKeepTheirLaunches) {
  EngineOptions options = small_budget(Policy::h2o);
  options.batch_size = 2;
  EXPECT_EQ(cuda_test::engine(host_test::tiny_neox(), options)->decode_path(),
            "a launch per operation");
  options = small_budget(Policy::h2o);
  options.weights = WeightType::fp16;
  EXPECT_EQ(cuda_test::engine(host_test::tiny_neox(), options)->decode_path(),
            "a launch per operation");
  EXPECT_EQ(cuda_test::engine(test_support::data_path("hd32_sequential"),
                              cuda_test::with(WeightType::int8, Policy::full))
                ->decode_path(),
            "a launch per operation");
}

}  // namespace
