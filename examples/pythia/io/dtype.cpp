// See dtype.hpp.
#include "examples/pythia/io/dtype.hpp"

#include <array>

namespace pythia {
namespace {

struct DTypeInfo {
  DType dtype;
  std::string_view name;
  std::size_t bytes;
};

// In the order of the enumeration.
constexpr std::array<DTypeInfo, 10> dtypes = {{{DType::f16, "F16", 2},
                                               {DType::bf16, "BF16", 2},
                                               {DType::f32, "F32", 4},
                                               {DType::f64, "F64", 8},
                                               {DType::i8, "I8", 1},
                                               {DType::i16, "I16", 2},
                                               {DType::i32, "I32", 4},
                                               {DType::i64, "I64", 8},
                                               {DType::u8, "U8", 1},
                                               {DType::boolean, "BOOL", 1}}};

const DTypeInfo& info(DType dtype) { return dtypes.at(static_cast<std::size_t>(dtype)); }

}  // namespace

std::size_t dtype_bytes(DType dtype) { return info(dtype).bytes; }

std::string_view dtype_name(DType dtype) { return info(dtype).name; }

std::optional<DType> parse_dtype(std::string_view name) {
  for (const auto& entry : dtypes) {
    if (entry.name == name) return entry.dtype;
  }
  return std::nullopt;
}

std::optional<std::size_t> tensor_bytes(DType dtype, const std::vector<std::int64_t>& shape) {
  std::size_t bytes = dtype_bytes(dtype);
  for (const std::int64_t extent : shape) {
    if (extent < 0 || __builtin_mul_overflow(bytes, static_cast<std::size_t>(extent), &bytes)) {
      return std::nullopt;
    }
  }
  return bytes;
}

}  // namespace pythia
