// See pretokenizer.hpp.
#include "examples/pythia/text/pretokenizer.hpp"

#include <cstddef>

#include "examples/pythia/text/unicode.hpp"
#include "examples/pythia/text/utf8.hpp"

namespace pythia {
namespace {

constexpr std::string_view contractions[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};

struct Character {
  CharClass kind = CharClass::other;
  std::size_t length = 0;
};

Character character_at(std::string_view text, std::size_t at) {
  const Utf8Char next = decode_utf8(text.substr(at));
  return {char_class(next.code), next.length};
}

// Where the run of characters of one class that starts at `at` ends.
std::size_t run_end(std::string_view text, std::size_t at, CharClass kind) {
  while (at < text.size()) {
    const Character next = character_at(text, at);
    if (next.kind != kind) break;
    at += next.length;
  }
  return at;
}

// \s+(?!\S)|\s+ : a run of white space leaves its last character to what follows it, unless it ends
// the text or has only one.
std::size_t space_end(std::string_view text, std::size_t begin) {
  std::size_t at = begin;
  std::size_t last = begin;
  while (at < text.size()) {
    const Character next = character_at(text, at);
    if (next.kind != CharClass::space) return last > begin ? last : at;
    last = at;
    at += next.length;
  }
  return at;
}

std::size_t word_end(std::string_view text, std::size_t begin) {
  for (const std::string_view contraction : contractions) {
    if (text.substr(begin, contraction.size()) == contraction) return begin + contraction.size();
  }
  const std::size_t core = begin + (text[begin] == ' ' ? 1 : 0);
  if (core < text.size()) {
    const CharClass kind = character_at(text, core).kind;
    if (kind != CharClass::space) return run_end(text, core, kind);
  }
  return space_end(text, begin);
}

}  // namespace

std::vector<std::string_view> split_words(std::string_view text) {
  std::vector<std::string_view> words;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = word_end(text, begin);
    words.push_back(text.substr(begin, end - begin));
    begin = end;
  }
  return words;
}

}  // namespace pythia
