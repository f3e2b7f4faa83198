// The engine's host side: buffers, graphs and the loop around them. What a token launches is in
// cuda_decode_step.cuh, what a prompt launches in cuda_prefill.cuh.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <memory>
#include <numeric>
#include <string>
#include <vector>
#include <waterweight/device_info.cuh>

#include "examples/pythia/model/cuda_buffer.hpp"
#include "examples/pythia/model/cuda_decode_step.cuh"
#include "examples/pythia/model/cuda_engine.hpp"
#include "examples/pythia/model/cuda_graph.hpp"
#include "examples/pythia/model/cuda_nll.cuh"
#include "examples/pythia/model/cuda_prefill.cuh"
#include "examples/pythia/model/cuda_read_roof.cuh"
#include "examples/pythia/model/cuda_sampling.cuh"
#include "examples/pythia/model/cuda_snapshot.hpp"
#include "examples/pythia/model/cuda_state.hpp"
#include "examples/pythia/model/cuda_step_fork.hpp"
#include "examples/pythia/model/cuda_token_step.cuh"
#include "examples/pythia/model/cuda_token_times.hpp"
#include "examples/pythia/model/cuda_weights.hpp"
#include "examples/pythia/model/host_sampler.hpp"
#include "examples/pythia/model/rotary_frequencies.hpp"

namespace pythia {

template <class T>
class CudaEngine final : public Engine {
 public:
  CudaEngine(const ModelSource& source, const EngineOptions& options, std::string device_name);

  const Config& config() const override { return config_; }
  std::string device_name() const override { return device_name_; }
  std::size_t peak_device_bytes() const override { return meter_.peak; }
  std::string decode_path() const override {
    return token_step_.active() ? "one launch per token" : "a launch per operation";
  }

  Scores score(const std::vector<std::int32_t>& ids) override;
  Scores score_decoded(const std::vector<std::int32_t>& ids, int prefill_len) override;
  std::vector<std::int32_t> start(const std::vector<std::vector<std::int32_t>>& prompts,
                                  const SamplingOptions& sampling) override;
  std::vector<std::int32_t> next() override;
  void expect_next(int calls) override { expected_ = calls; }
  void run(int steps) override;
  CacheSnapshot cache_snapshot(int sequence, int layer) const override;
  StepProfile profile_step() override;

 private:
  static constexpr int kScoredRows = 256;  // rows of logits [rows, vocab] held at a time
  /// Rows of Q, K and V that the layers of a prompt share, see Prefill::layers_at_once.
  static constexpr std::size_t kRowsAtOnce = 4096;
  static constexpr char kTokenKernel[] = "token kernel";  // its name in a profile
  static constexpr int kMostUnderWay = 4;  // steps launched whose tokens nobody has asked for yet

  /// Buffers that only scoring needs, allocated when it is first asked for.
  struct Scoring {
    DeviceArena arena;
    std::int32_t* ids = nullptr;     ///< [max_tokens]
    std::int32_t* count = nullptr;   ///< one
    float* nll = nullptr;            ///< [max_tokens]
    std::int32_t* argmax = nullptr;  ///< [max_tokens]
    float* logits = nullptr;         ///< [kScoredRows, vocab]

    ScoredSequence sequence() const { return {ids, count, nll, argmax}; }
  };

  void plan_buffers();
  void upload_rotary();
  DecodeStep<T> decode_step(int batch);
  Prefill<T> prefill() const;
  void upload_prompts(const std::vector<std::vector<std::int32_t>>& prompts, int tokens);
  void begin_scoring(const std::vector<std::int32_t>& ids, int longest, const char* limit_name);
  Scores collect(int first, int nll_count, int argmax_count, const float* last_logits);
  void advance(int batch);
  void enqueue_token_kernel(const LaunchContext& launch, bool choose);
  void enqueue_step(const LaunchContext& launch, int batch);
  void enqueue_generation(const LaunchContext& launch, bool greedy);
  StepBytes bytes_of_step();
  double step_bytes();
  std::vector<double> graph_seconds(const std::vector<CudaGraph*>& graphs, int replays,
                                    int measurements) const;
  bool chooses_in_kernel() const;
  void capture_step();
  void launch_step();
  bool has_room(int steps) const;
  void require_room(int steps) const;
  SamplingTarget sampling_target() const;
  std::vector<std::int32_t> sampled_tokens() const;

  /// source: pageable memory, which has been read when this returns.
  template <class U>
  void upload(U* target, const U* source, std::size_t count) {
    check_cuda(
        cudaMemcpyAsync(target, source, count * sizeof(U), cudaMemcpyHostToDevice, stream_.get()),
        "cudaMemcpyAsync");
  }
  template <class U>
  std::vector<U> download(const U* source, std::size_t count) const {
    std::vector<U> result(count);
    if (count == 0) return result;
    check_cuda(cudaMemcpyAsync(result.data(), source, count * sizeof(U), cudaMemcpyDeviceToHost,
                               stream_.get()),
               "cudaMemcpyAsync");
    stream_.synchronize();
    return result;
  }

