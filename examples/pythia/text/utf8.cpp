// See utf8.hpp.
#include "examples/pythia/text/utf8.hpp"

#include <algorithm>

namespace pythia {
namespace {

constexpr std::string_view replacement_character = "\xEF\xBF\xBD";

// Table 3-7 of the Unicode standard: what a lead byte announces. Only the second byte's range
// depends on the lead byte: it excludes overlong forms, surrogates and codes above U+10FFFF.
struct LeadByte {
  std::size_t length = 0;  // 0: not a lead byte
  unsigned char second_min = 0x80;
  unsigned char second_max = 0xBF;
};

LeadByte classify(unsigned char lead) {
  if (lead < 0x80) return {1};
  if (lead < 0xC2) return {};
  if (lead < 0xE0) return {2};
  if (lead == 0xE0) return {3, 0xA0, 0xBF};
  if (lead == 0xED) return {3, 0x80, 0x9F};
  if (lead < 0xF0) return {3};
  if (lead == 0xF0) return {4, 0x90, 0xBF};
  if (lead < 0xF4) return {4};
  if (lead == 0xF4) return {4, 0x80, 0x8F};
  return {};
}

}  // namespace

Utf8Char decode_utf8(std::string_view bytes) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const LeadByte lead = classify(byte(0));
  if (lead.length == 0) return {Utf8Status::invalid, 0, 1};
  if (lead.length == 1) return {Utf8Status::valid, byte(0), 1};

  char32_t code = byte(0) & (0x7Fu >> lead.length);
  for (std::size_t i = 1; i < lead.length; ++i) {
    if (i == bytes.size()) return {Utf8Status::incomplete, 0, i};
    const unsigned char min = i == 1 ? lead.second_min : 0x80;
    const unsigned char max = i == 1 ? lead.second_max : 0xBF;
    if (byte(i) < min || byte(i) > max) return {Utf8Status::invalid, 0, i};
    code = (code << 6) | (byte(i) & 0x3Fu);
  }
  return {Utf8Status::valid, code, lead.length};
}

Utf8Repair repair_utf8(std::string_view bytes) {
  Utf8Repair repair;
  repair.text.reserve(bytes.size());
  for (std::size_t at = 0; at < bytes.size();) {
    const Utf8Char next = decode_utf8(bytes.substr(at));
    if (next.status == Utf8Status::valid) {
      repair.text += bytes.substr(at, next.length);
    } else {
      if (repair.replacements++ == 0) repair.first_offset = at;
      repair.text += replacement_character;
    }
    at += next.length;
  }
  return repair;
}

std::string Utf8Stream::push(std::string_view bytes) {
  pending_ += bytes;
  // An unfinished character is at most three bytes and starts at the last byte that is not a
  // continuation byte.
  std::size_t whole = pending_.size();
  for (std::size_t back = 1; back <= std::min<std::size_t>(3, pending_.size()); ++back) {
    const std::size_t start = pending_.size() - back;
    if ((static_cast<unsigned char>(pending_[start]) & 0xC0) == 0x80) continue;
    const Utf8Char last = decode_utf8(std::string_view(pending_).substr(start));
    if (last.status == Utf8Status::incomplete) whole = start;
    break;
  }
  std::string out = repair_utf8(std::string_view(pending_).substr(0, whole)).text;
  pending_.erase(0, whole);
  return out;
}

std::string Utf8Stream::finish() {
  std::string out = repair_utf8(pending_).text;
  pending_.clear();
  return out;
}

}  // namespace pythia
