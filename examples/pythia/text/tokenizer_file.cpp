// See tokenizer_file.hpp.
#include "examples/pythia/text/tokenizer_file.hpp"

#include <string_view>
#include <unordered_map>
#include <utility>

#include "examples/pythia/io/json.hpp"
#include "examples/pythia/io/message.hpp"
#include "examples/pythia/text/byte_alphabet.hpp"

namespace pythia {
namespace {

constexpr std::size_t max_tokenizer_bytes = std::size_t{64} << 20;
constexpr std::size_t max_added_token_bytes = 1024;
constexpr std::int64_t max_id = (1 << 24) - 1;

using Vocabulary = std::unordered_map<std::string_view, std::int32_t>;

void require_string(const JsonObject& object, const std::string& key, const std::string& value) {
  if (object.string(key) != value) throw object.wrong(key, '"' + value + '"');
}

void require_boolean(const JsonObject& object, const std::string& key, bool fallback,
                     bool required) {
  if (object.boolean_or(key, fallback) != required) {
    throw object.wrong(key, required ? "true" : "false");
  }
}

// null, "" and 0 all say that an option is not used.
void require_unused(const JsonObject& object, const std::string& key) {
  const Json* value = object.find(key);
  if (value != nullptr && *value != "" && *value != 0) throw object.wrong(key, "null");
}

const Json& array_field(const JsonObject& object, const std::string& key) {
  const Json& value = object.at(key);
  if (!value.is_array()) throw object.wrong(key, "an array");
  return value;
}

std::string indexed(const std::string& name, std::size_t index) {
  return name + "[" + std::to_string(index) + "]";
}

// A post-processor may record offsets; one that adds tokens would change the ids.
void check_post_processor(const JsonObject& processor) {
  const std::string& type = processor.string("type");
  if (type == "ByteLevel") return;
  if (type == "TemplateProcessing") {
    const Json& single = array_field(processor, "single");
    if (single.size() != 1 || !single.front().is_object() || !single.front().contains("Sequence")) {
      throw processor.wrong("single", "the sequence alone, without special tokens");
    }
  } else if (type == "Sequence") {
    const Json& parts = array_field(processor, "processors");
    for (std::size_t i = 0; i < parts.size(); ++i) {
      check_post_processor(
          JsonObject(parts[i], processor.file(), indexed(processor.name("processors"), i)));
    }
  } else {
    throw processor.wrong("type", "ByteLevel, or TemplateProcessing that adds nothing");
  }
}

void check_pipeline(const JsonObject& root) {
  require_string(root.object("normalizer"), "type", "NFC");
  const JsonObject pre_tokenizer = root.object("pre_tokenizer");
  require_string(pre_tokenizer, "type", "ByteLevel");
  require_boolean(pre_tokenizer, "add_prefix_space", true, false);
  require_boolean(pre_tokenizer, "use_regex", true, true);
  if (root.find("post_processor") != nullptr) check_post_processor(root.object("post_processor"));
  require_string(root.object("decoder"), "type", "ByteLevel");

  const JsonObject model = root.object("model");
  require_string(model, "type", "BPE");
  for (const char* key :
       {"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"}) {
    require_unused(model, key);
  }
  require_boolean(model, "byte_fallback", false, false);
  require_boolean(model, "ignore_merges", false, false);
}

// The tokens by id. Every id must be there once: a gap would be a token that can be sampled but not
// printed.
class TokenTable {
 public:
  explicit TokenTable(std::size_t size) : tokens_(size), taken_(size) {}

  /// `where.key` is the field that gives `token` its id.
  void place(const JsonObject& where, const std::string& key, std::string_view token,
             std::int32_t id) {
    const auto slot = static_cast<std::size_t>(id);
    if (slot >= tokens_.size()) {
      throw where.wrong(key, "an id below the number of tokens, " + std::to_string(tokens_.size()));
    }
    if (taken_[slot]) {
      throw where.wrong(key, "an id that " + in_quotes(tokens_[slot]) + " does not have already");
    }
    taken_[slot] = true;
    tokens_[slot] = token;
  }

  std::vector<std::string> release() { return std::move(tokens_); }

