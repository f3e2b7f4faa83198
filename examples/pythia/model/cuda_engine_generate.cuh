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
  // No token yet: none that would end a sequence.
  check_cuda(cudaMemsetAsync(tokens_, 0xff, sizeof(*tokens_) * prompts.size(), launch_.stream),
             "cudaMemsetAsync");
  greedy_ = !(resolved.temperature > 0.0f);
  const int batch = options_.batch_size;
  const int tokens = static_cast<int>(longest);
  expected_ = under_way_ = 0;
  upload_prompts(prompts, tokens);
  enqueue_prefill(launch_, prefill(), &kv_, batch, tokens);
  run_head(launch_, config_, weights_, last_.residual, nullptr, batch, last_.attention_in, logits_);
  check_cuda(
      sample(logits_, batch, config_.vocab_size, lengths_, 0, sampling_target(), launch_.stream),
      "sample");
  position_ = tokens;
  stream_.synchronize();
  return sampled_tokens();
}

/// The tokens at next_positions_, once they are there.
template <class T>
std::vector<std::int32_t> CudaEngine<T>::sampled_tokens() const {
  std::vector<std::int32_t> tokens;
  for (std::size_t b = 0; b < next_positions_.size(); ++b) {
    const int position = next_positions_[b];
    const auto row = static_cast<std::size_t>(position % kMostUnderWay);
    tokens.push_back(sampled_[row * next_positions_.size() + b]);
    if (tokens.back() < 0) {
      throw Error("logits at position " + std::to_string(position - 1) + " of sequence " +
                  std::to_string(b) + ": expected finite numbers, found none");
    }
  }
  return tokens;
}

template <class T>
bool CudaEngine<T>::has_room(int steps) const {
  return options_.policy != Policy::full || steps <= options_.max_tokens - position_;
}

template <class T>
void CudaEngine<T>::require_room(int steps) const {
  if (position_ < 0) throw Error("decode: expected start() before the first step");
  if (!has_room(steps)) {
    throw Error("decode: expected at most " + std::to_string(options_.max_tokens) +
                " tokens in the cache, found " + std::to_string(position_) + " + " +
                std::to_string(steps));
  }
}

template <class T>
void CudaEngine<T>::enqueue_token_kernel(const LaunchContext& launch, bool choose) {
  TokenTimes* const times = launch.log == nullptr ? nullptr : launch.log->times;
  launch.run(kTokenKernel, step_bytes(),
             [&] { token_step_.enqueue(choose, times, launch.stream); });
}

/// Everything from the tokens to the logits.
template <class T>
void CudaEngine<T>::enqueue_step(const LaunchContext& launch, int batch) {
  if (!token_step_.active()) {
    enqueue_decode_step(launch, decode_step(batch), batch);
    return;
  }
  enqueue_token_kernel(launch, false);
  if (!chooses_in_kernel()) {
    launch.run("policy", 0.0, [&] { enqueue_policy(launch, kv_, batch); });
  }
}

/// A step of generation, up to the next tokens.
template <class T>
void CudaEngine<T>::enqueue_generation(const LaunchContext& launch, bool greedy) {
  const int batch = options_.batch_size;
  if (greedy && chooses_in_kernel()) {
    enqueue_token_kernel(launch, true);
    return;
  }
  enqueue_step(launch, batch);
  launch.run("sampling", 4.0 * batch * config_.vocab_size, [&] {
    check_cuda(
        sample(logits_, batch, config_.vocab_size, kv_.step(), 1, sampling_target(), launch.stream),
        "sample");
  });
  launch.run("advance", 16.0 * batch, [&] { advance(batch); });
}

/// Whether a greedy token can end in the kernel that computes it: nothing else comes behind it.
template <class T>
bool CudaEngine<T>::chooses_in_kernel() const {
  return token_step_.active() && !kv_.random && !kv_.shares_kept_keys();
}

template <class T>
void CudaEngine<T>::capture_step() {
  generate_graph_.capture(launch_.stream, [this] { enqueue_generation(launch_, false); });
  if (!chooses_in_kernel()) return;
  greedy_graph_.capture(launch_.stream, [this] { enqueue_generation(launch_, true); });
}

template <class T>
void CudaEngine<T>::launch_step() {
  CudaGraph& graph = greedy_ && chooses_in_kernel() ? greedy_graph_ : generate_graph_;
  graph.launch(launch_.stream);
  ++position_;
  ++under_way_;
}

/// Steps are launched while earlier ones run, as far as the caller has said it will want them: the
/// device never waits for the host, and a token reaches the host as soon as it is chosen. A graph
/// that repeats the step by itself (a conditional WHILE node) took on H200 as long per step of one
/// sequence, 789 us, and 10 us more for 16, 2754; two or eight steps in one graph no less.
template <class T>
std::vector<std::int32_t> CudaEngine<T>::next() {
  if (under_way_ == 0) require_room(1);
  const auto event = [this](int ahead) -> CudaEvent& {
    return step_done_[static_cast<std::size_t>((next_positions_[0] + ahead) % kMostUnderWay)];
  };
  const int wanted = std::clamp(expected_, 1, kMostUnderWay);
  for (auto& position : next_positions_) ++position;
  while (under_way_ < wanted && has_room(1)) {
    launch_step();
    event(under_way_ - 1).record(launch_.stream);
  }
  event(0).synchronize();
  --under_way_;
  if (expected_ > 0) --expected_;
  return sampled_tokens();
}

template <class T>
void CudaEngine<T>::run(int steps) {
  const int more = std::max(0, steps - under_way_);
  require_room(more);
  for (int i = 0; i < more; ++i) launch_step();
  stream_.synchronize();
  under_way_ -= steps;
  for (auto& position : next_positions_) position += steps;
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
