// Generation: prefill, then one replay of the captured step per token. Part of
// cuda_engine_impl.cuh.
#pragma once

namespace pythia {

/// Throws Error unless every id is one of `vocab`.
inline void check_ids(const std::vector<std::int32_t>& ids, int vocab) {
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < vocab) continue;
    throw Error("token ids: index " + std::to_string(i) + ": expected 0 to " +
                std::to_string(vocab - 1) + ", found " + std::to_string(ids[i]));
  }
}

template <class T>
std::vector<std::int32_t> CudaEngine<T>::start(
    const std::vector<std::vector<std::int32_t>>& prompts, const SamplingOptions& sampling) {
  if (static_cast<int>(prompts.size()) != options_.batch_size) {
    throw Error("prompts: expected " + std::to_string(options_.batch_size) + ", found " +
                std::to_string(prompts.size()));
  }
  check_sampling(sampling);
  std::size_t longest = 0;
  for (const auto& prompt : prompts) {
    if (prompt.empty()) throw Error("prompt: expected at least one token, found none");
    check_ids(prompt, config_.vocab_size);
    longest = std::max(longest, prompt.size());
  }
  if (longest > static_cast<std::size_t>(options_.max_prompt)) {
    throw Error("prompt: expected at most " + std::to_string(options_.max_prompt) +
                " tokens, found " + std::to_string(longest));
  }
  SamplingOptions resolved = sampling;
  if (resolved.vocab_limit == 0 || resolved.vocab_limit > config_.vocab_size) {
    resolved.vocab_limit = config_.vocab_size;
  }
  upload(sampling_, &resolved, 1);
  greedy_ = !(resolved.temperature > 0.0f);
  const int batch = options_.batch_size;
  const int tokens = static_cast<int>(longest);
  upload_prompts(prompts, tokens);
  enqueue_prefill(launch_, prefill(), &kv_, batch, tokens);
  run_head(launch_, config_, weights_, activations_.residual, last_rows_, batch,
           activations_.attention_in, logits_);
  check_cuda(sample(logits_, batch, config_.vocab_size, lengths_, 0,
                    {sampling_, tokens_, sampled_.device()}, launch_.stream),
             "sample");
  position_ = tokens;
  return sampled_tokens();
}

template <class T>
std::vector<std::int32_t> CudaEngine<T>::sampled_tokens() {
  stream_.synchronize();
  std::vector<std::int32_t> tokens;
  for (int b = 0; b < options_.batch_size; ++b) {
    tokens.push_back(sampled_[static_cast<std::size_t>(b)]);
    if (tokens.back() < 0) {
      throw Error("logits at position " + std::to_string(position_ - 1) + " of sequence " +
                  std::to_string(b) + ": expected finite numbers, found none");
    }
  }
  return tokens;
}

template <class T>
void CudaEngine<T>::require_room(int steps) const {
  if (position_ < 0) throw Error("decode: expected start() before the first step");
  if (options_.policy == Policy::full && steps > options_.max_tokens - position_) {
    throw Error("decode: expected at most " + std::to_string(options_.max_tokens) +
                " tokens in the cache, found " + std::to_string(position_) + " + " +
                std::to_string(steps));
  }
}

/// Everything from the tokens to the logits.
template <class T>
void CudaEngine<T>::enqueue_step(int batch) {
  if (!token_step_.active()) {
    enqueue_decode_step(launch_, decode_step(), batch);
    return;
  }
  token_step_.enqueue(false, launch_.stream);
  enqueue_policy(launch_, kv_, batch);
}

/// Whether a greedy token can end in the kernel that computes it: nothing else comes behind it.
template <class T>
bool CudaEngine<T>::chooses_in_kernel() const {
  return token_step_.active() && !kv_.random && !kv_.shares_kept_keys();
}

template <class T>
void CudaEngine<T>::capture_step() {
  generate_graph_.capture(launch_.stream, [this] {
    const int batch = options_.batch_size;
    enqueue_step(batch);
    check_cuda(sample(logits_, batch, config_.vocab_size, kv_.step(), 1,
                      {sampling_, tokens_, sampled_.device()}, launch_.stream),
               "sample");
    advance(batch);
  });
  if (!chooses_in_kernel()) return;
  greedy_graph_.capture(launch_.stream, [this] { token_step_.enqueue(true, launch_.stream); });
}

template <class T>
void CudaEngine<T>::launch_step() {
  CudaGraph& graph = greedy_ && chooses_in_kernel() ? greedy_graph_ : generate_graph_;
  graph.launch(launch_.stream);
  ++position_;
}

template <class T>
std::vector<std::int32_t> CudaEngine<T>::next() {
  require_room(1);
  launch_step();
  return sampled_tokens();
}

template <class T>
void CudaEngine<T>::run(int steps) {
  require_room(steps);
  for (int i = 0; i < steps; ++i) launch_step();
  stream_.synchronize();
}

template <class T>
CacheSnapshot CudaEngine<T>::cache_snapshot(int sequence, int layer) const {
  const auto& state = kv_.states.at(static_cast<std::size_t>(layer));
  const auto heads = static_cast<std::size_t>(config_.num_heads);
  const auto capacity = static_cast<std::size_t>(kv_.capacity);
  const std::size_t first = static_cast<std::size_t>(sequence) * heads;
  const std::size_t slots = heads * capacity;
  std::vector<float> scores;
  if (state.score != nullptr) scores = download(state.score + first * capacity, slots);
  return snapshot_of(download(state.position + first * capacity, slots), scores,
                     download(state.free_slot + first, heads), kv_.capacity);
}

}  // namespace pythia
