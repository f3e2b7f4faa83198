// The CUDA engine's promises that need no reference: determinism, batches, budgets, refusals.
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

#include "tests/pythia/model/cuda_fixture.cuh"
#include "tests/support/expect_error.hpp"

namespace {

using cuda_test::arbitrary_ids;
using cuda_test::CudaEngineTest;
using cuda_test::Ids;
using cuda_test::with;
using pythia::EngineOptions;
using pythia::Policy;
using pythia::SamplingOptions;
using pythia::Scores;
using pythia::WeightType;
using test_support::expect_error;

const std::vector<EngineOptions> kModes = {
    with(WeightType::fp16, Policy::full), with(WeightType::int8, Policy::full),
    with(WeightType::fp16, Policy::h2o), with(WeightType::int8, Policy::h2o)};

Ids golden_prompt() { return host_test::golden("tiny_neox_logits.json")[0]["input_ids"]; }

TEST_F(CudaEngineTest, GreedyTokensAreTheArgmaxOfScoring) {
  for (const EngineOptions& options : {kModes[0], kModes[1]}) {
    const auto engine = cuda_test::engine(host_test::tiny_neox(), options);
    Ids ids = golden_prompt();
    const std::size_t prompt = ids.size();
    const Ids tokens = host_test::generate(*engine, ids, 32);
    ids.insert(ids.end(), tokens.begin(), tokens.end());
    const Ids argmax = engine->score(ids).argmax;
    EXPECT_EQ(tokens, Ids(argmax.begin() + prompt - 1, argmax.end() - 1));
  }
}

TEST_F(CudaEngineTest, GreedyTokensAreThoseOfTransformers) {
  const auto engine = cuda_test::engine(host_test::tiny_neox());
  const Ids expected = host_test::golden("tiny_neox_logits.json")[0]["greedy"];
  EXPECT_EQ(host_test::generate(*engine, golden_prompt(), 16),
            Ids(expected.begin(), expected.begin() + 16));
}

TEST_F(CudaEngineTest, TwoRunsAreEqualBitForBit) {
  for (EngineOptions options : kModes) {
    options.recent = 24;
    options.heavy = 8;
    const auto engine = cuda_test::engine(host_test::tiny_neox(), options);
    const Ids ids = arbitrary_ids(150, 2048, 7);
    const Scores first = engine->score_decoded(ids, 40);
    const Scores second = engine->score_decoded(ids, 40);
    EXPECT_EQ(first.nll, second.nll);
    EXPECT_EQ(first.last_logits, second.last_logits);
    EXPECT_EQ(engine->score(ids).nll, engine->score(ids).nll);

    SamplingOptions sampling;
    sampling.temperature = 0.8f;
    sampling.seed = 3;
    EXPECT_EQ(host_test::generate(*engine, ids, 40, sampling),
              host_test::generate(*engine, ids, 40, sampling));
  }
}

TEST_F(CudaEngineTest, RunThenNextEqualsNextAlone) {
  const auto engine = cuda_test::engine(host_test::tiny_neox());
  const Ids all = host_test::generate(*engine, golden_prompt(), 20);
  engine->start({golden_prompt()}, {});
  engine->run(18);
  EXPECT_EQ(all[19], engine->next()[0]);
}

TEST_F(CudaEngineTest, AStopTokenEndsItsSequenceAlone) {
  const std::vector<Ids> prompts = {golden_prompt(), arbitrary_ids(9, 2048, 3)};
  for (EngineOptions options : kModes) {
    options.batch_size = 2;
    const auto engine = cuda_test::engine(host_test::tiny_neox(), options);
    host_test::expect_stop_token_honoured(*engine, prompts);
  }
  EngineOptions options = kModes[3];  // in one launch per token
  options.device = pythia::DeviceType::cuda;
  const auto engine = pythia::make_cuda_engine({host_test::tiny_neox(), ""}, options);
  host_test::expect_stop_token_honoured(*engine, {golden_prompt()});
}

TEST_F(CudaEngineTest, AProfileNamesEveryLaunchAndAddsUpToTheStep) {
  for (EngineOptions options : kModes) {
    options.recent = 24;
    options.heavy = 8;
    options.batch_size = 2;
    const auto engine = cuda_test::engine(host_test::tiny_neox(), options);
    const std::vector<Ids> prompts(2, golden_prompt());
    const Ids tokens = engine->start(prompts, {});
    const Ids next = engine->next();
    const pythia::StepProfile profile = engine->profile_step();
    double sum = 0.0;
    int launches = 0;
    for (const auto& part : profile.parts) {
      sum += part.seconds;
      launches += part.launches;
      if (part.kind == "attention" || part.kind == "qkv" || part.kind == "down") {
        EXPECT_EQ(part.launches, engine->config().num_layers) << part.kind;
        EXPECT_GT(part.bytes, 0.0) << part.kind;
      }
    }
    EXPECT_GE(launches, 6 * engine->config().num_layers);
    EXPECT_GT(profile.seconds, 0.0);
    EXPECT_GT(profile.bytes, 0.0);
    EXPECT_NEAR(sum / profile.seconds, 1.0, 0.5);  // of a step of some microseconds
    expect_error([&] { engine->next(); }, {"start"});
    EXPECT_EQ(engine->start(prompts, {}), tokens);
    EXPECT_EQ(engine->next(), next);
  }
}

TEST_F(CudaEngineTest, ComputingAheadChangesNoToken) {
  const int count = 15;
  std::vector<EngineOptions> cases = kModes;
  cases.push_back(kModes[3]);
  cases.back().one_launch_decode = false;
  for (EngineOptions options : cases) {
    options.recent = 10;
    options.heavy = 6;
    options.max_tokens = static_cast<int>(golden_prompt().size()) + count - 1;
    options.device = pythia::DeviceType::cuda;
    const auto engine = pythia::make_cuda_engine({host_test::tiny_neox(), ""}, options);
    const Ids expected = host_test::generate(*engine, golden_prompt(), count);
    for (const int taken : {1, 2, 5, count}) {  // a generation may end before what was expected
      Ids tokens = engine->start({golden_prompt()}, {});
      engine->expect_next(count - 1);
      while (static_cast<int>(tokens.size()) < taken) tokens.push_back(engine->next()[0]);
      EXPECT_EQ(tokens, Ids(expected.begin(), expected.begin() + taken));
    }
    // Expected fewer than asked for, and steps that run() takes over.
    Ids tokens = engine->start({golden_prompt()}, {});
    engine->expect_next(5);
    for (int i = 0; i < 3; ++i) tokens.push_back(engine->next()[0]);
    engine->run(6);
    while (static_cast<int>(tokens.size()) < count - 6) tokens.push_back(engine->next()[0]);
    Ids rest(expected.begin(), expected.begin() + 4);
    rest.insert(rest.end(), expected.begin() + 10, expected.end());
    EXPECT_EQ(tokens, rest);
  }
}

TEST_F(CudaEngineTest, RaggedBatchEqualsEachSequenceAlone) {
  std::vector<Ids> prompts;  // plain text: its continuations have no near-ties
  const nlohmann::json cases = host_test::golden("tiny_neox_logits.json");
  for (int i = 0; i < 4; ++i) prompts.push_back(cases[i]["input_ids"]);
  prompts.push_back(Ids{0});
  const int steps = 24;
  for (EngineOptions options : kModes) {
    options.recent = 20;
    options.heavy = 12;
    options.max_tokens = 128;
    std::vector<Ids> alone;
    const auto single = cuda_test::engine(host_test::tiny_neox(), options);
    for (const Ids& prompt : prompts) {
      alone.push_back(host_test::generate(*single, prompt, steps));
    }
    options.batch_size = static_cast<int>(prompts.size());
    const auto batched = cuda_test::engine(host_test::tiny_neox(), options);
    std::vector<Ids> together(prompts.size());
    Ids tokens = batched->start(prompts, {});
    batched->expect_next(steps - 1);
    for (int step = 0; step < steps; ++step) {
      if (step > 0) tokens = batched->next();
      for (std::size_t b = 0; b < prompts.size(); ++b) together[b].push_back(tokens[b]);
    }
    EXPECT_EQ(together, alone);
  }
}

TEST_F(CudaEngineTest, BudgetAboveTheLengthEqualsFullAttention) {
  const Ids ids = arbitrary_ids(120, 2048, 11);
  EngineOptions same_capacity = kModes[0];
  same_capacity.max_tokens = same_capacity.heavy + same_capacity.recent;
  const auto full = cuda_test::engine(host_test::tiny_neox(), same_capacity);
  const auto h2o = cuda_test::engine(host_test::tiny_neox(), kModes[2]);
  EXPECT_EQ(full->score_decoded(ids, 50).nll, h2o->score_decoded(ids, 50).nll);
}

TEST_F(CudaEngineTest, H2oRunsPastTheFullCacheAndKeepsItsBudget) {
  EngineOptions options = kModes[3];
  options.recent = 16;
  options.heavy = 12;
  options.sinks = 4;
  options.max_tokens = 64;
  const auto engine = cuda_test::engine(host_test::tiny_neox(), options);
  engine->start({arbitrary_ids(50, 2048, 4)}, {});
  engine->run(40);
  const auto snapshot = engine->cache_snapshot(0, 3);
  for (const Ids& positions : snapshot.positions) {
    ASSERT_EQ(positions.size(), 32u);
    EXPECT_EQ(Ids(positions.begin(), positions.begin() + 4), (Ids{0, 1, 2, 3}));
    EXPECT_EQ(positions.back(), 89);
    EXPECT_EQ(positions[16], 74) << "a recent token was evicted";
  }
}

TEST_F(CudaEngineTest, WindowsOfOneTokenAndOneDecodedToken) {
  const auto engine = cuda_test::engine(host_test::tiny_neox(), kModes[2]);
  const Scores one = engine->score({17});
  EXPECT_TRUE(one.nll.empty());
  EXPECT_EQ(one.argmax.size(), 1u);
  const Ids ids = arbitrary_ids(30, 2048, 9);
  const Scores whole = engine->score(ids);
  const Scores last = engine->score_decoded(ids, 29);
  ASSERT_EQ(last.nll.size(), 1u);
  EXPECT_NEAR(last.nll[0], whole.nll[28], 0.02f);
  EXPECT_LT(host_test::relative_difference(last.last_logits, whole.last_logits), 0.01);
  expect_error([&] { engine->score_decoded(ids, 30); }, {"prefill_len", "1 to 29", "found 30"});
  expect_error([&] { engine->score_decoded(ids, 0); }, {"prefill_len", "found 0"});
}

TEST_F(CudaEngineTest, NeverSamplesAtOrAboveTheVocabLimit) {
  const auto engine = cuda_test::engine(host_test::tiny_neox());
  SamplingOptions sampling;
  sampling.temperature = 50.0f;
  sampling.vocab_limit = 10;
  for (const std::int32_t token : host_test::generate(*engine, golden_prompt(), 50, sampling)) {
    EXPECT_LT(token, 10);
  }
}

TEST_F(CudaEngineTest, RefusesWhatDoesNotFit) {
  EngineOptions options = kModes[0];
  options.max_tokens = 40;
  options.max_prompt = 30;
  const auto engine = cuda_test::engine(host_test::tiny_neox(), options);
  expect_error([&] { engine->next(); }, {"start()"});
  expect_error([&] { engine->start({arbitrary_ids(31, 2048, 1)}, {}); }, {"30", "31"});
  expect_error([&] { engine->start({Ids{}}, {}); }, {"at least one token"});
  expect_error([&] { engine->start({Ids{2048}}, {}); }, {"2047", "2048"});
  expect_error([&] { engine->start({Ids{1}, Ids{2}}, {}); }, {"expected 1", "found 2"});
  expect_error([&] { engine->score(arbitrary_ids(31, 2048, 1)); }, {"30", "31"});
  engine->start({arbitrary_ids(30, 2048, 1)}, {});
  engine->run(10);
  expect_error([&] { engine->next(); }, {"40"});
}

TEST_F(CudaEngineTest, SaysHowMuchMemoryItLacksBeforeLoading) {
  EngineOptions options = kModes[0];
  options.max_tokens = 1 << 30;
  options.max_prompt = 16;
  expect_error([&] { cuda_test::engine(host_test::tiny_neox(), options); },
               {"too little device memory", "needed", "free", "bytes"});
}

TEST_F(CudaEngineTest, CountsItsMemory) {
  EngineOptions options = kModes[0];
  options.max_tokens = 64;
  const auto fp16 = cuda_test::engine(host_test::tiny_neox(), options);
  EXPECT_GT(fp16->peak_device_bytes(), std::size_t{8} << 20);
  EXPECT_LT(fp16->peak_device_bytes(), std::size_t{128} << 20);
}

}  // namespace