  Config config_;
  EngineOptions options_;
  std::string device_name_;
  MemoryMeter meter_;
  CudaStream stream_;
  SideStream side_;
  LaunchContext launch_;
  DeviceArena arena_;
  CudaWeights<T> weights_;
  KvState<T> kv_;
  Activations<T> activations_;
  Activations<T> last_;  ///< of the prompts' last tokens
  std::byte* workspace_ = nullptr;
  std::byte* side_workspace_ = nullptr;  ///< of the products that run on side_
  std::size_t side_workspace_bytes_ = 0;
  float* inv_freq_ = nullptr;            ///< [rotary_dims / 2]
  std::int32_t* prompt_ids_ = nullptr;   ///< [batch, max_prompt]
  std::int32_t* lengths_ = nullptr;      ///< [layers, batch] of the prompts, of each layer the same
  std::int32_t* last_rows_ = nullptr;    ///< [batch] rows of the prompts' last tokens
  std::int32_t* tokens_ = nullptr;       ///< [batch] fed by the next step
  std::size_t held_rows_ = 0;            ///< see Prefill
  float* lse_ = nullptr;                 ///< [held_rows, heads], null where nothing evicts
  float* column_sums_ = nullptr;         ///< the same
  float* logits_ = nullptr;              ///< [batch, vocab]
  SamplingOptions* sampling_ = nullptr;  ///< one
  PinnedArray<std::int32_t> sampled_;    ///< [kMostUnderWay, batch], see SamplingTarget
  std::unique_ptr<Scoring> scoring_;
  TokenStep<T> token_step_;
  CudaGraph generate_graph_;
  CudaGraph greedy_graph_;  ///< stands in for generate_graph_ where chooses_in_kernel() and greedy_
  CudaGraph score_graph_;
  bool greedy_ = false;
  std::vector<std::int32_t> next_positions_;  ///< [batch] of the tokens handed out next
  int position_ = -1;  ///< tokens fed to the longest sequence; -1 before start()
  int expected_ = 0;   ///< calls of next() that are likely to come
  int under_way_ = 0;  ///< steps launched whose tokens have not been handed out
  std::array<CudaEvent, kMostUnderWay>
      step_done_;  ///< by the row of sampled_ of the first sequence
};

template <class T>
CudaEngine<T>::CudaEngine(const ModelSource& source, const EngineOptions& options,
                          std::string device_name)
    : config_(source_config(source)),
      options_(checked(options)),
      device_name_(std::move(device_name)),
      sampled_(static_cast<std::size_t>(kMostUnderWay * options.batch_size)) {
  if (options_.max_prompt == 0) options_.max_prompt = options_.max_tokens;
  const std::unique_ptr<WeightSource> data = open_weights(source, config_, options_.weights);
  check_cuda(waterweight::query_device(&launch_.device, 0), "query_device");
  launch_.stream = stream_.get();
  plan_weights(config_, options_.weights, &arena_, &weights_);
  plan_buffers();
  arena_.allocate(weight_staging_bytes(), &meter_);
  kv_.bind();
  token_step_.bind(decode_step(1), sampling_target(), stream_.get());
  launch_.workspace.data = workspace_;
  upload_rotary();
  load_weights(source, *data, config_, &meter_, stream_.get(), &weights_);
  capture_step();
}

template <class T>
void CudaEngine<T>::plan_buffers() {
  const auto batch = static_cast<std::size_t>(options_.batch_size);
  const auto vocab = static_cast<std::size_t>(config_.vocab_size);
  const std::size_t rows = batch * static_cast<std::size_t>(options_.max_prompt);
  const auto heads = static_cast<std::size_t>(config_.num_heads);
  kv_.plan(config_, options_, &arena_);
  token_step_.plan(config_, options_, kv_, launch_.device, &arena_);
  const auto layers = static_cast<std::size_t>(config_.num_layers);
  held_rows_ = kv_.one_set() ? layers * rows : std::min(layers * rows, std::max(rows, kRowsAtOnce));
  activations_.plan(config_, rows, held_rows_, &arena_);
  last_.plan(config_, batch, 0, &arena_);
  arena_.add(&inv_freq_, static_cast<std::size_t>(config_.rotary_dims / 2));
  arena_.add(&prompt_ids_, rows);
  arena_.add(&lengths_, layers * batch);
  arena_.add(&last_rows_, batch);
  arena_.add(&tokens_, batch);
  if (kv_.evicts) {
    arena_.add(&lse_, held_rows_ * heads);
    arena_.add(&column_sums_, held_rows_ * heads);
  }
  arena_.add(&logits_, batch * vocab);
  arena_.add(&sampling_, 1);
  const std::int64_t widest =
      std::max({config_.vocab_size, config_.intermediate_size, 3 * config_.hidden_size});
  const std::size_t gemm = waterweight::w8a16_gemm_workspace_bytes(
      std::max<std::int64_t>(static_cast<std::int64_t>(rows), kScoredRows), widest,
      std::max(config_.intermediate_size, config_.hidden_size), launch_.device);
  const std::size_t decode = waterweight::h2o_decode_workspace_bytes(
      options_.batch_size, config_.num_heads, kv_.capacity, config_.head_dim());
  const std::size_t policy =
      waterweight::h2o_workspace_bytes(kv_.policy, config_.num_layers, options_.batch_size,
                                       std::max(options_.max_prompt, kv_.capacity));
  launch_.workspace.bytes =
      std::max({gemm, decode, policy});  // left zero by each call, so they can share it
  arena_.add(&workspace_, launch_.workspace.bytes);
  side_workspace_bytes_ = waterweight::w8a16_gemm_workspace_bytes(
      options_.batch_size, config_.intermediate_size, config_.hidden_size, launch_.device);
  arena_.add(&side_workspace_, side_workspace_bytes_);
  arena_.add(&activations_.mlp_out, batch * static_cast<std::size_t>(config_.hidden_size));
}

template <class T>
void CudaEngine<T>::upload_rotary() {
  const std::vector<float> inv_freq = rotary_frequencies(config_);
  if (!inv_freq.empty()) upload(inv_freq_, inv_freq.data(), inv_freq.size());
}

template <class T>
DecodeStep<T> CudaEngine<T>::decode_step(int batch) {
  LayerFork fork;
  const int scored_slots = kv_.evicts ? kv_.capacity : 0;
  const StepFork shares = step_fork(config_, options_.weights, batch, scored_slots, launch_.device);
  if (shares.mlp_sms > 0) {
    fork = {launch_, launch_, launch_.device, &side_, shares.qkv_ahead, shares.mlp_early};
    fork.attention.device.sm_count = shares.projection_sms;
    fork.mlp.device.sm_count = shares.mlp_sms;
    fork.attention.device.beside_others = fork.mlp.device.beside_others = true;
    if (shares.attention_blocks > 0) {
      fork.attending.sm_count = shares.attention_blocks;
      fork.attending.beside_others = true;
    }
    fork.mlp.stream = side_.get();
    fork.mlp.workspace = {side_workspace_, side_workspace_bytes_};
  }
  return {&config_, &weights_, &kv_, activations_, fork, {inv_freq_, config_.rotary_dims},
          tokens_,  logits_};
}

template <class T>
Prefill<T> CudaEngine<T>::prefill() const {
  return {&config_,    &weights_, activations_, last_, {inv_freq_, config_.rotary_dims},
          prompt_ids_, lengths_,  last_rows_,   lse_,  column_sums_,
          held_rows_};
}

template <class T>
void CudaEngine<T>::advance(int batch) {
  check_cuda(
      waterweight::h2o_advance(kv_.states.front(), batch, kv_.capacity, kv_.policy, launch_.stream),
      "h2o_advance");
}

template <class T>
SamplingTarget CudaEngine<T>::sampling_target() const {
  return {sampling_, tokens_, sampled_.device(), kMostUnderWay};
}

/// Pads all prompts to `tokens` and sets the lengths.
template <class T>
void CudaEngine<T>::upload_prompts(const std::vector<std::vector<std::int32_t>>& prompts,
                                   int tokens) {
  std::vector<std::int32_t> padded(prompts.size() * static_cast<std::size_t>(tokens), 0);
  std::vector<std::int32_t>& lengths = next_positions_;
  lengths.clear();
  std::vector<std::int32_t> last_rows;
  for (std::size_t b = 0; b < prompts.size(); ++b) {
    const std::size_t first = b * static_cast<std::size_t>(tokens);
    std::copy(prompts[b].begin(), prompts[b].end(),
              padded.begin() + static_cast<std::ptrdiff_t>(first));
    lengths.push_back(static_cast<std::int32_t>(prompts[b].size()));
    last_rows.push_back(static_cast<std::int32_t>(first + prompts[b].size() - 1));
  }
  upload(prompt_ids_, padded.data(), padded.size());
  std::vector<std::int32_t> of_layers;
  for (int i = 0; i < config_.num_layers; ++i) {
    of_layers.insert(of_layers.end(), lengths.begin(), lengths.end());
  }
  upload(lengths_, of_layers.data(), of_layers.size());
  upload(last_rows_, last_rows.data(), last_rows.size());
}

}  // namespace pythia

#include "examples/pythia/model/cuda_engine_generate.cuh"
#include "examples/pythia/model/cuda_engine_profile.cuh"
#include "examples/pythia/model/cuda_engine_score.cuh"
