// A random model and cache in emulated memory, and the token kernel on them.
#pragma once

#include "tests/emulator/cuda_names.hpp"
#include "tests/emulator/mma.hpp"
// What is rewritten, after the names it needs.
#include "examples/pythia/model/cuda_token_kernel.cuh"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>
#include <waterweight/device/ring_order.hpp>

namespace emulator {

/// What a test varies; the rest is as in the bundled model.
struct TokenCase {
  int layers = 4, vocab = 2048;
  bool h2o = false;
  int heavy = 16, recent = 16, sinks = 4, evict_every = 1;
  int capacity = 200;  ///< without h2o
  int start = 100;     ///< tokens in the cache
  bool gelu_tanh = false;
  int blocks = 64;
  int ring_slots = 32, in_flight = 8, ahead = 8;
  int in_flight_beside_many = 8, many_live = 1 << 30;

  int slots() const { return h2o ? heavy + recent + sinks + evict_every : capacity; }
};

constexpr int kHeadDim = 64, kHidden = pythia::kTokenStagingThreads, kHeads = kHidden / kHeadDim;
constexpr int kInner = pythia::kTokenParts * kHidden;
constexpr int kRotaryDims = kHeadDim / 4;

template <class T>
T from_double(double value) {
  return waterweight::detail::from_float<T>(static_cast<float>(value));
}
template <class T>
double to_double(T value) {
  return waterweight::detail::to_float(value);
}

/// [rows, columns], as the kernel takes it.
template <class T, class Element>
struct Linear {
  int rows, columns;
  Element* weight;
  float* scale;  ///< of INT8
  T* bias;       ///< or null

  double at(int row, int column) const {
    const Element value = weight[static_cast<std::size_t>(row) * columns + column];
    if constexpr (sizeof(Element) == 1) {
      return static_cast<double>(value) * scale[row];
    } else {
      return to_double(value);
    }
  }
  pythia::TokenLinear<T> view() const {
    return {reinterpret_cast<const std::byte*>(weight), scale, bias};
  }
};

template <class T, class Element>
struct LayerData {
  Linear<T, Element> linear[pythia::kLinearsOfLayer];  ///< by TileKind
  pythia::CudaLayerNorm attention_norm, mlp_norm;
  T *k, *v;
  float* score;
  std::int32_t *position, *free_slot;
};

template <class T, class Element>
class TokenModel {
 public:
  TokenModel(const TokenCase& sizes, std::uint64_t seed) : sizes_(sizes), random_(seed) {
    fill_weights();
    fill_parameters();
  }

  /// The kernel on the state that the token before left. Throws Fault.
  void run(std::uint64_t seed) {
    std::fill_n(parameters_.logits, sizes_.vocab, NAN);
    launch(memory_, static_cast<unsigned>(sizes_.blocks), pythia::kTokenThreads, seed, [&] {
      pythia::token_kernel<T, kHeadDim, kHidden / pythia::kTokenStagingThreads, Element>(
          parameters_);
    });
  }

  /// All that a token leaves, bit for bit.
  std::vector<unsigned char> state() const {
    std::vector<unsigned char> bytes;
    const auto add = [&](const auto* values, std::size_t count) {
      const auto* const begin = reinterpret_cast<const unsigned char*>(values);
      bytes.insert(bytes.end(), begin, begin + count * sizeof(*values));
    };
    add(parameters_.logits, static_cast<std::size_t>(sizes_.vocab));
    add(sequence_, 3);
    for (const auto& layer : layers_) {
      add(layer.k, cache_rows() * kHeadDim);
      add(layer.v, cache_rows() * kHeadDim);
      add(layer.position, cache_rows());
      add(layer.free_slot, kHeads);
      if (sizes_.h2o) add(layer.score, cache_rows());
    }
    return bytes;
  }

