// H2O after prefill, on the host: which tokens of a prompt stay, and their move into the slots. All
// pointers of the views are host memory here.
//
// Scores are fp32. A NaN score ranks below every number, so the key it belongs to leaves first; a
// protected key (a sink, or one of the last `recent` positions) never leaves, whatever its score.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include <waterweight/reference/access.hpp>
#include <waterweight/types.hpp>

WATERWEIGHT_NAMESPACE_BEGIN
namespace reference {

/// Whether key a leaves the cache before key b: the lower score does, NaN below all; on a tie the
/// lower position does.
inline bool leaves_before(float score_a, std::int32_t position_a, float score_b,
                          std::int32_t position_b) {
  const bool nan_a = std::isnan(score_a), nan_b = std::isnan(score_b);
  if (nan_a != nan_b) return nan_a;
  return nan_a || score_a == score_b ? position_a < position_b : score_a < score_b;
}

/// Whether a key must stay while the token at `step` is the newest one: a sink, or among the last
/// `recent` positions.
inline bool is_protected(std::int32_t position, std::int32_t step, const h2o_policy& policy) {
  return position < policy.sinks || position > step - policy.recent;
}

/// The policy of sequence b: see h2o_state_view::capacity_of.
inline h2o_policy sequence_policy(const h2o_state_view& state, const h2o_policy& policy, int b) {
  return state.capacity_of ? policy.bounded(state.capacity_of[b]) : policy;
}

/// A KV head of a layer.
struct layer_head {
  int layer;
  int head;
};

/// The heads that keep the same keys, set by set, in the order in which their scores are added.
inline std::vector<std::vector<layer_head>> keep_sets(h2o_granularity granularity, int layers,
                                                      int kv_heads) {
  std::vector<std::vector<layer_head>> sets;
  for (int layer = 0; layer < layers; ++layer) {
    for (int head = 0; head < kv_heads; ++head) {
      const bool opens = granularity == h2o_granularity::per_head ||
                         (granularity == h2o_granularity::per_layer && head == 0) || sets.empty();
      if (opens) sets.emplace_back();
      sets.back().push_back({layer, head});
    }
  }
  return sets;
}

/// The scores that decide for a set: score_of(layer_head) points at `count` scores. The heads of a
/// layer are added first, then the layers, in fp32.
template <class ScoreOf>
std::vector<float> deciding_scores(const std::vector<layer_head>& set, int count,
                                   const ScoreOf& score_of) {
  std::vector<float> total(static_cast<std::size_t>(count), 0.0f);
  for (int i = 0; i < count; ++i) {
    float layer_sum = 0;
    for (std::size_t h = 0; h < set.size(); ++h) {
      layer_sum += score_of(set[h])[i];
      if (h + 1 < set.size() && set[h + 1].layer == set[h].layer) continue;
      total[i] += layer_sum;
      layer_sum = 0;
    }
  }
  return total;
}

/// The positions a prompt of `length` tokens keeps, ascending: all of them within the budget, else
/// the sinks, the last `recent`, and of the rest the `heavy` that leave last. score [length].
template <class S>
std::vector<std::int32_t> select_positions(const S* score, int length, const h2o_policy& policy) {
  std::vector<std::int32_t> kept;
  if (length <= policy.budget()) {
    for (int i = 0; i < length; ++i) kept.push_back(i);
    return kept;
  }
  std::vector<std::int32_t> rest;
  for (int i = 0; i < length; ++i) {
    (is_protected(i, length - 1, policy) ? kept : rest).push_back(i);
  }
  const auto stays_before = [&](std::int32_t a, std::int32_t b) {
    return leaves_before(static_cast<float>(score[b]), b, static_cast<float>(score[a]), a);
  };
  std::partial_sort(rest.begin(), rest.begin() + policy.heavy, rest.end(), stays_before);
  kept.insert(kept.end(), rest.begin(), rest.begin() + policy.heavy);
  std::sort(kept.begin(), kept.end());
  return kept;
}

/// Writes the kept positions of one head into its slots, -1 into the others, and their scores.
inline void fill_slots(const std::vector<std::int32_t>& kept, const float* score, std::int64_t head,
                       int capacity, h2o_state_view state) {
  const int count = static_cast<int>(kept.size());
  for (int slot = 0; slot < capacity; ++slot) {
    const std::int64_t index = head * capacity + slot;
    if (state.position) state.position[index] = slot < count ? kept[slot] : -1;
    if (state.score && slot < count) state.score[index] = score[kept[slot]];
  }
  state.free_slot[head] = count;
}

/// The choice of h2o_select in h2o.cuh: position, score, free_slot, length and step of every layer
/// that `scores` and `state` cover. Scores of empty slots are left as they are.
///
/// lengths [batch] prompt lengths in [1, tokens]; null: all are scores.tokens
/// Needs capacity >= policy.capacity().
inline void h2o_select(const h2o_score_view& scores, const std::int32_t* lengths,
                       const h2o_policy& policy, int capacity, h2o_state_view state) {
  for (int b = 0; b < scores.batch; ++b) {
    const int length = lengths ? lengths[b] : scores.tokens;
    const h2o_policy own = sequence_policy(state, policy, b);
    const auto score_of = [&](const layer_head& at) {
      return scores.data + at.layer * scores.layer_stride +
             (std::int64_t{b} * scores.kv_heads + at.head) * scores.tokens;
    };
    for (const auto& set : keep_sets(policy.granularity, scores.layers, scores.kv_heads)) {
      const std::vector<float> deciding = deciding_scores(set, length, score_of);
      const auto kept = select_positions(deciding.data(), length, own);
      for (const layer_head& at : set) {
        fill_slots(kept, score_of(at), std::int64_t{b} * scores.kv_heads + at.head, capacity,
                   state.layer(at.layer, capacity));
      }
      state.length[b] = static_cast<int>(kept.size());
    }
    state.step[b] = length;
  }
}

/// Copies into every slot of one layer the key and the value of the token that position [batch,
/// kv_heads, capacity] names; slots of negative position are left as they are.
///
/// k, v [batch, tokens, kv_heads, head_dim], k after rotary embedding
template <class K, class V, class C>
void h2o_compact(heads_view<K> k, heads_view<V> v, const std::int32_t* position,
                 kv_cache_view<C> cache) {
  for (int b = 0; b < cache.batch; ++b) {
    for (int h = 0; h < cache.kv_heads; ++h) {
      for (int slot = 0; slot < cache.capacity; ++slot) {
        const std::int64_t index = (std::int64_t{b} * cache.kv_heads + h) * cache.capacity + slot;
        const std::int32_t token = position[index];
        if (token < 0 || token >= k.tokens) continue;
        const K* key = head_data(k, b, token, h);
        const V* value = head_data(v, b, token, h);
        for (int d = 0; d < cache.head_dim; ++d) {
          cache.k[index * cache.head_dim + d] = static_cast<C>(widen<double>(key[d]));
          cache.v[index * cache.head_dim + d] = static_cast<C>(widen<double>(value[d]));
        }
      }
    }
  }
}

/// Moves a prefilled prompt into the slots of one layer, dropping what exceeds the budget:
/// h2o_select, then h2o_compact. Not with per_model, which needs the scores of all layers first.
///
/// column_sums [batch, kv_heads, tokens] the prompt's scores (see causal_attention); unused, and
///      may be null, where state.score is null: then every key is kept
/// Needs cache.capacity > the number kept (policy.capacity() is enough). state.position not null.
template <class K, class V, class S, class C>
void h2o_select_and_compact(heads_view<K> k, heads_view<V> v, const S* column_sums,
                            const std::int32_t* lengths, const h2o_policy& policy,
                            kv_cache_view<C> cache, h2o_state_view state) {
  const std::size_t count = static_cast<std::size_t>(k.batch) * k.heads * k.tokens;
  std::vector<float> scores(count, 0.0f);
  if (state.score) {
    for (std::size_t i = 0; i < count; ++i) scores[i] = static_cast<float>(column_sums[i]);
  }
  const h2o_policy all{0, k.tokens, 0};
  h2o_select({scores.data(), k.batch, k.heads, k.tokens}, lengths, state.score ? policy : all,
             cache.capacity, state);
  h2o_compact(k, v, state.position, cache);
}

}  // namespace reference
WATERWEIGHT_NAMESPACE_END
