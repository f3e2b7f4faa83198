// The options that say which keys the cache keeps, and whether they go together.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "examples/pythia/model/engine.hpp"

namespace pythia {

struct CacheOptions {
  std::string kv;  ///< empty: not given, as for the others
  std::string policy;
  std::optional<int> recent;
  std::optional<int> heavy;
  std::optional<int> sinks;
  std::string granularity;
  std::optional<int> evict_every;
  std::optional<std::uint64_t> seed;
};

void add_cache_options(CLI::App& command, CacheOptions& options);

/// Fills in what `engine` says of the cache: --policy, else --kv, else h2o or full as `h2o_mode`
/// says. Throws Error for options that contradict each other or mean nothing under the policy.
void settle_cache(const CacheOptions& options, bool h2o_mode, EngineOptions* engine);

/// "full", "h2o", "streaming", "window" or "random".
std::string policy_name(Policy policy);

/// Policy, and budget, granularity and eviction interval where the policy has them.
nlohmann::ordered_json cache_json(const EngineOptions& engine);

}  // namespace pythia
