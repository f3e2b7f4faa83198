// Brings a linear's weights into the order the host kernels read, quantizing them where asked.
#pragma once

#include "examples/pythia/model/host_gemm.hpp"
#include "examples/pythia/model/thread_pool.hpp"
#include "examples/pythia/model/weights.hpp"

namespace pythia {

/// The weights of `spec` without bias: as stored, or quantized per output channel when `weights` is
/// int8 and they are not INT8 already. Throws Error where a row to be quantized holds a NaN or an
/// infinity.
PackedLinear pack_linear(ThreadPool& pool, const WeightSource& source, const WeightSpec& spec,
                         WeightType weights);

}  // namespace pythia
