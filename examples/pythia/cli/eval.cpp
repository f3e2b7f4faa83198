// pythia eval: the perplexity of a text or of token ids.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "examples/pythia/cli/commands.hpp"
#include "examples/pythia/cli/commit.hpp"
#include "examples/pythia/cli/input.hpp"
#include "examples/pythia/cli/options.hpp"
#include "examples/pythia/cli/output_file.hpp"
#include "examples/pythia/cli/progress.hpp"
#include "examples/pythia/cli/windows.hpp"
#include "examples/pythia/io/error.hpp"
#include "examples/pythia/model/weights.hpp"

namespace pythia {
namespace {

constexpr int kDefaultPrefill = 500;

struct EvalOptions {
  ModelOptions model;
  std::string text_file;
  std::string ids_file;
  int window_length = 0;   ///< 0: the model's context
  int stride = 0;          ///< 0: the window length
  int prefill_length = 0;  ///< 0: nothing is decoded; see settle_lengths()
  int max_windows = 0;     ///< 0: all
  std::string logits_file;

  bool decodes() const { return prefill_length > 0; }
};

struct Evaluation {
  double nll_sum = 0.0;
  std::int64_t scored = 0;
  std::int64_t windows = 0;
  std::vector<float> last_logits;

  double mean_nll() const { return nll_sum / static_cast<double>(scored); }
};

std::vector<std::int32_t> input_ids(const EvalOptions& options, const ModelSource& source,
                                    const Config& config) {
  const std::string& file = options.ids_file.empty() ? options.text_file : options.ids_file;
  std::vector<std::int32_t> ids;
  if (options.ids_file.empty()) {
    ids = model_tokenizer(source).encode(read_text(file));
    for (const std::int32_t id : ids) {
      if (id >= config.vocab_size) {
        throw Error(file + ": tokenizer.json gives id " + std::to_string(id) +
                    ", but config.json says vocab_size " + std::to_string(config.vocab_size));
      }
    }
  } else {
    ids = to_ids(read_json(file), file, "", config.vocab_size);
  }
  if (ids.size() < 2) {
    throw Error(file + ": expected at least 2 tokens, found " + std::to_string(ids.size()));
  }
  return ids;
}

/// Fills in the defaults and checks the lengths against each other. Under full attention nothing is
/// decoded unless --prefill_len asks for it; an evicting policy shows only in decoding.
void settle_lengths(EvalOptions& options, const Config& config, const EngineOptions& engine) {
  if (options.window_length == 0) options.window_length = config.max_position;
  if (options.stride == 0) options.stride = options.window_length;
  if (options.stride > options.window_length) {
    throw Error("--stride: expected at most the window length " +
                std::to_string(options.window_length) + ", found " +
                std::to_string(options.stride));
  }
  check_context(config, engine, options.window_length, "--window-len");
  if (engine.policy != Policy::full && !options.decodes()) {
    options.prefill_length = std::min(kDefaultPrefill, options.window_length / 2);
  }
  if (options.prefill_length >= options.window_length) {
    throw Error("--prefill_len: expected less than the window length " +
                std::to_string(options.window_length) + ", found " +
                std::to_string(options.prefill_length));
  }
  if (options.prefill_length > config.max_position) {
    throw Error("--prefill_len: expected at most the model's context of " +
                std::to_string(config.max_position) + ", found " +
                std::to_string(options.prefill_length));
  }
}

/// One window. Where it is decoded, one no longer than the prefill has nothing to score: it is run
/// for its logits.
Scores score_window(Engine& engine, const std::vector<std::int32_t>& ids, int prefill) {
  if (prefill == 0) return engine.score(ids);
  if (static_cast<int>(ids.size()) > prefill) return engine.score_decoded(ids, prefill);
  Scores scores = engine.score(ids);
  scores.nll.clear();
  return scores;
}

Evaluation evaluate(Engine& engine, const EvalOptions& options,
                    const std::vector<std::int32_t>& ids) {
  Evaluation result;
  std::vector<Window> windows = perplexity_windows(static_cast<std::int64_t>(ids.size()),
                                                   options.window_length, options.stride);
  const auto most = static_cast<std::size_t>(options.max_windows);
  if (most > 0 && windows.size() > most) windows.resize(most);
  result.windows = static_cast<std::int64_t>(windows.size());
  Progress progress("eval", "windows", result.windows);
  std::int64_t done = 0;
  for (const Window& window : windows) {
    const std::vector<std::int32_t> part(ids.begin() + window.begin, ids.begin() + window.end);
    Scores scores = score_window(engine, part, options.prefill_length);
    const std::int64_t first_token = window.begin + std::max(options.prefill_length, 1);
    const std::int64_t skip = std::max<std::int64_t>(window.scored_from - first_token, 0);
    for (std::size_t i = static_cast<std::size_t>(skip); i < scores.nll.size(); ++i) {
      result.nll_sum += scores.nll[i];
      ++result.scored;
    }
    result.last_logits = std::move(scores.last_logits);
    progress.update(++done);
  }
  return result;
}

/// fp32, little-endian, whatever the machine's order is.
std::string raw_floats(const std::vector<float>& values) {
  std::string bytes;
  bytes.reserve(4 * values.size());
  for (const float value : values) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    for (int shift = 0; shift < 32; shift += 8) bytes.push_back(static_cast<char>(bits >> shift));
  }
  return bytes;
}

void run_eval(EvalOptions options) {
  if (options.text_file.empty() == options.ids_file.empty()) {
    throw Error("eval: expected one of --text FILE and --token-ids FILE");
  }
  const OutputFile json_file(options.model.json);
  const OutputFile logits_file(options.logits_file);
  const ModelSource source = model_source(options.model);
  const Config config = source_config(source);
  const std::vector<std::int32_t> ids = input_ids(options, source, config);
  EngineOptions engine_setup = engine_options(options.model, source);
  settle_lengths(options, config, engine_setup);
  const int longest = static_cast<int>(
      std::min<std::size_t>(ids.size(), static_cast<std::size_t>(options.window_length)));
  engine_setup.max_tokens = longest;
  engine_setup.max_prompt = options.decodes() ? std::min(longest, options.prefill_length) : longest;

  const auto start = std::chrono::steady_clock::now();
  const std::unique_ptr<Engine> engine = make_engine(source, engine_setup);
  const Evaluation result = evaluate(*engine, options, ids);
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  if (result.scored == 0) {
    throw Error((options.ids_file.empty() ? options.text_file : options.ids_file) +
                ": expected more tokens than --prefill_len " +
                std::to_string(options.prefill_length) + ", found " + std::to_string(ids.size()));
  }

  const double mean_nll = result.mean_nll();
  char line[256];
  std::snprintf(line, sizeof(line), "perplexity %.4f  mean NLL %.6f  tokens %zu  scored %lld\n",
                std::exp(mean_nll), mean_nll, ids.size(), static_cast<long long>(result.scored));
  write_stdout(line);
  std::fprintf(stderr, "pythia: %.1f s, mode %s (%s), device %s\n", elapsed.count(),
               mode_name(engine_setup).c_str(), options.model.dtype.c_str(),
               engine->device_name().c_str());

  nlohmann::ordered_json json;
  json["mean_nll"] = mean_nll;
  json["perplexity"] = std::exp(mean_nll);
  json["tokens"] = ids.size();
  json["tokens_scored"] = result.scored;
  json["window_len"] = options.window_length;
  json["stride"] = options.stride;
  json["windows"] = result.windows;
  if (options.decodes()) json["prefill_len"] = options.prefill_length;
  json["mode"] = mode_name(engine_setup);
  json["cache"] = cache_json(engine_setup);
  json["dtype"] = options.model.dtype;
  json["device"] = engine->device_name();
  json["peak_device_bytes"] = engine->peak_device_bytes();
  json["seconds"] = elapsed.count();
  json["commit"] = commit();
  if (logits_file) logits_file.write(raw_floats(result.last_logits));
  json_file.write_json(json);
}

}  // namespace

