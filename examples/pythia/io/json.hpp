// JSON files that others wrote: parsed within limits, read field by field, every complaint naming
// the file and the field.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "examples/pythia/io/error.hpp"

namespace pythia {

using Json = nlohmann::json;

/// Parses one JSON text. Throws Error (naming `file` and the byte) on malformed text, on nesting
/// deeper than 64, and on a key that occurs twice in one object: a reader that keeps the first and
/// one that keeps the last would see different models.
Json parse_json(std::string_view text, const std::filesystem::path& file);

/// Reads and parses a file of at most `max_bytes`.
Json load_json(const std::filesystem::path& file, std::size_t max_bytes);

/// What a value is, for the "found ..." of a message: `string "x"`, `number 3`, `an object`, ...
std::string describe(const Json& value);

/// A JSON object on its way out of a file: typed access to its fields. It refers to `value`, which
/// must outlive it. In this reader null and absent are the same. All accessors throw Error.
class JsonObject {
 public:
  /// Throws unless `value` is an object. `where` is the dotted path of it within the file, "" at
  /// the root.
  JsonObject(const Json& value, std::filesystem::path file, std::string where = "");

  /// Null when the field is absent or null.
  const Json* find(const std::string& key) const;
  const Json& at(const std::string& key) const;

  std::int64_t integer(const std::string& key, std::int64_t min, std::int64_t max) const;
  double number(const std::string& key) const;
  bool boolean(const std::string& key) const;
  bool boolean_or(const std::string& key, bool fallback) const;
  const std::string& string(const std::string& key) const;
  JsonObject object(const std::string& key) const;

  /// Dotted path of a field, for messages.
  std::string name(const std::string& key) const;
  /// The error for a field: "FILE: where.key: expected EXPECTED, found (what is there)".
  Error wrong(const std::string& key, const std::string& expected) const;

  const Json& json() const { return *value_; }
  const std::filesystem::path& file() const { return file_; }

 private:
  const Json* value_;
  std::filesystem::path file_;
  std::string where_;
};

/// The integer in `value`, whatever its JSON spelling; false when it is no integer or outside
/// [min, max].
bool integer_in_range(const Json& value, std::int64_t min, std::int64_t max, std::int64_t& out);

}  // namespace pythia
