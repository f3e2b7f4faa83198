// The wording of error messages: one line that names the file, the field, what was expected and
// what was found, and that no hostile input can turn into two lines or terminal control sequences.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "examples/pythia/io/error.hpp"

namespace pythia {

/// Valid UTF-8 on one line: control characters become \xNN, invalid bytes U+FFFD, and what is
/// longer than `max_bytes` is cut and ends in "...".
std::string printable(std::string_view text, std::size_t max_bytes = 160);

/// printable(text) in double quotes. (Not `quoted`: that would lose to std::quoted for
/// std::string.)
std::string in_quotes(std::string_view text);

/// "[2, 3]"
std::string shape_text(const std::vector<std::int64_t>& shape);

/// Error("FILE: PROBLEM").
Error file_error(const std::filesystem::path& file, const std::string& problem);

/// Error("FILE: WHAT: expected EXPECTED, found FOUND").
Error mismatch(const std::filesystem::path& file, const std::string& what,
               const std::string& expected, const std::string& found);

/// Error("FILE: cannot ACTION: REASON") with the system's text for `error_number`.
Error system_error(const std::filesystem::path& file, const std::string& action, int error_number);

}  // namespace pythia
