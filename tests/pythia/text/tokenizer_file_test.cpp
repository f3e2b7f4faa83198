// tokenizer.json files that are not what the decoder implements, or that are broken.
#include "examples/pythia/text/tokenizer_file.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "examples/pythia/text/byte_alphabet.hpp"
#include "examples/pythia/text/tokenizer.hpp"
#include "tests/support/data_path.hpp"
#include "tests/support/expect_error.hpp"
#include "tests/support/mutate.hpp"
#include "tests/support/temp_dir.hpp"

namespace {

using nlohmann::json;
using pythia::Tokenizer;
using test_support::expect_error;
using test_support::TempDir;
using test_support::write_file;

// The smallest tokenizer of this kind: the bytes, two merges, and three added tokens, of which the
// first is in the vocabulary too, as it is in real files.
json small_tokenizer() {
  json vocab = {{"<|endoftext|>", 0}};
  for (int byte = 0; byte < 256; ++byte) {
    vocab[pythia::symbol_of_byte(static_cast<std::uint8_t>(byte))] = 1 + byte;
  }
  vocab["ab"] = 257;
  vocab["abc"] = 258;
  const auto added = [](int id, const char* content, bool normalized) {
    return json{
        {"id", id},        {"content", content},       {"single_word", false},  {"lstrip", false},
        {"rstrip", false}, {"normalized", normalized}, {"special", !normalized}};
  };
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens",
           {added(0, "<|endoftext|>", false), added(259, "  ", true), added(260, "\u03A9", true)}},
          {"normalizer", {{"type", "NFC"}}},
          {"pre_tokenizer",
           {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}}},
          {"post_processor", {{"type", "ByteLevel"}}},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", {"a b", "ab c"}}}}};
}

Tokenizer load(const json& file) {
  TempDir dir;
  write_file(dir.path() / "tokenizer.json", file.dump());
  return Tokenizer::load(dir.path());
}

// Sets the value at a JSON pointer, e.g. "/model/type".
json changed(const std::string& pointer, const json& value) {
  json file = small_tokenizer();
  file[json::json_pointer(pointer)] = value;
  return file;
}

void expect_refused(const std::string& pointer, const json& value, const std::string& field,
                    const std::string& expected, const std::string& found) {
  SCOPED_TRACE(pointer + " = " + value.dump().substr(0, 200));
  expect_error([&] { load(changed(pointer, value)); },
               {"tokenizer.json: " + field + ": expected " + expected, ", found " + found});
}

TEST(TokenizerFile, ReadsTheSmallestTokenizer) {
  const Tokenizer tokenizer = load(small_tokenizer());
  EXPECT_EQ(tokenizer.size(), 261);
  EXPECT_EQ(tokenizer.end_of_text(), 0);
  EXPECT_EQ(tokenizer.encode("abc  ab<|endoftext|>"),
            (std::vector<std::int32_t>{258, 259, 257, 0}));
  // The added token is matched after NFC: OHM SIGN becomes a capital omega.
  EXPECT_EQ(tokenizer.encode("\u2126a\u03A9"), (std::vector<std::int32_t>{260, 98, 260}));
}

TEST(TokenizerFile, AcceptsBothSpellingsOfMerges) {
  const Tokenizer tokenizer =
      load(changed("/model/merges", json::parse(R"([["a", "b"], ["ab", "c"]])")));
  EXPECT_EQ(tokenizer.encode("abc"), (std::vector<std::int32_t>{258}));
}

TEST(TokenizerFile, AcceptsOptionsThatChangeNothing) {
  for (const auto& [pointer, value] : std::vector<std::pair<std::string, json>>{
           {"/post_processor", nullptr},
           {"/post_processor", json::parse(R"({"type": "TemplateProcessing", "special_tokens": {},
                            "single": [{"Sequence": {"id": "A", "type_id": 0}}], "pair": []})")},
           {"/post_processor",
            json::parse(R"({"type": "Sequence", "processors": [{"type": "ByteLevel"}]})")},
           {"/pre_tokenizer/use_regex", true},
           {"/model/dropout", 0.0},
           {"/model/continuing_subword_prefix", ""},
           {"/model/ignore_merges", false},
           {"/model/fuse_unk", false}}) {
    SCOPED_TRACE(pointer + " = " + value.dump());
    EXPECT_EQ(load(changed(pointer, value)).encode("abc"), (std::vector<std::int32_t>{258}));
  }
}

