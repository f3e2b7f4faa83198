// The host path against the answers of Hugging Face transformers in fp32: the bundled model, and
// random models of head_dim 32, 80, 128 and 256, erf and tanh GELU, parallel and sequential
// residual.
#include <gtest/gtest.h>
#include <waterweight/reference/float16.hpp>

#include <ostream>
#include <string>

#include "examples/pythia/model/rotary_frequencies.hpp"
#include "tests/pythia/model/host_fixture.hpp"

namespace {

using host_test::Ids;
using nlohmann::json;
using pythia::EngineOptions;
using pythia::Scores;

struct Model {
  std::string name, dir, golden;
};

void PrintTo(const Model& model, std::ostream* out) { *out << model.name; }

class HostGolden : public testing::TestWithParam<Model> {
 protected:
  /// The reference run of the random models had gone through 16 bit, their inverse rotary
  /// frequencies too; with these rounded alike the answers agree to 1e-6, without to 2e-4.
  std::unique_ptr<pythia::Engine> engine(const EngineOptions& options = {}) const {
    if (GetParam().dir.empty()) return host_test::engine(host_test::tiny_neox(), options);
    const pythia::ModelSource source{test_support::data_path(GetParam().dir), ""};
    const pythia::Config config = pythia::source_config(source);
    std::vector<float> inv_freq = pythia::rotary_frequencies(config);
    for (float& frequency : inv_freq) frequency = waterweight::reference::float16(frequency);
    return std::make_unique<pythia::HostEngine>(
        config, pythia::open_weights(source, config, options.weights), options, inv_freq);
  }
  json cases() const { return host_test::golden(GetParam().golden); }
};

TEST_P(HostGolden, LogitsArgmaxAndLikelihood) {
  const auto engine = this->engine();
  for (const json& expected : cases()) {
    const Ids ids = expected["input_ids"];
    const Scores scores = engine->score(ids);
    EXPECT_LT(host_test::relative_difference(scores.last_logits, expected["logits_last"]), 1e-5);
    EXPECT_EQ(scores.argmax, expected["argmax_each"].get<Ids>());
    ASSERT_EQ(scores.nll.size(), ids.size() - 1);
    EXPECT_NEAR(host_test::mean(scores.nll), expected["mean_nll"].get<double>(), 1e-4);
  }
}

TEST_P(HostGolden, LogitNormsOfPrefixes) {
  const auto engine = this->engine();
  const json expected = cases()[0];
  const Ids ids = expected["input_ids"];
  for (std::size_t length = 1; length <= ids.size(); length += 7) {
    const Scores scores = engine->score({ids.begin(), ids.begin() + length});
    const double norm = expected["logits_norm_each"][length - 1];
    EXPECT_NEAR(host_test::norm(scores.last_logits), norm, 1e-4 * norm) << length;
  }
}

TEST_P(HostGolden, GreedyContinuation) {
  const auto engine = this->engine();
  for (const json& expected : cases()) {
    const Ids greedy = expected["greedy"];
    if (greedy.empty()) continue;
    EXPECT_EQ(host_test::generate(*engine, expected["input_ids"], static_cast<int>(greedy.size())),
              greedy);
  }
}

TEST_P(HostGolden, DecodingTokenByTokenScoresLikeOnePass) {
  const auto engine = this->engine();
  const Ids ids = cases()[0]["input_ids"];
  const Scores whole = engine->score(ids);
  for (const int prefill :
       {1, static_cast<int>(ids.size()) / 2, static_cast<int>(ids.size()) - 1}) {
    const Scores decoded = engine->score_decoded(ids, prefill);
    ASSERT_EQ(decoded.nll.size(), ids.size() - prefill);
    for (std::size_t i = 0; i < decoded.nll.size(); ++i) {
      EXPECT_NEAR(decoded.nll[i], whole.nll[prefill - 1 + i], 1e-3);
      EXPECT_EQ(decoded.argmax[i], whole.argmax[prefill - 1 + i]);
    }
    EXPECT_LT(host_test::relative_difference(decoded.last_logits, whole.last_logits), 1e-5);
  }
}

TEST_P(HostGolden, Int8StaysClose) {
  EngineOptions options;
  options.weights = pythia::WeightType::int8;
  const auto engine = this->engine(options);
  for (const json& expected : cases()) {
    const Scores scores = engine->score(expected["input_ids"]);
    const double nll = expected["mean_nll"];
    EXPECT_NEAR(host_test::mean(scores.nll), nll, 0.01 * nll);
    const double difference =
        host_test::relative_difference(scores.last_logits, expected["logits_last"]);
    EXPECT_LT(difference, 0.05);
    EXPECT_GT(difference, 1e-5);  // it did quantize
  }
}

INSTANTIATE_TEST_SUITE_P(
    Models, HostGolden,
    testing::Values(Model{"TinyNeox", "", "tiny_neox_logits.json"},
                    Model{"HeadDim80Sharded", "hd80", "hd80/golden.json"},
                    Model{"HeadDim128Tanh", "hd128_gelutanh", "hd128_gelutanh/golden.json"},
                    Model{"HeadDim256", "hd256", "hd256/golden.json"},
                    Model{"HeadDim32Sequential", "hd32_sequential", "hd32_sequential/golden.json"}),
    [](const auto& info) { return info.param.name; });

}  // namespace
