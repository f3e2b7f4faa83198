#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "examples/pythia/cli/windows.hpp"
#include "tests/pythia/cli/run_pythia.hpp"

namespace {

using cli_test::Arguments;
using cli_test::expect_refusal;
using cli_test::is_empty_dir;
using cli_test::json_of;
using cli_test::Outcome;
using cli_test::run_on_cpu;
using nlohmann::json;
using test_support::TempDir;
using test_support::write_file;

TEST(Windows, ScoreAsManyTokensAsTheReferenceRun) {
  for (const json& run : json_of(test_support::data_path("perplexity.json"))) {
    std::int64_t scored = 0;
    for (const auto& window :
         pythia::perplexity_windows(run["tokens"], run["window"], run["stride"]))
      scored += window.end - window.scored_from;
    EXPECT_EQ(scored, run["tokens_scored"].get<std::int64_t>()) << run;
  }
}

TEST(Windows, CoverEveryTokenOnceWhateverTheStride) {
  for (std::int64_t tokens = 1; tokens < 40; ++tokens) {
    for (std::int64_t length = 2; length < 12; ++length) {
      for (std::int64_t stride = 1; stride < length; ++stride) {
        std::int64_t next = 1;
        for (const auto& window : pythia::perplexity_windows(tokens, length, stride)) {
          EXPECT_EQ(window.scored_from, next);
          EXPECT_LE(window.end - window.begin, length);
          next = window.end;
        }
        EXPECT_EQ(next, tokens);
      }
    }
  }
}

/// Evaluates ids with --json; returns the result.
json evaluate(const TempDir& dir, const json& ids, Arguments extra) {
  const std::string ids_file = dir.path() / "ids.json", result = dir.path() / "result.json";
  write_file(ids_file, ids.dump());
  Arguments arguments = {"eval", "--token-ids", ids_file, "--json", result};
  arguments.insert(arguments.end(), extra.begin(), extra.end());
  const Outcome outcome = run_on_cpu(arguments);
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("perplexity"), std::string::npos);
  return json_of(result);
}

TEST(Eval, MeanNllAndLogitsOfTokenIds) {
  const TempDir dir;
  const json expected = json_of(test_support::data_path("tiny_neox_logits.json"))[4];
  const std::string logits_file = dir.path() / "logits";
  const json result = evaluate(dir, expected["input_ids"], {"--logits", logits_file});
  EXPECT_NEAR(result["mean_nll"].get<double>(), expected["mean_nll"].get<double>(), 1e-4);
  EXPECT_NEAR(result["perplexity"].get<double>(), std::exp(expected["mean_nll"].get<double>()),
              0.01);
  EXPECT_EQ(result["tokens"], 1500);
  EXPECT_EQ(result["tokens_scored"], 1499);

  const std::string bytes = test_support::read_file(logits_file);
  const auto reference = expected["logits_last"].get<std::vector<float>>();
  ASSERT_EQ(bytes.size(), 4 * reference.size());
  for (std::size_t i = 0; i < reference.size(); ++i) {
    float found;
    std::memcpy(&found, bytes.data() + 4 * i, sizeof(found));
    ASSERT_NEAR(found, reference[i], 1e-3f) << i;
  }
}

TEST(Eval, StridedWindowsScoreEachTokenWithMoreContext) {
  const TempDir dir;
  const json ids = json_of(test_support::data_path("tiny_neox_logits.json"))[4]["input_ids"];
  const json plain = evaluate(dir, ids, {"--window-len", "256"});
  const json strided = evaluate(dir, ids, {"--window_len", "256", "--stride", "64"});
  EXPECT_EQ(plain["tokens_scored"], 1500 - 6);
  EXPECT_EQ(strided["tokens_scored"], 1499);
  EXPECT_LT(strided["mean_nll"].get<double>(), plain["mean_nll"].get<double>());
}

TEST(Eval, H2oScoresTheDecodedTokens) {
  const TempDir dir;
  const json expected = json_of(test_support::data_path("h2o_cases.json"))[2];
  const json result = evaluate(dir, expected["input_ids"],
                               {"--kv", "h2o", "--prefill_len", expected["prompt"].dump(),
                                "--window", expected["recent"].dump(), "--h2o-hh",
                                expected["heavy"].dump(), "--sinks", expected["sinks"].dump()});
  EXPECT_EQ(result["tokens_scored"], 420 - 200);
  EXPECT_NEAR(result["mean_nll"].get<double>(), expected["mean_nll_of_decoded"].get<double>(),
              1e-3);
}

TEST(Eval, DefaultLengths) {
  const TempDir dir;
  const json ids = json_of(test_support::data_path("tiny_neox_logits.json"))[4]["input_ids"];
  const json full = evaluate(dir, ids, {});
  EXPECT_EQ(full["window_len"], 2048);
  EXPECT_EQ(full["stride"], 2048);
  EXPECT_FALSE(full.contains("prefill_len"));
  const json h2o = evaluate(dir, ids, {"--kv", "h2o"});
  EXPECT_EQ(h2o["prefill_len"], 500);
  EXPECT_EQ(h2o["tokens_scored"], 1500 - 500);
  const json shorter = evaluate(dir, ids, {"--kv", "h2o", "--window-len", "100"});
  EXPECT_EQ(shorter["stride"], 100);
  EXPECT_EQ(shorter["prefill_len"], 50);
  EXPECT_EQ(shorter["tokens_scored"], 15 * 50);
}

