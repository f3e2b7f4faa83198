// The options every command shares, and what follows from them: where the model lies, how its
// engine is set up.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "examples/pythia/cli/cache_options.hpp"
#include "examples/pythia/io/config.hpp"
#include "examples/pythia/model/engine.hpp"
#include "examples/pythia/text/tokenizer.hpp"

namespace pythia {

/// "--prefill-len" as CLI11 wants it, in both spellings: "--prefill-len,--prefill_len".
std::string spellings(const std::string& option);

/// Check: an integer of at least `low`.
CLI::Range at_least(int low);

struct ModelOptions {
  std::string model;  ///< a directory, "random:NAME", or empty: the bundled model
  std::string mode;   ///< empty: not given, as for the others
  std::string weights;
  std::string dtype = "fp16";
  std::string device;
  std::string launches = "auto";
  CacheOptions cache;
  std::string json;
};

void add_model_options(CLI::App& command, ModelOptions& options);

/// The model directory, or the random shape, that the options name. Throws Error when it does not
/// exist.
ModelSource model_source(const ModelOptions& options);

/// Its tokenizer. Throws Error for random weights, which have none.
Tokenizer model_tokenizer(const ModelSource& source);

/// The shape, checked: --mode, overridden by --weights and the cache's options; INT8 weights by
/// default when the checkpoint holds such; --device, by default a usable GPU, otherwise the CPU
/// with a line on stderr that says why. batch_size and max_tokens are left to the command.
EngineOptions engine_options(const ModelOptions& options, const ModelSource& source);

/// --device as engine_options() settles it.
DeviceType chosen_device(const ModelOptions& options);
ActivationType chosen_dtype(const ModelOptions& options);

/// Throws Error when `tokens` run past the model's context: under full attention always; where keys
/// are evicted only a warning is printed. `what` says what they are ("prompt 12 + --max-new-tokens
/// 4000").
void check_context(const Config& config, const EngineOptions& options, std::int64_t tokens,
                   const std::string& what);

/// "fp16", "int8", "int8-h2o", "fp16-streaming" and so on, for humans.
std::string mode_name(const EngineOptions& options);
std::string dtype_name(ActivationType type);

}  // namespace pythia