  const TokenCase& sizes() const { return sizes_; }
  const std::vector<LayerData<T, Element>>& layers() const { return layers_; }
  const Linear<T, Element>& head() const { return head_; }
  const pythia::CudaLayerNorm& last_norm() const { return last_norm_; }
  const T* embedding() const { return embedding_; }
  const float* inverse_frequencies() const { return parameters_.rotary.inv_freq; }
  const float* logits() const { return parameters_.logits; }
  int token() const { return sequence_[0]; }
  int step() const { return sequence_[1]; }
  int length() const { return sequence_[2]; }

 private:
  std::size_t cache_rows() const { return static_cast<std::size_t>(kHeads) * sizes_.slots(); }
  double uniform() { return (random_() + 0.5) / 4294967296.0; }
  /// Zero on average, with a variance of one.
  double spread() { return (uniform() + uniform() + uniform() + uniform() - 2) * std::sqrt(3.0); }

  template <class U>
  U* random_values(std::size_t count, double mean, double deviation) {
    U* const values = memory_.make<U>(count);
    for (std::size_t i = 0; i < count; ++i) values[i] = from_double<U>(mean + deviation * spread());
    return values;
  }

  Linear<T, Element> random_linear(int rows, int columns, bool has_bias) {
    Linear<T, Element> linear{rows, columns, nullptr, nullptr, nullptr};
    const std::size_t count = static_cast<std::size_t>(rows) * columns;
    const double deviation = 0.8 / std::sqrt(columns);
    if constexpr (sizeof(Element) == 1) {
      linear.weight = memory_.make<Element>(count);
      for (std::size_t i = 0; i < count; ++i) {
        linear.weight[i] = static_cast<Element>(static_cast<int>(random_.below(255)) - 127);
      }
      linear.scale = memory_.make<float>(rows);
      for (int i = 0; i < rows; ++i) {
        linear.scale[i] = static_cast<float>(deviation / 73 * (0.5 + uniform()));
      }
    } else {
      linear.weight = random_values<Element>(count, 0, deviation);
    }
    if (has_bias) linear.bias = random_values<T>(rows, 0, 0.1);
    return linear;
  }

  pythia::CudaLayerNorm random_norm() {
    pythia::CudaLayerNorm norm;
    norm.weight = random_values<float>(kHidden, 1, 0.1);
    norm.bias = random_values<float>(kHidden, 0, 0.1);
    return norm;
  }

  void fill_weights() {
    for (int i = 0; i < sizes_.layers; ++i) {
      LayerData<T, Element> layer;
      layer.linear[pythia::kQkvTile] = random_linear(3 * kHidden, kHidden, true);
      layer.linear[pythia::kUpTile] = random_linear(kInner, kHidden, true);
      layer.linear[pythia::kDownTile] = random_linear(kHidden, kInner, true);
      layer.linear[pythia::kDenseTile] = random_linear(kHidden, kHidden, true);
      layer.attention_norm = random_norm();
      layer.mlp_norm = random_norm();
      layer.k = random_values<T>(cache_rows() * kHeadDim, 0, 1);
      layer.v = random_values<T>(cache_rows() * kHeadDim, 0, 1);
      layer.score = sizes_.h2o ? memory_.make<float>(cache_rows()) : nullptr;
      layer.position = memory_.make<std::int32_t>(cache_rows());
      layer.free_slot = memory_.make<std::int32_t>(kHeads);
      for (std::size_t row = 0; row < cache_rows(); ++row) {
        const int slot = static_cast<int>(row) % sizes_.slots();
        layer.position[row] = slot < sizes_.start ? slot : -1;
        if (sizes_.h2o && slot < sizes_.start) layer.score[row] = static_cast<float>(uniform());
      }
      std::fill_n(layer.free_slot, kHeads, sizes_.start);
      layers_.push_back(layer);
    }
    head_ = random_linear(sizes_.vocab, kHidden, false);
    last_norm_ = random_norm();
    embedding_ = random_values<T>(static_cast<std::size_t>(sizes_.vocab) * kHidden, 0, 1);
  }

