#include <gtest/gtest.h>

#include <chrono>
#include <string>

#include "tests/pythia/cli/run_pythia.hpp"

namespace {

using cli_test::expect_refusal;
using cli_test::json_of;
using cli_test::Outcome;
using cli_test::run_on_cpu;
using nlohmann::json;
using test_support::TempDir;

TEST(Bench, RunsTheThreeModesInOneRun) {
  const TempDir dir;
  const std::string result_file = dir.path() / "result.json", int8 = dir.path() / "int8";
  ASSERT_EQ(run_on_cpu({"quantize", "--out_dir", int8}).exit_code, 0);
  const Outcome outcome =
      run_on_cpu({"bench", "--prefill_len", "20", "--decode_len", "10", "--batch_size", "2",
                  "--window", "8", "--h2o_hh", "8", "--ckpt_dir", int8, "--json", result_file});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const json result = json_of(result_file);
  EXPECT_EQ(result["batch_size"], 2);
  EXPECT_EQ(result["prefill_len"], 20);
  for (const char* key : {"device", "date", "driver", "commit"}) EXPECT_TRUE(result.contains(key));
  EXPECT_NE(result["commit"], "");
  ASSERT_EQ(result["results"].size(), 3u);
  const std::string modes[] = {"fp16", "int8", "int8-h2o"};
  for (std::size_t i = 0; i < 3; ++i) {
    const json& mode = result["results"][i];
    EXPECT_EQ(mode["mode"], modes[i]);
    EXPECT_GT(mode["time_to_first_token_ms"], 0.0);
    EXPECT_GT(mode["tokens_per_second"], 0.0);
    EXPECT_LE(mode["step_ms"]["p5"], mode["step_ms"]["median"]);
    EXPECT_LE(mode["step_ms"]["median"], mode["step_ms"]["p95"]);
    EXPECT_NE(outcome.out.find("\n" + modes[i] + " "), std::string::npos) << outcome.out;
  }
}

TEST(Bench, RunsTheModesThatAreAskedFor) {
  const TempDir dir;
  const std::string result_file = dir.path() / "result.json";
  const Outcome outcome = run_on_cpu({"bench", "--prefill_len", "4", "--decode_len", "2", "--modes",
                                      "int8-h2o,int8", "--json", result_file});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const json results = json_of(result_file)["results"];
  ASSERT_EQ(results.size(), 2u);
  EXPECT_EQ(results[0]["mode"], "int8-h2o");
  EXPECT_EQ(results[1]["mode"], "int8");
}

TEST(Bench, RestsBeforeEachMode) {
  const TempDir dir;
  const std::string result_file = dir.path() / "result.json";
  const auto start = std::chrono::steady_clock::now();
  const Outcome outcome = run_on_cpu({"bench", "--prefill_len", "4", "--decode_len", "2", "--modes",
                                      "int8,fp16", "--rest", "0.75", "--json", result_file});
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(1500));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_EQ(json_of(result_file)["rest_s"], 0.75);
}

TEST(Bench, TakesARandomModel) {
  const Outcome outcome =
      run_on_cpu({"bench", "--model", "random:14m", "--prefill_len", "4", "--decode_len", "2"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
}

TEST(Bench, RefusesModesSizesAndUnknownNames) {
  expect_refusal(run_on_cpu({"bench", "--mode", "int8"}), {"--mode"});
  expect_refusal(run_on_cpu({"bench", "--profile"}), {"--profile", "GPU"});
  expect_refusal(run_on_cpu({"bench", "--modes", "fp16,int4"}), {"--modes", "int4"});
  expect_refusal(run_on_cpu({"bench", "--prefill_len", "2000", "--decode_len", "100"}),
                 {"2100", "2048"});
  expect_refusal(run_on_cpu({"bench", "--prefill_len", "0"}), {"--prefill"});
  expect_refusal(run_on_cpu({"bench", "--batch_size", "0"}), {"--batch"});
  expect_refusal(run_on_cpu({"bench", "--rest", "-1"}), {"--rest"});
  expect_refusal(run_on_cpu({"bench", "--model", "random:3b"}), {"3b", "2.8b"});
  expect_refusal(run_on_cpu({"bench", "--ckpt_dir", "/nowhere"}), {"/nowhere"});
}

}  // namespace
