// Element types a checkpoint may hold.
#pragma once

#include <cstddef>
#include <string_view>

namespace pythia {

enum class DType { f16, bf16, f32, f64, i8, i16, i32, i64, u8, boolean };

std::size_t dtype_bytes(DType dtype);
std::string_view dtype_name(DType dtype);  ///< as safetensors spells it: "F16", "BF16", "I8", ...

}  // namespace pythia
