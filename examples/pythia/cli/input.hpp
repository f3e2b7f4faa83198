// What the commands read: texts and JSON arrays, with errors and warnings that say where.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "examples/pythia/io/json.hpp"

namespace pythia {

/// One line on stderr: "pythia: warning: MESSAGE".
void warn(const std::string& message);

/// A file as valid UTF-8. Invalid bytes become U+FFFD with a warning; throws Error when unreadable.
std::string read_text(const std::filesystem::path& file);

/// The same of standard input.
std::string read_stdin();

/// Valid UTF-8 from `bytes`; a warning names `origin` where something had to be replaced.
std::string repaired(const std::string& origin, std::string_view bytes);

/// Parses a JSON file; invalid UTF-8 in it is replaced as in a text.
Json read_json(const std::filesystem::path& file);

/// A JSON array of ids in [0, limit). `where` ("", "[3]") names the array in messages.
std::vector<std::int32_t> to_ids(const Json& array, const std::filesystem::path& file,
                                 const std::string& where, int limit);

}  // namespace pythia