  void fill_parameters() {
    pythia::TokenParameters<T>& p = parameters_;
    const int capacity = sizes_.slots();
    auto* const table = memory_.make<pythia::TokenLayer<T>>(layers_.size() + 1);
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      const LayerData<T, Element>& from = layers_[i];
      for (int l = 0; l < pythia::kLinearsOfLayer; ++l) table[i].linear[l] = from.linear[l].view();
      table[i].attention_norm = from.attention_norm;
      table[i].mlp_norm = from.mlp_norm;
      table[i].k = from.k;
      table[i].v = from.v;
      table[i].score = from.score;
      table[i].position = from.position;
      table[i].free_slot = from.free_slot;
    }
    table[layers_.size()].linear[pythia::kQkvTile] = head_.view();
    table[layers_.size()].attention_norm = last_norm_;
    p.layers = table;
    p.embedding = embedding_;
    p.logits = memory_.make<float>(sizes_.vocab);
    p.layer_count = sizes_.layers;
    p.hidden = kHidden;
    p.inner = kInner;
    p.heads = kHeads;
    p.vocab = sizes_.vocab;
    p.capacity = capacity;
    p.splits = waterweight::detail::decode_splits(capacity, pythia::kTokenAttentionThreads);
    p.most_slots = (capacity + p.splits - 1) / p.splits;
    p.eps = 1e-5f;
    p.gelu_tanh = sizes_.gelu_tanh;
    p.ring_slots = sizes_.ring_slots;
    p.in_flight = {sizes_.in_flight, sizes_.in_flight_beside_many, sizes_.many_live};
    p.tiles_ahead = sizes_.ahead;

    p.exchange.x = memory_.make<waterweight::flagged_word>(2 * kHidden);
    p.exchange.qkv = memory_.make<waterweight::flagged_word>(3 * kHidden);
    p.exchange.attention = memory_.make<waterweight::flagged_word>(kHidden);
    p.exchange.mlp = memory_.make<waterweight::flagged_word>(kInner);
    p.exchange.stat = memory_.make<waterweight::flagged_word>(4 * kHeads * p.splits);
    p.exchange.partial = memory_.make<waterweight::flagged_word>(2 * kHidden * p.splits);
    p.exchange.logit = memory_.make<float>(2 * cache_rows());
    p.exchange.arrived = memory_.make<unsigned>(sizes_.layers * kHeads);
    p.exchange.tokens = memory_.make<std::uint32_t>(1);

    auto* const frequencies = memory_.make<float>(kRotaryDims / 2);
    for (int i = 0; i < kRotaryDims / 2; ++i) {
      frequencies[i] = static_cast<float>(std::pow(10000.0, -2.0 * i / kRotaryDims));
    }
    p.rotary.inv_freq = frequencies;
    p.rotary.dims = kRotaryDims;
    if (sizes_.h2o) {
      p.policy.sinks = sizes_.sinks;
      p.policy.heavy = sizes_.heavy;
      p.policy.recent = sizes_.recent;
      p.policy.evict_every = sizes_.evict_every;
    }

    sequence_ = memory_.make<std::int32_t>(3);
    sequence_[0] = 7;
    sequence_[1] = sequence_[2] = sizes_.start;
    p.token = sequence_;
    p.step = p.ending.step = sequence_ + 1;
    p.length = p.ending.length = sequence_ + 2;
    auto* const options = memory_.make<pythia::SamplingOptions>(1);
    *options = pythia::SamplingOptions{};
    options->vocab_limit = sizes_.vocab;
    p.ending.target.options = options;
    p.ending.target.tokens = sequence_;
    p.ending.target.seen = memory_.make<int>(1);
    p.ending.best = memory_.make<pythia::Candidate>(static_cast<std::size_t>(sizes_.blocks));
    p.ending.arrived = memory_.make<unsigned>(1);
    p.ending.choose = true;
  }

  TokenCase sizes_;
  Random random_;
  GlobalMemory memory_;
  std::vector<LayerData<T, Element>> layers_;
  Linear<T, Element> head_;
  pythia::CudaLayerNorm last_norm_;
  T* embedding_ = nullptr;
  std::int32_t* sequence_ = nullptr;  ///< token, step, length
  pythia::TokenParameters<T> parameters_ = {};
};

}  // namespace emulator
