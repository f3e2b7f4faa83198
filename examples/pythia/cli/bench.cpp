// pythia bench: fp16, int8 and int8-h2o (or another policy) one after another, in one run.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "examples/pythia/cli/commands.hpp"
#include "examples/pythia/cli/commit.hpp"
#include "examples/pythia/cli/options.hpp"
#include "examples/pythia/cli/output_file.hpp"
#include "examples/pythia/io/error.hpp"
#include "examples/pythia/model/cuda_device.hpp"
#include "examples/pythia/model/weights.hpp"

namespace pythia {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kPrefillRuns = 5;
constexpr int kWarmUpSteps = 16;
constexpr int kTimedSteps = 200;  // timed one by one, apart from the run that gives tokens/s

struct BenchOptions {
  ModelOptions model;
  std::string ckpt_dir;
  int prefill_length = 500;
  int decode_length = 1000;
  int batch_size = 1;
  std::uint64_t seed = 0;
  double rest_seconds = 0.0;
  bool profile = false;
  std::vector<std::string> modes = {"fp16", "int8", "int8-h2o"};
};

struct Measurement {
  std::string mode;
  double first_token_ms = 0.0;
  double tokens_per_second = 0.0;
  double step_ms_median = 0.0;
  double step_ms_p5 = 0.0;
  double step_ms_p95 = 0.0;
  std::size_t peak_device_bytes = 0;
  std::string device;
  std::string decode_path;
  std::optional<StepProfile> profile;
};

template <class Function>
double seconds_of(const Function& function) {
  const auto start = Clock::now();
  function();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double quantile(std::vector<double> values, double fraction) {
  std::sort(values.begin(), values.end());
  return values[static_cast<std::size_t>(fraction * static_cast<double>(values.size() - 1) + 0.5)];
}

std::vector<std::vector<std::int32_t>> random_prompts(const BenchOptions& options,
                                                      const Config& config) {
  std::mt19937_64 random(options.seed);
  std::vector<std::vector<std::int32_t>> prompts(static_cast<std::size_t>(options.batch_size));
  for (auto& prompt : prompts) {
    prompt.resize(static_cast<std::size_t>(options.prefill_length));
    for (std::int32_t& id : prompt) {
      id = static_cast<std::int32_t>(random() % static_cast<std::uint64_t>(config.vocab_size));
    }
  }
  return prompts;
}

Measurement measure(const ModelSource& source, const EngineOptions& setup,
                    const BenchOptions& options) {
  Measurement result;
  result.mode = mode_name(setup);
  const std::unique_ptr<Engine> engine = make_engine(source, setup);
  result.device = engine->device_name();
  result.decode_path = engine->decode_path();
  const auto prompts = random_prompts(options, engine->config());
  const SamplingOptions greedy;

  engine->start(prompts, greedy);
  engine->run(std::min(kWarmUpSteps, options.decode_length));
  std::this_thread::sleep_for(std::chrono::duration<double>(options.rest_seconds));

  std::vector<double> first_token;
  for (int i = 0; i < kPrefillRuns; ++i) {
    first_token.push_back(seconds_of([&] { engine->start(prompts, greedy); }));
  }
  result.first_token_ms = 1e3 * quantile(first_token, 0.5);

  const double decoding = seconds_of([&] { engine->run(options.decode_length); });
  result.tokens_per_second = options.batch_size * options.decode_length / decoding;

  engine->start(prompts, greedy);
  std::vector<double> steps;
  for (int i = 0; i < std::min(kTimedSteps, options.decode_length); ++i) {
    steps.push_back(seconds_of([&] { engine->run(1); }));
  }
  result.step_ms_median = 1e3 * quantile(steps, 0.5);
  result.step_ms_p5 = 1e3 * quantile(steps, 0.05);
  result.step_ms_p95 = 1e3 * quantile(steps, 0.95);
  if (options.profile) {
    engine->start(prompts, greedy);
    result.profile = engine->profile_step();
  }
  result.peak_device_bytes = engine->peak_device_bytes();
  return result;
}

std::string table_row(const Measurement& m) {
  char row[256];
  std::snprintf(row, sizeof(row), "%-9s %12.2f %12.1f %9.3f %9.3f %9.3f %14.1f  %s\n",
                m.mode.c_str(), m.first_token_ms, m.tokens_per_second, m.step_ms_median,
                m.step_ms_p5, m.step_ms_p95, static_cast<double>(m.peak_device_bytes) / (1 << 20),
                m.decode_path.c_str());
  return row;
}

constexpr char kTableHead[] =
    "mode      first tok ms     tokens/s   step ms        p5       p95  peak GPU MiB  decoding\n";

std::string profile_line(const StepProfile::Part& part, const StepProfile& profile) {
  const double rate = part.seconds > 0.0 ? part.bytes / part.seconds : 0.0;
  char of_step[16] = "beside";
  if (!part.beside) {
    std::snprintf(of_step, sizeof(of_step), "%.1f%%", 100.0 * part.seconds / profile.seconds);
  }
  char line[160];
  std::snprintf(line, sizeof(line), "    %-15s %4d %10.2f %10.1f %9s %12.1f%%\n", part.kind.c_str(),
                part.launches, 1e-6 * part.bytes, 1e6 * part.seconds, of_step,
                profile.read_roof > 0.0 ? 100.0 * rate / profile.read_roof : 0.0);
  return line;
}

/// All parts together. What happens beside others adds its bytes, but no time.
StepProfile::Part sum_of(const std::vector<StepProfile::Part>& parts) {
  StepProfile::Part sum{"sum"};
  for (const StepProfile::Part& part : parts) {
    sum.launches += part.launches;
    sum.bytes += part.bytes;
    if (!part.beside) sum.seconds += part.seconds;
  }
  return sum;
}

std::string profile_table(const StepProfile& profile) {
  std::string table = "    part       launches         MB         us  of step  of read roof\n";
  for (const StepProfile::Part& part : profile.parts) table += profile_line(part, profile);
  table += profile_line(sum_of(profile.parts), profile);
  table += profile_line({"step", 1, profile.bytes, profile.seconds}, profile);
  char roof[64];
  std::snprintf(roof, sizeof(roof), "    read roof %.0f GB/s\n", 1e-9 * profile.read_roof);
  return table + roof;
}

std::string date_utc() {
  const std::time_t now = std::time(nullptr);
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", std::gmtime(&now));
  return text;
}

/// The kernel module's version line, empty where there is none.
std::string driver_version() {
  std::ifstream file("/proc/driver/nvidia/version");
  std::string line;
  std::getline(file, line);
  return line;
}

/// read_limit_share: the time that reading the step's bytes takes at the roof, of its time.
nlohmann::ordered_json to_json(const StepProfile& profile) {
  nlohmann::ordered_json json;
  json["read_roof_bytes_per_s"] = profile.read_roof;
  json["step_bytes"] = profile.bytes;
  json["step_us"] = 1e6 * profile.seconds;
  if (profile.read_roof > 0.0) {
    json["read_limit_share"] = profile.bytes / profile.read_roof / profile.seconds;
  }
  auto parts = nlohmann::ordered_json::array();
  for (const StepProfile::Part& part : profile.parts) {
    parts.push_back({{"kind", part.kind},
                     {"launches", part.launches},
                     {"bytes", part.bytes},
                     {"us", 1e6 * part.seconds},
                     {"beside", part.beside}});
  }
  json["sum_us"] = 1e6 * sum_of(profile.parts).seconds;
  json["parts"] = parts;
  return json;
}

nlohmann::ordered_json to_json(const Measurement& m) {
  nlohmann::ordered_json json;
  json["mode"] = m.mode;
  json["decode_path"] = m.decode_path;
  json["time_to_first_token_ms"] = m.first_token_ms;
  json["tokens_per_second"] = m.tokens_per_second;
  json["step_ms"] = {{"median", m.step_ms_median}, {"p5", m.step_ms_p5}, {"p95", m.step_ms_p95}};
  json["peak_device_bytes"] = m.peak_device_bytes;
  if (m.profile) json["profile"] = to_json(*m.profile);
  return json;
}

void run_bench(const BenchOptions& options) {
  if (!options.model.mode.empty() || !options.model.weights.empty() ||
      !options.model.cache.kv.empty()) {
    throw Error("bench: runs fp16, int8 and int8-h2o; expected no --mode, --weights or --kv");
  }
  if (options.model.cache.policy == "full") {
    throw Error("bench: expected a --policy that evicts, in the place of h2o, found full");
  }
  if (options.profile && chosen_device(options.model) != DeviceType::cuda) {
    throw Error("--profile: expected a GPU, found the host");
  }
  const OutputFile output(options.model.json);
  const ModelSource source = model_source(options.model);
  const Config config = source_config(source);
  ModelSource int8_source = source;
  if (!options.ckpt_dir.empty()) {
    ModelOptions checkpoint;
    checkpoint.model = options.ckpt_dir;
    int8_source = model_source(checkpoint);
  }

  nlohmann::ordered_json json;
  json["model"] = source.random_name.empty() ? source.dir.string() : "random:" + source.random_name;
  json["dtype"] = options.model.dtype;
  json["batch_size"] = options.batch_size;
  json["prefill_len"] = options.prefill_length;
  json["decode_len"] = options.decode_length;
  json["seed"] = options.seed;
  json["rest_s"] = options.rest_seconds;
  json["date"] = date_utc();
  json["commit"] = commit();

  ModelOptions model = options.model;
  model.device = chosen_device(options.model) == DeviceType::cuda ? "cuda" : "cpu";
  std::string device;
  auto results = nlohmann::ordered_json::array();
  for (const std::string& mode : options.modes) {
    model.mode = mode;
    const bool evicting = model.mode == "int8-h2o";
    model.cache = evicting ? options.model.cache : CacheOptions{};
    EngineOptions setup = engine_options(model, source);
    const ModelSource& weights = setup.weights == WeightType::int8 ? int8_source : source;
    const std::int64_t tokens = std::int64_t{options.prefill_length} + options.decode_length;
    check_context(config, setup, tokens, "--prefill_len + --decode_len");
    if (evicting) json["cache"] = cache_json(setup);
    setup.batch_size = options.batch_size;
    setup.max_tokens = static_cast<int>(tokens);
    setup.max_prompt = options.prefill_length;
    const Measurement measurement = measure(weights, setup, options);
    if (results.empty()) {
      device = measurement.device;
      write_stdout(device + ", batch " + std::to_string(options.batch_size) + ", prompt " +
                   std::to_string(options.prefill_length) + ", decode " +
                   std::to_string(options.decode_length) + ", " + options.model.dtype + "\n" +
                   kTableHead);
    }
    write_stdout(table_row(measurement));
    if (measurement.profile) write_stdout(profile_table(*measurement.profile));
    results.push_back(to_json(measurement));
  }
  json["device"] = device;
  json["driver"] = model.device == "cuda" ? driver_version() : "";
  json["cuda"] = query_cuda().driver;
  json["results"] = results;
  output.write_json(json);
}

}  // namespace

void add_bench(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("bench", "Speed and memory of fp16, int8 and int8-h2o, one after another");
  const auto options = std::make_shared<BenchOptions>();
  command->add_option(spellings("--ckpt-dir"), options->ckpt_dir,
                      "INT8 checkpoint for the int8 modes (default: quantize when loading)");
  command->add_option(spellings("--prefill-len"), options->prefill_length, "tokens of each prompt")
      ->check(at_least(1))
      ->capture_default_str();
  command->add_option(spellings("--decode-len"), options->decode_length, "decode steps")
      ->check(at_least(1))
      ->capture_default_str();
  command->add_option(spellings("--batch-size"), options->batch_size, "sequences at a time")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command->add_option("--seed", options->seed, "of the random prompts")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command
      ->add_option(
          "--rest", options->rest_seconds,
          "seconds without work before each mode is timed: a GPU lowers its clock for power "
          "that was drawn before")
      ->check(CLI::Range(0.0, 60.0))
      ->capture_default_str();
  command
      ->add_option("--modes", options->modes,
                   "which of fp16, int8 and int8-h2o, separated by commas")
      ->delimiter(',')
      ->check(CLI::IsMember({"fp16", "int8", "int8-h2o"}))
      ->capture_default_str();
  command->add_flag(
      "--profile", options->profile,
      "also take the decode step apart: launches, bytes, time, share of the read roof");
  add_model_options(*command, options->model);
  command->final_callback([options] { run_bench(*options); });
}

}  // namespace pythia
