#include "examples/pythia/model/host_cache.hpp"

#include <algorithm>
#include <cstddef>
#include <utility>

#include <waterweight/reference/h2o.hpp>

namespace pythia {

namespace reference = waterweight::reference;

HostCache::HostCache(const Config& config, const EngineOptions& options)
    : h2o_(options.kv == KvType::h2o),
      budget_{options.sinks, options.heavy, options.recent},
      heads_(config.num_heads),
      head_dim_(config.head_dim()),
      capacity_(h2o_ ? budget_.capacity() : options.max_tokens),
      layers_(static_cast<std::size_t>(config.num_layers)),
      step_(static_cast<std::size_t>(options.batch_size), 0),
      length_(step_) {
  const std::size_t heads = step_.size() * static_cast<std::size_t>(heads_);
  const std::size_t slot_count = heads * static_cast<std::size_t>(capacity_);
  for (Layer& layer : layers_) {
    layer.k.resize(slot_count * static_cast<std::size_t>(head_dim_));
    layer.v.resize(layer.k.size());
    if (h2o_) layer.score.resize(slot_count);
    layer.position.assign(slot_count, -1);
    layer.free_slot.assign(heads, 0);
  }
}

waterweight::kv_cache_view<float> HostCache::slots(Layer& layer, int first, int sequences) const {
  const std::size_t offset = static_cast<std::size_t>(first) * heads_ * capacity_ * head_dim_;
  return {
      layer.k.data() + offset, layer.v.data() + offset, sequences, heads_, capacity_, head_dim_};
}

waterweight::h2o_state_view HostCache::state(Layer& layer, int first) {
  const std::size_t heads = static_cast<std::size_t>(first) * heads_;
  return {h2o_ ? layer.score.data() + heads * capacity_ : nullptr,
          layer.position.data() + heads * capacity_, layer.free_slot.data() + heads,
          step_.data() + first, length_.data() + first};
}

void HostCache::store_prompt(int layer, int sequence, const QkvViews& qkv,
                             const float* column_sums) {
  Layer& target = layers_[layer];
  reference::h2o_select_and_compact(qkv.k, qkv.v, column_sums, nullptr, budget_,
                                    slots(target, sequence, 1), state(target, sequence));
}

void HostCache::decode(ThreadPool& pool, int layer, const QkvViews& qkv,
                       const waterweight::rotary_view& rotary,
                       const waterweight::heads_view<float>& out) {
  Layer& target = layers_[layer];
  const int sequences = qkv.q.batch;
  const auto cache = slots(target, 0, sequences);
  const auto bookkeeping = state(target, 0);
  pool.parallel_for(std::int64_t{sequences} * heads_, [&](std::int64_t index, int) {
    reference::h2o_decode_head<float>(qkv.q, qkv.k, qkv.v, rotary, budget_, cache, bookkeeping, out,
                                      static_cast<int>(index / heads_),
                                      static_cast<int>(index % heads_));
  });
}

void HostCache::advance(int sequences) {
  reference::h2o_advance(state(layers_.front(), 0), sequences, capacity_, budget_);
}

CacheSnapshot HostCache::snapshot(int sequence, int layer) const {
  const Layer& source = layers_[layer];
  CacheSnapshot snapshot;
  for (int head = 0; head < heads_; ++head) {
    const std::size_t first = (static_cast<std::size_t>(sequence) * heads_ + head) * capacity_;
    std::vector<std::pair<std::int32_t, float>> live;
    for (std::size_t slot = first; slot < first + capacity_; ++slot) {
      if (source.position[slot] < 0) continue;
      live.emplace_back(source.position[slot], h2o_ ? source.score[slot] : 0.0f);
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
