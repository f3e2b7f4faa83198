// The KV cache of the host path: the slots of every layer, full or under H2O.
#pragma once

#include <cstdint>
#include <vector>

#include <waterweight/types.hpp>

#include "examples/pythia/io/config.hpp"
#include "examples/pythia/model/engine.hpp"
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
  /// the H2O budget. qkv: one sequence of any length up to max_tokens. column_sums [heads, tokens].
  void store_prompt(int layer, int sequence, const QkvViews& qkv, const float* column_sums);

  /// One token of sequences 0 .. qkv.q.batch - 1 in one layer, before rotary embedding.
  void decode(ThreadPool& pool, int layer, const QkvViews& qkv,
              const waterweight::rotary_view& rotary, const waterweight::heads_view<float>& out);

  /// After all layers of a token of sequences 0 .. sequences - 1.
  void advance(int sequences);

  bool h2o() const { return h2o_; }
  int capacity() const { return capacity_; }
  std::int32_t step(int sequence) const { return step_[sequence]; }
  CacheSnapshot snapshot(int sequence, int layer) const;

 private:
  struct Layer {
    std::vector<float> k, v, score;
    std::vector<std::int32_t> position, free_slot;
  };

  /// Views of `sequences` sequences from `first` on.
  waterweight::kv_cache_view<float> slots(Layer& layer, int first, int sequences) const;
  waterweight::h2o_state_view state(Layer& layer, int first);

  bool h2o_;
  waterweight::h2o_policy budget_;
  int heads_, head_dim_, capacity_;
  std::vector<Layer> layers_;
  std::vector<std::int32_t> step_, length_;
};

}  // namespace pythia
