// config.json: what real files say, and what the reader refuses.
#include "examples/pythia/io/config.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "tests/support/data_path.hpp"
#include "tests/support/expect_error.hpp"
#include "tests/support/temp_dir.hpp"

namespace {

using nlohmann::json;
using pythia::Activation;
using pythia::Config;
using test_support::data_path;
using test_support::examples_path;
using test_support::expect_error;
using test_support::TempDir;
using test_support::write_file;

// As the published Pythia checkpoints spell it.
json old_style() {
  return json::parse(R"({
    "architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0,
    "hidden_act": "gelu", "hidden_size": 512, "initializer_range": 0.02,
    "intermediate_size": 2048, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048,
    "model_type": "gpt_neox", "num_attention_heads": 8, "num_hidden_layers": 6,
    "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": false,
    "torch_dtype": "float16", "use_cache": true, "use_parallel_residual": true,
    "vocab_size": 50304})");
}

Config load(const json& config) {
  TempDir dir;
  write_file(dir.path() / "config.json", config.dump());
  return pythia::load_config(dir.path());
}

Config load_changed(const std::string& key, const json& value) {
  json config = old_style();
  config[key] = value;
  return load(config);
}

void expect_refused(const std::string& key, const json& value, const std::string& expected,
                    const std::string& found) {
  SCOPED_TRACE(key + " = " + value.dump());
  expect_error([&] { load_changed(key, value); },
               {"config.json: ", key, "expected " + expected, "found " + found});
}

TEST(Config, ReadsThePublishedSpelling) {
  const Config config = load(old_style());
  EXPECT_EQ(config.vocab_size, 50304);
  EXPECT_EQ(config.hidden_size, 512);
  EXPECT_EQ(config.num_layers, 6);
  EXPECT_EQ(config.num_heads, 8);
  EXPECT_EQ(config.head_dim(), 64);
  EXPECT_EQ(config.intermediate_size, 2048);
  EXPECT_EQ(config.max_position, 2048);
  EXPECT_EQ(config.rotary_dims, 16);
  EXPECT_EQ(config.rotary_base, 10000.0);
  EXPECT_EQ(config.layer_norm_eps, 1e-5);
  EXPECT_TRUE(config.parallel_residual);
  EXPECT_EQ(config.activation, Activation::gelu_erf);
  EXPECT_EQ(config.eos_token_id, 0);
}

TEST(Config, ReadsTheBundledModelAndTheGoldens) {
  const Config tiny = pythia::load_config(examples_path("pythia/models/tiny-neox"));
  EXPECT_EQ(tiny.hidden_size, 256);
  EXPECT_EQ(tiny.rotary_dims, 16);
  EXPECT_EQ(tiny.vocab_size, 2048);

  const Config full_rotary = pythia::load_config(data_path("hd128_gelutanh"));
  EXPECT_EQ(full_rotary.head_dim(), 128);
  EXPECT_EQ(full_rotary.rotary_dims, 128);
  EXPECT_EQ(full_rotary.activation, Activation::gelu_tanh);

  const Config sequential = pythia::load_config(data_path("hd32_sequential"));
  EXPECT_FALSE(sequential.parallel_residual);
  EXPECT_EQ(sequential.rotary_dims, 8);

  EXPECT_EQ(pythia::load_config(data_path("hd80")).rotary_dims, 20);
  EXPECT_EQ(pythia::load_config(data_path("hd256")).rotary_dims, 64);
}

TEST(Config, AcceptsEverySpellingOfTheRotarySettings) {
  json bare = old_style();
  bare.erase("rotary_pct");
  bare.erase("rotary_emb_base");

  json config = bare;
  EXPECT_EQ(load(config).rotary_dims, 16) << "the default fraction is 0.25";
  EXPECT_EQ(load(config).rotary_base, 10000.0);

  config["rope_parameters"] = {
      {"partial_rotary_factor", 0.5}, {"rope_theta", 500.0}, {"rope_type", "default"}};
  EXPECT_EQ(load(config).rotary_dims, 32);
  EXPECT_EQ(load(config).rotary_base, 500.0);

  config = bare;
  config["rotary_pct"] = 1;
  config["rope_theta"] = 20000;
  config["rope_scaling"] = nullptr;
  EXPECT_EQ(load(config).rotary_dims, 64);
  EXPECT_EQ(load(config).rotary_base, 20000.0);

  config = bare;
  config["partial_rotary_factor"] = 0.5;
  config["rope_scaling"] = {{"type", "default"}};
  EXPECT_EQ(load(config).rotary_dims, 32);
}

TEST(Config, RefusesRotarySettingsThatContradict) {
  expect_error([] { load_changed("rope_theta", 500); },
               {"config.json: rotary_emb_base: expected the value of rope_theta (500.0), found "
                "number 10000"});
  json config = old_style();
  config["rope_parameters"] = {{"partial_rotary_factor", 0.5}};
  expect_error([&] { load(config); },
               {"config.json: rotary_pct: expected the value of "
                "rope_parameters.partial_rotary_factor (0.5), found number 0.25"});
}

TEST(Config, RefusesScaledRotary) {
  expect_refused("rope_scaling", {{"type", "linear"}, {"factor", 2.0}}, "\"default\"",
                 "string \"linear\"");
  expect_refused("rope_parameters", {{"rope_type", "yarn"}}, "\"default\"", "string \"yarn\"");
  expect_refused("rope_parameters", 3, "an object", "number 3");
}

TEST(Config, RefusesImpossibleRotary) {
  expect_refused("rotary_pct", 0.05, "an even number", "3 (0.05 of 64)");
  expect_refused("rotary_pct", 0.0, "a number above 0", "number 0.0");
  expect_refused("rotary_pct", 1.5, "a number above 0.0 and at most 1.0", "number 1.5");
  expect_refused("rotary_pct", "0.25", "a number", "string \"0.25\"");
  expect_refused("rotary_emb_base", -1, "a number above 0", "number -1");
}

