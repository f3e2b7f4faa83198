#include <gtest/gtest.h>

#include <csignal>
#include <cstdint>
#include <limits>
#include <string>

#include "examples/pythia/cli/int8_checkpoint.hpp"
#include "examples/pythia/cli/interrupt.hpp"
#include "examples/pythia/io/checkpoint.hpp"
#include "tests/pythia/cli/run_pythia.hpp"
#include "tests/support/expect_error.hpp"

namespace {

namespace fs = std::filesystem;
using cli_test::expect_refusal;
using cli_test::is_empty_dir;
using cli_test::json_of;
using cli_test::Outcome;
using cli_test::run_on_cpu;
using nlohmann::json;
using pythia::DType;
using test_support::TempDir;

double mean_nll(const fs::path& model, const std::string& weights) {
  const TempDir dir;
  const std::string ids = dir.path() / "ids.json", result = dir.path() / "result.json";
  test_support::write_file(ids, "[1, 20, 300, 7, 30, 200, 5, 17, 90, 311]");
  const Outcome outcome = run_on_cpu({"eval", "--token-ids", ids, "--json", result, "--model",
                                      model.string(), "--weights", weights});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  return json_of(result)["mean_nll"];
}

TEST(Quantize, TheDirectoryLoadsByItselfAsInt8AtLoadDoes) {
  const fs::path source = test_support::examples_path("pythia/models/tiny-neox");
  const TempDir dir;
  const fs::path out = dir.path() / "int8";
  const Outcome outcome = run_on_cpu({"quantize", "--out_dir", out.string()});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_EQ(outcome.out, "");
  EXPECT_EQ(mean_nll(out, "int8"), mean_nll(source, "int8"));
  for (const char* file : {"config.json", "tokenizer.json", "generation_config.json"}) {
    EXPECT_EQ(test_support::read_file(out / file), test_support::read_file(source / file));
  }
  // INT8 is what such a directory means when nothing is said.
  const Outcome text =
      run_on_cpu({"generate", "--prompt", "The", "--max-new-tokens", "3", "--model", out.string()});
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_NE(text.err.find("mode int8"), std::string::npos) << text.err;
  expect_refusal(
      run_on_cpu({"generate", "--prompt", "The", "--model", out.string(), "--weights", "fp16"}),
      {"--weights int8"});
  expect_refusal(run_on_cpu({"quantize", "--model", out.string(), "--out_dir", out.string() + "2"}),
                 {out.string(), "I8"});
  EXPECT_FALSE(fs::exists(out.string() + "2"));
}

TEST(Quantize, HoldsInt8LinearsFp32ScalesAndSixteenBitsElsewhere) {
  const TempDir dir;
  for (const std::string dtype : {"fp16", "bf16"}) {
    const fs::path out = dir.path() / dtype;
    const Outcome outcome = run_on_cpu({"quantize", "--out-dir", out.string(), "--dtype", dtype,
                                        "--model_path", test_support::data_path("hd80").string()});
    ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
    const pythia::Checkpoint checkpoint = pythia::Checkpoint::open(out);
    const DType rest = dtype == "bf16" ? DType::bf16 : DType::f16;
    for (const auto& weight : pythia::list_weights(pythia::load_config(out))) {
      const pythia::Tensor& tensor = checkpoint.at(weight.name, weight.shape);
      const bool linear = weight.role == pythia::WeightRole::linear;
      EXPECT_EQ(tensor.dtype, linear ? DType::i8 : rest) << weight.name;
      if (linear) {
        EXPECT_EQ(checkpoint.at(pythia::scale_name(weight), {weight.rows()}).dtype, DType::f32);
      }
    }
  }
}

TEST(Quantize, RefusesToReplaceOrToWriteWhereItCannot) {
  const TempDir dir;
  test_support::write_file(dir.path() / "keep", "me");
  expect_refusal(run_on_cpu({"quantize", "--out_dir", dir.path().string()}), {dir.path().string()});
  EXPECT_EQ(test_support::read_file(dir.path() / "keep"), "me");
  expect_refusal(run_on_cpu({"quantize", "--out_dir", (dir.path() / "keep/below").string()}),
                 {(dir.path() / "keep").string()});
  expect_refusal(run_on_cpu({"quantize", "--out_dir", "/proc/nowhere"}), {"/proc/nowhere"});
  expect_refusal(run_on_cpu({"quantize"}), {"--out-dir"});
  expect_refusal(
      run_on_cpu({"quantize", "--out_dir", (dir.path() / "x").string(), "--model", "random:14m"}),
      {"random:14m", "directory"});
  EXPECT_FALSE(fs::exists(dir.path() / "x"));
}

/// Overwrites one fp16 element of a tensor in a safetensors file.
void poke(const fs::path& file, const std::string& tensor, std::size_t element,
          std::uint16_t bits) {
  std::string bytes = test_support::read_file(file);
  std::uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | static_cast<unsigned char>(bytes[i]);
  const json header = json::parse(bytes.substr(8, length));
  const std::size_t begin = header[tensor]["data_offsets"][0];
  const std::size_t at = 8 + length + begin + 2 * element;
  bytes[at] = static_cast<char>(bits & 255);
  bytes[at + 1] = static_cast<char>(bits >> 8);
  test_support::write_file(file, bytes);
}

TEST(Quantize, RefusesRowsThatAreNotFiniteNamingTensorAndRow) {
  const fs::path source = test_support::data_path("hd32_sequential");  // hidden size 128
  const std::string linear = "gpt_neox.layers.1.mlp.dense_4h_to_h.weight";
  const std::string bias = "gpt_neox.layers.0.attention.dense.bias";
  for (const std::uint16_t bits : {0x7e00, 0xfc00}) {
    for (const std::string& tensor : {linear, bias}) {
      const TempDir dir;
      const fs::path model = dir.path() / "model", out = dir.path() / "out";
      fs::create_directory(model);
      for (const auto& entry : fs::directory_iterator(source)) {
        test_support::write_file(model / entry.path().filename(),
                                 test_support::read_file(entry.path()));
      }
      poke(model / "model.safetensors", tensor, tensor == linear ? 37 * 512 + 511 : 37, bits);
      expect_refusal(run_on_cpu({"quantize", "--model", model.string(), "--out_dir", out.string()}),
                     {model.string(), tensor, "row 37"});
      EXPECT_FALSE(fs::exists(out));
      fs::remove_all(model);
      EXPECT_TRUE(is_empty_dir(dir.path())) << "a temporary directory was left behind";
    }
  }
}

TEST(Quantize, NeedsDiskSpace) {
  const TempDir dir;
  pythia::require_disk_space(dir.path(), 1);
  test_support::expect_error(
      [&] { pythia::require_disk_space(dir.path(), std::uint64_t{1} << 60); },
      {dir.path().string(), "not enough disk space", "needed", "free"});
}

TEST(Quantize, ASignalIsNotedAndThrownAtASafePoint) {
  for (const int signal : {SIGINT, SIGTERM}) {
    const pythia::InterruptGuard guard;
    guard.check();
    std::raise(signal);
    EXPECT_THROW(guard.check(), pythia::Interrupted);
  }
}

}  // namespace
