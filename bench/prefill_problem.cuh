// A prompt's queries, keys and values on the device, the prefill attention over them, and its
// verification.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <waterweight/attention.cuh>
#include <waterweight/reference/attention.hpp>

#include "bench/harness/device_buffer.cuh"
#include "bench/harness/non_finite.cuh"
#include "bench/harness/random.cuh"
#include "bench/harness/session.hpp"
#include "bench/harness/verify.hpp"

namespace bench {

/// One sequence of `tokens`, as many KV heads as heads; [tokens, heads, head_dim] each.
template <class T>
class PrefillProblem {
 public:
  PrefillProblem(const Session& session, int tokens, int heads, int head_dim)
      : tokens(tokens),
        heads(heads),
        head_dim(head_dim),
        q_(count(), cold_copies(3 * count() * sizeof(T), session.device.l2_bytes)),
        k_(count(), q_.copies()),
        v_(count(), q_.copies()),
        out_(count()),
        lse_(std::size_t(heads) * tokens),
        column_sums_(lse_.size()) {
    fill(q_.all(), normal_distribution{1.0f}, 1, session.stream);
    fill(k_.all(), normal_distribution{1.0f}, 2, session.stream);
    fill(v_.all(), normal_distribution{1.0f}, 3, session.stream);
  }

  int copies() const { return q_.copies(); }

  /// The forward pass over copy i, with log-sum-exp and column sums or without.
  cudaError_t run(const Session& session, int i, bool with_column_sums) const {
    return waterweight::h2o_prefill_attention<T>(
        session.device, view<const T>(q_[i]), view<const T>(k_[i]), view<const T>(v_[i]), nullptr,
        view<T>(out_.data()), with_column_sums ? lse_.data() : nullptr,
        with_column_sums ? column_sums_.data() : nullptr, session.stream);
  }

  /// Throws unless both forms agree with fp64 at sampled queries and keys.
  void verify(const Session& session) const {
    for (const bool with_column_sums : {true, false}) {
      out_.poison(session.stream);
      if (with_column_sums) {
        lse_.poison(session.stream);
        column_sums_.poison(session.stream);
      }
      check(run(session, 0, with_column_sums), "h2o_prefill_attention");
      expect_finite(out_.data(), out_.size(), session.stream);
      expect_finite(lse_.data(), lse_.size(), session.stream);
      expect_finite(column_sums_.data(), column_sums_.size(), session.stream);
      for (const std::int64_t head : sample_indices(heads, kSampledHeads, 3)) verify_head(head);
    }
  }

  const int tokens, heads, head_dim;

 private:
  static constexpr int kSampledHeads = 3, kSampledQueries = 6, kSampledKeys = 4;

  std::size_t count() const { return std::size_t(tokens) * heads * head_dim; }

  template <class U>
  waterweight::heads_view<U> view(U* data) const {
    const std::int64_t token = std::int64_t(heads) * head_dim;
    return {data, 1, tokens, heads, head_dim, token * tokens, token, head_dim};
  }

  std::vector<T> download_head(const T* data, std::int64_t head) const {
    return download_rows(data + head * head_dim, tokens, head_dim, std::size_t(heads) * head_dim);
  }

  void verify_head(std::int64_t head) const {
    const auto q = download_head(q_[0], head), k = download_head(k_[0], head);
    const auto v = download_head(v_[0], head), out = download_head(out_.data(), head);
    const auto lse = download(lse_.data() + head * tokens, tokens);
    const auto sums = download(column_sums_.data() + head * tokens, tokens);
    const double scale = 1 / std::sqrt(static_cast<double>(head_dim));
    const auto logit = [&](std::int64_t i, std::int64_t j) {
      return scale *
             waterweight::reference::dot<double>(&q[i * head_dim], &k[j * head_dim], head_dim);
    };
    const std::string name = "head " + std::to_string(head);
    for (const std::int64_t i : sample_indices(tokens, kSampledQueries, 5)) {
      std::vector<double> p(i + 1);
      for (std::int64_t j = 0; j <= i; ++j) p[j] = logit(i, j);
      const double want_lse = waterweight::reference::softmax(p);
      const std::string query = name + ", query " + std::to_string(i);
      expect_near(want_lse, lse[i], 2e-4 * (1 + std::abs(want_lse)), query + ", lse");
      for (int d = 0; d < head_dim; ++d) {
        double want = 0;
        for (std::int64_t j = 0; j <= i; ++j)
          want += p[j] * static_cast<float>(v[j * head_dim + d]);
        expect_near(want, static_cast<float>(out[i * head_dim + d]),
                    4 * kRounding<T> * (std::abs(want) + 0.5),
                    query + ", out[" + std::to_string(d) + "]");
      }
    }
    // All queries' log-sum-exps are needed here: the device's, which were just sampled.
    for (const std::int64_t j : sample_indices(tokens, kSampledKeys, 6)) {
      double want = 0;
      for (std::int64_t i = j; i < tokens; ++i) want += std::exp(logit(i, j) - lse[i]);
      expect_near(want, sums[j], 2e-3 * (0.05 + want), name + ", column " + std::to_string(j));
    }
    double mass = 0;
    for (const float sum : sums) mass += sum;
    expect_near(tokens, mass, 1e-3 * tokens, name + ", sum of the column sums");
  }

  RotatedBuffer<T> q_, k_, v_;
  DeviceBuffer<T> out_;
  DeviceBuffer<float> lse_, column_sums_;
};

}  // namespace bench
