// Which options of the cache go together, and what they come to.
#include <gtest/gtest.h>

#include <string>

#include "examples/pythia/cli/cache_options.hpp"
#include "tests/pythia/cli/run_pythia.hpp"
#include "tests/support/expect_error.hpp"

namespace {

using cli_test::Arguments;
using cli_test::expect_refusal;
using cli_test::json_of;
using cli_test::run_on_cpu;
using nlohmann::json;
using pythia::EngineOptions;
using pythia::Policy;
using test_support::expect_error;
using test_support::TempDir;
using waterweight::h2o_granularity;

/// What the options come to, read from a command line.
EngineOptions settled(const std::string& line, bool h2o_mode = false) {
  CLI::App app;
  pythia::CacheOptions options;
  pythia::add_cache_options(app, options);
  app.parse(line);
  EngineOptions engine;
  pythia::settle_cache(options, h2o_mode, &engine);
  return engine;
}

void expect_budget(const EngineOptions& engine, Policy policy, int sinks, int heavy, int recent) {
  EXPECT_EQ(engine.policy, policy);
  EXPECT_EQ(engine.sinks, sinks);
  EXPECT_EQ(engine.heavy, heavy);
  EXPECT_EQ(engine.recent, recent);
}

TEST(CacheOptions, EachPolicyHasItsDefaults) {
  EXPECT_EQ(settled("").policy, Policy::full);
  EXPECT_EQ(settled("--policy full").policy, Policy::full);
  for (const char* line : {"--kv h2o", "--policy h2o", "--kv h2o --policy h2o"}) {
    expect_budget(settled(line), Policy::h2o, 0, 252, 252);
  }
  expect_budget(settled("", true), Policy::h2o, 0, 252, 252);
  expect_budget(settled("--policy streaming", true), Policy::streaming, 4, 0, 252);
  expect_budget(settled("--policy window"), Policy::window, 0, 0, 252);
  expect_budget(settled("--policy random"), Policy::random, 0, 252, 252);
  EXPECT_EQ(settled("--kv full", true).policy, Policy::full);
  EXPECT_EQ(settled("--policy h2o").evict_every, 1);
  EXPECT_EQ(settled("--policy h2o").granularity, h2o_granularity::per_head);
}

TEST(CacheOptions, ReachTheEngine) {
  const EngineOptions engine = settled(
      "--policy random --window 7 --h2o_hh 9 --sinks 2 --granularity model --evict_every 3 "
      "--policy-seed 11");
  expect_budget(engine, Policy::random, 2, 9, 7);
  EXPECT_EQ(engine.granularity, h2o_granularity::per_model);
  EXPECT_EQ(engine.evict_every, 3);
  EXPECT_EQ(engine.policy_seed, 11u);
  EXPECT_EQ(pythia::cache_json(engine).dump(),
            R"({"policy":"random","window":7,"heavy":9,"sinks":2,"evict_every":3,)"
            R"("granularity":"model","policy_seed":11})");
  EXPECT_EQ(settled("--policy h2o --granularity layer").granularity, h2o_granularity::per_layer);
  expect_budget(settled("--policy streaming --sinks 1 --window 1 --evict-every 8"),
                Policy::streaming, 1, 0, 1);
  expect_budget(settled("--policy window --h2o_hh 0 --sinks 0"), Policy::window, 0, 0, 252);
  EXPECT_EQ(pythia::cache_json(settled("")).dump(), R"({"policy":"full"})");
}

TEST(CacheOptions, ContradictionsAreRefused) {
  const auto refused = [](const std::string& line, std::initializer_list<std::string> parts) {
    SCOPED_TRACE(line);
    expect_error([&] { settled(line); }, parts);
  };
  refused("--kv full --policy h2o", {"--policy h2o", "--kv full"});
  refused("--kv h2o --policy full", {"--policy full", "--kv h2o"});
  refused("--policy window --h2o_hh 4", {"--h2o_hh", "--policy window"});
  refused("--policy streaming --h2o_hh 4", {"--h2o_hh", "--policy streaming"});
  refused("--policy window --sinks 4", {"--sinks", "--policy window"});
  refused("--policy streaming --sinks 0", {"--sinks", "--policy streaming", "at least 1"});
  refused("--policy streaming --window 0", {"--window", "--policy streaming", "at least 1"});
  refused("--policy window --window 0", {"--window", "budget", "found 0"});
  refused("--policy random --h2o_hh 0", {"--h2o_hh", "--policy random", "at least 1"});
  refused("--policy random --window 0", {"--window", "--policy random", "at least 1"});
  refused("--policy window --granularity layer", {"--granularity", "--policy window"});
  refused("--granularity head", {"--granularity", "--policy full"});
  refused("--evict-every 2", {"--evict-every", "--policy full"});
  refused("--policy h2o --policy-seed 1", {"--policy-seed", "--policy h2o"});
  refused("--policy full --window 10", {"--window", "--policy full"});
  refused("--policy full --sinks 10", {"--sinks", "--policy full"});
  refused("--policy full --h2o_hh 10", {"--h2o_hh", "--policy full"});
  refused("--policy h2o --evict-every 16777000", {"--window", "budget", "216", "504"});
}

TEST(CacheOptions, ValuesOutsideTheirRangeAreOneLine) {
  expect_refusal(run_on_cpu({"generate", "--policy", "lru"}), {"--policy", "lru", "streaming"});
  expect_refusal(run_on_cpu({"generate", "--granularity", "slot"}), {"--granularity", "slot"});
  expect_refusal(run_on_cpu({"generate", "--evict-every", "0"}), {"--evict"});
  expect_refusal(run_on_cpu({"generate", "--evict-every", "some"}), {"--evict", "some"});
  expect_refusal(run_on_cpu({"generate", "--policy-seed", "-1"}), {"--policy"});
  expect_refusal(run_on_cpu({"generate", "--prompt", "a", "--policy", "window", "--sinks", "1"}),
                 {"--sinks", "window"});
}

/// Evaluates 120 ids, of which 40 are prefilled.
json evaluate(Arguments extra) {
  const TempDir dir;
  const json ids = json_of(test_support::data_path("h2o_cases.json"))[0]["input_ids"];
  const std::string ids_file = dir.path() / "ids.json", result = dir.path() / "result.json";
  test_support::write_file(ids_file, json(ids.begin(), ids.begin() + 120).dump());
  Arguments arguments = {"eval", "--token-ids", ids_file, "--prefill_len", "40", "--json", result};
  arguments.insert(arguments.end(), extra.begin(), extra.end());
  const auto outcome = run_on_cpu(arguments);
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  return json_of(result);
}

TEST(CacheOptions, EveryPolicyScoresTheSameTokensInEval) {
  const double full = evaluate({"--policy", "full"})["mean_nll"];
  for (const char* policy : {"h2o", "streaming", "window", "random"}) {
    SCOPED_TRACE(policy);
    const json wide = evaluate({"--policy", policy, "--window", "120"});
    EXPECT_EQ(wide["tokens_scored"], 80);
    EXPECT_EQ(wide["mean_nll"], full);
    EXPECT_EQ(wide["cache"]["policy"], policy);
    EXPECT_EQ(wide["mode"], std::string("fp16-") + policy);
    Arguments narrow = {"--policy", policy, "--window", "8", "--evict-every", "2"};
    if (std::string(policy) == "h2o" || std::string(policy) == "random") {
      narrow.insert(narrow.end(), {"--h2o_hh", "8", "--granularity", "layer"});
    }
    EXPECT_NE(evaluate(narrow)["mean_nll"], full);
  }
}

TEST(CacheOptions, MaxWindowsStopsEarlyAndPrefillLenDecodesUnderFullAttention) {
  const json result = evaluate({"--policy", "full", "--window-len", "60"});
  EXPECT_EQ(result["tokens_scored"], 2 * 20);
  EXPECT_EQ(result["windows"], 2);
  const json one = evaluate({"--window-len", "60", "--max-windows", "1"});
  EXPECT_EQ(one["tokens_scored"], 20);
  EXPECT_EQ(one["windows"], 1);
  EXPECT_NE(one["mean_nll"], result["mean_nll"]);
}

TEST(CacheOptions, BenchMeasuresTheChosenPolicy) {
  const TempDir dir;
  const std::string file = dir.path() / "result.json";
  const auto outcome =
      run_on_cpu({"bench", "--prefill_len", "20", "--decode_len", "6", "--policy", "random",
                  "--window", "8", "--h2o_hh", "8", "--granularity", "model", "--json", file});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const json result = json_of(file);
  EXPECT_EQ(result["results"][1]["mode"], "int8");
  EXPECT_EQ(result["results"][2]["mode"], "int8-random");
  EXPECT_EQ(result["cache"]["granularity"], "model");
  expect_refusal(run_on_cpu({"bench", "--policy", "full"}), {"--policy", "full"});
}

TEST(CacheOptions, GenerateRunsPastItsBudgetUnderEveryPolicy) {
  for (const char* policy : {"h2o", "streaming", "window", "random"}) {
    const auto outcome = run_on_cpu({"generate", "--prompt", "The sea was", "--max-new-tokens",
                                     "40", "--policy", policy, "--window", "9"});
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    EXPECT_NE(outcome.err.find(std::string("fp16-") + policy), std::string::npos) << outcome.err;
  }
}

}  // namespace
