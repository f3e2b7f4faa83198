// pythia generate: continue a prompt, streaming whole characters as they come.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "examples/pythia/cli/commands.hpp"
#include "examples/pythia/cli/input.hpp"
#include "examples/pythia/cli/options.hpp"
#include "examples/pythia/cli/output_file.hpp"
#include "examples/pythia/io/error.hpp"
#include "examples/pythia/model/weights.hpp"
#include "examples/pythia/text/utf8.hpp"

namespace pythia {
namespace {

using Clock = std::chrono::steady_clock;

struct GenerateOptions {
  ModelOptions model;
  std::string prompt;
  int max_new_tokens = 128;
  SamplingOptions sampling;
};

struct Generation {
  std::vector<std::int32_t> ids;  ///< without the end of text
  std::string text;
  bool ended = false;        ///< by end of text
  double first_token = 0.0;  ///< seconds from the start of prefill to the first token
  double decoding = 0.0;     ///< seconds from there to the last
  int decode_steps = 0;
};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Prints each character once it is complete.
class TextStream {
 public:
  explicit TextStream(std::string* text) : text_(text) {}
  void push(const std::string& bytes) { print(utf8_.push(bytes)); }
  void finish() { print(utf8_.finish()); }

 private:
  void print(const std::string& characters) {
    if (characters.empty()) return;
    write_stdout(characters);
    *text_ += characters;
  }

  Utf8Stream utf8_;
  std::string* text_;
};

/// options.sampling says which tokens end the text.
Generation generate(Engine& engine, const Tokenizer& tokenizer,
                    const std::vector<std::int32_t>& prompt, const GenerateOptions& options) {
  Generation result;
  TextStream stream(&result.text);
  const auto start = Clock::now();
  std::int32_t id = engine.start({prompt}, options.sampling).at(0);
  result.first_token = seconds_since(start);
  engine.expect_next(options.max_new_tokens - 1);
  const auto decode_start = Clock::now();
  for (;;) {
    result.ended = options.sampling.stops_at(id);
    if (result.ended) break;
    result.ids.push_back(id);
    stream.push(tokenizer.bytes(id));
    if (static_cast<int>(result.ids.size()) == options.max_new_tokens) break;
    id = engine.next().at(0);
    ++result.decode_steps;
  }
  result.decoding = seconds_since(decode_start);
  stream.finish();
  return result;
}

/// What a range check on the command line lets through: NaN, and a top-p of 0.
void check_sampling(const SamplingOptions& sampling) {
  if (!(sampling.temperature >= 0.0f)) {
    throw Error("--temperature: expected a number of at least 0, found " +
                std::to_string(sampling.temperature));
  }
  if (!(sampling.top_p > 0.0f)) {
    throw Error("--top-p: expected a number above 0 and at most 1, found " +
                std::to_string(sampling.top_p));
  }
}

void run_generate(GenerateOptions options, bool prompt_given) {
  check_sampling(options.sampling);
  const OutputFile output(options.model.json);
  const ModelSource source = model_source(options.model);
  const Config config = source_config(source);
  const Tokenizer tokenizer = model_tokenizer(source);
  const std::string origin = prompt_given ? "--prompt" : "standard input";
  const std::vector<std::int32_t> prompt =
      tokenizer.encode(prompt_given ? repaired(origin, options.prompt) : read_stdin());
  if (prompt.empty()) throw Error(origin + ": expected a prompt of at least one token, found none");
  const std::int64_t prompt_tokens = static_cast<std::int64_t>(prompt.size());
  if (prompt_tokens > config.max_position) {
    throw Error(origin + ": expected a prompt of at most " + std::to_string(config.max_position) +
                " tokens (the model's context), found " + std::to_string(prompt_tokens));
  }

  EngineOptions engine_setup = engine_options(options.model, source);
  check_context(config, engine_setup, prompt_tokens + options.max_new_tokens,
                "prompt " + std::to_string(prompt_tokens) + " + --max-new-tokens " +
                    std::to_string(options.max_new_tokens));
  engine_setup.max_tokens = static_cast<int>(prompt_tokens + options.max_new_tokens);
  engine_setup.max_prompt = static_cast<int>(prompt_tokens);
  options.sampling.vocab_limit = std::min(tokenizer.size(), config.vocab_size);
  options.sampling.stop[0] = config.eos_token_id;
  options.sampling.stop[1] = tokenizer.end_of_text();

  const std::unique_ptr<Engine> engine = make_engine(source, engine_setup);
  const Generation result = generate(*engine, tokenizer, prompt, options);
  const double rate = result.decode_steps > 0 ? result.decode_steps / result.decoding : 0.0;
  const bool line_is_open = !result.text.empty() && result.text.back() != '\n';
  std::fprintf(stderr,
               "%spythia: %zu tokens, %.1f tokens/s, time to first token %.1f ms, mode %s (%s), "
               "device %s\n",
               line_is_open ? "\n" : "", result.ids.size(), rate, 1e3 * result.first_token,
               mode_name(engine_setup).c_str(), options.model.dtype.c_str(),
               engine->device_name().c_str());

  nlohmann::ordered_json json;
  json["token_ids"] = result.ids;
  json["text"] = result.text;
  json["prompt_token_ids"] = prompt;
  json["stopped_by"] = result.ended ? "end_of_text" : "max_new_tokens";
  json["tokens_per_second"] = rate;
  json["time_to_first_token_ms"] = 1e3 * result.first_token;
  json["mode"] = mode_name(engine_setup);
  json["cache"] = cache_json(engine_setup);
  json["dtype"] = options.model.dtype;
  json["device"] = engine->device_name();
  json["peak_device_bytes"] = engine->peak_device_bytes();
  output.write_json(json);
}

}  // namespace

void add_generate(CLI::App& app) {
  CLI::App* command = app.add_subcommand("generate", "Continue a prompt");
  const auto options = std::make_shared<GenerateOptions>();
  SamplingOptions& sampling = options->sampling;
  CLI::Option* prompt =
      command->add_option("--prompt", options->prompt, "the prompt (default: standard input)");
  command->add_option(spellings("--max-new-tokens"), options->max_new_tokens, "stop after so many")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  command->add_option("--temperature", sampling.temperature, "0: always the most likely token")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  command
      ->add_option(spellings("--top-k"), sampling.top_k, "sample among the k most likely; 0: all")
      ->check(at_least(0))
      ->capture_default_str();
  command
      ->add_option(spellings("--top-p"), sampling.top_p,
                   "sample among the most likely that make up this probability")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command->add_option("--seed", sampling.seed, "of the random numbers")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  add_model_options(*command, options->model);
  command->final_callback([options, prompt] { run_generate(*options, prompt->count() > 0); });
}

}  // namespace pythia
