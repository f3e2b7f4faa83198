// See json.hpp.
#include "examples/pythia/io/json.hpp"

#include <set>
#include <utility>
#include <vector>

#include "examples/pythia/io/mapped_file.hpp"
#include "examples/pythia/io/message.hpp"

namespace pythia {
namespace {

constexpr int max_depth = 64;

// Watches the parser: nesting depth, and the keys of every object that is open.
class StructureCheck {
 public:
  explicit StructureCheck(const std::filesystem::path& file) : file_(file) {}

  bool operator()(int depth, Json::parse_event_t event, Json& parsed) {
    using Event = Json::parse_event_t;
    if (depth >= max_depth) {
      throw mismatch(file_, "JSON", "at most " + std::to_string(max_depth) + " levels of nesting",
                     "more");
    }
    if (event == Event::object_start) {
      open_keys_.emplace_back();
    } else if (event == Event::object_end) {
      open_keys_.pop_back();
    } else if (event == Event::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      if (!open_keys_.back().insert(key).second) {
        throw mismatch(file_, "key " + in_quotes(key), "one occurrence in its object",
                       "a second one");
      }
    }
    return true;
  }

 private:
  const std::filesystem::path& file_;
  std::vector<std::set<std::string>> open_keys_;
};

// "[json.exception.parse_error.101] parse error at line 1, column 2: ..." without the tag.
std::string without_tag(std::string_view text) {
  const auto end = text.find("] ");
  return printable(end == std::string_view::npos ? text : text.substr(end + 2));
}

}  // namespace

Json parse_json(std::string_view text, const std::filesystem::path& file) {
  try {
    return Json::parse(text.begin(), text.end(), StructureCheck(file));
  } catch (const Json::parse_error& e) {
    throw file_error(file, "malformed JSON at byte " + std::to_string(e.byte) + " of " +
                               std::to_string(text.size()) + ": " + without_tag(e.what()));
  } catch (const Json::exception& e) {
    throw file_error(file, "malformed JSON: " + without_tag(e.what()));
  }
}

Json load_json(const std::filesystem::path& file, std::size_t max_bytes) {
  const MappedFile mapped(file);
  if (mapped.size() > max_bytes) {
    throw mismatch(file, "size", "at most " + std::to_string(max_bytes) + " bytes",
                   std::to_string(mapped.size()));
  }
  return parse_json(mapped.text(), file);
}

std::string describe(const Json& value) {
  switch (value.type()) {
    case Json::value_t::null:
      return "null";
    case Json::value_t::object:
      return "an object";
    case Json::value_t::array:
      return "an array of " + std::to_string(value.size());
    case Json::value_t::string:
      return "string " + in_quotes(value.get_ref<const std::string&>());
    default:
      return (value.is_number() ? "number " : "") + value.dump();
  }
}

bool integer_in_range(const Json& value, std::int64_t min, std::int64_t max, std::int64_t& out) {
  if (value.is_number_unsigned()) {
    const auto number = value.get<std::uint64_t>();
    if (max < 0 || number > static_cast<std::uint64_t>(max)) return false;
    out = static_cast<std::int64_t>(number);
  } else if (value.is_number_integer()) {
    out = value.get<std::int64_t>();
  } else {
    return false;
  }
  return out >= min && out <= max;
}

JsonObject::JsonObject(const Json& value, std::filesystem::path file, std::string where)
    : value_(&value), file_(std::move(file)), where_(std::move(where)) {
  if (!value.is_object()) {
    throw mismatch(file_, where_.empty() ? "JSON" : where_, "an object", describe(value));
  }
}

const Json* JsonObject::find(const std::string& key) const {
  const auto it = value_->find(key);
  return it == value_->end() || it->is_null() ? nullptr : &*it;
}

const Json& JsonObject::at(const std::string& key) const {
  const Json* value = find(key);
  if (value == nullptr) throw wrong(key, "a value");
  return *value;
}

std::int64_t JsonObject::integer(const std::string& key, std::int64_t min, std::int64_t max) const {
  std::int64_t number = 0;
  const Json* value = find(key);
  if (value == nullptr || !integer_in_range(*value, min, max, number)) {
    throw wrong(key, "an integer from " + std::to_string(min) + " to " + std::to_string(max));
  }
  return number;
}

double JsonObject::number(const std::string& key) const {
  const Json* value = find(key);
  if (value == nullptr || !value->is_number()) throw wrong(key, "a number");
  return value->get<double>();
}

bool JsonObject::boolean(const std::string& key) const {
  const Json* value = find(key);
  if (value == nullptr || !value->is_boolean()) throw wrong(key, "true or false");
  return value->get<bool>();
}

bool JsonObject::boolean_or(const std::string& key, bool fallback) const {
  return find(key) == nullptr ? fallback : boolean(key);
}

const std::string& JsonObject::string(const std::string& key) const {
  const Json* value = find(key);
  if (value == nullptr || !value->is_string()) throw wrong(key, "a string");
  return value->get_ref<const std::string&>();
}

JsonObject JsonObject::object(const std::string& key) const {
  const Json* value = find(key);
  if (value == nullptr) throw wrong(key, "an object");
  return JsonObject(*value, file_, name(key));
}

std::string JsonObject::name(const std::string& key) const {
  return (where_.empty() ? "" : where_ + ".") + printable(key);
}

Error JsonObject::wrong(const std::string& key, const std::string& expected) const {
  const auto it = value_->find(key);
  return mismatch(file_, name(key), expected, it == value_->end() ? "nothing" : describe(*it));
}

}  // namespace pythia
