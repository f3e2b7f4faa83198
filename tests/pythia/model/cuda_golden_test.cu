// The CUDA engine against the answers of Hugging Face transformers in fp32.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <set>
#include <string>
#include <vector>

#include "tests/pythia/model/cuda_fixture.cuh"

namespace {

using cuda_test::CudaEngineTest;
using cuda_test::Ids;
using cuda_test::with;
using nlohmann::json;
using pythia::ActivationType;
using pythia::EngineOptions;
using pythia::Policy;
using pythia::Scores;
using pythia::WeightType;

const std::vector<std::string> kRandomModels = {"hd32_sequential", "hd80", "hd128_gelutanh",
                                                "hd256"};

class CudaGolden : public CudaEngineTest {
 protected:
  /// Mean NLL of each case within `tolerance` of the reference; counts equal argmaxes.
  void compare(pythia::Engine& engine, const json& cases, double tolerance) {
    for (const json& expected : cases) {
      const Ids ids = expected["input_ids"];
      const Scores scores = engine.score(ids);
      ASSERT_EQ(scores.nll.size(), ids.size() - 1);
      ASSERT_EQ(scores.argmax.size(), ids.size());
      const double reference = expected["mean_nll"];
      EXPECT_NEAR(host_test::mean(scores.nll), reference, tolerance * reference);
      const Ids argmax = expected["argmax_each"];
      for (std::size_t i = 0; i < ids.size(); ++i) {
        ++positions;
        agreeing += argmax[i] == scores.argmax[i];
      }
      EXPECT_LT(host_test::relative_difference(scores.last_logits, expected["logits_last"]),
                5 * tolerance);
    }
  }

  int positions = 0;
  int agreeing = 0;
};

TEST_F(CudaGolden, Fp16MatchesOnTheBundledModel) {
  const auto engine = cuda_test::engine(host_test::tiny_neox());
  compare(*engine, host_test::golden("tiny_neox_logits.json"), 0.002);
  EXPECT_GE(agreeing, 0.99 * positions);
}

TEST_F(CudaGolden, Fp16MatchesForEveryHeadDimActivationAndResidual) {
  for (const std::string& model : kRandomModels) {
    SCOPED_TRACE(model);
    const auto engine = cuda_test::engine(test_support::data_path(model));
    compare(*engine, host_test::golden(model + "/golden.json"), 0.002);
  }
  EXPECT_GE(agreeing, 0.99 * positions);
}

TEST_F(CudaGolden, Bf16IsCloseForEveryModel) {
  EngineOptions options;
  options.activations = ActivationType::bf16;
  const auto tiny = cuda_test::engine(host_test::tiny_neox(), options);
  compare(*tiny, host_test::golden("tiny_neox_logits.json"), 0.01);
  for (const std::string& model : kRandomModels) {
    SCOPED_TRACE(model);
    const auto engine = cuda_test::engine(test_support::data_path(model), options);
    compare(*engine, host_test::golden(model + "/golden.json"), 0.01);
  }
}

TEST_F(CudaGolden, Int8IsWithinOnePerCentOfFp16) {
  const auto fp16 = cuda_test::engine(host_test::tiny_neox());
  const auto int8 = cuda_test::engine(host_test::tiny_neox(), with(WeightType::int8, Policy::full));
  for (const json& expected : host_test::golden("tiny_neox_logits.json")) {
    const double reference = host_test::mean(fp16->score(expected["input_ids"]).nll);
    const double found = host_test::mean(int8->score(expected["input_ids"]).nll);
    EXPECT_NEAR(found, reference, 0.01 * reference);
    EXPECT_NE(found, reference) << "the INT8 engine computed with 16-bit weights";
  }
}

TEST_F(CudaGolden, DecodingUnderFullAttentionScoresAsPrefillDoes) {
  for (const std::string& model : kRandomModels) {
    SCOPED_TRACE(model);
    const auto engine = cuda_test::engine(test_support::data_path(model));
    const Ids ids = host_test::golden(model + "/golden.json")[0]["input_ids"];
    const Scores whole = engine->score(ids);
    const int prefill = 17;
    const Scores decoded = engine->score_decoded(ids, prefill);
    ASSERT_EQ(decoded.nll.size(), ids.size() - prefill);
    ASSERT_EQ(decoded.argmax.size(), decoded.nll.size());
    for (std::size_t i = 0; i < decoded.nll.size(); ++i) {
      EXPECT_NEAR(decoded.nll[i], whole.nll[i + prefill - 1], 0.05f) << "token " << i;
    }
    EXPECT_LT(host_test::relative_difference(decoded.last_logits, whole.last_logits), 0.01);
  }
}

/// Kept positions and scores of every layer and head against the oracle on original indices.
void compare_kept(const pythia::Engine& engine, const json& expected) {
  std::size_t kept = 0;
  std::size_t common = 0;
  const int layers = engine.config().num_layers;
  for (int layer = 0; layer < layers; ++layer) {
    const auto snapshot = engine.cache_snapshot(0, layer);
    const auto positions = expected["kept_positions"][layer].get<std::vector<Ids>>();
    ASSERT_EQ(snapshot.positions.size(), positions.size());
    for (std::size_t head = 0; head < positions.size(); ++head) {
      ASSERT_EQ(snapshot.positions[head].size(), positions[head].size());
      const std::set<std::int32_t> ours(snapshot.positions[head].begin(),
                                        snapshot.positions[head].end());
      for (const std::int32_t position : positions[head]) common += ours.count(position);
      kept += positions[head].size();
    }
  }
  EXPECT_GE(static_cast<double>(common), 0.98 * static_cast<double>(kept));
}

TEST_F(CudaGolden, H2oCases) {
  for (const json& expected : host_test::golden("h2o_cases.json")) {
    EngineOptions options = with(WeightType::fp16, Policy::h2o);
    options.recent = expected["recent"];
    options.heavy = expected["heavy"];
    options.sinks = expected["sinks"];
    const auto engine = cuda_test::engine(host_test::tiny_neox(), options);
    const Ids ids = expected["input_ids"];
    const Scores scores = engine->score_decoded(ids, expected["prompt"]);
    const double reference = expected["mean_nll_of_decoded"];
    EXPECT_NEAR(host_test::mean(scores.nll), reference, 0.002 * reference);
    compare_kept(*engine, expected);
  }
}

}  // namespace
