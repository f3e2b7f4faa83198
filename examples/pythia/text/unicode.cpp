// See unicode.hpp.
#include "examples/pythia/text/unicode.hpp"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <vector>

#include "examples/pythia/text/utf8.hpp"

namespace pythia {
namespace {

// Nothing below U+0300, where the combining marks begin, composes or decomposes by itself. In UTF-8
// those are the characters whose lead byte is below 0xCC.
bool is_inert(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<unsigned char>(c) < 0xCC; });
}

// White_Space of Unicode, which is what \s means to the regular expression engine.
bool is_space(char32_t code) {
  if (code < 0x80) return code == ' ' || (code >= 0x09 && code <= 0x0D);
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(code))) {
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return true;
    default:
      return code == 0x85;
  }
}

int combining_class(utf8proc_int32_t code) { return utf8proc_get_property(code)->combining_class; }

// Canonical ordering: each run of combining marks, stably sorted by class. (utf8proc's own ordering
// is an insertion sort, quadratic in the length of a run.)
void order_marks(std::vector<utf8proc_int32_t>& codes) {
  const auto is_mark = [](utf8proc_int32_t code) { return combining_class(code) != 0; };
  for (auto begin = codes.begin(); begin != codes.end();) {
    begin = std::find_if(begin, codes.end(), is_mark);
    const auto end = std::find_if_not(begin, codes.end(), is_mark);
    std::stable_sort(begin, end, [](utf8proc_int32_t a, utf8proc_int32_t b) {
      return combining_class(a) < combining_class(b);
    });
    begin = end;
  }
}

// utf8proc takes this vowel, one before the first trailing consonant, for an empty trailing
// consonant and loses it after a Hangul syllable. It composes with nothing before it, so text is
// cut there.
constexpr utf8proc_int32_t never_composes = 0x11A7;

// Composes `count` ordered code points in place and appends them as UTF-8.
void append_composed(utf8proc_int32_t* codes, std::ptrdiff_t count, std::string& text) {
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  const auto length = utf8proc_normalize_utf32(codes, count, options);
  for (std::ptrdiff_t i = 0; i < length; ++i) {
    std::array<utf8proc_uint8_t, 4> bytes;
    const auto size = utf8proc_encode_char(codes[i], bytes.data());
    text.append(reinterpret_cast<const char*>(bytes.data()), static_cast<std::size_t>(size));
  }
}

}  // namespace

CharClass char_class(char32_t code) {
  if (is_space(code)) return CharClass::space;
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(code))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
      return CharClass::letter;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
      return CharClass::number;
    default:
      return CharClass::other;
  }
}

std::string nfc(std::string_view text) {
  if (is_inert(text)) return std::string(text);

  std::vector<utf8proc_int32_t> codes;
  codes.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const Utf8Char next = decode_utf8(text.substr(at));
    at += next.length;
    // No character decomposes canonically into more than four.
    std::array<utf8proc_int32_t, 8> parts;
    int boundary = 0;
    const auto count =
        utf8proc_decompose_char(static_cast<utf8proc_int32_t>(next.code), parts.data(),
                                parts.size(), UTF8PROC_DECOMPOSE, &boundary);
    codes.insert(codes.end(), parts.begin(), parts.begin() + count);
  }
  order_marks(codes);
  std::string normalized;
  normalized.reserve(text.size());
  for (auto begin = codes.begin(); begin != codes.end();) {
    const auto end = std::find(begin + 1, codes.end(), never_composes);
    append_composed(&*begin, end - begin, normalized);
    begin = end;
  }
  return normalized;
}

}  // namespace pythia