 private:
  std::vector<std::string> tokens_;
  std::vector<bool> taken_;
};

Vocabulary read_vocabulary(const JsonObject& vocab, TokenTable& table) {
  Vocabulary vocabulary;
  vocabulary.reserve(vocab.json().size());
  for (const auto& [token, value] : vocab.json().get_ref<const Json::object_t&>()) {
    std::int64_t id = 0;
    if (!integer_in_range(value, 0, max_id, id)) {
      throw vocab.wrong(token, "an id from 0 to " + std::to_string(max_id));
    }
    table.place(vocab, token, token, static_cast<std::int32_t>(id));
    vocabulary.emplace(token, static_cast<std::int32_t>(id));
  }
  return vocabulary;
}

AddedToken read_added_token(const JsonObject& entry) {
  AddedToken token;
  token.content = entry.string("content");
  if (token.content.empty() || token.content.size() > max_added_token_bytes) {
    throw mismatch(entry.file(), entry.name("content"),
                   "1 to " + std::to_string(max_added_token_bytes) + " bytes",
                   std::to_string(token.content.size()));
  }
  token.id = static_cast<std::int32_t>(entry.integer("id", 0, max_id));
  token.normalized = entry.boolean("normalized");
  for (const char* key : {"single_word", "lstrip", "rstrip"}) {
    require_boolean(entry, key, false, false);
  }
  return token;
}

std::vector<JsonObject> added_token_entries(const JsonObject& root) {
  std::vector<JsonObject> entries;
  if (root.find("added_tokens") == nullptr) return entries;
  for (const Json& value : array_field(root, "added_tokens")) {
    entries.emplace_back(value, root.file(), indexed("added_tokens", entries.size()));
  }
  return entries;
}

// Most added tokens come on top of the vocabulary; one that is in it too must have the same id.
Vocabulary read_tokens(const JsonObject& root, const JsonObject& vocab, TokenizerFile& result) {
  const std::vector<JsonObject> entries = added_token_entries(root);
  std::size_t count = vocab.json().size();
  for (const JsonObject& entry : entries) {
    result.added.push_back(read_added_token(entry));
    if (!vocab.json().contains(result.added.back().content)) ++count;
  }

  TokenTable table(count);
  Vocabulary vocabulary = read_vocabulary(vocab, table);
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const AddedToken& token = result.added[i];
    const auto it = vocabulary.find(token.content);
    if (it == vocabulary.end()) {
      table.place(entries[i], "id", token.content, token.id);
    } else if (it->second != token.id) {
      throw entries[i].wrong("id", std::to_string(it->second) + ", the token's id in model.vocab");
    }
  }
  result.tokens = table.release();
  return vocabulary;
}

// The two sides of a merge: "left right" in older files, ["left", "right"] in newer ones.
std::pair<std::string, std::string> merge_sides(const JsonObject& model, std::size_t index,
                                                const Json& value) {
  if (value.is_array() && value.size() == 2 && value[0].is_string() && value[1].is_string()) {
    return {value[0].get<std::string>(), value[1].get<std::string>()};
  }
  if (value.is_string()) {
    const auto& text = value.get_ref<const std::string&>();
    const std::size_t space = text.find(' ');
    if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos) {
      return {text.substr(0, space), text.substr(space + 1)};
    }
  }
  throw mismatch(model.file(), indexed(model.name("merges"), index),
                 "\"left right\" or [\"left\", \"right\"]", describe(value));
}

std::vector<Merge> read_merges(const JsonObject& model, const Vocabulary& vocabulary) {
  std::vector<Merge> merges;
  for (const Json& value : array_field(model, "merges")) {
    const std::size_t index = merges.size();
    const auto [left, right] = merge_sides(model, index, value);
    const auto id_of = [&](const std::string& token) {
      const auto it = vocabulary.find(token);
      if (it == vocabulary.end()) {
        throw mismatch(model.file(), indexed(model.name("merges"), index), "tokens of model.vocab",
                       in_quotes(token));
      }
      return it->second;
    };
    merges.push_back({id_of(left), id_of(right), id_of(left + right)});
  }
  return merges;
}

// Bytes that no valid UTF-8 contains may be absent; any other would vanish from the text.
std::array<std::int32_t, 256> read_byte_ids(const JsonObject& vocab, const Vocabulary& vocabulary) {
  std::array<std::int32_t, 256> ids{};
  for (unsigned byte = 0; byte < ids.size(); ++byte) {
    const std::string& symbol = symbol_of_byte(static_cast<std::uint8_t>(byte));
    const auto it = vocabulary.find(symbol);
    const bool in_utf8 = byte < 0xC0 || (byte > 0xC1 && byte < 0xF5);
    if (it == vocabulary.end() && in_utf8) {
      throw vocab.wrong(symbol, "the token of byte " + std::to_string(byte));
    }
    ids[byte] = it == vocabulary.end() ? -1 : it->second;
  }
  return ids;
}

}  // namespace

TokenizerFile load_tokenizer_file(const std::filesystem::path& file) {
  const Json json = load_json(file, max_tokenizer_bytes);
  const JsonObject root(json, file);
  check_pipeline(root);

  TokenizerFile result;
  const JsonObject model = root.object("model");
  const JsonObject vocab = model.object("vocab");
  const Vocabulary vocabulary = read_tokens(root, vocab, result);
  result.merges = read_merges(model, vocabulary);
  result.byte_ids = read_byte_ids(vocab, vocabulary);
  return result;
}

}  // namespace pythia
