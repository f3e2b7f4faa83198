// See tokenizer.hpp. The order of the steps is that of Hugging Face's tokenizers: added tokens in
// the raw text, NFC of what lies between, added tokens in that, words, merges.
#include "examples/pythia/text/tokenizer.hpp"

#include <algorithm>
#include <cstddef>
#include <unordered_map>
#include <utility>

#include "examples/pythia/io/message.hpp"
#include "examples/pythia/text/added_tokens.hpp"
#include "examples/pythia/text/bpe.hpp"
#include "examples/pythia/text/byte_alphabet.hpp"
#include "examples/pythia/text/pretokenizer.hpp"
#include "examples/pythia/text/tokenizer_file.hpp"
#include "examples/pythia/text/unicode.hpp"
#include "examples/pythia/text/utf8.hpp"

namespace pythia {
namespace {

using Ids = std::vector<std::int32_t>;

// Calls `between` with what lies between the matches, and appends the id of each match.
template <class Function>
void split_by(const AddedTokenMatcher& matcher, std::string_view text, Ids& ids,
              Function&& between) {
  std::size_t at = 0;
  while (const auto match = matcher.find(text, at)) {
    if (match->begin > at) between(text.substr(at, match->begin - at));
    ids.push_back(match->id);
    at = match->end;
  }
  if (at < text.size()) between(text.substr(at));
}

// Merges words, remembering the ids of those it has seen: most words of a text occur again. The
// text they are cut from must outlive it.
class WordCache {
 public:
  explicit WordCache(const Bpe& bpe) : bpe_(bpe) {}

  void append(std::string_view word, Ids& ids) {
    const auto [it, inserted] = ranges_.try_emplace(word);
    if (inserted) {
      it->second.first = known_.size();
      bpe_.encode(word, known_);
      it->second.second = known_.size();
    }
    const auto begin = known_.begin();
    ids.insert(ids.end(), begin + static_cast<std::ptrdiff_t>(it->second.first),
               begin + static_cast<std::ptrdiff_t>(it->second.second));
  }

 private:
  const Bpe& bpe_;
  Ids known_;
  std::unordered_map<std::string_view, std::pair<std::size_t, std::size_t>> ranges_;
};

void check_utf8(std::string_view text) {
  const Utf8Repair repair = repair_utf8(text);
  if (repair.replacements > 0) {
    throw Error("text: expected valid UTF-8, found an invalid byte at offset " +
                std::to_string(repair.first_offset));
  }
}

}  // namespace

struct Tokenizer::Impl {
  explicit Impl(const TokenizerFile& file) : bpe(file.byte_ids, file.merges) {
    for (const std::string& token : file.tokens) {
      // An added token may hold characters that are no byte symbols, such as a space: then it
      // stands for itself.
      bytes.push_back(bytes_of_symbols(token).value_or(token));
    }
    for (const AddedToken& token : file.added) {
      if (token.normalized) {
        normalized_tokens.add(nfc(token.content), token.id);
      } else {
        raw_tokens.add(token.content, token.id);
      }
    }
    const auto it = std::find(file.tokens.begin(), file.tokens.end(), "<|endoftext|>");
    if (it != file.tokens.end()) end_of_text = static_cast<int>(it - file.tokens.begin());
  }

  void encode_words(std::string_view text, Ids& ids) const {
    const std::string normal = nfc(text);
    WordCache cache(bpe);
    split_by(normalized_tokens, normal, ids, [&](std::string_view piece) {
      for (const std::string_view word : split_words(piece)) cache.append(word, ids);
    });
  }

  Bpe bpe;
  AddedTokenMatcher raw_tokens;
  AddedTokenMatcher normalized_tokens;
  std::vector<std::string> bytes;
  int end_of_text = -1;
};

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Tokenizer Tokenizer::load(const std::filesystem::path& dir) {
  return Tokenizer(std::make_unique<Impl>(load_tokenizer_file(dir / "tokenizer.json")));
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text) const {
  check_utf8(text);
  Ids ids;
  split_by(impl_->raw_tokens, text, ids,
           [&](std::string_view piece) { impl_->encode_words(piece, ids); });
  return ids;
}

std::string Tokenizer::decode(const std::vector<std::int32_t>& ids) const {
  std::string joined;
  for (const std::int32_t id : ids) joined += bytes(id);
  return repair_utf8(joined).text;
}

const std::string& Tokenizer::bytes(std::int32_t id) const {
  if (id < 0 || id >= size()) {
    throw Error("token id: expected 0 to " + std::to_string(size() - 1) + ", found " +
                std::to_string(id));
  }
  return impl_->bytes[static_cast<std::size_t>(id)];
}

int Tokenizer::size() const { return static_cast<int>(impl_->bytes.size()); }

int Tokenizer::end_of_text() const { return impl_->end_of_text; }

}  // namespace pythia
