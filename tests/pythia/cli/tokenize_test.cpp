#include <gtest/gtest.h>

#include <string>

#include "tests/pythia/cli/run_pythia.hpp"

namespace {

using cli_test::expect_refusal;
using cli_test::json_of;
using cli_test::Outcome;
using cli_test::run_on_cpu;
using nlohmann::json;
using test_support::TempDir;
using test_support::write_file;

TEST(Tokenize, TextsToIdsAndBack) {
  const TempDir dir;
  const std::string texts = dir.path() / "texts.json", ids = dir.path() / "ids.json";
  const json strings = {"a  b", "", "naïve café", "<|endoftext|>Emma", "two\n\nlines"};
  write_file(texts, strings.dump());
  const Outcome there = run_on_cpu({"tokenize", "--texts", texts});
  ASSERT_EQ(there.exit_code, 0) << there.err;
  ASSERT_EQ(json::parse(there.out).size(), strings.size());
  EXPECT_TRUE(json::parse(there.out)[1].empty());
  write_file(ids, there.out);
  const Outcome back = run_on_cpu({"tokenize", "--ids", ids});
  ASSERT_EQ(back.exit_code, 0) << back.err;
  EXPECT_EQ(json::parse(back.out), strings);
}

TEST(Tokenize, ThePromptsOfTheGoldenRun) {
  for (const json& expected : json_of(test_support::data_path("tiny_neox_logits.json"))) {
    if (expected["greedy"].empty()) continue;
    const Outcome outcome = run_on_cpu({"tokenize", "--text", expected["prompt"]});
    EXPECT_EQ(json::parse(outcome.out), expected["input_ids"]);
    EXPECT_EQ(run_on_cpu({"tokenize"}, expected["prompt"].get<std::string>()).out, outcome.out);
  }
}

TEST(Tokenize, WritesToAFileInstead) {
  const TempDir dir;
  const std::string result = dir.path() / "result.json";
  const Outcome outcome = run_on_cpu({"tokenize", "--text", "a  b", "--json", result});
  EXPECT_EQ(outcome.exit_code, 0);
  EXPECT_EQ(outcome.out, "");
  EXPECT_EQ(json_of(result), json::parse(run_on_cpu({"tokenize", "--text", "a  b"}).out));
}

TEST(Tokenize, RefusesWhatIsNoArrayOfTextsOrIds) {
  const TempDir dir;
  const std::string file = dir.path() / "in.json";
  const auto tokenize = [&](const char* option, const std::string& content) {
    write_file(file, content);
    return run_on_cpu({"tokenize", option, file});
  };
  expect_refusal(tokenize("--texts", "{}"), {file, "array of strings"});
  expect_refusal(tokenize("--texts", "[\"a\", 3]"), {file, "[1]", "string"});
  expect_refusal(tokenize("--texts", "[\"a\""), {file});
  expect_refusal(tokenize("--ids", "[[1], 2]"), {file, "[1]", "array"});
  expect_refusal(tokenize("--ids", "[[1], [3, 2048]]"), {file, "[1][1]", "2048"});
  expect_refusal(run_on_cpu({"tokenize", "--texts", file, "--ids", file}), {"--ids"});
}

}  // namespace
