// pythia quantize: a checkpoint directory with INT8 weights that loads by itself.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "examples/pythia/cli/commands.hpp"
#include "examples/pythia/cli/int8_checkpoint.hpp"
#include "examples/pythia/cli/interrupt.hpp"
#include "examples/pythia/cli/options.hpp"
#include "examples/pythia/cli/output_file.hpp"
#include "examples/pythia/cli/progress.hpp"
#include "examples/pythia/io/atomic_directory.hpp"
#include "examples/pythia/io/error.hpp"
#include "examples/pythia/io/message.hpp"
#include "examples/pythia/model/cuda_quantizer.hpp"

namespace pythia {
namespace {

namespace fs = std::filesystem;

struct QuantizeOptions {
  ModelOptions model;
  std::string out_dir;
};

RowQuantizer row_quantizer(DeviceType device) {
  if (device == DeviceType::cpu) return reference_row_quantizer();
  const auto quantizer = std::make_shared<CudaQuantizer>();
  return [quantizer](const float* w, std::int64_t rows, std::int64_t cols, std::int8_t* q,
                     float* scale) { return quantizer->quantize(w, rows, cols, q, scale); };
}

/// What makes a directory load by itself besides the weights.
void copy_companions(const fs::path& from, const fs::path& to) {
  for (const char* name : {"config.json", "tokenizer.json", "generation_config.json",
                           "tokenizer_config.json", "special_tokens_map.json"}) {
    if (!fs::exists(from / name)) continue;
    std::error_code error;
    fs::copy_file(from / name, to / name, error);
    if (error) throw system_error(to / name, "write", error.value());
  }
}

void refuse_int8(const WeightSource& source, const std::vector<WeightSpec>& weights,
                 const fs::path& dir) {
  for (const WeightSpec& spec : weights) {
    if (source.dtype(spec) == DType::i8) {
      throw mismatch(dir, "tensor " + spec.name, "F16, BF16 or F32", "I8: it is quantized already");
    }
  }
}

void run_quantize(const QuantizeOptions& options) {
  const OutputFile json_file(options.model.json);
  const ModelSource source = model_source(options.model);
  if (!source.random_name.empty()) {
    throw Error("--model random:" + source.random_name + ": expected a checkpoint directory");
  }
  const auto start = std::chrono::steady_clock::now();
  const std::vector<WeightSpec> weights = list_weights(source_config(source));
  const auto data = open_weights(source, source_config(source), WeightType::int8);
  refuse_int8(*data, weights, source.dir);
  const ActivationType type = chosen_dtype(options.model);
  const std::uint64_t bytes = total_bytes(int8_checkpoint_specs(weights, type));

  const InterruptGuard interrupt;
  AtomicDirectory directory(options.out_dir);
  require_disk_space(directory.path(), bytes);
  const DeviceType device = chosen_device(options.model);
  {
    Progress progress("quantize", "tensors", static_cast<std::int64_t>(weights.size()));
    write_int8_checkpoint(*data, weights, type, row_quantizer(device), source.dir,
                          directory.path() / "model.safetensors", [&](std::int64_t done) {
                            interrupt.check();
                            progress.update(done);
                          });
  }
  copy_companions(source.dir, directory.path());
  interrupt.check();
  directory.commit();

  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  std::fprintf(stderr, "pythia: %s: %.1f MB in %.1f s\n", printable(options.out_dir).c_str(),
               static_cast<double>(bytes) / 1e6, elapsed.count());
  nlohmann::ordered_json json;
  json["out_dir"] = options.out_dir;
  json["weight_bytes"] = bytes;
  json["dtype"] = options.model.dtype;
  json["device"] = device == DeviceType::cuda ? "cuda" : "cpu";
  json["seconds"] = elapsed.count();
  json_file.write_json(json);
}

}  // namespace

void add_quantize(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("quantize", "Write a checkpoint with INT8 weights, one scale per channel");
  const auto options = std::make_shared<QuantizeOptions>();
  command->add_option(spellings("--out-dir"), options->out_dir, "directory to create")->required();
  add_model_options(*command, options->model);
  command->final_callback([options] { run_quantize(*options); });
}

}  // namespace pythia
