// The host engine's contract: batches, sampling, limits, and what it refuses.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "examples/pythia/model/rotary_frequencies.hpp"
#include "tests/pythia/model/host_fixture.hpp"
#include "tests/support/expect_error.hpp"

namespace {

using host_test::Ids;
using pythia::EngineOptions;
using pythia::Policy;
using pythia::SamplingOptions;
using test_support::expect_error;

const std::filesystem::path kModel = "hd32_sequential";  // vocabulary of 512

std::unique_ptr<pythia::Engine> engine(const EngineOptions& options = {}) {
  return host_test::engine(test_support::data_path(kModel), options);
}

EngineOptions with_policy(Policy policy) {
  EngineOptions options;
  options.policy = policy;
  options.sinks = 1;
  options.heavy = 4;
  options.recent = 5;
  return options;
}

Ids counting(int first, int count) {
  Ids ids;
  for (int i = 0; i < count; ++i) ids.push_back((first + 7 * i) % 512);
  return ids;
}

SamplingOptions warm(std::uint64_t seed) {
  SamplingOptions sampling;
  sampling.temperature = 1;
  sampling.top_k = 50;
  sampling.seed = seed;
  return sampling;
}

TEST(HostEngine, AStopTokenEndsItsSequenceAlone) {
  EngineOptions options = with_policy(Policy::h2o);
  options.batch_size = 2;
  host_test::expect_stop_token_honoured(*engine(options), {counting(3, 5), counting(50, 9)});
}

TEST(HostEngine, ARaggedBatchGivesEachSequenceWhatItGetsAlone) {
  const std::vector<Ids> prompts{counting(3, 1), counting(50, 9), counting(90, 10),
                                 counting(4, 31)};
  for (const Policy policy : {Policy::full, Policy::h2o}) {
    EngineOptions options = with_policy(policy);
    const auto alone = engine(options);
    options.batch_size = static_cast<int>(prompts.size());
    const auto batch = engine(options);
    std::vector<Ids> together(prompts.size());
    Ids tokens = batch->start(prompts, {});
    for (int step = 0; step < 20; ++step) {
      for (std::size_t b = 0; b < prompts.size(); ++b) together[b].push_back(tokens[b]);
      tokens = batch->next();
    }
    for (std::size_t b = 0; b < prompts.size(); ++b) {
      EXPECT_EQ(together[b], host_test::generate(*alone, prompts[b], 20)) << b;
      alone->next();
      for (int layer = 0; layer < 2; ++layer) {
        const auto one = alone->cache_snapshot(0, layer);
        const auto many = batch->cache_snapshot(static_cast<int>(b), layer);
        EXPECT_EQ(one.positions, many.positions);
        EXPECT_EQ(one.scores, many.scores);
      }
    }
  }
}

TEST(HostEngine, TheResultDoesNotDependOnTheThreads) {
  const pythia::ModelSource source{test_support::data_path(kModel), ""};
  const pythia::Config config = pythia::source_config(source);
  const EngineOptions options = with_policy(Policy::h2o);
  const Ids ids = counting(1, 120);
  std::vector<pythia::Scores> scores;
  for (const int threads : {1, 2, 5}) {
    pythia::HostEngine engine(config, pythia::open_weights(source, config, options.weights),
                              options, pythia::rotary_frequencies(config), threads);
    scores.push_back(engine.score_decoded(ids, 100));
    EXPECT_EQ(engine.device_name().find("CPU (" + std::to_string(threads)), 0u);
  }
  EXPECT_EQ(scores[0].nll, scores[1].nll);
  EXPECT_EQ(scores[0].nll, scores[2].nll);
}

TEST(HostEngine, SamplingRepeatsWithItsSeedAndVariesWithout) {
  const auto a = engine(), b = engine();
  const Ids prompt = counting(5, 12);
  const Ids first = host_test::generate(*a, prompt, 40, warm(1));
  EXPECT_EQ(host_test::generate(*b, prompt, 40, warm(1)), first);
  EXPECT_EQ(host_test::generate(*a, prompt, 40, warm(1)),
            first);  // start() forgets what came before
  EXPECT_NE(host_test::generate(*a, prompt, 40, warm(2)), first);
}

TEST(HostEngine, SequencesOfABatchDrawTheirOwnNumbers) {
  EngineOptions options;
  options.batch_size = 2;
  const auto batch = engine(options);
  std::vector<Ids> drawn(2);
  Ids tokens = batch->start({counting(5, 12), counting(5, 12)}, warm(9));
  for (int i = 0; i < 20; ++i, tokens = batch->next()) {
    for (int b = 0; b < 2; ++b) drawn[b].push_back(tokens[b]);
  }
  EXPECT_NE(drawn[0], drawn[1]);
}

TEST(HostEngine, VocabLimitHolds) {
  SamplingOptions sampling = warm(3);
  sampling.temperature = 50;
  sampling.top_k = 0;
  sampling.vocab_limit = 20;
  for (const int token : host_test::generate(*engine(), counting(5, 12), 50, sampling))
    EXPECT_LT(token, 20);
}

TEST(HostEngine, RunIsNextWithoutTheTokens) {
  const auto a = engine(), b = engine();
  a->start({counting(2, 6)}, {});
  b->start({counting(2, 6)}, {});
  a->run(7);
  for (int i = 0; i < 7; ++i) b->next();
  EXPECT_EQ(a->next(), b->next());
}

TEST(HostEngine, ScoringDoesNotDisturbAGeneration) {
  const auto a = engine();
  const Ids expected = host_test::generate(*a, counting(2, 6), 10);
  a->start({counting(2, 6)}, {});
  a->score(counting(100, 50));
  for (std::size_t i = 1; i < expected.size(); ++i) EXPECT_EQ(a->next()[0], expected[i]);
}

TEST(HostEngine, AOneTokenWindowHasAPredictionAndNothingToScore) {
  const pythia::Scores scores = engine()->score({7});
  EXPECT_TRUE(scores.nll.empty());
  EXPECT_EQ(scores.argmax.size(), 1u);
  EXPECT_EQ(scores.last_logits.size(), 512u);
}

TEST(HostEngine, FullAttentionStopsAtMaxTokens) {
  EngineOptions options;
  options.max_tokens = 10;
  const auto full = engine(options);
  full->start({counting(1, 8)}, {});
  full->next();
  full->next();
  expect_error([&] { full->next(); }, {"context of 10", "--kv h2o"});
  EXPECT_EQ(full->start({counting(1, 10)}, {}).size(), 1u);  // one token can still be predicted
  expect_error([&] { full->next(); }, {"context of 10"});
  EXPECT_EQ(full->score_decoded(counting(1, 10), 4).nll.size(), 6u);
  expect_error([&] { full->score_decoded(counting(1, 11), 4); }, {"context of 10"});
}

TEST(HostEngine, BadInputIsRefused) {
  EngineOptions options;
  options.max_tokens = 16;
  const auto e = engine(options);
  expect_error([&] { e->next(); }, {"prompt"});
  expect_error([&] { e->start({{}}, {}); }, {"prompt 0", "none"});
  expect_error([&] { e->start({}, {}); }, {"batch_size = 1", "found 0"});
  expect_error([&] { e->start({{1}, {2}}, {}); }, {"batch_size = 1", "found 2"});
  expect_error([&] { e->start({counting(0, 17)}, {}); }, {"prompt 0", "16", "17"});
  expect_error([&] { e->start({{1, 2, 512}}, {}); }, {"prompt 0", "511", "512", "index 2"});
  expect_error([&] { e->start({{-1}}, {}); }, {"-1", "index 0"});
  expect_error([&] { e->start({{std::numeric_limits<std::int32_t>::max()}}, {}); }, {"2147483647"});
  expect_error([&] { e->score({}); }, {"window", "none"});
  expect_error([&] { e->score({0, 999}); }, {"999", "index 1"});
  expect_error([&] { e->score(counting(0, 17)); }, {"16", "17"});
  expect_error([&] { e->score_decoded(counting(0, 8), 0); }, {"prefill_len", "found 0"});
  expect_error([&] { e->score_decoded(counting(0, 8), 8); }, {"prefill_len", "1 to 7", "found 8"});
  expect_error([&] { e->score_decoded(counting(0, 40), 20); },
               {"prefill_len", "1 to 16", "found 20"});
  expect_error([&] { e->cache_snapshot(1, 0); }, {"sequence 1"});
  expect_error([&] { e->cache_snapshot(0, 2); }, {"layer 2"});
}

TEST(HostEngine, ImpossibleOptionsAreRefused) {
  const auto refuse = [](int EngineOptions::*field, int value, const std::string& name) {
    EngineOptions options = with_policy(Policy::h2o);
    options.*field = value;
    expect_error([&] { engine(options); }, {name, std::to_string(value)});
  };
  refuse(&EngineOptions::batch_size, 0, "batch_size");
  refuse(&EngineOptions::max_tokens, 0, "max_tokens");
  refuse(&EngineOptions::sinks, -1, "sinks");
  refuse(&EngineOptions::heavy, -3, "heavy");
  refuse(&EngineOptions::recent, -7, "recent");
  EngineOptions nothing = with_policy(Policy::h2o);
  nothing.sinks = nothing.heavy = nothing.recent = 0;
  expect_error([&] { engine(nothing); }, {"H2O budget", "found 0"});
}

TEST(HostEngine, RandomModelsRunByName) {
  EngineOptions options;
  options.max_tokens = 8;
  for (const auto weights : {pythia::WeightType::fp16, pythia::WeightType::int8}) {
    options.weights = weights;
    const auto e = pythia::make_host_engine({"", "pythia-14m"}, options);
    EXPECT_EQ(e->config().hidden_size, 128);
    EXPECT_EQ(host_test::generate(*e, {1, 2, 3}, 3).size(), 3u);
  }
  expect_error([&] { pythia::make_host_engine({"", "13m"}, options); }, {"13m", "14m"});
}

}  // namespace
