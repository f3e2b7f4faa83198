// The decoder on the CPU, in fp32: the path that runs everywhere, and the one GPU results are
// compared with.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "examples/pythia/model/engine.hpp"
#include "examples/pythia/model/host_cache.hpp"
#include "examples/pythia/model/host_model.hpp"
#include "examples/pythia/model/thread_pool.hpp"
#include "examples/pythia/model/weights.hpp"

namespace pythia {

class HostEngine : public Engine {
 public:
  /// inv_freq: what rotary_frequencies() gives, or what a reference run used. `threads` 0: all
  /// cores. Throws Error for impossible options and whatever HostModel refuses.
  HostEngine(const Config& config, std::unique_ptr<WeightSource> weights,
             const EngineOptions& options, std::vector<float> inv_freq, int threads = 0);

  const Config& config() const override { return config_; }
  std::string device_name() const override;
  std::string decode_path() const override { return "host"; }
  std::size_t peak_device_bytes() const override { return 0; }

  Scores score(const std::vector<std::int32_t>& ids) override;
  Scores score_decoded(const std::vector<std::int32_t>& ids, int prefill_len) override;
  std::vector<std::int32_t> start(const std::vector<std::vector<std::int32_t>>& prompts,
                                  const SamplingOptions& sampling) override;
  std::vector<std::int32_t> next() override;
  void run(int steps) override;
  CacheSnapshot cache_snapshot(int sequence, int layer) const override;

 private:
  enum class Keep { nothing, in_cache };

  void check_ids(const std::vector<std::int32_t>& ids, const std::string& what) const;
  QkvViews qkv_views(float* qkv, int sequences, int tokens) const;
  waterweight::rotary_view rotary() const;

  /// All tokens of one sequence; returns the residual stream [ids.size(), hidden]. The keys go to
  /// the slots of `sequence`, or nowhere.
  std::vector<float> prefill(const std::vector<std::int32_t>& ids, int sequence, Keep keep);

  /// One token of sequences 0 .. ids.size() - 1; returns their logits [ids.size(), vocab_size].
  std::vector<float> decode(const std::vector<std::int32_t>& ids);

  /// Logits after the last token of a prefilled sequence.
  std::vector<float> last_logits(const std::vector<float>& stream) const;

  Config config_;
  EngineOptions options_;
  ThreadPool pool_;
  HostModel model_;
  HostCache cache_;
  std::vector<float> inv_freq_;
  SamplingOptions sampling_;
  std::vector<std::int32_t>
      current_;  ///< the last sampled token of each sequence, empty: not started
};

/// Loads a model for the CPU. Throws Error for bad input.
std::unique_ptr<Engine> make_host_engine(const ModelSource& source, const EngineOptions& options);

}  // namespace pythia