TEST(Config, ReadsActivations) {
  for (const char* name : {"gelu_new", "gelu_fast", "gelu_pytorch_tanh"}) {
    EXPECT_EQ(load_changed("hidden_act", name).activation, Activation::gelu_tanh) << name;
  }
  expect_refused("hidden_act", "silu", "gelu", "string \"silu\"");
  expect_refused("hidden_act", 4, "a string", "number 4");
}

TEST(Config, ReadsEndOfText) {
  EXPECT_EQ(load_changed("eos_token_id", 7).eos_token_id, 7);
  EXPECT_EQ(load_changed("eos_token_id", {5, 6}).eos_token_id, 5);
  EXPECT_EQ(load_changed("eos_token_id", nullptr).eos_token_id, -1);
  EXPECT_EQ(load_changed("eos_token_id", json::array()).eos_token_id, -1);
  json config = old_style();
  config.erase("eos_token_id");
  EXPECT_EQ(load(config).eos_token_id, -1);
  expect_refused("eos_token_id", 50304, "an id below vocab_size (50304)", "number 50304");
  expect_refused("eos_token_id", {-1}, "an id below", "an array of 1");
}

TEST(Config, RefusesOtherArchitectures) {
  expect_refused("model_type", "llama", "\"gpt_neox\"", "string \"llama\"");
  expect_refused("tie_word_embeddings", true, "false", "true");
  expect_refused("attention_bias", false, "true", "false");
  expect_refused("use_parallel_residual", "yes", "true or false", "string \"yes\"");
}

TEST(Config, RefusesImpossibleSizes) {
  for (const char* key : {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
                          "intermediate_size", "max_position_embeddings"}) {
    expect_refused(key, 0, "an integer from 1 to ", "number 0");
    expect_refused(key, -8, "an integer from 1 to ", "number -8");
    expect_refused(key, 1.5, "an integer from 1 to ", "number 1.5");
    expect_refused(key, 4294967808LL, "an integer from 1 to ", "number 4294967808");
    expect_refused(key, 18446744073709551615ULL, "an integer from 1",
                   "number 18446744073709551615");
    expect_refused(key, "512", "an integer from 1 to ", "string \"512\"");
    expect_refused(key, nullptr, "an integer from 1 to ", "null");
    json config = old_style();
    config.erase(key);
    expect_error([&] { load(config); },
                 {"config.json: ", key, "expected an integer", "found nothing"});
  }
  expect_refused("num_attention_heads", 7, "a multiple of num_attention_heads (7)", "number 512");
  expect_error(
      [&] { load_changed("num_attention_heads", 32); },
      {"config.json: hidden_size / num_attention_heads: expected one of 32, 64, 80", "found 16"});
  expect_refused("layer_norm_eps", 0, "a number between 0 and 1", "number 0");
}

TEST(Config, RefusesWhatIsNoConfig) {
  TempDir dir;
  const auto load_dir = [&] { pythia::load_config(dir.path()); };
  const auto file = dir.path() / "config.json";
  expect_error(load_dir, {file.string(), "cannot open", "No such file"});
  write_file(file, "");
  expect_error(load_dir, {file.string(), "malformed JSON at byte 1 of 0"});
  write_file(file, "[1]");
  expect_error(load_dir, {file.string(), "expected an object, found an array of 1"});
  write_file(file, R"({"model_type": "gpt_neox", "vocab_size": })");
  expect_error(load_dir, {file.string(), "malformed JSON at byte 42 of 42"});
  std::filesystem::remove(file);
  std::filesystem::create_directory(file);
  expect_error(load_dir, {file.string(), "expected a regular file"});
}

TEST(Config, KnowsThePublishedSizes) {
  const std::vector<std::pair<std::string, int>> head_dims = {
      {"14m", 32}, {"31m", 32},   {"70m", 64},  {"160m", 64},  {"410m", 64},
      {"1b", 256}, {"1.4b", 128}, {"2.8b", 80}, {"6.9b", 128}, {"12b", 128}};
  for (const auto& [name, head_dim] : head_dims) {
    const Config config = pythia::named_config(name);
    EXPECT_EQ(config.head_dim(), head_dim) << name;
    EXPECT_EQ(config.intermediate_size, 4 * config.hidden_size) << name;
    EXPECT_EQ(config.rotary_dims, head_dim / 4) << name;
    EXPECT_EQ(config.max_position, 2048) << name;
    EXPECT_EQ(config.vocab_size, name == "6.9b" ? 50432 : name == "12b" ? 50688 : 50304) << name;
  }
  // The bytes one token reads in INT8, in MB: the published table of the models' cost.
  const std::vector<std::pair<std::string, double>> megabytes = {
      {"410m", 355}, {"1b", 911}, {"1.4b", 1314}, {"2.8b", 2651}, {"6.9b", 6657}, {"12b", 11596}};
  for (const auto& [name, expected] : megabytes) {
    const Config c = pythia::named_config("pythia-" + name);
    const double h = c.hidden_size;
    const double weights =
        c.num_layers * (4 * h * h + 2 * h * c.intermediate_size) + h * c.vocab_size;
    EXPECT_NEAR(weights / 1e6, expected, 0.01 * expected) << name;
  }
  expect_error([] { pythia::named_config("3b"); },
               {"expected one of 14m, 31m, 70m", "12b", "found \"3b\""});
  expect_error([] { pythia::named_config("pythia-"); }, {"found \"pythia-\""});
}

}  // namespace
