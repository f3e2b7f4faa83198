// See safetensors_writer.hpp.
#include "examples/pythia/io/safetensors_writer.hpp"

#include <unistd.h>

#include <cerrno>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "examples/pythia/io/message.hpp"
#include "examples/pythia/io/safetensors_header.hpp"

namespace pythia {
namespace {

constexpr std::size_t length_bytes = 8;
constexpr std::size_t data_alignment = 8;

std::size_t checked_bytes(const std::filesystem::path& file, const TensorSpec& spec) {
  const auto bytes = tensor_bytes(spec.dtype, spec.shape);
  if (!bytes) {
    throw mismatch(file, "tensor " + in_quotes(spec.name) + ".shape",
                   "a size that 64 bits can hold", printable(shape_text(spec.shape)));
  }
  return *bytes;
}

// The length field and the JSON, padded with spaces so that the data starts aligned.
std::string header_bytes(const std::filesystem::path& file, const std::vector<TensorSpec>& specs,
                         const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::set<std::string> names = {"__metadata__"};
  std::size_t position = 0;
  for (const TensorSpec& spec : specs) {
    if (!names.insert(spec.name).second) {
      throw mismatch(file, "tensor " + in_quotes(spec.name), "a name of its own", "a second one");
    }
    const std::size_t begin = position;
    if (__builtin_add_overflow(begin, checked_bytes(file, spec), &position)) {
      throw mismatch(file, "data", "a size that 64 bits can hold", "more");
    }
    // Appended rather than looked up: ordered_json searches its keys one by one.
    header.get_ref<nlohmann::ordered_json::object_t&>().emplace_back(
        spec.name, nlohmann::ordered_json{{"dtype", dtype_name(spec.dtype)},
                                          {"shape", spec.shape},
                                          {"data_offsets", {begin, position}}});
  }

  std::string text;
  try {
    text = header.dump();
  } catch (const nlohmann::json::exception&) {
    throw mismatch(file, "names and metadata", "valid UTF-8", "other bytes");
  }
  text.append((data_alignment - text.size() % data_alignment) % data_alignment, ' ');
  if (text.size() > max_safetensors_header) {
    throw mismatch(file, "header length", "at most " + std::to_string(max_safetensors_header),
                   std::to_string(text.size()));
  }
  std::string length;
  for (std::size_t i = 0; i < length_bytes; ++i) {
    length += static_cast<char>(text.size() >> (8 * i) & 0xFF);
  }
  return length + text;
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& file,
                                     std::vector<TensorSpec> specs,
                                     const std::map<std::string, std::string>& metadata)
    : file_(file), specs_(std::move(specs)) {
  const std::string header = header_bytes(file_, specs_, metadata);
  stream_ = std::fopen(file_.c_str(), "wb");
  if (stream_ == nullptr) {
    const int reason = errno;
    throw system_error(file_, "create", reason);
  }
  try {
    put(header.data(), header.size());
  } catch (...) {
    abandon();
    throw;
  }
}

SafetensorsWriter::~SafetensorsWriter() { abandon(); }

void SafetensorsWriter::write(const void* data, std::size_t bytes) {
  if (next_ == specs_.size()) {
    throw mismatch(file_, "tensors", std::to_string(specs_.size()), "one more");
  }
  const TensorSpec& spec = specs_[next_];
  const std::size_t expected = checked_bytes(file_, spec);
  if (bytes != expected) {
    throw mismatch(file_, "tensor " + in_quotes(spec.name), std::to_string(expected) + " bytes",
                   std::to_string(bytes));
  }
  put(data, bytes);
  ++next_;
}

void SafetensorsWriter::finish() {
  if (next_ != specs_.size()) {
    throw mismatch(file_, "tensors", std::to_string(specs_.size()), std::to_string(next_));
  }
  const bool flushed = std::fflush(stream_) == 0 && ::fsync(::fileno(stream_)) == 0;
  const int flush_reason = errno;
  if (!flushed) throw system_error(file_, "write", flush_reason);
  const bool closed = std::fclose(std::exchange(stream_, nullptr)) == 0;
  const int close_reason = errno;
  if (!closed) throw system_error(file_, "write", close_reason);
}

void SafetensorsWriter::put(const void* data, std::size_t bytes) {
  if (bytes > 0 && std::fwrite(data, 1, bytes, stream_) != bytes) {
    const int reason = errno;
    throw system_error(file_, "write", reason);
  }
}

void SafetensorsWriter::abandon() {
  if (stream_ == nullptr) return;
  std::fclose(std::exchange(stream_, nullptr));
  std::error_code ignored;
  if (std::filesystem::is_regular_file(file_, ignored)) std::filesystem::remove(file_, ignored);
}

}  // namespace pythia
