// H2O on the slots of a cache, on the host: what the device kernels do, step by step. All pointers
// of the views are host memory here.
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
#include <waterweight/reference/attention.hpp>
#include <waterweight/reference/rotary.hpp>
#include <waterweight/types.hpp>

WATERWEIGHT_NAMESPACE_BEGIN
namespace reference {

/// Whether key a leaves the cache before key b: the lower score does, NaN below all; on a tie the
/// lower position does.
inline bool leaves_before(float score_a, std::int32_t position_a, float score_b,
                          std::int32_t position_b) {
  const float lowest = -std::numeric_limits<float>::infinity();
  const float a = std::isnan(score_a) ? lowest : score_a;
  const float b = std::isnan(score_b) ? lowest : score_b;
  return a != b ? a < b : position_a < position_b;
}

/// Whether a key must stay while the token at `step` is the newest one: a sink, or among the last
/// `recent` positions.
inline bool is_protected(std::int32_t position, std::int32_t step, const h2o_policy& policy) {
  return position < policy.sinks || position > step - policy.recent;
}

/// The positions a prompt of `length` tokens keeps, ascending: all of them within the policy, else
/// the sinks, the last `recent`, and of the rest the `heavy` that leave last. score [length].
template <class S>
std::vector<std::int32_t> select_positions(const S* score, int length, const h2o_policy& policy) {
  std::vector<std::int32_t> kept;
  if (length <= policy.sinks + policy.heavy + policy.recent) {
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

/// Moves a prefilled prompt into the slots of one layer, dropping what exceeds the policy.
///
/// k, v [batch, tokens, kv_heads, head_dim], k after rotary embedding
/// column_sums [batch, kv_heads, tokens] the prompt's scores (see causal_attention); unused, and
/// may be
///      null, where state.score is null
/// lengths [batch] prompt lengths in [1, tokens]; null: all are `tokens`
/// cache   [batch, kv_heads, capacity, head_dim]; slots 0.. are filled in ascending position, the
/// others
///      left as they are
/// state   score and position of the filled slots; position -1 in the others; free_slot = length =
/// the
///      number kept; step = the prompt's length. With a null score every key is kept.
/// Needs cache.capacity > the number kept (policy.capacity() is enough).
template <class K, class V, class S, class C>
void h2o_select_and_compact(heads_view<K> k, heads_view<V> v, const S* column_sums,
                            const std::int32_t* lengths, const h2o_policy& policy,
                            kv_cache_view<C> cache, h2o_state_view state) {
  for (int b = 0; b < cache.batch; ++b) {
    const int length = lengths ? lengths[b] : k.tokens;
    int count = 0;
    for (int h = 0; h < cache.kv_heads; ++h) {
      const std::int64_t head = std::int64_t{b} * cache.kv_heads + h;
      const S* score = column_sums ? column_sums + head * k.tokens : nullptr;
      const h2o_policy all{0, length, 0};
      const std::vector<std::int32_t> kept =
          select_positions(score, length, state.score ? policy : all);
      count = static_cast<int>(kept.size());
      for (int slot = 0; slot < cache.capacity; ++slot) {
        const std::int64_t index = head * cache.capacity + slot;
        if (state.position) state.position[index] = slot < count ? kept[slot] : -1;
        if (slot >= count) continue;
        if (state.score) state.score[index] = static_cast<float>(score[kept[slot]]);
        const K* key = head_data(k, b, kept[slot], h);
        const V* value = head_data(v, b, kept[slot], h);
        for (int d = 0; d < cache.head_dim; ++d) {
          cache.k[index * cache.head_dim + d] = static_cast<C>(widen<double>(key[d]));
          cache.v[index * cache.head_dim + d] = static_cast<C>(widen<double>(value[d]));
        }
      }
      state.free_slot[head] = count;
    }
    state.length[b] = count;
    state.step[b] = length;
  }
}

/// Frees one of the `live` slots of a head when it is full: the unprotected one that leaves first.
/// Otherwise the next empty slot becomes the free one. `score`, `position` point at the head's
/// slots.
inline void h2o_evict(const float* score, std::int32_t* position, std::int32_t* free_slot, int live,
                      int capacity, std::int32_t step, const h2o_policy& policy) {
  if (live < capacity) {
    *free_slot = live;
    return;
  }
  int victim = -1;
  for (int slot = 0; slot < live; ++slot) {
    if (is_protected(position[slot], step, policy)) continue;
    if (victim < 0 || leaves_before(score[slot], position[slot], score[victim], position[victim])) {
      victim = slot;
    }
  }
  position[victim] = -1;
  *free_slot = victim;
}

/// h2o_decode_attention of one (sequence b, KV head): heads share nothing, so a caller may run them
/// side by side.
template <class Acc, class Q, class K, class V, class C, class Out>
void h2o_decode_head(heads_view<Q> q, heads_view<K> k_new, heads_view<V> v_new,
                     const rotary_view& rotary, const h2o_policy& policy, kv_cache_view<C> cache,
                     h2o_state_view state, heads_view<Out> out, int b, int kv_head) {
  const int head_dim = cache.head_dim;
  const int group = q.heads / cache.kv_heads;
  const std::int64_t head = std::int64_t{b} * cache.kv_heads + kv_head;
  const std::int64_t first = head * cache.capacity;
  const int live = state.length[b] + 1;
  const std::int32_t step = state.step[b];
  const std::int64_t fresh = first + state.free_slot[head];
  C* keys = cache.k + first * head_dim;
  C* values = cache.v + first * head_dim;

  rotate_head<Acc>(head_data(k_new, b, 0, kv_head), cache.k + fresh * head_dim, head_dim, rotary,
                   step);
  const V* new_value = head_data(v_new, b, 0, kv_head);
  for (int d = 0; d < head_dim; ++d) {
    cache.v[fresh * head_dim + d] = static_cast<C>(widen<Acc>(new_value[d]));
  }
  if (state.position) state.position[fresh] = step;
  if (state.score) state.score[fresh] = 0;

  const Acc scale = Acc(1) / std::sqrt(static_cast<Acc>(head_dim));
  std::vector<Acc> query(static_cast<std::size_t>(head_dim));
  std::vector<Acc> p(static_cast<std::size_t>(live));
  std::vector<Acc> mass(p.size(), Acc(0));
  std::vector<Acc> sum(query.size());
  for (int h = kv_head * group; h < (kv_head + 1) * group; ++h) {
    rotate_head<Acc>(head_data(q, b, 0, h), query.data(), head_dim, rotary, step);
    for (int slot = 0; slot < live; ++slot) {
      p[slot] = scale * dot<Acc>(query.data(), keys + std::int64_t{slot} * head_dim, head_dim);
    }
    softmax(p);
    sum.assign(sum.size(), Acc(0));
    for (int slot = 0; slot < live; ++slot) {
      const C* value = values + std::int64_t{slot} * head_dim;
      for (int d = 0; d < head_dim; ++d) sum[d] += p[slot] * widen<Acc>(value[d]);
      mass[slot] += p[slot];
    }
    Out* result = head_data(out, b, 0, h);
    for (int d = 0; d < head_dim; ++d) result[d] = static_cast<Out>(sum[d]);
  }
  if (!state.score) {
    state.free_slot[head] = live;
    return;
  }
  for (int slot = 0; slot < live; ++slot) {
    state.score[first + slot] = static_cast<float>(state.score[first + slot] + mass[slot]);
  }
  h2o_evict(state.score + first, state.position + first, state.free_slot + head, live,
            cache.capacity, step, policy);
}

/// One decoded token of every sequence in one layer.
///
/// q [batch, 1, heads, head_dim], k_new and v_new [batch, 1, kv_heads, head_dim], before rotary
/// embedding; heads % kv_heads == 0. out [batch, 1, heads, head_dim].
/// For each sequence and KV head: rotates q and k_new at the absolute position step[b]; writes k,
/// v, position and score 0 into free_slot; attends over the slots [0, length[b] + 1) with scale
/// 1/sqrt(head_dim); adds each slot's final probability, summed over the group's query heads, to
/// its score; and, if the slots are full (length[b] + 1 == capacity), evicts the unprotected slot
/// that leaves first: its position becomes -1 and it is the free slot. Otherwise the next empty
/// slot is. step and length stay: h2o_advance moves them once all layers have run. With state.score
/// null: plain attention, nothing is evicted, policy is ignored and position may be null; the
/// caller stops before length[b] reaches capacity. Needs length[b] < capacity, and sinks + recent <
/// capacity for a victim to exist.
template <class Acc, class Q, class K, class V, class C, class Out>
void h2o_decode_attention(heads_view<Q> q, heads_view<K> k_new, heads_view<V> v_new,
                          const rotary_view& rotary, const h2o_policy& policy,
                          kv_cache_view<C> cache, h2o_state_view state, heads_view<Out> out) {
  for (int b = 0; b < cache.batch; ++b) {
    for (int h = 0; h < cache.kv_heads; ++h) {
      h2o_decode_head<Acc>(q, k_new, v_new, rotary, policy, cache, state, out, b, h);
    }
  }
}

/// After all layers of a token: step += 1, length = min(length + 1, capacity - 1), per sequence.
inline void h2o_advance(std::int32_t* step, std::int32_t* length, int batch, int capacity) {
  for (int b = 0; b < batch; ++b) {
    ++step[b];
    length[b] = std::min(length[b] + 1, capacity - 1);
  }
}

}  // namespace reference
WATERWEIGHT_NAMESPACE_END
