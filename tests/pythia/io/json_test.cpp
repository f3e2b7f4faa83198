// The JSON reader against hostile files.
#include "examples/pythia/io/json.hpp"

#include <gtest/gtest.h>

#include "tests/support/expect_error.hpp"
#include "tests/support/temp_dir.hpp"

namespace {

using pythia::Json;
using pythia::JsonObject;
using pythia::parse_json;
using test_support::error_of;
using test_support::expect_error;

std::string nested(int depth) {
  return std::string(static_cast<std::size_t>(depth), '[') +
         std::string(static_cast<std::size_t>(depth), ']');
}

TEST(Json, NamesFileAndByte) {
  expect_error([] { parse_json(R"({"a": tru})", "dir/x.json"); },
               {"dir/x.json: malformed JSON at byte 10 of 10"});
  expect_error([] { parse_json("{} {}", "x.json"); }, {"x.json: malformed JSON at byte 4 of 5"});
  expect_error([] { parse_json("\"\xff\"", "x.json"); }, {"x.json: malformed JSON at byte 2"});
  expect_error([] { parse_json("[1e999]", "x.json"); }, {"x.json: malformed JSON: ", "1e999"});
}

TEST(Json, RefusesDeepNesting) {
  EXPECT_NO_THROW(parse_json(nested(64), "x.json"));
  const std::string levels = "x.json: JSON: expected at most 64 levels of nesting";
  expect_error([] { parse_json(nested(65), "x.json"); }, {levels});
  expect_error([] { parse_json(std::string(2'000'000, '['), "x.json"); }, {levels});
  std::string objects;
  for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
  expect_error([&] { parse_json(objects, "x.json"); }, {levels});
}

TEST(Json, RefusesDuplicateKeys) {
  expect_error([] { parse_json(R"({"a": {"b": 1, "c": 2, "b": 3}})", "x.json"); },
               {"x.json: key \"b\": expected one occurrence in its object, found a second one"});
  EXPECT_NO_THROW(parse_json(R"([{"a": {"a": 1}}, {"a": 2}])", "x.json"));
}

TEST(Json, LimitsTheSizeOfFiles) {
  test_support::TempDir dir;
  const auto file = dir.path() / "x.json";
  test_support::write_file(file, "[1, 2]");
  EXPECT_EQ(pythia::load_json(file, 6), Json::array({1, 2}));
  expect_error([&] { pythia::load_json(file, 5); },
               {file.string() + ": size: expected at most 5 bytes, found 6"});
}

TEST(Json, KeepsMessagesOnOnePrintableLine) {
  const Json value = Json::parse(R"({"a": "line\nbreak \u001b[31m", "b\n": 1})");
  const JsonObject object(value, "new\nline.json");
  EXPECT_EQ(error_of([&] { object.integer("a", 0, 9); }),
            "new\\x0Aline.json: a: expected an integer from 0 to 9, found string "
            "\"line\\x0Abreak \\x1B[31m\"");
  EXPECT_EQ(error_of([&] { object.string("b\n"); }),
            "new\\x0Aline.json: b\\x0A: expected a string, found number 1");
  const Json longer = Json{{"a", std::string(100'000, 'x')}};
  EXPECT_LT(error_of([&] { JsonObject(longer, "x.json").integer("a", 0, 9); }).size(), 300u);
}

TEST(Json, ReadsIntegersExactly) {
  const Json value = Json::parse(R"({"big": 18446744073709551615, "low": -9223372036854775808,
                                     "max": 9223372036854775807, "real": 3.0})");
  const JsonObject object(value, "x.json");
  constexpr std::int64_t min = std::numeric_limits<std::int64_t>::min();
  constexpr std::int64_t max = std::numeric_limits<std::int64_t>::max();
  EXPECT_EQ(object.integer("low", min, max), min);
  EXPECT_EQ(object.integer("max", min, max), max);
  expect_error([&] { object.integer("big", min, max); }, {"big", "18446744073709551615"});
  expect_error([&] { object.integer("real", min, max); }, {"real", "3.0"});
}

}  // namespace
