#include "examples/pythia/cli/options.hpp"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <limits>

#include "examples/pythia/cli/input.hpp"
#include "examples/pythia/io/checkpoint.hpp"
#include "examples/pythia/io/error.hpp"
#include "examples/pythia/model/cuda_device.hpp"

#ifndef PYTHIA_BUNDLED_MODEL
#define PYTHIA_BUNDLED_MODEL "examples/pythia/models/tiny-neox"
#endif

namespace pythia {
namespace {

constexpr char kRandomPrefix[] = "random:";

bool holds_int8_weights(const ModelSource& source) {
  if (!source.random_name.empty()) return false;
  const Checkpoint checkpoint = Checkpoint::open(source.dir);
  const auto& tensors = checkpoint.tensors();
  return std::any_of(tensors.begin(), tensors.end(),
                     [](const auto& entry) { return entry.second.dtype == DType::i8; });
}

}  // namespace

std::string spellings(const std::string& option) {
  std::string underscored = option;
  std::replace(underscored.begin() + 2, underscored.end(), '-', '_');
  return underscored == option ? option : option + "," + underscored;
}

CLI::Range at_least(int low) { return CLI::Range(low, std::numeric_limits<int>::max()); }

void add_model_options(CLI::App& command, ModelOptions& options) {
  constexpr char kGroup[] = "Model";
  const auto add = [&](const std::string& names, auto& value, const std::string& help) {
    return command.add_option(names, value, help)->group(kGroup);
  };
  add("--model," + spellings("--model-path"), options.model,
      "Hugging Face directory of a GPT-NeoX model, or random:NAME (random:pythia-2.8b) for random "
      "weights; default: the bundled model");
  add("--mode", options.mode, "shorthand for --weights and --policy: fp16, int8 or int8-h2o")
      ->check(CLI::IsMember({"fp16", "int8", "int8-h2o"}));
  add("--weights", options.weights, "fp16 (16 bits, see --dtype) or int8")
      ->check(CLI::IsMember({"fp16", "int8"}));
  add("--dtype", options.dtype, "16-bit type of activations: fp16 or bf16")
      ->check(CLI::IsMember({"fp16", "bf16"}))
      ->capture_default_str();
  add("--device", options.device, "cpu or cuda; default: cuda when a GPU is usable")
      ->check(CLI::IsMember({"cpu", "cuda"}));
  add("--launches", options.launches,
      "auto: decode in one kernel launch per token where the GPU, the model and the mode allow it "
      "(Hopper, one sequence; bench says where); many: always in one per operation")
      ->check(CLI::IsMember({"auto", "many"}))
      ->capture_default_str();
  add("--json", options.json, "write the result to this file");
  add_cache_options(command, options.cache);
}

ModelSource model_source(const ModelOptions& options) {
  ModelSource source;
  if (options.model.rfind(kRandomPrefix, 0) == 0) {
    source.random_name = options.model.substr(sizeof(kRandomPrefix) - 1);
    return source;
  }
  source.dir = options.model.empty() ? PYTHIA_BUNDLED_MODEL : options.model;
  std::error_code ignored;
  if (!std::filesystem::is_directory(source.dir, ignored)) {
    throw Error(source.dir.string() + ": expected a model directory or random:NAME, found " +
                (std::filesystem::exists(source.dir, ignored) ? "a file" : "nothing"));
  }
  return source;
}

Tokenizer model_tokenizer(const ModelSource& source) {
  if (!source.random_name.empty()) {
    throw Error(
        "--model random:" + source.random_name +
        ": random weights have no tokenizer, expected a model directory (use bench, or eval "
        "--token-ids)");
  }
  return Tokenizer::load(source.dir);
}

DeviceType chosen_device(const ModelOptions& options) {
  if (options.device == "cpu") return DeviceType::cpu;
  if (options.device == "cuda") {
    require_cuda_device();
    return DeviceType::cuda;
  }
  const CudaStatus status = query_cuda();
  if (status.usable) return DeviceType::cuda;
  std::fprintf(stderr, "pythia: running on the CPU: %s\n", status.reason.c_str());
  return DeviceType::cpu;
}

ActivationType chosen_dtype(const ModelOptions& options) {
  return options.dtype == "bf16" ? ActivationType::bf16 : ActivationType::fp16;
}

EngineOptions engine_options(const ModelOptions& options, const ModelSource& source) {
  EngineOptions engine;
  std::string weights = options.mode.substr(0, 4);
  if (!options.weights.empty()) weights = options.weights;
  if (weights.empty()) weights = holds_int8_weights(source) ? "int8" : "fp16";
  engine.weights = weights == "int8" ? WeightType::int8 : WeightType::fp16;

  settle_cache(options.cache, options.mode == "int8-h2o", &engine);
  engine.activations = chosen_dtype(options);
  engine.one_launch_decode = options.launches == "auto";
  engine.device = chosen_device(options);
  return engine;
}

void check_context(const Config& config, const EngineOptions& options, std::int64_t tokens,
                   const std::string& what) {
  if (tokens <= config.max_position) return;
  const std::string message = what + " = " + std::to_string(tokens) +
                              " tokens run past the model's context of " +
                              std::to_string(config.max_position);
  if (options.policy == Policy::full) throw Error(message + " (--kv h2o allows it)");
  warn(message);
}

std::string mode_name(const EngineOptions& options) {
  const std::string weights = options.weights == WeightType::int8 ? "int8" : "fp16";
  return options.policy == Policy::full ? weights : weights + "-" + policy_name(options.policy);
}

std::string dtype_name(ActivationType type) {
  return type == ActivationType::bf16 ? "bf16" : "fp16";
}

}  // namespace pythia
