#include "examples/pythia/model/host_cache.hpp"

#include <algorithm>
#include <cstddef>
#include <utility>

#include <waterweight/reference/h2o.hpp>

namespace pythia {

namespace reference = waterweight::reference;
using waterweight::h2o_granularity;

namespace {

/// Appends [tokens, heads, head_dim] of one sequence.
void append(const waterweight::heads_view<float>& view, std::vector<float>* target) {
  for (int token = 0; token < view.tokens; ++token) {
    for (int head = 0; head < view.heads; ++head) {
      const float* data = view.data + token * view.token_stride + head * view.head_stride;
      target->insert(target->end(), data, data + view.head_dim);
    }
  }
}

}  // namespace

HostCache::HostCache(const Config& config, const EngineOptions& options)
    : evicts_(options.policy != Policy::full),
      random_(options.policy == Policy::random),
      policy_(evicts_ ? eviction_policy(options) : waterweight::h2o_policy{}),
      draw_{options.policy_seed, options.granularity},
      layers_(config.num_layers),
      batch_(options.batch_size),
      heads_(config.num_heads),
      head_dim_(config.head_dim()),
      capacity_(evicts_ ? policy_.capacity() : options.max_tokens),
      step_(static_cast<std::size_t>(batch_), 0),
      length_(step_) {
  const std::size_t heads = head_index(layers_, 0);
  const std::size_t slot_count = heads * static_cast<std::size_t>(capacity_);
  k_.resize(slot_count * static_cast<std::size_t>(head_dim_));
  v_.resize(k_.size());
  if (evicts_) score_.resize(slot_count);
  position_.assign(slot_count, -1);
  free_slot_.assign(heads, 0);
}

bool HostCache::one_set() const {
  return evicts_ && policy_.granularity == h2o_granularity::per_model;
}

std::size_t HostCache::head_index(int layer, int sequence) const {
  return (static_cast<std::size_t>(layer) * static_cast<std::size_t>(batch_) +
          static_cast<std::size_t>(sequence)) *
         static_cast<std::size_t>(heads_);
}

waterweight::kv_cache_view<float> HostCache::slots(int layer, int first, int sequences) {
  const std::size_t offset = head_index(layer, first) * static_cast<std::size_t>(capacity_) *
                             static_cast<std::size_t>(head_dim_);
  return {k_.data() + offset, v_.data() + offset, sequences, heads_, capacity_, head_dim_};
}

waterweight::h2o_state_view HostCache::all_layers(int first) {
  const std::size_t heads = head_index(0, first);
  const std::size_t slot = heads * static_cast<std::size_t>(capacity_);
  waterweight::h2o_state_view view;
  view.score = evicts_ ? score_.data() + slot : nullptr;
  view.position = position_.data() + slot;
  view.free_slot = free_slot_.data() + heads;
  view.step = step_.data() + first;
  view.length = length_.data() + first;
  view.layers = layers_;
  view.layer_stride = std::int64_t{batch_} * heads_;
  return view;
}

waterweight::h2o_state_view HostCache::state(int layer, int first) {
  return all_layers(first).layer(layer, capacity_);
}

void HostCache::store_prompt(int layer, int sequence, const QkvViews& qkv, float* column_sums) {
  const int tokens = qkv.k.tokens;
  if (random_) {
    for (int head = 0; head < heads_; ++head) {
      for (int t = 0; t < tokens; ++t) column_sums[head * tokens + t] = draw_(layer, head, t);
    }
  }
  if (!one_set()) {
    reference::h2o_select_and_compact(qkv.k, qkv.v, column_sums, nullptr, policy_,
                                      slots(layer, sequence, 1), state(layer, sequence));
    return;
  }
  if (layer == 0) prompt_ = {};
  append(qkv.k, &prompt_.k);
  append(qkv.v, &prompt_.v);
  prompt_.column_sums.insert(prompt_.column_sums.end(), column_sums, column_sums + heads_ * tokens);
  if (layer + 1 == layers_) store_whole_model(sequence, tokens);
}

void HostCache::store_whole_model(int sequence, int tokens) {
  const std::int64_t sums = std::int64_t{heads_} * tokens;
  reference::h2o_select({prompt_.column_sums.data(), 1, heads_, tokens, layers_, sums}, nullptr,
                        policy_, capacity_, all_layers(sequence));
  const std::int64_t row = std::int64_t{heads_} * head_dim_;
  for (int layer = 0; layer < layers_; ++layer) {
    const auto heads = [&](std::vector<float>& data) {
      return waterweight::heads_view<float>{data.data() + layer * tokens * row,
                                            1,
                                            tokens,
                                            heads_,
                                            head_dim_,
                                            tokens * row,
                                            row,
                                            head_dim_};
    };
    reference::h2o_compact(heads(prompt_.k), heads(prompt_.v), state(layer, sequence).position,
                           slots(layer, sequence, 1));
  }
  prompt_ = {};
}

void HostCache::decode(ThreadPool& pool, int layer, const QkvViews& qkv,
                       const waterweight::rotary_view& rotary,
                       const waterweight::heads_view<float>& out) {
  const int sequences = qkv.q.batch;
  const auto cache = slots(layer, 0, sequences);
  const auto bookkeeping = state(layer, 0);
  pool.parallel_for(std::int64_t{sequences} * heads_, [&](std::int64_t index, int) {
    reference::h2o_decode_head<float>(qkv.q, qkv.k, qkv.v, rotary, policy_, cache, bookkeeping, out,
                                      static_cast<int>(index / heads_),
                                      static_cast<int>(index % heads_));
  });
}

void HostCache::advance(int sequences) {
  if (random_) draw_scores(sequences);
  if (evicts_ && policy_.granularity != h2o_granularity::per_head) {
    reference::h2o_evict(slots(0, 0, sequences), all_layers(0), policy_);
  }
  reference::h2o_advance(all_layers(0), sequences, capacity_, policy_);
}

/// Writes the draws over what the attention of the last step added.
void HostCache::draw_scores(int sequences) {
  for (int layer = 0; layer < layers_; ++layer) {
    for (int row = 0; row < sequences * heads_; ++row) {
      const std::size_t first = (head_index(layer, 0) + static_cast<std::size_t>(row)) *
                                static_cast<std::size_t>(capacity_);
      for (std::size_t slot = first; slot < first + static_cast<std::size_t>(capacity_); ++slot) {
        if (position_[slot] >= 0) score_[slot] = draw_(layer, row % heads_, position_[slot]);
      }
    }
  }
}

CacheSnapshot HostCache::snapshot(int sequence, int layer) const {
  CacheSnapshot snapshot;
  for (int head = 0; head < heads_; ++head) {
    const std::size_t first = (head_index(layer, sequence) + static_cast<std::size_t>(head)) *
                              static_cast<std::size_t>(capacity_);
    std::vector<std::pair<std::int32_t, float>> live;
    for (std::size_t slot = first; slot < first + static_cast<std::size_t>(capacity_); ++slot) {
      if (position_[slot] < 0) continue;
      live.emplace_back(position_[slot], evicts_ ? score_[slot] : 0.0f);
    }
    std::sort(live.begin(), live.end());
    auto& positions = snapshot.positions.emplace_back();
    auto& scores = snapshot.scores.emplace_back();
    for (const auto& [position, score] : live) {
      positions.push_back(position);
      scores.push_back(score);
    }
  }
  return snapshot;
}

}  // namespace pythia
