// See safetensors_header.hpp.
#include "examples/pythia/io/safetensors_header.hpp"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string_view>
#include <tuple>
#include <utility>

#include "examples/pythia/io/json.hpp"
#include "examples/pythia/io/message.hpp"

namespace pythia {
namespace {

constexpr std::size_t length_bytes = 8;
constexpr std::int64_t max_int64 = std::numeric_limits<std::int64_t>::max();

// One tensor's data, relative to the end of the header.
struct Extent {
  std::size_t begin = 0;
  std::size_t end = 0;
};

std::string_view header_text(const MappedFile& file) {
  const std::string_view bytes = file.text();
  if (bytes.size() < length_bytes) {
    throw mismatch(file.path(), "size", "at least 8 bytes", std::to_string(bytes.size()));
  }
  std::uint64_t length = 0;
  for (std::size_t i = 0; i < length_bytes; ++i) {
    length |= std::uint64_t{static_cast<unsigned char>(bytes[i])} << (8 * i);
  }
  const std::size_t limit = std::min(bytes.size() - length_bytes, max_safetensors_header);
  if (length > limit) {
    throw mismatch(file.path(), "header length",
                   "at most " + std::to_string(limit) + " in a file of " +
                       std::to_string(bytes.size()) + " bytes",
                   std::to_string(length));
  }
  return bytes.substr(length_bytes, length);
}

std::vector<std::int64_t> read_integers(const JsonObject& info, const std::string& key) {
  const Json& array = info.at(key);
  if (!array.is_array()) throw info.wrong(key, "an array of integers");
  std::vector<std::int64_t> numbers;
  for (const Json& element : array) {
    std::int64_t number = 0;
    if (!integer_in_range(element, 0, max_int64, number)) {
      throw mismatch(info.file(), info.name(key), "integers from 0 to " + std::to_string(max_int64),
                     describe(element));
    }
    numbers.push_back(number);
  }
  return numbers;
}

// Fills in dtype, shape and size, and checks the extent against them and against the file.
Extent read_tensor(const JsonObject& info, std::size_t data_bytes, Tensor& tensor) {
  const auto dtype = parse_dtype(info.string("dtype"));
  if (!dtype) {
    throw info.wrong("dtype", "one of F16, BF16, F32, F64, I8, I16, I32, I64, U8, BOOL");
  }
  tensor.dtype = *dtype;
  tensor.shape = read_integers(info, "shape");
  const auto bytes = tensor_bytes(*dtype, tensor.shape);
  if (!bytes) {
    throw mismatch(info.file(), info.name("shape"), "a size that 64 bits can hold",
                   printable(shape_text(tensor.shape)));
  }
  tensor.bytes = *bytes;

  const auto offsets = read_integers(info, "data_offsets");
  if (offsets.size() != 2) throw info.wrong("data_offsets", "two integers");
  const Extent extent{static_cast<std::size_t>(offsets[0]), static_cast<std::size_t>(offsets[1])};
  const std::string found = shape_text(offsets);
  if (extent.begin > extent.end || extent.end > data_bytes) {
    throw mismatch(
        info.file(), info.name("data_offsets"),
        "begin <= end <= " + std::to_string(data_bytes) + ", the bytes of data the file holds",
        found);
  }
  if (extent.end - extent.begin != tensor.bytes) {
    throw mismatch(info.file(), info.name("data_offsets"),
                   std::to_string(tensor.bytes) + " bytes for " + std::string(dtype_name(*dtype)) +
                       " " + printable(shape_text(tensor.shape)),
                   std::to_string(extent.end - extent.begin) + " (" + found + ")");
  }
  return extent;
}

// Sorted by position, the tensors must follow one another from the first byte of data to the last.
void check_contiguous(const MappedFile& file, const std::vector<std::pair<Extent, Tensor>>& sorted,
                      std::size_t data_bytes) {
  std::size_t position = 0;
  for (const auto& [extent, tensor] : sorted) {
    if (extent.begin != position) {
      throw mismatch(file.path(), "tensor " + in_quotes(tensor.name) + ".data_offsets",
                     "data that starts at " + std::to_string(position) +
                         ", where that of the tensor before it ends",
                     std::to_string(extent.begin) +
                         (extent.begin < position ? " (they overlap)" : " (a gap)"));
    }
    position = extent.end;
  }
  if (position != data_bytes) {
    throw mismatch(file.path(), "data",
                   std::to_string(position) + " bytes, the end of the last tensor",
                   std::to_string(data_bytes));
  }
}

std::map<std::string, std::string> read_metadata(const JsonObject& object) {
  std::map<std::string, std::string> metadata;
  for (const auto& [key, value] : object.json().items()) metadata[key] = object.string(key);
  return metadata;
}

}  // namespace

SafetensorsHeader parse_safetensors(const MappedFile& file) {
  const std::string_view text = header_text(file);
  const std::size_t data_start = length_bytes + text.size();
  const std::size_t data_bytes = file.size() - data_start;
  const Json root = parse_json(text, file.path());
  const JsonObject header(root, file.path());

  SafetensorsHeader result;
  std::vector<std::pair<Extent, Tensor>> found;
  for (const auto& [name, value] : root.items()) {
    if (name == "__metadata__") {
      result.metadata = read_metadata(header.object(name));
      continue;
    }
    const JsonObject info(value, file.path(), "tensor " + in_quotes(name));
    Tensor tensor;
    tensor.name = name;
    tensor.file = file.path();
    const Extent extent = read_tensor(info, data_bytes, tensor);
    tensor.data = file.data() + data_start + extent.begin;
    found.emplace_back(extent, std::move(tensor));
  }
  std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) {
    return std::tie(a.first.begin, a.first.end) < std::tie(b.first.begin, b.first.end);
  });
  check_contiguous(file, found, data_bytes);
  for (auto& entry : found) result.tensors.push_back(std::move(entry.second));
  return result;
}

}  // namespace pythia
