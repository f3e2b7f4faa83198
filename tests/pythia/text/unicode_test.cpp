// Normalization form C where it is easy to get wrong.
#include "examples/pythia/text/unicode.hpp"

#include <gtest/gtest.h>

namespace {

using pythia::nfc;

TEST(Nfc, ComposesAndOrders) {
  EXPECT_EQ(nfc(""), "");
  EXPECT_EQ(nfc("plain \xC3\xA9"), "plain \xC3\xA9");
  EXPECT_EQ(nfc("e\xCC\x81"), "\xC3\xA9");
  // Acute (230) before dot below (220): ordered first, then composed with the base.
  EXPECT_EQ(nfc("e\xCC\x81\xCC\xA3"), "\xE1\xBA\xB9\xCC\x81");
  // Two marks of the same class keep their order, and the second is blocked.
  EXPECT_EQ(nfc("e\xCC\x88\xCC\x81"), "\xC3\xAB\xCC\x81");
  EXPECT_EQ(nfc("\xE2\x84\xAB"), "\xC3\x85") << "ANGSTROM SIGN is a singleton";
  EXPECT_EQ(nfc("\xEF\xA4\x80"), "\xE8\xB1\x88") << "a compatibility ideograph";
  EXPECT_EQ(nfc("\xE0\xA5\x98"), "\xE0\xA4\x95\xE0\xA4\xBC") << "excluded from composition";
  EXPECT_EQ(nfc("\xEF\xAC\x81"), "\xEF\xAC\x81") << "compatibility forms stay";
}

TEST(Nfc, ComposesHangul) {
  EXPECT_EQ(nfc("\xE1\x84\x80\xE1\x85\xA1"), "\xEA\xB0\x80");
  EXPECT_EQ(nfc("\xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA8"), "\xEA\xB0\x81");
  // U+11A7 is a vowel: it must not vanish after a syllable.
  EXPECT_EQ(nfc("\xEA\xB0\x80\xE1\x86\xA7"), "\xEA\xB0\x80\xE1\x86\xA7");
}

}  // namespace
