#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "tests/pythia/cli/run_pythia.hpp"

namespace {

using cli_test::expect_refusal;
using cli_test::json_of;
using cli_test::Outcome;
using cli_test::run_on_cpu;
using nlohmann::json;
using test_support::TempDir;

TEST(Generate, ContinuesAsTransformersDoes) {
  const TempDir dir;
  const std::string file = dir.path() / "result.json";
  int compared = 0;
  for (const json& expected : json_of(test_support::data_path("tiny_neox_logits.json"))) {
    if (expected["greedy"].empty()) continue;
    const Outcome outcome = run_on_cpu(
        {"generate", "--prompt", expected["prompt"], "--max-new-tokens", "48", "--json", file});
    ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
    EXPECT_EQ(outcome.out, expected["greedy_text"].get<std::string>());
    const json result = json_of(file);
    EXPECT_EQ(result["token_ids"], expected["greedy"]);
    EXPECT_EQ(result["prompt_token_ids"], expected["input_ids"]);
    EXPECT_EQ(result["text"].get<std::string>(), outcome.out);
    ++compared;
  }
  EXPECT_GE(compared, 4);
}

TEST(Generate, LaunchesChangeNothingOnTheCpu) {
  const std::vector<std::string> plain = {"generate", "--prompt", "The sea was", "--max-new-tokens",
                                          "12",       "--mode",   "int8-h2o"};
  const Outcome expected = run_on_cpu(plain);
  for (const char* launches : {"auto", "many"}) {
    std::vector<std::string> command = plain;
    command.insert(command.end(), {"--launches", launches});
    const Outcome found = run_on_cpu(command);
    ASSERT_EQ(found.exit_code, 0) << found.err;
    EXPECT_EQ(found.out, expected.out);
  }
  EXPECT_EQ(run_on_cpu({"generate", "--prompt", "The sea was", "--launches", "one"}).exit_code, 2);
}

TEST(Generate, StopsAtTheEndOfTextAndLeavesItOut) {
  const TempDir dir;
  const std::string file = dir.path() / "result.json", model = dir.path() / "model";
  const auto generate = [&](const std::string& from) {
    const Outcome outcome = run_on_cpu({"generate", "--prompt", "Call me", "--max-new-tokens", "8",
                                        "--model", from, "--json", file});
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    const json result = json_of(file);
    EXPECT_EQ(result["text"].get<std::string>(), outcome.out);
    return result;
  };
  const auto bundled = test_support::examples_path("pythia/models/tiny-neox");
  const json whole = generate(bundled);
  EXPECT_EQ(whole["stopped_by"], "max_new_tokens");
  const auto ids = whole["token_ids"].get<std::vector<int>>();
  ASSERT_EQ(ids.size(), 8u);

  // The same model with one of these tokens as its end of text.
  std::filesystem::copy(bundled, model);
  json config = json_of(bundled / "config.json");
  config["eos_token_id"] = ids[5];
  test_support::write_file(model + "/config.json", config.dump());
  const json stopped = generate(model);
  EXPECT_EQ(stopped["stopped_by"], "end_of_text");
  const auto end = std::find(ids.begin(), ids.end(), ids[5]);
  EXPECT_EQ(stopped["token_ids"].get<std::vector<int>>(), std::vector<int>(ids.begin(), end));
}

TEST(Generate, ReportsSpeedModeAndDeviceOnStderrAlone) {
  const Outcome outcome = run_on_cpu(
      {"generate", "--prompt", "Call me", "--max-new-tokens", "5", "--mode", "int8-h2o"});
  ASSERT_EQ(outcome.exit_code, 0);
  for (const char* part : {"5 tokens", "tokens/s", "time to first token", "int8-h2o", "CPU"}) {
    EXPECT_NE(outcome.err.find(part), std::string::npos) << outcome.err;
  }
  EXPECT_EQ(outcome.out.find("tokens/s"), std::string::npos);
}

TEST(Generate, PutsTheReportOnALineOfItsOwnAndKeepsTheTextAsItIs) {
  const Outcome open = run_on_cpu({"generate", "--prompt", "Call me", "--max-new-tokens", "5"});
  EXPECT_EQ(open.out.find('\n'), std::string::npos) << open.out;
  EXPECT_EQ(open.err.rfind("\npythia: 5 tokens", 0), 0u) << open.err;
  const Outcome ended = run_on_cpu({"generate", "--prompt", "CHAPTER", "--max-new-tokens", "4"});
  ASSERT_EQ(ended.out.back(), '\n') << ended.out;
  EXPECT_EQ(ended.err.rfind("pythia: 4 tokens", 0), 0u) << ended.err;
}

TEST(Generate, ReadsThePromptFromStandardInput) {
  const Outcome given = run_on_cpu({"generate", "--prompt", "Call me", "--max-new-tokens", "9"});
  const Outcome piped = run_on_cpu({"generate", "--max-new-tokens", "9"}, "Call me");
  EXPECT_EQ(piped.exit_code, 0) << piped.err;
  EXPECT_EQ(piped.out, given.out);
  EXPECT_FALSE(piped.out.empty());
}

TEST(Generate, SamplesBySeedAndFilters) {
  const auto sample = [](const std::vector<std::string>& extra) {
    std::vector<std::string> arguments = {"generate", "--prompt", "The", "--max-new-tokens", "30"};
    arguments.insert(arguments.end(), extra.begin(), extra.end());
    const Outcome outcome = run_on_cpu(arguments);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    return outcome.out;
  };
  const std::string first = sample({"--temperature", "1.5", "--seed", "1"});
  EXPECT_EQ(first, sample({"--temperature", "1.5", "--seed", "1"}));
  EXPECT_NE(first, sample({"--temperature", "1.5", "--seed", "2"}));
  EXPECT_EQ(sample({}), sample({"--temperature", "1.5", "--top-k", "1"}));
  EXPECT_EQ(sample({}), sample({"--temperature", "1.5", "--top_p", "0.000001"}));
}

TEST(Generate, NeverPrintsHalfACharacter) {
  // At a high temperature the model emits bytes that form no character: they appear as U+FFFD.
  for (const char* seed : {"1", "2", "3"}) {
    const Outcome outcome = run_on_cpu({"generate", "--prompt", "café", "--max-new-tokens", "300",
                                        "--temperature", "100", "--seed", seed});
    ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
    EXPECT_NO_THROW(json(outcome.out).dump()) << "standard output is not valid UTF-8";
  }
}

TEST(Generate, RefusesPromptsThatAreEmptyOrTooLong) {
  expect_refusal(run_on_cpu({"generate", "--prompt", ""}), {"--prompt", "at least one token"});
  expect_refusal(run_on_cpu({"generate"}, ""), {"standard input", "at least one token"});
  std::string words;
  for (int i = 0; i < 3000; ++i) words += "sea ";
  expect_refusal(run_on_cpu({"generate", "--mode", "int8-h2o"}, words),
                 {"standard input", "2048", "context"});
}

TEST(Generate, RunsPastTheContextUnderH2oOnly) {
  std::string words;
  for (int i = 0; i < 1000; ++i) words += "and ";
  expect_refusal(run_on_cpu({"generate", "--max-new-tokens", "1500"}, words),
                 {"prompt", "1500", "2048", "context"});
  const Outcome outcome = run_on_cpu(
      {"generate", "--max-new-tokens", "1500", "--kv", "h2o", "--window", "16", "--h2o_hh", "16"},
      words);
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_NE(outcome.err.find("pythia: warning: "), std::string::npos) << outcome.err;
  EXPECT_NE(outcome.err.find("2048"), std::string::npos) << outcome.err;
}

TEST(Generate, RepairsInvalidUtf8WithAWarningThatSaysWhere) {
  const Outcome outcome = run_on_cpu({"generate", "--max-new-tokens", "2"}, "abc\xff\xfe d");
  EXPECT_EQ(outcome.exit_code, 0);
  for (const char* part : {"pythia: warning: standard input", "U+FFFD", "2 places", "byte 3"}) {
    EXPECT_NE(outcome.err.find(part), std::string::npos) << outcome.err;
  }
}

TEST(Generate, RefusesBadSamplingOptions) {
  const auto with = [](const char* name, const char* value) {
    return run_on_cpu({"generate", "--prompt", "a", name, value});
  };
  expect_refusal(with("--temperature", "-1"), {"--temperature"});
  expect_refusal(with("--temperature", "nan"), {"--temperature"});
  expect_refusal(with("--top-p", "0"), {"--top-p"});
  expect_refusal(with("--top-p", "1.5"), {"--top-p"});
  expect_refusal(with("--top-k", "-3"), {"--top-k"});
  expect_refusal(with("--max-new-tokens", "0"), {"--max-new-tokens"});
  expect_refusal(with("--seed", "-1"), {"--seed"});
}

TEST(Generate, RefusesRandomWeights) {
  expect_refusal(run_on_cpu({"generate", "--prompt", "a", "--model", "random:14m"}),
                 {"random:14m", "tokenizer"});
}

}  // namespace
