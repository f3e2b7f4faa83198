// Result files that appear whole or not at all, and a standard output whose errors are noticed.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

namespace pythia {

/// A file to be written once, at the end of a command. The constructor finds out at once whether
/// the place is writable (throws Error), so that no work is done in vain; write() fills a temporary
/// file beside it and renames that. A device or a pipe is written directly.
class OutputFile {
 public:
  /// An empty path means that nothing is wanted: write() then does nothing.
  explicit OutputFile(std::filesystem::path path);

  explicit operator bool() const { return !path_.empty(); }

  void write(std::string_view bytes) const;
  void write_json(const nlohmann::ordered_json& value) const;

 private:
  std::filesystem::path path_;
  bool direct_ = false;  ///< an existing non-regular file: /dev/stdout, a named pipe
};

/// Writes to standard output and flushes. Throws Error when that fails (closed pipe, full disk).
void write_stdout(std::string_view bytes);

}  // namespace pythia
