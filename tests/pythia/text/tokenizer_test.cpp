// The tokenizer against the ids and texts that Hugging Face's tokenizers give.
#include "examples/pythia/text/tokenizer.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <nlohmann/json.hpp>

#include "tests/support/data_path.hpp"
#include "tests/support/expect_error.hpp"
#include "tests/support/temp_dir.hpp"

namespace {

using nlohmann::json;
using pythia::Tokenizer;
using test_support::data_path;
using test_support::examples_path;
using test_support::expect_error;
using Ids = std::vector<std::int32_t>;

struct Source {
  std::string name;  // in the cases
  std::filesystem::path dir;
};

class GoldenTokenizer : public ::testing::TestWithParam<Source> {};

TEST_P(GoldenTokenizer, MatchesEveryCase) {
  const Tokenizer tokenizer = Tokenizer::load(GetParam().dir);
  const json cases = json::parse(test_support::read_file(data_path("tokenizer_cases.json")));
  ASSERT_EQ(cases.size(), 205u);
  for (const json& entry : cases) {
    const auto text = entry.at("text").get<std::string>();
    const auto ids = entry.at(GetParam().name).get<Ids>();
    EXPECT_EQ(tokenizer.encode(text), ids) << json(text).dump();
    EXPECT_EQ(tokenizer.decode(ids), entry.at("decoded").at(GetParam().name).get<std::string>())
        << json(text).dump();
  }
}

INSTANTIATE_TEST_SUITE_P(All, GoldenTokenizer,
                         ::testing::Values(Source{"gpt-neox", data_path("gpt-neox")},
                                           Source{"tiny-neox",
                                                  examples_path("pythia/models/tiny-neox")}),
                         [](const auto& info) { return info.index == 0 ? "GptNeox" : "TinyNeox"; });

class GptNeox : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { shared_ = new Tokenizer(Tokenizer::load(data_path("gpt-neox"))); }
  static void TearDownTestSuite() { delete shared_; }
  const Tokenizer& tokenizer() const { return *shared_; }

 private:
  static Tokenizer* shared_;
};
Tokenizer* GptNeox::shared_ = nullptr;

TEST_F(GptNeox, KnowsItsSizeAndEndOfText) {
  EXPECT_EQ(tokenizer().size(), 50277);
  EXPECT_EQ(tokenizer().end_of_text(), 0);
}

TEST_F(GptNeox, MatchesAddedTokensLeftmostLongest) {
  const Ids ids = tokenizer().encode("a  b");
  ASSERT_EQ(ids.size(), 3u);
  EXPECT_EQ(ids[1], 50276);
  // 25 spaces: the longest run is 24, the last is left over.
  EXPECT_EQ(tokenizer().encode(std::string(25, ' ')).front(), 50254);
  EXPECT_EQ(tokenizer().encode("<|endoftext|><|padding|>"), (Ids{0, 1}));
}

TEST_F(GptNeox, GivesTheBytesOfATokenEvenHalfACharacter) {
  const std::string snowman = "\xE2\x98\x83";
  std::string joined;
  for (const std::int32_t id : tokenizer().encode(snowman)) joined += tokenizer().bytes(id);
  EXPECT_EQ(joined, snowman);
  EXPECT_EQ(tokenizer().bytes(50276), "  ");
  EXPECT_EQ(tokenizer().bytes(0), "<|endoftext|>");
}

TEST_F(GptNeox, DecodesHalfACharacterAsReplacement) {
  const Ids ids = tokenizer().encode("\xF0\x9F\xA6\x92");  // a giraffe, several tokens
  ASSERT_GT(ids.size(), 1u);
  EXPECT_EQ(tokenizer().decode({ids.front()}), "\xEF\xBF\xBD");
}

TEST_F(GptNeox, RefusesIdsItDoesNotKnow) {
  expect_error(
      [&] {
        tokenizer().decode({5, 50277});
      },
      {"token id: expected 0 to 50276, found 50277"});
  expect_error([&] { tokenizer().bytes(-1); }, {"token id", "found -1"});
}

TEST_F(GptNeox, RefusesInvalidUtf8) {
  expect_error([&] { tokenizer().encode("ab\xC3"); }, {"text: expected valid UTF-8", "offset 2"});
}

TEST_F(GptNeox, KeepsEveryCharacterOfAnyText) {
  // NFC-stable text made of every kind of character survives the way there and back.
  const std::string text = std::string("tab\t\r\n nul", 9) + std::string(1, '\0') +
                           " \xC2\xA0\xE3\x80\x80 caf\xC3\xA9 \xE4\xB8\xAD\xE6\x96\x87 \xC2\xBD"
                           " \xF0\x9F\x98\x80\xF4\x8F\xBF\xBF it's we'LL 123   ";
  EXPECT_EQ(tokenizer().decode(tokenizer().encode(text)), text);
}

// What would take hours if merging or ordering were quadratic.
TEST_F(GptNeox, EncodesHugeWordsInReasonableTime) {
  std::string letters, marks = "a", pairs;
  for (long i = 0; i < 1'000'000; ++i) letters += static_cast<char>('a' + i * i % 26);
  for (int i = 0; i < 250'000; ++i) marks += i % 2 == 0 ? "\xCC\x81" : "\xCC\x96";
  for (int i = 0; i < 500'000; ++i) pairs += "'s";
  const auto start = std::chrono::steady_clock::now();
  for (const std::string& text : {letters, std::string(1'000'000, 'a'), marks, pairs,
                                  std::string(1'000'000, ' '), std::string(1'000'000, '\n')}) {
    const Ids ids = tokenizer().encode(text);
    EXPECT_FALSE(ids.empty());
  }
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  EXPECT_LT(elapsed.count(), 60.0);
}

}  // namespace
