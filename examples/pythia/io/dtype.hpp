// Element types a checkpoint may hold.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace pythia {

enum class DType { f16, bf16, f32, f64, i8, i16, i32, i64, u8, boolean };

std::size_t dtype_bytes(DType dtype);
std::string_view dtype_name(DType dtype);  ///< as safetensors spells it: "F16", "BF16", "I8", ...

/// The inverse of dtype_name; nothing for a name that is not in the list.
std::optional<DType> parse_dtype(std::string_view name);

/// Bytes of a tensor; nothing when a dimension is negative or the size overflows.
std::optional<std::size_t> tensor_bytes(DType dtype, const std::vector<std::int64_t>& shape);

}  // namespace pythia