TEST(Eval, Int8IsCloseToFp16) {
  const TempDir dir;
  const json ids = json_of(test_support::data_path("tiny_neox_logits.json"))[4]["input_ids"];
  const double fp16 = evaluate(dir, ids, {"--mode", "fp16"})["mean_nll"];
  const double int8 = evaluate(dir, ids, {"--mode", "int8"})["mean_nll"];
  EXPECT_NEAR(int8, fp16, 0.01 * fp16);
  EXPECT_NE(int8, fp16);
  // --weights and --kv override the shorthand.
  EXPECT_EQ(evaluate(dir, ids, {"--mode", "int8-h2o", "--kv", "full"})["mean_nll"], int8);
  EXPECT_EQ(evaluate(dir, ids, {"--mode", "int8", "--weights", "fp16"})["mean_nll"], fp16);
}

TEST(Eval, RandomWeightsAreNearTheUniformPerplexity) {
  const TempDir dir;
  const json result = evaluate(dir, {1, 2, 3, 4, 5, 6, 7, 8}, {"--model", "random:14m"});
  EXPECT_NEAR(result["mean_nll"].get<double>(), std::log(50304.0), 1.0);
}

TEST(Eval, ATextWithInvalidUtf8IsRepairedWithAWarning) {
  const TempDir dir;
  const std::string file = dir.path() / "text.txt";
  write_file(file, "Call me Ishm\xc3(el, some years ago.");
  const Outcome outcome = run_on_cpu({"eval", "--text", file});
  EXPECT_EQ(outcome.exit_code, 0);
  for (const std::string& part :
       {std::string("warning: "), file, std::string("1 place, at byte 12")})
    EXPECT_NE(outcome.err.find(part), std::string::npos) << outcome.err;
}

class EvalRefusal : public testing::Test {
 protected:
  Outcome evaluate(const std::string& content, Arguments extra = {}) {
    write_file(file, content);
    Arguments arguments = {"eval", "--token-ids", file, "--json", result, "--logits", logits};
    arguments.insert(arguments.end(), extra.begin(), extra.end());
    const Outcome outcome = run_on_cpu(arguments);
    EXPECT_FALSE(std::filesystem::exists(result));
    EXPECT_FALSE(std::filesystem::exists(logits));
    return outcome;
  }

  const TempDir dir;
  const std::string file = dir.path() / "ids.json";
  const std::string result = dir.path() / "result.json";
  const std::string logits = dir.path() / "logits";
};

TEST_F(EvalRefusal, IdsThatAreNoneOfTheVocabulary) {
  expect_refusal(evaluate("[1, 2, 2048]"), {file, "[2]", "2047", "2048"});
  expect_refusal(evaluate("[1, -1]"), {file, "[1]", "-1"});
  expect_refusal(evaluate("[1, 99999999999999999999]"), {file, "[1]"});
  expect_refusal(evaluate("[1, 2.5]"), {file, "[1]", "2.5"});
  expect_refusal(evaluate("[1, \"2\"]"), {file, "[1]"});
  expect_refusal(evaluate("{\"ids\": [1]}"), {file, "array"});
}

TEST_F(EvalRefusal, MalformedAndHostileJson) {
  expect_refusal(evaluate("[1, 2"), {file});
  expect_refusal(evaluate(""), {file});
  expect_refusal(evaluate(std::string(100000, '[')), {file});
}

TEST_F(EvalRefusal, TooFewTokens) {
  expect_refusal(evaluate("[]"), {file, "at least 2 tokens", "found 0"});
  expect_refusal(evaluate("[7]"), {file, "at least 2 tokens", "found 1"});
  expect_refusal(evaluate("[1, 2, 3]", {"--kv", "h2o", "--prefill_len", "3"}),
                 {file, "--prefill_len"});
}

TEST_F(EvalRefusal, LengthsThatContradictEachOther) {
  expect_refusal(evaluate("[1, 2, 3]", {"--window-len", "4", "--stride", "5"}),
                 {"--stride", "4", "5"});
  expect_refusal(evaluate("[1, 2, 3]", {"--window-len", "4096"}), {"--window-len", "2048"});
  expect_refusal(evaluate("[1, 2, 3]", {"--prefill_len", "3"}), {"--prefill_len", "3"});
  expect_refusal(evaluate("[1, 2, 3]", {"--max-windows", "0"}), {"--max-windows"});
  expect_refusal(evaluate("[1, 2, 3]", {"--kv", "h2o", "--window-len", "8", "--prefill_len", "8"}),
                 {"--prefill_len", "8"});
  expect_refusal(evaluate("[1, 2, 3]", {"--kv", "h2o", "--window", "0", "--h2o_hh", "0"}),
                 {"--window", "budget"});
}

TEST_F(EvalRefusal, MissingInputsAndUnwritableOutputs) {
  expect_refusal(run_on_cpu({"eval"}), {"--text", "--token-ids"});
  expect_refusal(run_on_cpu({"eval", "--text", dir.path() / "none.txt"}),
                 {"none.txt", "No such file"});
  expect_refusal(run_on_cpu({"eval", "--text", dir.path()}), {dir.path().string(), "directory"});
  write_file(file, "[1, 2, 3]");
  expect_refusal(
      run_on_cpu({"eval", "--token-ids", file, "--logits", "/nowhere/logits", "--json", result}),
      {"/nowhere/logits"});
  EXPECT_FALSE(std::filesystem::exists(result));
  expect_refusal(run_on_cpu({"eval", "--token-ids", file, "--json", dir.path()}),
                 {dir.path().string()});
}

}  // namespace
