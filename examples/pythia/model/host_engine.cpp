#include "examples/pythia/model/host_engine.hpp"

#include <algorithm>
#include <cstddef>
#include <utility>

#include <waterweight/reference/rotary.hpp>
#include "examples/pythia/io/error.hpp"
#include "examples/pythia/model/host_attention.hpp"
#include "examples/pythia/model/host_kernel.hpp"
#include "examples/pythia/model/host_sampler.hpp"
#include "examples/pythia/model/rotary_frequencies.hpp"

namespace pythia {
namespace {

constexpr std::int64_t kLogitRows = 64;  // rows of logits held at once while scoring a window

/// The constant view of a view.
waterweight::heads_view<const float> constant(const waterweight::heads_view<float>& view) {
  return {view.data,     view.batch,        view.tokens,       view.heads,
          view.head_dim, view.batch_stride, view.token_stride, view.head_stride};
}

}  // namespace

HostEngine::HostEngine(const Config& config, std::unique_ptr<WeightSource> weights,
                       const EngineOptions& options, std::vector<float> inv_freq, int threads)
    : config_(config),
      options_(checked(options)),
      pool_(threads),
      model_(config, std::move(weights), options.weights, pool_),
      cache_(config, options),
      inv_freq_(std::move(inv_freq)) {}

std::string HostEngine::device_name() const {
  return "CPU (" + std::to_string(pool_.size()) + " threads, " + host_kernels().name + ")";
}

void HostEngine::check_ids(const std::vector<std::int32_t>& ids, const std::string& what) const {
  if (ids.empty()) throw Error(what + ": expected at least one token, found none");
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < config_.vocab_size) continue;
    throw Error(what + ": expected token ids from 0 to " + std::to_string(config_.vocab_size - 1) +
                ", found " + std::to_string(ids[i]) + " at index " + std::to_string(i));
  }
}

QkvViews HostEngine::qkv_views(float* qkv, int sequences, int tokens) const {
  const int dim = config_.head_dim();
  const std::int64_t row = std::int64_t{3} * config_.hidden_size;
  const auto part = [&](int index) {
    return waterweight::heads_view<float>{
        qkv + index * dim, sequences, tokens, config_.num_heads, dim, tokens * row, row, 3 * dim};
  };
  return {part(0), part(1), part(2)};
}

waterweight::rotary_view HostEngine::rotary() const {
  return {inv_freq_.data(), config_.rotary_dims};
}

std::vector<float> HostEngine::prefill(const std::vector<std::int32_t>& ids, int sequence,
                                       Keep keep) {
  const int tokens = static_cast<int>(ids.size());
  const bool scored = keep == Keep::in_cache && cache_.evicts();
  std::vector<float> column_sums(scored ? ids.size() * config_.num_heads : 0);
  return model_.forward(ids, [&](int layer, float* qkv, float* out) {
    const QkvViews views = qkv_views(qkv, 1, tokens);
    pool_.parallel_for(tokens, [&](std::int64_t t, int) {
      for (auto view : {views.q, views.k}) {
        view.data += t * view.token_stride;
        view.tokens = 1;
        waterweight::reference::apply_rotary<float>(view, rotary(), t, view);
      }
    });
    const std::int64_t hidden = config_.hidden_size;
    host_attention(pool_, constant(views.q), constant(views.k), constant(views.v),
                   {out, 1, tokens, config_.num_heads, config_.head_dim(), tokens * hidden, hidden,
                    config_.head_dim()},
                   scored ? column_sums.data() : nullptr);
    if (keep == Keep::in_cache) {
      cache_.store_prompt(layer, sequence, views, scored ? column_sums.data() : nullptr);
    }
  });
}

std::vector<float> HostEngine::decode(const std::vector<std::int32_t>& ids) {
  const int sequences = static_cast<int>(ids.size());
  for (int b = 0; b < sequences; ++b) {
    if (cache_.evicts() || cache_.step(b) < options_.max_tokens) continue;
    throw Error("sequence " + std::to_string(b) + ": the context of " +
                std::to_string(options_.max_tokens) +
                " tokens is full; only --kv h2o decodes past it");
  }
  const std::int64_t hidden = config_.hidden_size;
  const std::vector<float> stream = model_.forward(ids, [&](int layer, float* qkv, float* out) {
    cache_.decode(pool_, layer, qkv_views(qkv, sequences, 1), rotary(),
                  {out, sequences, 1, config_.num_heads, config_.head_dim(), hidden, hidden,
                   config_.head_dim()});
  });
  cache_.advance(sequences);
  return model_.logits(stream.data(), sequences);
}

std::vector<float> HostEngine::last_logits(const std::vector<float>& stream) const {
  return model_.logits(stream.data() + stream.size() - config_.hidden_size, 1);
}

