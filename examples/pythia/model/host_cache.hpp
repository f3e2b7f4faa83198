// The KV cache of the host path: the slots of every layer and the policy that keeps or evicts them.
#pragma once

#include <cstdint>
#include <vector>

#include <waterweight/types.hpp>

#include "examples/pythia/io/config.hpp"
#include "examples/pythia/model/engine.hpp"
#include "examples/pythia/model/random_scores.hpp"
#include "examples/pythia/model/thread_pool.hpp"

namespace pythia {

/// The three parts of a qkv buffer [rows, heads, 3, head_dim].
struct QkvViews {
  waterweight::heads_view<float> q, k, v;
};

class HostCache {
 public:
  HostCache(const Config& config, const EngineOptions& options);

  /// Stores a prompt's rotated keys and its values in the slots of one layer, dropping what exceeds
  /// the budget; with one set of kept keys for the whole model, when the last layer's have come.
  /// The layers come in order. qkv: one sequence of any length up to max_tokens. column_sums
  /// [heads, tokens]: not used where nothing evicts, changed where random draws replace them.
  void store_prompt(int layer, int sequence, const QkvViews& qkv, float* column_sums);

  /// One token of sequences 0 .. qkv.q.batch - 1 in one layer, before rotary embedding.
  void decode(ThreadPool& pool, int layer, const QkvViews& qkv,
              const waterweight::rotary_view& rotary, const waterweight::heads_view<float>& out);

  /// After all layers of a token of sequences 0 .. sequences - 1.
  void advance(int sequences);

  bool evicts() const { return evicts_; }
  int capacity() const { return capacity_; }
  std::int32_t step(int sequence) const { return step_[sequence]; }
  CacheSnapshot snapshot(int sequence, int layer) const;

 private:
  /// A prompt whose layers are not all there yet: [layers, tokens, heads, head_dim], the sums
  /// [layers, heads, tokens].
  struct Prompt {
    std::vector<float> k, v, column_sums;
  };

  bool one_set() const;
  std::size_t head_index(int layer, int sequence) const;

  /// Views of `sequences` sequences from `first` on.
  waterweight::kv_cache_view<float> slots(int layer, int first, int sequences);
  waterweight::h2o_state_view all_layers(int first);
  waterweight::h2o_state_view state(int layer, int first);

  void store_whole_model(int sequence, int tokens);
  void draw_scores(int sequences);

  bool evicts_;
  bool random_;
  waterweight::h2o_policy policy_;  ///< the default where nothing evicts
  RandomScores draw_;
  int layers_, batch_, heads_, head_dim_, capacity_;
  std::vector<float> k_, v_;  ///< [layers, batch, heads, capacity, head_dim]
  std::vector<float> score_;  ///< [layers, batch, heads, capacity], empty where nothing evicts
  std::vector<std::int32_t> position_;   ///< the same
  std::vector<std::int32_t> free_slot_;  ///< [layers, batch, heads]
  std::vector<std::int32_t> step_, length_;
  Prompt prompt_;
};

}  // namespace pythia
