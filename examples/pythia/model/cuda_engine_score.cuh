// Scoring: negative log-likelihood and argmax per position. Part of cuda_engine_impl.cuh.
#pragma once

namespace pythia {

/// Checks the ids and uploads them as what is scored.
template <class T>
void CudaEngine<T>::begin_scoring(const std::vector<std::int32_t>& ids, int longest,
                                  const char* limit_name) {
  if (ids.empty() || ids.size() > static_cast<std::size_t>(longest)) {
    throw Error("scored window: expected 1 to " + std::to_string(longest) + " tokens (" +
                limit_name + "), found " + std::to_string(ids.size()));
  }
  check_ids(ids, config_.vocab_size);
  if (!scoring_) {
    auto scoring = std::make_unique<Scoring>();
    const auto tokens =
        static_cast<std::size_t>(std::max(options_.max_tokens, options_.max_prompt));
    scoring->arena.add(&scoring->ids, tokens);
    scoring->arena.add(&scoring->count, 1);
    scoring->arena.add(&scoring->nll, tokens);
    scoring->arena.add(&scoring->argmax, tokens);
    scoring->arena.add(&scoring->logits, static_cast<std::size_t>(kScoredRows) *
                                             static_cast<std::size_t>(config_.vocab_size));
    scoring->arena.allocate(0, &meter_);
    scoring_ = std::move(scoring);
  }
  const auto count = static_cast<std::int32_t>(ids.size());
  upload(scoring_->ids, ids.data(), ids.size());
  upload(scoring_->count, &count, 1);
  position_ = -1;  // a generation that was under way has lost its cache
  expected_ = under_way_ = 0;
}

/// The answer for nll[first, first + nll_count) and argmax from the same place.
template <class T>
Scores CudaEngine<T>::collect(int first, int nll_count, int argmax_count,
                              const float* last_logits) {
  Scores scores;
  scores.nll = download(scoring_->nll + first, static_cast<std::size_t>(nll_count));
  scores.argmax = download(scoring_->argmax + first, static_cast<std::size_t>(argmax_count));
  scores.last_logits = download(last_logits, static_cast<std::size_t>(config_.vocab_size));
  return scores;
}

template <class T>
Scores CudaEngine<T>::score(const std::vector<std::int32_t>& ids) {
  begin_scoring(ids, options_.max_prompt, "max_prompt");
  const int count = static_cast<int>(ids.size());
  const KvState<T>* no_cache = nullptr;
  upload_prompts({ids}, count);
  enqueue_prefill(launch_, prefill(), no_cache, 1, count);
  int rows = 0;
  for (int first = 0; first < count; first += rows) {
    rows = std::min(kScoredRows, count - first);
    float* residual =
        activations_.residual + static_cast<std::int64_t>(first) * config_.hidden_size;
    run_head(launch_, config_, weights_, residual, nullptr, rows, activations_.attention_in,
             scoring_->logits);
    check_cuda(score_rows(scoring_->logits, rows, config_.vocab_size, scoring_->sequence(), nullptr,
                          first, nullptr, launch_.stream),
               "score_rows");
  }
  const std::int64_t last_row = static_cast<std::int64_t>(rows - 1) * config_.vocab_size;
  return collect(0, count - 1, count, scoring_->logits + last_row);
}

template <class T>
Scores CudaEngine<T>::score_decoded(const std::vector<std::int32_t>& ids, int prefill_len) {
  begin_scoring(ids, options_.max_tokens, "max_tokens");
  const int count = static_cast<int>(ids.size());
  const int longest_prefill = std::min(count - 1, options_.max_prompt);
  if (prefill_len < 1 || prefill_len > longest_prefill) {
    throw Error("prefill_len: expected 1 to " + std::to_string(longest_prefill) +
                " for a window of " + std::to_string(count) + " tokens, found " +
                std::to_string(prefill_len));
  }
  upload_prompts({{ids.begin(), ids.begin() + prefill_len}}, prefill_len);
  enqueue_prefill(launch_, prefill(), &kv_, 1, prefill_len);
  run_head(launch_, config_, weights_, last_.residual, nullptr, 1, last_.attention_in, logits_);
  check_cuda(score_rows(logits_, 1, config_.vocab_size, scoring_->sequence(), nullptr,
                        prefill_len - 1, tokens_, launch_.stream),
             "score_rows");
  score_graph_.capture(launch_.stream, [this] {
    enqueue_step(launch_, 1);
    check_cuda(score_rows(logits_, 1, config_.vocab_size, scoring_->sequence(), kv_.step(), 0,
                          tokens_, launch_.stream),
               "score_rows");
    advance(1);
  });
  for (int position = prefill_len; position < count; ++position) {
    score_graph_.launch(launch_.stream);
  }
  const int scored = count - prefill_len;
  return collect(prefill_len - 1, scored, scored, logits_);
}

}  // namespace pythia
