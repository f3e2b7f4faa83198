// What the commands ask of a loaded model, on the host or on a GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <waterweight/types.hpp>

#include "examples/pythia/io/config.hpp"

namespace pythia {

enum class WeightType { fp16, int8 };  // fp16 stands for the 16-bit activation type

/// Which keys the cache keeps when it runs out of room.
enum class Policy {
  full,       ///< all: it never runs out
  h2o,        ///< sinks, recent tokens, and the keys with the most accumulated attention
  streaming,  ///< sinks and recent tokens (StreamingLLM)
  window,     ///< recent tokens
  random,     ///< as h2o, but a random draw stands in for the accumulated attention
};

enum class ActivationType { fp16, bf16 };  // the host path computes in fp32 whatever this says
enum class DeviceType { cpu, cuda };

struct EngineOptions {
  WeightType weights = WeightType::fp16;
  Policy policy = Policy::full;
  ActivationType activations = ActivationType::fp16;
  DeviceType device = DeviceType::cuda;
  int batch_size = 1;
  int max_tokens = 2048;  ///< prompt + generated, the slots of a full cache
  int max_prompt = 0;     ///< longest prompt or fully scored window; 0: max_tokens

  // The policies that evict. window and streaming keep no heavy hitters, window no sinks; random
  // needs recent >= 1: a token has no draw yet in its own step.
  int sinks = 0;
  int heavy = 252;
  int recent = 252;
  int evict_every = 1;  ///< decoded tokens from one eviction to the next
  waterweight::h2o_granularity granularity = waterweight::h2o_granularity::per_head;
  std::uint64_t policy_seed = 0;  ///< of random's draws

  /// Decode in one kernel launch per token where the device and the model allow: see decode_path().
  bool one_launch_decode = true;
};

/// The options, unless they are impossible: then an Error is thrown.
EngineOptions checked(const EngineOptions& options);

/// What the options mean to the library, for a policy that evicts.
inline waterweight::h2o_policy eviction_policy(const EngineOptions& options) {
  return {options.sinks, options.heavy, options.recent, options.evict_every, options.granularity};
}

struct SamplingOptions {
  float temperature = 0.0f;  ///< 0: greedy
  int top_k = 0;             ///< 0: all
  float top_p = 1.0f;        ///< 1: all
  std::uint64_t seed = 0;
  int vocab_limit = 0;  ///< ids at or above are never chosen; 0: the config's vocab_size
  /// Ids that end a sequence, which repeats them from there on; negative: none.
  std::int32_t stop[2] = {-1, -1};

  WATERWEIGHT_HOST_DEVICE bool stops_at(std::int32_t id) const {
    return id >= 0 && (id == stop[0] || id == stop[1]);
  }
};

/// The answer to a teacher-forced pass over n tokens.
struct Scores {
  std::vector<float> nll;            ///< one per scored token, natural log
  std::vector<std::int32_t> argmax;  ///< the most likely next token after each scored position
  std::vector<float> last_logits;    ///< [vocab_size] after the last token
};

/// One sequence's bookkeeping in one layer, for tests: slots in ascending position per head.
struct CacheSnapshot {
  std::vector<std::vector<std::int32_t>> positions;  ///< [heads][kept]
  std::vector<std::vector<float>> scores;            ///< [heads][kept]
};

/// Where the time of a decode step goes.
struct StepProfile {
  /// All launches of one kind. They follow one another in the step; seconds is by how much the step
  /// became longer with each of them, so that what others hide of a launch is not counted. Among
  /// launches that run side by side one may take less than no time; the sum stays the step's. A
  /// launch that takes the whole step may stand there as the parts it consists of.
  struct Part {
    std::string kind;
    int launches = 0;    ///< 0: a part of one
    double bytes = 0.0;  ///< that must be read and written at least
    double seconds = 0.0;
    bool beside = false;  ///< happens while other parts do: its seconds are none of the step's
  };
  std::vector<Part> parts;  ///< in the order of their first launches
  double seconds = 0.0;     ///< of a step, measured apart from the parts
  double bytes = 0.0;       ///< weights, live keys and values
  double read_roof = 0.0;   ///< bytes per second that the device reads, measured before
};

class Engine {
 public:
  virtual ~Engine() = default;

  virtual const Config& config() const = 0;
  virtual std::string device_name() const = 0;
  /// Largest device memory in use so far, bytes; 0 on the host.
  virtual std::size_t peak_device_bytes() const = 0;
  /// How tokens are decoded, for reports. Results may differ in the last bits of attention's sums.
  virtual std::string decode_path() const = 0;

  /// Full causal attention over one window, whatever the policy. nll[i] is of ids[i + 1]; argmax
  /// has ids.size() entries, one per position.
  virtual Scores score(const std::vector<std::int32_t>& ids) = 0;

  /// Prefills `prefill_len` tokens, then decodes the rest teacher-forced under this engine's
  /// policy. Scores only the decoded tokens: nll has ids.size() - prefill_len entries, the first is
  /// that of ids[prefill_len]. argmax matches it entry by entry.
  virtual Scores score_decoded(const std::vector<std::int32_t>& ids, int prefill_len) = 0;

  /// Prefills one prompt per sequence (as many as batch_size) and samples one token from each.
  /// Returns these first tokens.
  virtual std::vector<std::int32_t> start(const std::vector<std::vector<std::int32_t>>& prompts,
                                          const SamplingOptions& sampling) = 0;

  /// One decode step: returns the next token of each sequence.
  virtual std::vector<std::int32_t> next() = 0;

  /// Says that next() is likely to be called so many times from now on. An engine may compute that
  /// far ahead; the tokens are the same, but cache_snapshot() shows what has been computed.
  virtual void expect_next([[maybe_unused]] int calls) {}

  /// `steps` decode steps without giving the tokens to the host in between; returns when the device
  /// has finished. For measuring.
  virtual void run(int steps) = 0;

  virtual CacheSnapshot cache_snapshot(int sequence, int layer) const = 0;

  /// Takes the step after start() apart; what was generated is lost then. Throws Error where that
  /// is not possible.
  virtual StepProfile profile_step();
};

/// Where the weights come from: a checkpoint directory (16/32-bit, or INT8 as `pythia quantize`
/// writes it), or "random:NAME".
struct ModelSource {
  std::filesystem::path dir;
  std::string random_name;  ///< non-empty: random weights of this size
};

/// Loads a model. Throws Error for bad input, a missing GPU, or too little memory (before loading).
std::unique_ptr<Engine> make_engine(const ModelSource& source, const EngineOptions& options);

}  // namespace pythia
