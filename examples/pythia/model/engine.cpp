// What any engine checks, and the choice of the engine for the device that was asked for.
#include "examples/pythia/model/engine.hpp"

#include <cstdint>

#include "examples/pythia/io/error.hpp"
#include "examples/pythia/model/cuda_engine.hpp"
#include "examples/pythia/model/host_engine.hpp"

namespace pythia {
namespace {

constexpr std::int64_t kMostSlots = 1 << 24;

void check_at_least(const std::string& name, int value, int least) {
  if (value >= least) return;
  throw Error(name + ": expected at least " + std::to_string(least) + ", found " +
              std::to_string(value));
}

/// `name` must be 0 under a policy that keeps no such keys.
void check_none(const std::string& name, int value, const std::string& policy) {
  if (value == 0) return;
  throw Error(name + ": expected 0 with policy " + policy + ", found " + std::to_string(value));
}

}  // namespace

EngineOptions checked(const EngineOptions& options) {
  check_at_least("batch_size", options.batch_size, 1);
  check_at_least("max_tokens", options.max_tokens, 1);
  check_at_least("sinks", options.sinks, 0);
  check_at_least("heavy", options.heavy, 0);
  check_at_least("recent", options.recent, 0);
  check_at_least("evict_every", options.evict_every, 1);
  if (options.policy == Policy::full) return options;
  const std::int64_t budget = std::int64_t{options.sinks} + options.heavy + options.recent;
  if (budget < 1 || budget + options.evict_every > kMostSlots) {
    throw Error("H2O budget (sinks + heavy + recent): expected 1 to " +
                std::to_string(kMostSlots - options.evict_every) + " keys, found " +
                std::to_string(budget));
  }
  if (options.policy == Policy::streaming) check_none("heavy", options.heavy, "streaming");
  if (options.policy == Policy::window) {
    check_none("heavy", options.heavy, "window");
    check_none("sinks", options.sinks, "window");
  }
  if (options.policy == Policy::random) check_at_least("recent, with random", options.recent, 1);
  return options;
}

StepProfile Engine::profile_step() {
  throw Error("profile: expected a GPU, found " + device_name());
}

std::unique_ptr<Engine> make_engine(const ModelSource& source, const EngineOptions& options) {
  return options.device == DeviceType::cuda ? make_cuda_engine(source, options)
                                            : make_host_engine(source, options);
}

}  // namespace pythia