void add_eval(CLI::App& app) {
  CLI::App* command = app.add_subcommand("eval", "Perplexity of a text or of token ids");
  const auto options = std::make_shared<EvalOptions>();
  auto* text = command->add_option("--text", options->text_file, "text file");
  command
      ->add_option(spellings("--token-ids"), options->ids_file,
                   "file with a JSON array of token ids, taken as they are")
      ->excludes(text);
  command
      ->add_option(spellings("--window-len"), options->window_length,
                   "tokens per window (default: the model's context)")
      ->check(at_least(2));
  command
      ->add_option("--stride", options->stride,
                   "tokens from one window to the next (default: the window length); each further "
                   "window scores only its new tokens")
      ->check(at_least(1));
  command
      ->add_option(spellings("--prefill-len"), options->prefill_length,
                   "tokens of each window that are prefilled; the rest is decoded and scored "
                   "(default: 500, or half a shorter window, where the policy evicts; with full "
                   "attention nothing is decoded)")
      ->check(at_least(1));
  command
      ->add_option(spellings("--max-windows"), options->max_windows,
                   "score only so many windows from the start (default: all)")
      ->check(at_least(1));
  command->add_option("--logits", options->logits_file,
                      "write the last position's logits to this file, raw little-endian fp32");
  add_model_options(*command, options->model);
  command->final_callback([options] { run_eval(*options); });
}

}  // namespace pythia
