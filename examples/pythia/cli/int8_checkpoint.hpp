// Writes the INT8 form of a 16- or 32-bit checkpoint: each linear as int8 weights and fp32 scales,
// everything else in 16 bits.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <vector>

#include "examples/pythia/io/safetensors_writer.hpp"
#include "examples/pythia/model/engine.hpp"
#include "examples/pythia/model/weights.hpp"

namespace pythia {

/// Quantizes fp32 rows: (w [rows, cols], rows, cols, q, scale) to the lowest row that is not
/// finite, or -1.
using RowQuantizer =
    std::function<std::int64_t(const float*, std::int64_t, std::int64_t, std::int8_t*, float*)>;

/// The host's quantizer; CudaQuantizer gives the same bits.
RowQuantizer reference_row_quantizer();

/// What the file will hold, in order: "<name>.weight" I8 and "<name>.weight_scale" F32 [N] for each
/// linear, the other tensors in `type`.
std::vector<TensorSpec> int8_checkpoint_specs(const std::vector<WeightSpec>& weights,
                                              ActivationType type);

/// The file's size, header not counted.
std::uint64_t total_bytes(const std::vector<TensorSpec>& specs);

/// Throws Error with both figures unless the file system of `directory` has `needed` bytes free.
void require_disk_space(const std::filesystem::path& directory, std::uint64_t needed);

/// Writes FILE tensor by tensor; progress(done) is called after each weight and may throw. `origin`
/// names the source in errors: a row that is not finite, a value beyond the range of fp16.
void write_int8_checkpoint(const WeightSource& source, const std::vector<WeightSpec>& weights,
                           ActivationType type, const RowQuantizer& quantize,
                           const std::filesystem::path& origin, const std::filesystem::path& file,
                           const std::function<void(std::int64_t)>& progress);

}  // namespace pythia
