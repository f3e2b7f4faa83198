// The command line itself, broken models, and outputs that cannot be written.
#include <gtest/gtest.h>

#include <string>

#include "examples/pythia/cli/output_file.hpp"
#include "examples/pythia/model/cuda_device.hpp"
#include "tests/pythia/cli/run_pythia.hpp"
#include "tests/support/expect_error.hpp"

namespace {

namespace fs = std::filesystem;
using cli_test::expect_refusal;
using cli_test::is_empty_dir;
using cli_test::Outcome;
using cli_test::run;
using cli_test::run_on_cpu;
using test_support::TempDir;
using test_support::write_file;

TEST(CommandLine, HelpIsNoError) {
  for (const char* command : {"generate", "quantize", "eval", "tokenize", "bench"}) {
    const Outcome outcome = run({command, "--help"});
    EXPECT_EQ(outcome.exit_code, 0);
    for (const char* option :
         {"--model", "--model_path", "--mode", "--dtype", "--device", "--json"})
      EXPECT_NE(outcome.out.find(option), std::string::npos) << command << option;
  }
  EXPECT_EQ(run({"--help"}).exit_code, 0);
}

TEST(CommandLine, MistakesAreOneLine) {
  expect_refusal(run({}), {"expected a command", "generate"});
  expect_refusal(run({"frobnicate"}), {"frobnicate"});
  expect_refusal(run_on_cpu({"generate", "--nonsense"}), {"--nonsense"});
  expect_refusal(run_on_cpu({"generate", "--mode", "int4"}), {"--mode", "int4"});
  expect_refusal(run_on_cpu({"generate", "--dtype", "fp8"}), {"--dtype", "fp8"});
  expect_refusal(run({"generate", "--device", "tpu"}), {"--device", "tpu"});
  expect_refusal(run_on_cpu({"generate", "--window", "-1"}), {"--window"});
  expect_refusal(run_on_cpu({"generate", "--window", "many"}), {"--window", "many"});
  expect_refusal(run_on_cpu({"generate", "--prompt", "a", "--window", "2147483647", "--h2o_hh",
                             "2147483647", "--kv", "h2o"}),
                 {"--window", "budget"});
}

TEST(CommandLine, WithoutAGpuCudaIsRefusedAndTheDefaultSaysSo) {
  const pythia::CudaStatus status = pythia::query_cuda();
  if (status.usable) GTEST_SKIP() << "there is a GPU: " << status.name;
  const std::string model = test_support::examples_path("pythia/models/tiny-neox");
  expect_refusal(run({"generate", "--prompt", "a", "--device", "cuda", "--model", model}),
                 {"--device cuda", "no CUDA device", status.reason});
  const Outcome outcome =
      run({"generate", "--prompt", "a", "--max-new-tokens", "1", "--model", model});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_NE(outcome.err.find("running on the CPU: " + status.reason + "\n"), std::string::npos)
      << outcome.err;
}

class BrokenModel : public testing::Test {
 protected:
  void SetUp() override {
    fs::create_directory(model);
    for (const auto& entry : fs::directory_iterator(test_support::data_path("hd32_sequential"))) {
      write_file(model / entry.path().filename(), test_support::read_file(entry.path()));
    }
    write_file(dir.path() / "ids.json", "[1, 2, 3]");
  }

  /// What eval and quantize say of the model; neither leaves anything behind.
  void expect_refused(std::initializer_list<std::string> parts) {
    const std::string result = dir.path() / "result.json", out = dir.path() / "out";
    expect_refusal(run_on_cpu({"eval", "--token-ids", dir.path() / "ids.json", "--json", result,
                               "--model", model.string()}),
                   parts);
    EXPECT_FALSE(fs::exists(result));
    expect_refusal(run_on_cpu({"quantize", "--model", model.string(), "--out_dir", out}), parts);
    EXPECT_FALSE(fs::exists(out));
  }

