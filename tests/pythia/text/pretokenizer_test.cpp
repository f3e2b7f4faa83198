// The hand-written form of the GPT-2 regular expression, case by case.
#include "examples/pythia/text/pretokenizer.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace {

using Words = std::vector<std::string>;

Words split(const std::string& text) {
  Words words;
  for (const std::string_view word : pythia::split_words(text)) words.emplace_back(word);
  return words;
}

TEST(Pretokenizer, SplitsLettersNumbersAndTheRest) {
  EXPECT_EQ(split(""), Words{});
  EXPECT_EQ(split("Hello world"), (Words{"Hello", " world"}));
  EXPECT_EQ(split("abc123!? x"), (Words{"abc", "123", "!?", " x"}));
  EXPECT_EQ(split(" 12 ab ..."), (Words{" 12", " ab", " ..."}));
  EXPECT_EQ(split("\xC3\xA9\xE4\xB8\xAD\xC2\xBD\xE2\x85\xA7"),
            (Words{"\xC3\xA9\xE4\xB8\xAD", "\xC2\xBD\xE2\x85\xA7"}));
  // A combining mark is no letter.
  EXPECT_EQ(split("x\xCC\xB2y"), (Words{"x", "\xCC\xB2", "y"}));
}

TEST(Pretokenizer, KnowsContractions) {
  EXPECT_EQ(split("it's we'll they're I'd I'm I've can't"),
            (Words{"it", "'s", " we", "'ll", " they", "'re", " I", "'d", " I", "'m", " I", "'ve",
                   " can", "'t"}));
  EXPECT_EQ(split("'sam"), (Words{"'s", "am"}));
  EXPECT_EQ(split("IT'S"), (Words{"IT", "'", "S"})) << "only lower case";
  EXPECT_EQ(split(" 's"), (Words{" '", "s"})) << "a space takes the quote";
  EXPECT_EQ(split("''s"), (Words{"''", "s"})) << "a run of others takes the quote";
  EXPECT_EQ(split("'l"), (Words{"'", "l"}));
  EXPECT_EQ(split("'"), (Words{"'"}));
}

TEST(Pretokenizer, LeavesTheLastSpaceToTheNextWord) {
  EXPECT_EQ(split("a  b"), (Words{"a", " ", " b"}));
  EXPECT_EQ(split("a   b"), (Words{"a", "  ", " b"}));
  EXPECT_EQ(split("a  "), (Words{"a", "  "}));
  EXPECT_EQ(split(" "), (Words{" "}));
  EXPECT_EQ(split("a\nb"), (Words{"a", "\n", "b"}));
  EXPECT_EQ(split("a\n\nb"), (Words{"a", "\n", "\n", "b"}));
  EXPECT_EQ(split("a \nb"), (Words{"a", " ", "\n", "b"}));
  EXPECT_EQ(split("a\n b"), (Words{"a", "\n", " b"}));
  EXPECT_EQ(split("a\t\tb"), (Words{"a", "\t", "\t", "b"}));
}

TEST(Pretokenizer, KnowsUnicodeSpaces) {
  for (const std::string space : {"\xC2\x85", "\xC2\xA0", "\xE1\x9A\x80", "\xE2\x80\x83",
                                  "\xE2\x80\xA8", "\xE2\x80\xAF", "\xE3\x80\x80"}) {
    EXPECT_EQ(split("a" + space + "b"), (Words{"a", space, "b"}));
    EXPECT_EQ(split("a " + space + " b"), (Words{"a", " " + space, " b"}));
  }
  // ZERO WIDTH SPACE and the information separators are none.
  EXPECT_EQ(split(" \xE2\x80\x8B"), (Words{" \xE2\x80\x8B"}));
  EXPECT_EQ(split(" \x1F"), (Words{" \x1F"}));
}

}  // namespace
