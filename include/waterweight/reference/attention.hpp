// Causal prefill attention on the host, with what H2O needs of it: the attention mass per key.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <waterweight/reference/access.hpp>
#include <waterweight/reference/rotary.hpp>
#include <waterweight/types.hpp>

WATERWEIGHT_NAMESPACE_BEGIN
namespace reference {

/// Scaled dot product of two heads.
template <class Acc, class A, class B>
Acc dot(const A* a, const B* b, int n) {
  Acc sum = 0;
  for (int i = 0; i < n; ++i) sum += widen<Acc>(a[i]) * widen<Acc>(b[i]);
  return sum;
}

/// Turns logits into probabilities in place; returns their log-sum-exp (natural log). Any NaN makes
/// them all NaN.
template <class Acc>
Acc softmax(std::vector<Acc>& values) {
  Acc maximum = values[0];
  for (const Acc value : values) maximum = value > maximum ? value : maximum;
  Acc sum = 0;
  for (Acc& value : values) {
    value = std::exp(value - maximum);
    sum += value;
  }
  for (Acc& value : values) value /= sum;
  return maximum + std::log(sum);
}

/// Causal attention of every query over the keys at or before it: p = softmax(q k^T /
/// sqrt(head_dim)), out = p v. q and k are taken as they are (rotate them before).
///
/// q    [batch, tokens, heads, head_dim]
/// k, v [batch, tokens, kv_heads, head_dim]; heads % kv_heads == 0, query head h reads KV head
///      h / (heads / kv_heads)
/// lengths [batch] live tokens of each sequence, 0 <= length <= tokens; null: all are full
/// out  [batch, tokens, heads, head_dim]; must not overlap the inputs
/// lse  [batch, heads, tokens] natural log-sum-exp of the scaled scores; may be null
/// column_sums [batch, kv_heads, tokens] for key j: the sum over the query heads of its group and
/// over
///      queries i >= j of p[i, j]; may be null
/// Nothing is written at or beyond a sequence's length. Cost O(tokens^2 head_dim) per head.
template <class Acc, class Q, class K, class V, class Out>
void causal_attention(heads_view<Q> q, heads_view<K> k, heads_view<V> v,
                      const std::int32_t* lengths, heads_view<Out> out, Acc* lse,
                      Acc* column_sums) {
  const int group = q.heads / k.heads;
  const Acc scale = Acc(1) / std::sqrt(static_cast<Acc>(q.head_dim));
  std::vector<Acc> p;
  std::vector<Acc> sum(static_cast<std::size_t>(q.head_dim));
  for (int b = 0; b < q.batch; ++b) {
    const int length = lengths ? lengths[b] : q.tokens;
    for (int h = 0; h < q.heads; ++h) {
      const int kv_head = h / group;
      const std::int64_t lse_row = (std::int64_t{b} * q.heads + h) * q.tokens;
      const std::int64_t mass_row = (std::int64_t{b} * k.heads + kv_head) * q.tokens;
      if (column_sums && h % group == 0) {
        for (int j = 0; j < length; ++j) column_sums[mass_row + j] = 0;
      }
      for (int i = 0; i < length; ++i) {
        p.resize(static_cast<std::size_t>(i) + 1);
        for (int j = 0; j <= i; ++j) {
          p[j] = scale * dot<Acc>(head_data(q, b, i, h), head_data(k, b, j, kv_head), q.head_dim);
        }
        const Acc row_lse = softmax(p);
        sum.assign(sum.size(), Acc(0));
        for (int j = 0; j <= i; ++j) {
          const V* value = head_data(v, b, j, kv_head);
          for (int d = 0; d < q.head_dim; ++d) sum[d] += p[j] * widen<Acc>(value[d]);
          if (column_sums) column_sums[mass_row + j] += p[j];
        }
        Out* result = head_data(out, b, i, h);
        for (int d = 0; d < q.head_dim; ++d) result[d] = static_cast<Out>(sum[d]);
        if (lse) lse[lse_row + i] = row_lse;
      }
    }
  }
}

}  // namespace reference
WATERWEIGHT_NAMESPACE_END
