// H2O decoding on the slots of a cache, on the host: what the device kernels do, step by step. All
// pointers of the views are host memory here.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <waterweight/reference/access.hpp>
#include <waterweight/reference/attention.hpp>
#include <waterweight/reference/h2o_select.hpp>
#include <waterweight/reference/rotary.hpp>
#include <waterweight/types.hpp>

WATERWEIGHT_NAMESPACE_BEGIN
namespace reference {

/// Adds `mass` [live] to the scores of one head and enters the token: its slot's score starts from
/// 0, its position is step[b].
template <class Acc>
void add_mass(const std::vector<Acc>& mass, int b, std::int64_t head, int capacity,
              h2o_state_view state) {
  const std::int64_t first = head * capacity, fresh = first + state.free_slot[head];
  state.position[fresh] = state.step[b];
  state.score[fresh] = 0;
  for (std::size_t slot = 0; slot < mass.size(); ++slot) {
    float& score = state.score[first + static_cast<std::int64_t>(slot)];
    score = static_cast<float>(score + mass[slot]);
  }
}

/// h2o_accumulate_scores of h2o.cuh, from probabilities [batch * heads, capacity].
template <class Acc, class P>
void h2o_accumulate_scores(matrix_view<P> probabilities, int batch, int kv_heads,
                           h2o_state_view state) {
  const std::int64_t group = probabilities.rows / (std::int64_t{batch} * kv_heads);
  const int capacity = static_cast<int>(probabilities.cols);
  for (int b = 0; b < batch; ++b) {
    for (std::int64_t head = std::int64_t{b} * kv_heads; head < std::int64_t{b + 1} * kv_heads;
         ++head) {
      std::vector<Acc> mass(static_cast<std::size_t>(state.length[b]) + 1, Acc(0));
      for (std::int64_t row = head * group; row < (head + 1) * group; ++row) {
        for (std::size_t slot = 0; slot < mass.size(); ++slot) {
          mass[slot] += widen<Acc>(
              probabilities.data[row * probabilities.ld + static_cast<std::int64_t>(slot)]);
        }
      }
      add_mass(mass, b, head, capacity, state);
    }
  }
}

/// The same from rotated queries [batch, 1, heads, head_dim] and their log-sum-exp [batch, heads].
template <class Acc, class Q, class C>
void h2o_accumulate_scores(heads_view<Q> q, const float* lse, kv_cache_view<C> cache,
                           h2o_state_view state) {
  const int group = q.heads / cache.kv_heads;
  const Acc scale = Acc(1) / std::sqrt(static_cast<Acc>(q.head_dim));
  for (int b = 0; b < cache.batch; ++b) {
    for (int h = 0; h < cache.kv_heads; ++h) {
      const std::int64_t head = std::int64_t{b} * cache.kv_heads + h;
      const C* keys = cache.k + head * cache.capacity * cache.head_dim;
      std::vector<Acc> mass(static_cast<std::size_t>(state.length[b]) + 1, Acc(0));
      for (int g = h * group; g < (h + 1) * group; ++g) {
        for (std::size_t slot = 0; slot < mass.size(); ++slot) {
          const C* key = keys + static_cast<std::int64_t>(slot) * cache.head_dim;
          const Acc logit = scale * dot<Acc>(head_data(q, b, 0, g), key, cache.head_dim);
          mass[slot] += std::exp(logit - static_cast<Acc>(lse[std::int64_t{b} * q.heads + g]));
        }
      }
      add_mass(mass, b, head, cache.capacity, state);
    }
  }
}

/// Moves the survivors among slots [length, live) of one head into the holes below, both in the
/// order of slots, and empties [length, live). cache and state: of the head's layer.
template <class C>
void close_gaps(kv_cache_view<C> cache, h2o_state_view state, std::int64_t head, int length,
                int live) {
  const std::int64_t first = head * cache.capacity;
  std::int64_t hole = first;
  for (std::int64_t slot = first + length; slot < first + live; ++slot) {
    if (state.position[slot] < 0) continue;
    while (state.position[hole] >= 0) ++hole;
    std::copy_n(cache.k + slot * cache.head_dim, cache.head_dim, cache.k + hole * cache.head_dim);
    std::copy_n(cache.v + slot * cache.head_dim, cache.head_dim, cache.v + hole * cache.head_dim);
    state.score[hole] = state.score[slot];
    state.position[hole] = state.position[slot];
    state.position[slot] = -1;
  }
}

/// Evicts from the heads of sequence b that keep the same keys, when they are full; otherwise the
/// next empty slot becomes their free one. The victims' scores stay where they were.
template <class C>
void evict_set(const std::vector<layer_head>& set, int b, const h2o_policy& policy,
               kv_cache_view<C> cache, h2o_state_view state) {
  const int live = state.length[b] + 1, count = policy.evict_every;
  const auto row = [&](const layer_head& at) { return std::int64_t{b} * cache.kv_heads + at.head; };
  const auto layer = [&](const layer_head& at) { return state.layer(at.layer, cache.capacity); };
  if (live < policy.capacity()) {
    for (const layer_head& at : set) layer(at).free_slot[row(at)] = live;
    return;
  }
  const std::vector<float> deciding = deciding_scores(
      set, live, [&](const layer_head& at) { return layer(at).score + row(at) * cache.capacity; });
  const std::int32_t* position = layer(set[0]).position + row(set[0]) * cache.capacity;
  std::vector<int> candidates;
  for (int slot = 0; slot < live; ++slot) {
    if (!is_protected(position[slot], state.step[b], policy)) candidates.push_back(slot);
  }
  std::partial_sort(candidates.begin(), candidates.begin() + count, candidates.end(),
                    [&](int a, int c) {
                      return leaves_before(deciding[a], position[a], deciding[c], position[c]);
                    });
  for (const layer_head& at : set) {
    h2o_state_view one = layer(at);
    for (int i = 0; i < count; ++i) one.position[row(at) * cache.capacity + candidates[i]] = -1;
    one.free_slot[row(at)] = count == 1 ? candidates[0] : live - count;
    if (count == 1) continue;
    const std::int64_t before = at.layer * state.layer_stride * cache.capacity * cache.head_dim;
    kv_cache_view<C> own = cache;
    own.k += before;
    own.v += before;
    close_gaps(own, one, row(at), live - count, live);
  }
}

/// h2o_evict of h2o.cuh: all layers that `state` covers; `cache` is the first one's.
template <class C>
void h2o_evict(kv_cache_view<C> cache, h2o_state_view state, const h2o_policy& policy) {
  for (int b = 0; b < cache.batch; ++b) {
    const h2o_policy own = sequence_policy(state, policy, b);
    for (const auto& set : keep_sets(policy.granularity, state.layers, cache.kv_heads)) {
      evict_set(set, b, own, cache, state);
    }
  }
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
  add_mass(mass, b, head, cache.capacity, state);
  if (policy.granularity == h2o_granularity::per_head) {
    evict_set({{0, kv_head}}, b, sequence_policy(state, policy, b), cache, state);
  }
}

/// One decoded token of every sequence in one layer.
///
/// q [batch, 1, heads, head_dim], k_new and v_new [batch, 1, kv_heads, head_dim], before rotary
/// embedding; heads % kv_heads == 0. out [batch, 1, heads, head_dim].
/// For each sequence and KV head: rotates q and k_new at the absolute position step[b]; writes k,
/// v, position and score 0 into free_slot; attends over the slots [0, length[b] + 1) with scale
/// 1/sqrt(head_dim); adds each slot's final probability, summed over the group's query heads, to
/// its score; and, if each head keeps its own keys, evicts as h2o_evict does. step and length stay:
/// h2o_advance moves them once all layers have run. With state.score null: plain attention, nothing
/// is evicted, policy is ignored and position may be null; the caller stops before length[b]
/// reaches capacity. Needs length[b] < capacity and, but for plain attention, capacity ==
/// policy.capacity().
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

/// After all layers of a token, per sequence: step += 1; length += 1, or, where it became full,
/// what the eviction left. policy: h2o_policy{} for plain attention.
inline void h2o_advance(h2o_state_view state, int batch, int capacity, const h2o_policy& policy) {
  for (int b = 0; b < batch; ++b) {
    const int full = state.capacity_of ? sequence_policy(state, policy, b).capacity() : capacity;
    const int live = state.length[b] + 1;
    state.length[b] = live < full ? live : live - policy.evict_every;
    ++state.step[b];
  }
}

}  // namespace reference
WATERWEIGHT_NAMESPACE_END
