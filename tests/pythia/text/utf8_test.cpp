// Repair and streaming of UTF-8.
#include "examples/pythia/text/utf8.hpp"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace {

using pythia::repair_utf8;
using pythia::Utf8Stream;

const std::string replacement = "\xEF\xBF\xBD";

std::string replacements(int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += replacement;
  return text;
}

TEST(RepairUtf8, KeepsValidText) {
  const std::string text = std::string("a\0b", 3) +
                           "\x7F \xC2\x80 \xDF\xBF \xE0\xA0\x80 \xED\x9F\xBF \xEE\x80\x80 "
                           "\xEF\xBF\xBF \xF0\x90\x80\x80 \xF4\x8F\xBF\xBF";
  const auto repair = repair_utf8(text);
  EXPECT_EQ(repair.text, text);
  EXPECT_EQ(repair.replacements, 0u);
  EXPECT_EQ(repair_utf8("").text, "");
}

// Each case: bytes, and how many U+FFFD Python's bytes.decode(errors="replace") gives for them.
TEST(RepairUtf8, ReplacesMaximalSubsequences) {
  const std::vector<std::pair<std::string, int>> cases = {
      {"\x80", 1},
      {"\xFF\xFE", 2},
      {"\xC0\xAF", 2},          // overlong
      {"\xE0\x80\xAF", 3},      // overlong
      {"\xF0\x80\x80\xAF", 4},  // overlong
      {"\xED\xA0\x80", 3},      // surrogate
      {"\xF4\x90\x80\x80", 4},  // above U+10FFFF
      {"\xF5\x80\x80\x80", 4},  // no such lead byte
      {"\xC3", 1},
      {"\xE2\x98", 1},  // one unfinished character
      {"\xF0\x9F\xA6", 1},
      {"\xF0\x9F\xF0\x9F", 2},
      {"\xE2\x98\xC3", 2},
  };
  for (const auto& [bytes, count] : cases) {
    const auto repair = repair_utf8("ab" + bytes + "c");
    EXPECT_EQ(repair.text, "ab" + replacements(count) + "c") << ::testing::PrintToString(bytes);
    EXPECT_EQ(repair.replacements, static_cast<std::size_t>(count));
    EXPECT_EQ(repair.first_offset, 2u);
    EXPECT_EQ(repair_utf8(bytes).text, replacements(count)) << ::testing::PrintToString(bytes);
  }
}

TEST(Utf8Stream, HoldsBackUnfinishedCharacters) {
  Utf8Stream stream;
  EXPECT_EQ(stream.push("a\xF0"), "a");
  EXPECT_EQ(stream.push("\x9F"), "");
  EXPECT_EQ(stream.push(""), "");
  EXPECT_EQ(stream.push("\xA6"), "");
  EXPECT_EQ(stream.push("\x92z"), "\xF0\x9F\xA6\x92z");
  EXPECT_EQ(stream.finish(), "");
}

TEST(Utf8Stream, PrintsReplacementsOnceNothingCanFinishACharacter) {
  Utf8Stream stream;
  EXPECT_EQ(stream.push("\xE2\x98"), "");
  EXPECT_EQ(stream.push("x"), replacement + "x");
  EXPECT_EQ(stream.push("\xFF"), replacement);
  EXPECT_EQ(stream.push("\xF0\x9F"), "");
  EXPECT_EQ(stream.finish(), replacement);
  EXPECT_EQ(stream.finish(), "");
}

TEST(Utf8Stream, GivesTheRepairedTextHoweverItIsCut) {
  std::mt19937 random(1);
  const std::vector<std::string> parts = {"a",    "\xC3\xA9", "\xE2\x98\x83", "\xF0\x9F\xA6\x92",
                                          "\xC3", "\xE2\x98", "\xF0\x9F\xA6", "\xBF",
                                          "\xFF"};
  for (int round = 0; round < 500; ++round) {
    std::string text;
    for (int i = 0; i < 20; ++i) text += parts[random() % parts.size()];
    Utf8Stream stream;
    std::string streamed;
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t length = 1 + random() % 4;
      const std::string out = stream.push(std::string_view(text).substr(at, length));
      EXPECT_EQ(repair_utf8(out).replacements, 0u) << "whole characters only";
      streamed += out;
      at += length;
    }
    streamed += stream.finish();
    ASSERT_EQ(streamed, repair_utf8(text).text) << ::testing::PrintToString(text);
  }
}

}  // namespace