  const TempDir dir;
  const fs::path model = dir.path() / "model";
  const fs::path weights = model / "model.safetensors";
};

TEST_F(BrokenModel, NoDirectoryNoConfigNoWeights) {
  fs::remove(weights);
  expect_refused({model.string(), "model.safetensors"});
  fs::remove(model / "config.json");
  expect_refused({(model / "config.json").string()});
  fs::remove_all(model);
  expect_refused({model.string(), "directory"});
}

TEST_F(BrokenModel, TruncatedWeights) {
  const std::string bytes = test_support::read_file(weights);
  for (const std::size_t size :
       {bytes.size() - 1, bytes.size() / 2, std::size_t{100}, std::size_t{4}}) {
    write_file(weights, bytes.substr(0, size));
    expect_refused({weights.string()});
  }
}

TEST_F(BrokenModel, HeaderBeyondTheFileAndMissingTensor) {
  const std::string bytes = test_support::read_file(weights);
  write_file(weights, std::string(8, '\x7f') + bytes.substr(8));
  expect_refused({weights.string()});
  std::string renamed = bytes;
  renamed.replace(renamed.find("embed_out.weight"), 16, "embed_out.weighT");
  write_file(weights, renamed);
  expect_refused({model.string(), "embed_out.weight"});
}

TEST_F(BrokenModel, ConfigThatContradictsTheWeights) {
  nlohmann::json config = cli_test::json_of(model / "config.json");
  config["hidden_size"] = 256;
  write_file(model / "config.json", config.dump());
  expect_refused({"gpt_neox.", "128", "256"});
  write_file(model / "config.json", "{\"model_type\": ");
  expect_refused({(model / "config.json").string()});
}

TEST_F(BrokenModel, ShardIndexThatNamesAMissingFile) {
  fs::remove_all(model);
  fs::create_directory(model);
  for (const auto& entry : fs::directory_iterator(test_support::data_path("hd80"))) {
    write_file(model / entry.path().filename(), test_support::read_file(entry.path()));
  }
  fs::remove(model / "model-00004-of-00010.safetensors");
  expect_refused({"model-00004-of-00010.safetensors"});
}

TEST_F(BrokenModel, NoTokenizer) {
  expect_refusal(run_on_cpu({"generate", "--prompt", "a", "--model", model.string()}),
                 {(model / "tokenizer.json").string()});
}

TEST(Output, AFullDiskIsAnError) {
  const std::string model = test_support::examples_path("pythia/models/tiny-neox");
  const Outcome outcome =
      run({"generate", "--prompt", "a", "--device", "cpu", "--model", model}, "", "/dev/full");
  expect_refusal(outcome, {"standard output", "No space left"});
}

TEST(Output, AFileAppearsWholeOrNotAtAll) {
  const TempDir dir;
  const fs::path file = dir.path() / "result";
  { const pythia::OutputFile unused(file); }
  EXPECT_TRUE(is_empty_dir(dir.path())) << "probing left something behind";
  write_file(file, "old");
  pythia::OutputFile(file).write("new");
  EXPECT_EQ(test_support::read_file(file), "new");
  EXPECT_EQ(std::distance(fs::directory_iterator(dir.path()), fs::directory_iterator()), 1);
  test_support::expect_error([&] { pythia::OutputFile unused(file / "below"); },
                             {(file / "below").string(), "cannot write"});
}

TEST(Output, DevicesAndLinksAreWrittenThrough) {
  pythia::OutputFile("/dev/null").write("gone");
  EXPECT_FALSE(fs::is_regular_file("/dev/null"));
  const TempDir dir;
  write_file(dir.path() / "target", "old");
  fs::create_symlink(dir.path() / "target", dir.path() / "link");
  pythia::OutputFile(dir.path() / "link").write("new");
  EXPECT_TRUE(fs::is_symlink(dir.path() / "link"));
  EXPECT_EQ(test_support::read_file(dir.path() / "target"), "new");
}

}  // namespace
