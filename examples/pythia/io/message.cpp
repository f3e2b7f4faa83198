// See message.hpp.
#include "examples/pythia/io/message.hpp"

#include <cstdio>
#include <system_error>

#include "examples/pythia/text/utf8.hpp"

namespace pythia {

std::string printable(std::string_view text, std::size_t max_bytes) {
  const bool cut = text.size() > max_bytes;
  if (cut) text = text.substr(0, max_bytes);
  std::string escaped;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      char hex[8];
      std::snprintf(hex, sizeof(hex), "\\x%02X", static_cast<unsigned>(byte));
      escaped += hex;
    } else {
      escaped += c;
    }
  }
  return repair_utf8(escaped).text + (cut ? "..." : "");
}

std::string in_quotes(std::string_view text) { return '"' + printable(text) + '"'; }

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + "]";
}

Error file_error(const std::filesystem::path& file, const std::string& problem) {
  constexpr std::size_t longest_path = 4096;
  return Error(printable(file.string(), longest_path) + ": " + problem);
}

Error mismatch(const std::filesystem::path& file, const std::string& what,
               const std::string& expected, const std::string& found) {
  return file_error(file, what + ": expected " + expected + ", found " + found);
}

Error system_error(const std::filesystem::path& file, const std::string& action, int error_number) {
  return file_error(file,
                    "cannot " + action + ": " + std::generic_category().message(error_number));
}

}  // namespace pythia
