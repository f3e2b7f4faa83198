// The logits of a token by plain loops in double; what the kernel keeps in T is rounded to T.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "tests/emulator/token_model.hpp"

namespace emulator {

template <class T, class Element>
class TokenReference {
 public:
  explicit TokenReference(const TokenModel<T, Element>& model) : model_(model) {}

  /// From the state before the token.
  std::vector<double> logits() const {
    std::vector<double> x(kHidden);
    for (int i = 0; i < kHidden; ++i) {
      x[i] = to_double(model_.embedding()[model_.token() * kHidden + i]);
    }
    for (const auto& layer : model_.layers()) {
      const auto attended = attention(
          layer, times(layer.linear[pythia::kQkvTile], normalised(x, layer.attention_norm)));
      auto up = times(layer.linear[pythia::kUpTile], normalised(x, layer.mlp_norm));
      for (double& u : up) u = rounded(gelu(u));
      const auto down = times(layer.linear[pythia::kDownTile], up);
      const auto dense = times(layer.linear[pythia::kDenseTile], attended);
      for (int i = 0; i < kHidden; ++i) x[i] += down[i] + dense[i];
    }
    return times(model_.head(), normalised(x, model_.last_norm()));
  }

 private:
  static double rounded(double value) { return to_double(from_double<T>(value)); }

  static std::vector<double> times(const Linear<T, Element>& linear, const std::vector<double>& x) {
    std::vector<double> y(static_cast<std::size_t>(linear.rows));
    for (int row = 0; row < linear.rows; ++row) {
      double sum = linear.bias != nullptr ? to_double(linear.bias[row]) : 0;
      for (int i = 0; i < linear.columns; ++i) sum += linear.at(row, i) * x[i];
      y[row] = sum;
    }
    return y;
  }

  static std::vector<double> normalised(const std::vector<double>& x,
                                        const pythia::CudaLayerNorm& norm) {
    double mean = 0, variance = 0;
    for (const double v : x) mean += v / kHidden;
    for (const double v : x) variance += (v - mean) * (v - mean) / kHidden;
    std::vector<double> y(kHidden);
    for (int i = 0; i < kHidden; ++i) {
      y[i] = rounded((x[i] - mean) / std::sqrt(variance + 1e-5) * norm.weight[i] + norm.bias[i]);
    }
    return y;
  }

  double gelu(double x) const {
    if (!model_.sizes().gelu_tanh) return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    return 0.5 * x * (1 + std::tanh(0.79788456080286536 * (x + 0.044715 * x * x * x)));
  }

  void rotate(double* row) const {
    for (int i = 0; i < kRotaryDims / 2; ++i) {
      const double angle = static_cast<float>(model_.step()) * model_.inverse_frequencies()[i];
      const double left = row[i], right = row[i + kRotaryDims / 2];
      row[i] = left * std::cos(angle) - right * std::sin(angle);
      row[i + kRotaryDims / 2] = right * std::cos(angle) + left * std::sin(angle);
    }
  }

  /// qkv: per head, rows of q, k and v.
  std::vector<double> attention(const LayerData<T, Element>& layer, std::vector<double> qkv) const {
    const int slots = model_.sizes().slots(), live = std::min(model_.length() + 1, slots);
    for (double& value : qkv) value = rounded(value);
    std::vector<double> out(kHidden);
    for (int head = 0; head < kHeads; ++head) {
      double* const q = &qkv[static_cast<std::size_t>(head) * 3 * kHeadDim];
      double* const k = q + kHeadDim;
      rotate(q);
      rotate(k);
      const auto at = [&](const T* cache, const double* fresh, int slot, int i) {
        return slot == layer.free_slot[head]
                   ? rounded(fresh[i])
                   : to_double(cache[(head * slots + slot) * kHeadDim + i]);
      };
      std::vector<double> weights;
      for (int slot = 0; slot < live; ++slot) {
        double dot = 0;
        for (int i = 0; i < kHeadDim; ++i) dot += q[i] * at(layer.k, k, slot, i);
        weights.push_back(std::exp(dot / std::sqrt(kHeadDim)));
      }
      double sum = 0;
      for (const double weight : weights) sum += weight;
      for (int i = 0; i < kHeadDim; ++i) {
        double value = 0;
        for (int slot = 0; slot < live; ++slot) {
          value += weights[slot] / sum * at(layer.v, k + kHeadDim, slot, i);
        }
        out[head * kHeadDim + i] = rounded(value);
      }
    }
    return out;
  }

  const TokenModel<T, Element>& model_;
};

}  // namespace emulator