TEST(TokenizerFile, RefusesOtherPipelines) {
  expect_refused("/normalizer", {{"type", "NFKC"}}, "normalizer.type", "\"NFC\"",
                 "string \"NFKC\"");
  expect_refused("/normalizer", nullptr, "normalizer", "an object", "null");
  expect_refused("/pre_tokenizer/type", "Whitespace", "pre_tokenizer.type", "\"ByteLevel\"",
                 "string \"Whitespace\"");
  expect_refused("/pre_tokenizer/add_prefix_space", true, "pre_tokenizer.add_prefix_space", "false",
                 "true");
  expect_refused("/pre_tokenizer/use_regex", false, "pre_tokenizer.use_regex", "true", "false");
  expect_refused("/post_processor/type", "BertProcessing", "post_processor.type", "ByteLevel",
                 "string \"BertProcessing\"");
  expect_refused("/post_processor", json::parse(R"({"type": "TemplateProcessing", "single": [
                   {"SpecialToken": {"id": "x"}}, {"Sequence": {"id": "A"}}]})"),
                 "post_processor.single", "the sequence alone", "an array of 2");
  expect_refused("/post_processor",
                 json::parse(R"({"type": "Sequence", "processors": [{"type": "Other"}]})"),
                 "post_processor.processors[0].type", "ByteLevel", "string \"Other\"");
  expect_refused("/decoder/type", "WordPiece", "decoder.type", "\"ByteLevel\"",
                 "string \"WordPiece\"");
  expect_refused("/model/type", "Unigram", "model.type", "\"BPE\"", "string \"Unigram\"");
  expect_refused("/model/dropout", 0.1, "model.dropout", "null", "number 0.1");
  expect_refused("/model/unk_token", "<unk>", "model.unk_token", "null", "string \"<unk>\"");
  expect_refused("/model/end_of_word_suffix", "</w>", "model.end_of_word_suffix", "null",
                 "string \"</w>\"");
  expect_refused("/model/byte_fallback", true, "model.byte_fallback", "false", "true");
  expect_refused("/model/ignore_merges", true, "model.ignore_merges", "false", "true");
}

TEST(TokenizerFile, RefusesBrokenVocabularies) {
  expect_refused("/model/vocab", {1, 2}, "model.vocab", "an object", "an array of 2");
  expect_refused("/model/vocab/a", "x", "model.vocab.a", "an id from 0", "string \"x\"");
  expect_refused("/model/vocab/a", -1, "model.vocab.a", "an id from 0", "number -1");
  expect_refused("/model/vocab/a", 4294967296LL, "model.vocab.a", "an id from 0",
                 "number 4294967296");
  expect_refused("/model/vocab/a", 261, "model.vocab.a", "an id below the number of tokens, 261",
                 "number 261");
  expect_refused("/model/vocab/abc", 257, "model.vocab.abc", "an id that \"ab\" does not have",
                 "number 257");

  json file = small_tokenizer();
  file["model"]["vocab"].erase("a");
  file["model"]["vocab"]["unreachable"] = 1 + 'a';
  file["model"]["merges"] = json::array();
  expect_error([&] { load(file); },
               {"tokenizer.json: model.vocab.a: expected the token of byte 97, found nothing"});

  // A byte that UTF-8 never contains may be absent, as it is from the real vocabulary.
  file = small_tokenizer();
  file["model"]["vocab"].erase(pythia::symbol_of_byte(0xF5));
  file["model"]["vocab"]["unreachable"] = 1 + 0xF5;
  EXPECT_EQ(load(file).size(), 261);
}

