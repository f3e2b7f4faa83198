#include "examples/pythia/cli/cache_options.hpp"

#include <map>

#include "examples/pythia/cli/options.hpp"
#include "examples/pythia/io/error.hpp"

namespace pythia {
namespace {

using waterweight::h2o_granularity;

constexpr int kDefaultSinks = 4;  // of streaming, as its authors use it
constexpr int kMostSlots = 1 << 24;

const std::map<std::string, Policy> kPolicies = {{"full", Policy::full},
                                                 {"h2o", Policy::h2o},
                                                 {"streaming", Policy::streaming},
                                                 {"window", Policy::window},
                                                 {"random", Policy::random}};

const std::map<std::string, h2o_granularity> kGranularities = {
    {"head", h2o_granularity::per_head},
    {"layer", h2o_granularity::per_layer},
    {"model", h2o_granularity::per_model}};

template <class Value>
std::string name_of(const std::map<std::string, Value>& names, Value value) {
  for (const auto& [name, named] : names) {
    if (named == value) return name;
  }
  return "";
}

template <class Value>
CLI::IsMember one_of(const std::map<std::string, Value>& names) {
  std::vector<std::string> keys;
  for (const auto& entry : names) keys.push_back(entry.first);
  return CLI::IsMember(keys);
}

bool chooses_by_score(Policy policy) { return policy == Policy::h2o || policy == Policy::random; }

Policy chosen_policy(const CacheOptions& options, bool h2o_mode) {
  if (options.policy.empty()) {
    const bool h2o = options.kv.empty() ? h2o_mode : options.kv == "h2o";
    return h2o ? Policy::h2o : Policy::full;
  }
  if (!options.kv.empty() && (options.kv == "full") != (options.policy == "full")) {
    throw Error("--policy " + options.policy + ": contradicts --kv " + options.kv);
  }
  return kPolicies.at(options.policy);
}

/// Throws Error when an option was given that means nothing under the policy.
void refuse(bool given, const std::string& option, Policy policy, const std::string& where) {
  if (!given) return;
  throw Error(option + ": means nothing with --policy " + policy_name(policy) +
              ", expected it only with " + where);
}

/// `value` of at least `least`, which the policy needs.
int needed(const std::string& option, int value, int least, Policy policy) {
  if (value >= least) return value;
  throw Error(option + ": expected at least " + std::to_string(least) + " with --policy " +
              policy_name(policy) + ", found " + std::to_string(value));
}

void refuse_budget_of_full(const CacheOptions& options) {
  // Without an explicit --policy full the budget is what --mode int8-h2o would use: no mistake.
  const bool asked = options.policy == "full";
  const std::string evicting = "a policy that evicts";
  refuse(asked && options.recent, "--window", Policy::full, evicting);
  refuse(asked && options.heavy, "--h2o_hh", Policy::full, evicting);
  refuse(asked && options.sinks, "--sinks", Policy::full, evicting);
  refuse(options.evict_every.has_value(), "--evict-every", Policy::full, evicting);
}

void settle_budget(const CacheOptions& options, EngineOptions* engine) {
  const Policy policy = engine->policy;
  engine->recent = options.recent.value_or(engine->recent);
  if (chooses_by_score(policy)) {
    engine->heavy = options.heavy.value_or(engine->heavy);
  } else {
    refuse(options.heavy.value_or(0) > 0, "--h2o_hh", policy, "h2o and random");
    engine->heavy = 0;
  }
  if (policy == Policy::window) {
    refuse(options.sinks.value_or(0) > 0, "--sinks", policy, "h2o, streaming and random");
    engine->sinks = 0;
  } else {
    engine->sinks = options.sinks.value_or(policy == Policy::streaming ? kDefaultSinks : 0);
  }
  engine->evict_every = options.evict_every.value_or(1);

  const std::int64_t budget = std::int64_t{engine->recent} + engine->heavy + engine->sinks;
  if (budget < 1 || budget + engine->evict_every > kMostSlots) {
    throw Error("--window + --h2o_hh + --sinks: expected a budget from 1 to " +
                std::to_string(kMostSlots - engine->evict_every) + ", found " +
                std::to_string(budget));
  }
  if (policy == Policy::streaming) needed("--sinks", engine->sinks, 1, policy);
  if (policy == Policy::random) needed("--h2o_hh", engine->heavy, 1, policy);
  if (policy != Policy::h2o) needed("--window", engine->recent, 1, policy);
}

}  // namespace

void add_cache_options(CLI::App& command, CacheOptions& options) {
  const auto add = [&](const std::string& names, auto& value, const std::string& help) {
    return command.add_option(names, value, help)->group("KV cache");
  };
  add("--kv", options.kv, "full or h2o: shorthand for --policy")
      ->check(CLI::IsMember({"full", "h2o"}));
  add("--policy", options.policy,
      "which keys are kept: full (all), h2o (sinks, heavy hitters and recent tokens), streaming "
      "(sinks and recent), window (recent) or random (h2o with the heavy hitters drawn at random)")
      ->check(one_of(kPolicies));
  add("--window", options.recent, "most recent tokens kept (default: 252)")->check(at_least(0));
  add(spellings("--h2o-hh"), options.heavy, "heavy hitters kept (default: 252)")
      ->check(at_least(0));
  add("--sinks", options.sinks, "first tokens kept (default: 0, streaming: 4)")->check(at_least(0));
  add("--granularity", options.granularity,
      "with h2o and random: which heads keep the same tokens; head: each its own (default), layer: "
      "those of a layer, model: all")
      ->check(one_of(kGranularities));
  add(spellings("--evict-every"), options.evict_every,
      "tokens from one eviction to the next, for which the cache has room besides (default: 1)")
      ->check(CLI::Range(1, kMostSlots - 1));
  add(spellings("--policy-seed"), options.seed, "of the draws of random (default: 0)")
      ->check(CLI::NonNegativeNumber);
}

void settle_cache(const CacheOptions& options, bool h2o_mode, EngineOptions* engine) {
  engine->policy = chosen_policy(options, h2o_mode);
  refuse(!options.granularity.empty() && !chooses_by_score(engine->policy), "--granularity",
         engine->policy, "h2o and random");
  refuse(options.seed && engine->policy != Policy::random, "--policy-seed", engine->policy,
         "random");
  if (engine->policy == Policy::full) {
    refuse_budget_of_full(options);
    return;
  }
  settle_budget(options, engine);
  if (!options.granularity.empty()) engine->granularity = kGranularities.at(options.granularity);
  engine->policy_seed = options.seed.value_or(0);
}

std::string policy_name(Policy policy) { return name_of(kPolicies, policy); }

nlohmann::ordered_json cache_json(const EngineOptions& engine) {
  nlohmann::ordered_json json;
  json["policy"] = policy_name(engine.policy);
  if (engine.policy == Policy::full) return json;
  json["window"] = engine.recent;
  json["heavy"] = engine.heavy;
  json["sinks"] = engine.sinks;
  json["evict_every"] = engine.evict_every;
  if (chooses_by_score(engine.policy)) {
    json["granularity"] = name_of(kGranularities, engine.granularity);
  }
  if (engine.policy == Policy::random) json["policy_seed"] = engine.policy_seed;
  return json;
}

}  // namespace pythia
