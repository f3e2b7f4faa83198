#include "examples/pythia/cli/input.hpp"

#include <cerrno>
#include <cstdio>
#include <memory>
#include <utility>

#include "examples/pythia/io/error.hpp"
#include "examples/pythia/io/message.hpp"
#include "examples/pythia/text/utf8.hpp"

namespace pythia {
namespace {

constexpr std::size_t kMaxWarning = 1000;

std::string read_all(std::FILE* stream, const std::string& origin) {
  std::string bytes;
  char buffer[1 << 16];
  for (;;) {
    const std::size_t count = std::fread(buffer, 1, sizeof(buffer), stream);
    bytes.append(buffer, count);
    if (count < sizeof(buffer)) break;
  }
  if (std::ferror(stream) != 0) throw system_error(origin, "read", errno);
  return bytes;
}

}  // namespace

void warn(const std::string& message) {
  std::fprintf(stderr, "pythia: warning: %s\n", printable(message, kMaxWarning).c_str());
}

std::string repaired(const std::string& origin, std::string_view bytes) {
  Utf8Repair repair = repair_utf8(bytes);
  if (repair.replacements > 0) {
    warn(origin + ": invalid UTF-8 replaced by U+FFFD in " + std::to_string(repair.replacements) +
         (repair.replacements == 1 ? " place, at byte " : " places, the first at byte ") +
         std::to_string(repair.first_offset));
  }
  return std::move(repair.text);
}

std::string read_text(const std::filesystem::path& file) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> stream(std::fopen(file.c_str(), "rb"),
                                                               std::fclose);
  if (!stream) throw system_error(file, "open", errno);
  return repaired(file.string(), read_all(stream.get(), file.string()));
}

std::string read_stdin() { return repaired("standard input", read_all(stdin, "standard input")); }

Json read_json(const std::filesystem::path& file) { return parse_json(read_text(file), file); }

std::vector<std::int32_t> to_ids(const Json& array, const std::filesystem::path& file,
                                 const std::string& where, int limit) {
  if (!array.is_array()) {
    throw mismatch(file, where.empty() ? "file" : where, "a JSON array of token ids",
                   describe(array));
  }
  std::vector<std::int32_t> ids;
  ids.reserve(array.size());
  for (const Json& element : array) {
    std::int64_t id = 0;
    if (!integer_in_range(element, 0, limit - 1, id)) {
      throw mismatch(file, where + "[" + std::to_string(ids.size()) + "]",
                     "a token id from 0 to " + std::to_string(limit - 1), describe(element));
    }
    ids.push_back(static_cast<std::int32_t>(id));
  }
  return ids;
}

}  // namespace pythia
