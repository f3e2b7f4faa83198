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

/// One KV head of one sequence in one layer, with its group of query heads. Vectors come in token
/// order, before rotary embedding, which the oracle applies at each token's own index.
class h2o_oracle {
 public:
  using vector = std::vector<double>;

  /// `inv_freq` turns the first 2 * inv_freq.size() elements.
  h2o_oracle(h2o_policy policy, int group, std::vector<float> inv_freq)
      : policy_(policy), group_(group), inv_freq_(std::move(inv_freq)) {}

  /// The whole prompt at once: queries[token][query head of the group], keys[token], values[token].
  /// Returns the outputs in the shape of the queries.
  std::vector<std::vector<vector>> prefill(const std::vector<std::vector<vector>>& queries,
                                           const std::vector<vector>& keys,
                                           const std::vector<vector>& values) {
    std::vector<std::vector<vector>> outputs;
    for (std::size_t i = 0; i < keys.size(); ++i) {
      kept_.push_back(static_cast<int>(i));
      append(keys[i], values[i]);
      outputs.push_back(attend(queries[i]));
    }
    prefill_score_ = score_;
    const int length = static_cast<int>(keys.size());
    while (static_cast<int>(kept_.size()) > policy_.sinks + policy_.heavy + policy_.recent) {
      drop_least(length);
    }
    return outputs;
  }

  /// One token: queries[query head of the group]. Returns the outputs in the same shape.
  std::vector<vector> decode(const std::vector<vector>& queries, const vector& key,
                             const vector& value) {
    kept_.push_back(tokens());
    append(key, value);
    const std::vector<vector> outputs = attend(queries);
    const int most = policy_.sinks + policy_.heavy + policy_.recent;
    if (static_cast<int>(kept_.size()) > most) drop_least(tokens());
    return outputs;
  }

  int tokens() const { return static_cast<int>(keys_.size()); }
  const std::vector<int>& kept() const { return kept_; }           ///< original indices, ascending
  double score(int index) const { return score_[index]; }          ///< mass gathered while kept
  const vector& prefill_scores() const { return prefill_score_; }  ///< of the whole prompt
  double least_gap() const { return least_gap_; }  ///< smallest score margin of any eviction so far
  int evictions() const { return evictions_; }

 private:
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

  void append(const vector& key, const vector& value) {
    keys_.push_back(rotated(key, tokens()));
    values_.push_back(value);
    score_.push_back(0);
  }

  /// The newest token's attention over the kept ones; adds the probabilities to their scores.
  std::vector<vector> attend(const std::vector<vector>& queries) {
    std::vector<vector> outputs;
    for (int g = 0; g < group_; ++g) {
      const vector query = rotated(queries[g], tokens() - 1);
      vector weight(kept_.size());
      double total = 0;
      double largest = -1e300;
      for (std::size_t j = 0; j < kept_.size(); ++j) {
        double product = 0;
        for (std::size_t d = 0; d < query.size(); ++d) product += query[d] * keys_[kept_[j]][d];
        weight[j] = product / std::sqrt(static_cast<double>(query.size()));
        largest = std::max(largest, weight[j]);
      }
      for (double& w : weight) total += w = std::exp(w - largest);
      vector output(query.size(), 0.0);
      for (std::size_t j = 0; j < kept_.size(); ++j) {
        const double p = weight[j] / total;
        score_[kept_[j]] += p;
        for (std::size_t d = 0; d < output.size(); ++d) output[d] += p * values_[kept_[j]][d];
      }
      outputs.push_back(output);
    }
    return outputs;
  }

  /// Drops the kept token of least score (then least index) that is neither among the first `sinks`
  /// nor among the last `recent` of `length` tokens.
  void drop_least(int length) {
    std::vector<int> candidates;
    for (const int index : kept_) {
      if (index >= policy_.sinks && index < length - policy_.recent) candidates.push_back(index);
    }
    std::stable_sort(candidates.begin(), candidates.end(),
                     [&](int a, int b) { return score_[a] < score_[b]; });
    if (candidates.size() > 1) {
      least_gap_ = std::min(least_gap_, score_[candidates[1]] - score_[candidates[0]]);
    }
    kept_.erase(std::find(kept_.begin(), kept_.end(), candidates.front()));
    ++evictions_;
  }

  h2o_policy policy_;
  int group_;
  std::vector<float> inv_freq_;
  std::vector<vector> keys_, values_;
  vector score_, prefill_score_;
  std::vector<int> kept_;
  double least_gap_ = 1e300;
  int evictions_ = 0;
};

}  // namespace reference
WATERWEIGHT_NAMESPACE_END