Scores HostEngine::score(const std::vector<std::int32_t>& ids) {
  check_ids(ids, "window");
  if (ids.size() > static_cast<std::size_t>(options_.max_tokens)) {
    throw Error("window: expected at most " + std::to_string(options_.max_tokens) +
                " tokens, found " + std::to_string(ids.size()));
  }
  const std::vector<float> stream = prefill(ids, 0, Keep::nothing);
  const auto count = static_cast<std::int64_t>(ids.size());
  const std::int64_t vocab = config_.vocab_size;
  Scores scores;
  scores.nll.resize(ids.size() - 1);
  scores.argmax.resize(ids.size());
  for (std::int64_t t0 = 0; t0 < count; t0 += kLogitRows) {
    const std::int64_t rows = std::min(kLogitRows, count - t0);
    const std::vector<float> logits = model_.logits(stream.data() + t0 * config_.hidden_size, rows);
    pool_.parallel_for(rows, [&](std::int64_t i, int) {
      const float* row = logits.data() + i * vocab;
      const std::int64_t t = t0 + i;
      scores.argmax[t] = argmax(row, config_.vocab_size);
      if (t + 1 < count) {
        scores.nll[t] = negative_log_likelihood(row, config_.vocab_size, ids[t + 1]);
      }
    });
    if (t0 + rows == count) scores.last_logits.assign(logits.end() - vocab, logits.end());
  }
  return scores;
}

Scores HostEngine::score_decoded(const std::vector<std::int32_t>& ids, int prefill_len) {
  check_ids(ids, "window");
  const int most = std::min(static_cast<int>(ids.size()) - 1, options_.max_tokens);
  if (prefill_len < 1 || prefill_len > most) {
    throw Error("prefill_len: expected 1 to " + std::to_string(most) + " for a window of " +
                std::to_string(ids.size()) + " tokens, found " + std::to_string(prefill_len));
  }
  current_.clear();
  Scores scores;
  scores.last_logits =
      last_logits(prefill({ids.begin(), ids.begin() + prefill_len}, 0, Keep::in_cache));
  for (std::size_t t = static_cast<std::size_t>(prefill_len); t < ids.size(); ++t) {
    const float* logits = scores.last_logits.data();
    scores.nll.push_back(negative_log_likelihood(logits, config_.vocab_size, ids[t]));
    scores.argmax.push_back(argmax(logits, config_.vocab_size));
    scores.last_logits = decode({ids[t]});
  }
  return scores;
}

std::vector<std::int32_t> HostEngine::start(const std::vector<std::vector<std::int32_t>>& prompts,
                                            const SamplingOptions& sampling) {
  check_sampling(sampling);
  if (prompts.size() != static_cast<std::size_t>(options_.batch_size)) {
    throw Error("prompts: expected batch_size = " + std::to_string(options_.batch_size) +
                ", found " + std::to_string(prompts.size()));
  }
  for (std::size_t b = 0; b < prompts.size(); ++b) {
    const std::string what = "prompt " + std::to_string(b);
    check_ids(prompts[b], what);
    if (prompts[b].size() > static_cast<std::size_t>(options_.max_tokens)) {
      throw Error(what + ": expected at most " + std::to_string(options_.max_tokens) +
                  " tokens, found " + std::to_string(prompts[b].size()));
    }
  }
  sampling_ = sampling;
  current_.clear();
  std::vector<std::int32_t> first;
  for (int b = 0; b < options_.batch_size; ++b) {
    const std::vector<float> logits = last_logits(prefill(prompts[b], b, Keep::in_cache));
    first.push_back(sample_token(logits.data(), config_.vocab_size, sampling_, b, cache_.step(b)));
  }
  current_ = first;
  return first;
}

std::vector<std::int32_t> HostEngine::next() {
  if (current_.empty()) throw Error("next(): expected a prompt before it, found none");
  const std::vector<float> logits = decode(current_);
  for (int b = 0; b < options_.batch_size; ++b) {
    if (sampling_.stops_at(current_[b])) continue;
    current_[b] = sample_token(logits.data() + std::int64_t{b} * config_.vocab_size,
                               config_.vocab_size, sampling_, b, cache_.step(b));
  }
  return current_;
}

void HostEngine::run(int steps) {
  for (int i = 0; i < steps; ++i) next();
}

CacheSnapshot HostEngine::cache_snapshot(int sequence, int layer) const {
  if (sequence < 0 || sequence >= options_.batch_size || layer < 0 || layer >= config_.num_layers) {
    throw Error("cache_snapshot: no sequence " + std::to_string(sequence) + " or layer " +
                std::to_string(layer));
  }
  return cache_.snapshot(sequence, layer);
}

std::unique_ptr<Engine> make_host_engine(const ModelSource& source, const EngineOptions& options) {
  const Config config = source_config(source);
  return std::make_unique<HostEngine>(config, open_weights(source, config, options.weights),
                                      options, rotary_frequencies(config));
}

}  // namespace pythia
