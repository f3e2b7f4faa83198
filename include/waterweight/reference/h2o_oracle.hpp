// H2O restated for tests, independently of slots: every token keeps its original index, keys and
// values are never moved, and the kept set is a sorted list of indices. Everything is double.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>
#include <vector>

#include <waterweight/types.hpp>

WATERWEIGHT_NAMESPACE_BEGIN
namespace reference {

/// One sequence in all layers. Row layer * kv_heads + head is a KV head with its group of query
/// heads. Vectors come in token order, before rotary embedding, which the oracle applies at each
/// token's own index. A prompt: prefill() for every row, then end_prompt(); a token: decode() for
/// every row, then end_token().
class h2o_oracle {
 public:
  using vector = std::vector<double>;

  /// `inv_freq` turns the first 2 * inv_freq.size() elements.
  h2o_oracle(h2o_policy policy, int layers, int kv_heads, int group, std::vector<float> inv_freq)
      : policy_(policy),
        kv_heads_(kv_heads),
        group_(group),
        inv_freq_(std::move(inv_freq)),
        rows_(static_cast<std::size_t>(layers) * kv_heads),
        kept_(static_cast<std::size_t>(set_of(layers * kv_heads - 1)) + 1) {}

  /// The whole prompt at once: queries[token][query head of the group], keys[token], values[token].
  /// Returns the outputs in the shape of the queries.
  std::vector<std::vector<vector>> prefill(int row, const std::vector<std::vector<vector>>& queries,
                                           const std::vector<vector>& keys,
                                           const std::vector<vector>& values) {
    std::vector<std::vector<vector>> outputs;
    std::vector<int> visible;
    for (std::size_t i = 0; i < keys.size(); ++i) {
      visible.push_back(static_cast<int>(i));
      append(rows_[row], keys[i], values[i]);
      outputs.push_back(attend(rows_[row], queries[i], visible));
    }
    return outputs;
  }

  /// Cuts the prompt to the budget.
  void end_prompt() {
    tokens_ = static_cast<int>(rows_[0].keys.size());
    for (std::size_t set = 0; set < kept_.size(); ++set) {
      for (int i = 0; i < tokens_; ++i) kept_[set].push_back(i);
      drop(set, tokens_ - budget());
    }
  }

  /// One token: queries[query head of the group]. Returns the outputs in the same shape.
  std::vector<vector> decode(int row, const std::vector<vector>& queries, const vector& key,
                             const vector& value) {
    append(rows_[row], key, value);
    std::vector<int> visible = kept_[set_of(row)];
    visible.push_back(tokens_);
    return attend(rows_[row], queries, visible);
  }

  /// Evicts where as many tokens as the policy waits for have come in over the budget.
  void end_token() {
    for (std::size_t set = 0; set < kept_.size(); ++set) kept_[set].push_back(tokens_);
    ++tokens_;
    for (std::size_t set = 0; set < kept_.size(); ++set) {
      const int excess = static_cast<int>(kept_[set].size()) - budget();
      if (excess >= policy_.evict_every) drop(set, excess);
    }
  }

  int tokens() const { return tokens_; }
  /// Original indices, ascending.
  const std::vector<int>& kept(int row) const { return kept_[set_of(row)]; }
  /// Mass that a token gathered while kept.
  double score(int row, int index) const { return rows_[row].score[index]; }
  /// Smallest margin between a dropped and a remaining score so far: where it is 0 up to rounding,
  /// another implementation may drop the other token.
  double least_gap() const { return least_gap_; }
  int evictions() const { return evictions_; }  ///< tokens dropped, over all sets

 private:
  struct Row {
    std::vector<vector> keys, values;
    vector score;
  };

  int budget() const { return policy_.sinks + policy_.heavy + policy_.recent; }

  int set_of(int row) const {
    if (policy_.granularity == h2o_granularity::per_head) return row;
    return policy_.granularity == h2o_granularity::per_layer ? row / kv_heads_ : 0;
  }

  vector rotated(vector x, int index) const {
    const std::size_t half = inv_freq_.size();
    for (std::size_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(static_cast<float>(index) * inv_freq_[i]);
      const double a = x[i], b = x[i + half];
      x[i] = a * std::cos(angle) - b * std::sin(angle);
      x[i + half] = a * std::sin(angle) + b * std::cos(angle);
    }
    return x;
  }

  void append(Row& row, const vector& key, const vector& value) const {
    row.keys.push_back(rotated(key, static_cast<int>(row.keys.size())));
    row.values.push_back(value);
    row.score.push_back(0);
  }

  /// The newest token's attention over the visible ones; adds the probabilities to their scores.
  std::vector<vector> attend(Row& row, const std::vector<vector>& queries,
                             const std::vector<int>& visible) const {
    std::vector<vector> outputs;
    for (int g = 0; g < group_; ++g) {
      const vector query = rotated(queries[g], visible.back());
      vector weight(visible.size());
      double total = 0;
      double largest = -1e300;
      for (std::size_t j = 0; j < visible.size(); ++j) {
        double product = 0;
        for (std::size_t d = 0; d < query.size(); ++d) {
          product += query[d] * row.keys[visible[j]][d];
        }
        weight[j] = product / std::sqrt(static_cast<double>(query.size()));
        largest = std::max(largest, weight[j]);
      }
      for (double& w : weight) total += w = std::exp(w - largest);
      vector output(query.size(), 0.0);
      for (std::size_t j = 0; j < visible.size(); ++j) {
        const double p = weight[j] / total;
        row.score[visible[j]] += p;
        for (std::size_t d = 0; d < output.size(); ++d) output[d] += p * row.values[visible[j]][d];
      }
      outputs.push_back(output);
    }
    return outputs;
  }

  double set_score(std::size_t set, int index) const {
    double sum = 0;
    for (std::size_t row = 0; row < rows_.size(); ++row) {
      if (set_of(static_cast<int>(row)) == static_cast<int>(set)) sum += rows_[row].score[index];
    }
    return sum;
  }

  /// Drops the `count` kept tokens of least score (then least index) that are neither among the
  /// first `sinks` nor among the last `recent`.
  void drop(std::size_t set, int count) {
    if (count <= 0) return;
    std::vector<std::pair<double, int>> candidates;
    for (const int index : kept_[set]) {
      if (index < policy_.sinks || index >= tokens_ - policy_.recent) continue;
      candidates.emplace_back(set_score(set, index), index);
    }
    std::sort(candidates.begin(), candidates.end());
    const std::size_t dropped = static_cast<std::size_t>(count);
    if (candidates.size() > dropped) {
      least_gap_ = std::min(least_gap_, candidates[dropped].first - candidates[dropped - 1].first);
    }
    for (std::size_t i = 0; i < dropped; ++i) {
      kept_[set].erase(std::find(kept_[set].begin(), kept_[set].end(), candidates[i].second));
    }
    evictions_ += count;
  }

  h2o_policy policy_;
  int kv_heads_, group_;
  std::vector<float> inv_freq_;
  std::vector<Row> rows_;
  std::vector<std::vector<int>> kept_;
  int tokens_ = 0;
  double least_gap_ = 1e300;
  int evictions_ = 0;
};

}  // namespace reference
WATERWEIGHT_NAMESPACE_END
