// What a GPT-NeoX model needs of a checkpoint: the list of its tensors, their check, and access to
// their elements, in an order that lets a loader stream them layer by layer. Shared by host and GPU
// loaders.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "examples/pythia/io/checkpoint.hpp"
#include "examples/pythia/io/config.hpp"
#include "examples/pythia/io/dtype.hpp"
#include "examples/pythia/model/engine.hpp"

namespace pythia {

enum class WeightId {
  embed_in,
  input_norm_weight,
  input_norm_bias,
  post_attention_norm_weight,
  post_attention_norm_bias,
  qkv_weight,
  qkv_bias,
  dense_weight,
  dense_bias,
  up_weight,  ///< mlp.dense_h_to_4h
  up_bias,
  down_weight,  ///< mlp.dense_4h_to_h
  down_bias,
  final_norm_weight,
  final_norm_bias,
  embed_out,
};

enum class WeightRole {
  embedding,  ///< [vocab_size, hidden], rows looked up
  norm,       ///< LayerNorm weight, [hidden]
  bias,       ///< of a linear or a LayerNorm, [N]
  linear,     ///< [N, K], may be stored as INT8 with one scale per row
};

struct WeightSpec {
  WeightId id;
  WeightRole role;
  int layer;         ///< -1 outside the layers
  std::string name;  ///< the Hugging Face tensor name
  std::vector<std::int64_t> shape;

  std::int64_t elements() const;
  std::int64_t rows() const { return shape[0]; }
  std::int64_t cols() const { return elements() / shape[0]; }
};

/// Every tensor of the model: the embedding, layer 0, layer 1, ..., the final norm, embed_out.
std::vector<WeightSpec> list_weights(const Config& config);

/// The name of the fp32 [N] scales that stand beside an INT8 linear: "<name>_scale".
std::string scale_name(const WeightSpec& spec);

/// Where elements come from.
class WeightSource {
 public:
  virtual ~WeightSource() = default;

  /// How the tensor is stored: f16, bf16 or f32; i8 for a linear of an INT8 checkpoint.
  virtual DType dtype(const WeightSpec& spec) const = 0;

  /// Copies elements [first, first + count) in row-major order, as stored. Safe from several
  /// threads.
  virtual void read(const WeightSpec& spec, std::int64_t first, std::int64_t count,
                    void* out) const = 0;

  /// Copies the [rows()] scales of an i8 linear.
  virtual void read_scales(const WeightSpec& spec, float* out) const = 0;

  /// read(), widened to fp32 without loss.
  void read_float(const WeightSpec& spec, std::int64_t first, std::int64_t count, float* out) const;
};

/// A checkpoint directory's tensors. The constructor checks all of them and throws Error: a missing
/// tensor, a wrong shape or dtype, an INT8 linear without its scales, scales of the wrong length or
/// dtype, negative or not finite, and INT8 linears where `weights` asks for 16 bit.
class CheckpointWeights : public WeightSource {
 public:
  CheckpointWeights(Checkpoint checkpoint, const Config& config, WeightType weights);

  DType dtype(const WeightSpec& spec) const override;
  void read(const WeightSpec& spec, std::int64_t first, std::int64_t count,
            void* out) const override;
  void read_scales(const WeightSpec& spec, float* out) const override;

  /// The mapped tensor itself, for loaders that copy from the mapping.
  const Tensor& tensor(const WeightSpec& spec) const { return checkpoint_.at(spec.name); }

 private:
  Checkpoint checkpoint_;
};

/// Random F16 weights, the same on every machine: LayerNorm weights are 1, everything else is close
/// to normal with deviation 0.02 (the sum of four uniform bytes).
class RandomWeights : public WeightSource {
 public:
  DType dtype(const WeightSpec& spec) const override;
  void read(const WeightSpec& spec, std::int64_t first, std::int64_t count,
            void* out) const override;
  void read_scales(const WeightSpec& spec, float* out) const override;
};

/// The config of a source: DIR/config.json, or the named size. Throws Error.
Config source_config(const ModelSource& source);

/// Opens and checks a source. Throws Error.
std::unique_ptr<WeightSource> open_weights(const ModelSource& source, const Config& config,
                                           WeightType weights);

}  // namespace pythia