TEST(TokenizerFile, RefusesBrokenMerges) {
  expect_refused("/model/merges", "a b", "model.merges", "an array", "string \"a b\"");
  const std::string form = "\"left right\" or [\"left\", \"right\"]";
  expect_refused("/model/merges/1", "ab", "model.merges[1]", form, "string \"ab\"");
  expect_refused("/model/merges/1", "a b c", "model.merges[1]", form, "string \"a b c\"");
  expect_refused("/model/merges/1", {"a"}, "model.merges[1]", form, "an array of 1");
  expect_refused("/model/merges/1", {"a", 2}, "model.merges[1]", form, "an array of 2");
  expect_refused("/model/merges/1", 7, "model.merges[1]", form, "number 7");
  expect_refused("/model/merges/1", "a xyz", "model.merges[1]", "tokens of model.vocab", "\"xyz\"");
  expect_refused("/model/merges/1", "b a", "model.merges[1]", "tokens of model.vocab", "\"ba\"");
  expect_refused("/model/merges/1", " a", "model.merges[1]", "tokens of model.vocab", "\"\"");
}

TEST(TokenizerFile, RefusesBrokenAddedTokens) {
  expect_refused("/added_tokens", 5, "added_tokens", "an array", "number 5");
  expect_refused("/added_tokens/1", 5, "added_tokens[1]", "an object", "number 5");
  expect_refused("/added_tokens/1/content", "", "added_tokens[1].content", "1 to 1024 bytes", "0");
  expect_refused("/added_tokens/1/content", std::string(1025, 'x'), "added_tokens[1].content",
                 "1 to 1024 bytes", "1025");
  expect_refused("/added_tokens/1/id", 262, "added_tokens[1].id",
                 "an id below the number of tokens", "number 262");
  expect_refused("/added_tokens/1/id", 5, "added_tokens[1].id", "an id that ", "number 5");
  expect_refused("/added_tokens/0/id", 5, "added_tokens[0].id", "0, the token's id in model.vocab",
                 "number 5");
  expect_refused("/added_tokens/1/lstrip", true, "added_tokens[1].lstrip", "false", "true");
  expect_refused("/added_tokens/1/single_word", true, "added_tokens[1].single_word", "false",
                 "true");
  expect_refused("/added_tokens/1/normalized", nullptr, "added_tokens[1].normalized",
                 "true or false", "null");
}

TEST(TokenizerFile, RefusesWhatIsNoTokenizer) {
  TempDir dir;
  const auto file = dir.path() / "tokenizer.json";
  const auto load_dir = [&] { Tokenizer::load(dir.path()); };
  expect_error(load_dir, {file.string(), "cannot open"});
  write_file(file, "{\"model\": ");
  expect_error(load_dir, {file.string(), "malformed JSON at byte 11 of 10"});
  write_file(file, "{}");
  expect_error(load_dir, {file.string(), "normalizer: expected an object, found nothing"});
  std::string duplicate = small_tokenizer().dump();
  duplicate.insert(duplicate.find("\"abc\":"), "\"ab\":5,");
  write_file(file, duplicate);
  expect_error(load_dir, {file.string(), "key \"ab\": expected one occurrence"});
}

TEST(TokenizerFile, SurvivesDamage) {
  const std::string content = small_tokenizer().dump();
  TempDir dir;
  int refused = 0;
  constexpr int rounds = 500;
  for (int seed = 0; seed < rounds; ++seed) {
    write_file(dir.path() / "tokenizer.json",
               test_support::mutate(content, static_cast<std::uint32_t>(seed)));
    try {
      const Tokenizer tokenizer = Tokenizer::load(dir.path());
      for (const std::int32_t id : tokenizer.encode("abc  \u2126, it's <|endoftext|>!")) {
        EXPECT_LT(id, tokenizer.size());
        tokenizer.bytes(id);
      }
    } catch (const pythia::Error& e) {
      ++refused;
      EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos) << e.what();
    } catch (const std::exception& e) {
      ADD_FAILURE() << "seed " << seed << ": " << e.what();
    }
  }
  EXPECT_GT(refused, 0);
  EXPECT_LT(refused, rounds);
}

}  // namespace
