// The 16-bit storage types: every bit pattern survives a round trip, and rounding is to nearest
// even.
#include <waterweight/reference/float16.hpp>

#include <cmath>
#include <cstdint>
#include <limits>

#include <gtest/gtest.h>

namespace {

using waterweight::reference::bfloat16;
using waterweight::reference::float16;

template <class T>
void expect_round_trip_of_every_pattern() {
  for (int bits = 0; bits < 0x10000; ++bits) {
    const T value = T::from_bits(static_cast<std::uint16_t>(bits));
    const float wide = value;
    const T again(wide);
    if (std::isnan(wide)) {
      EXPECT_TRUE(std::isnan(static_cast<float>(again))) << bits;
      EXPECT_EQ(again.bits & 0x8000, bits & 0x8000);
    } else {
      EXPECT_EQ(again.bits, bits);
    }
  }
}

/// Between every two neighbours: the midpoint goes to the even one, a hair to either side to the
/// nearer.
template <class T>
void expect_nearest_even_between_neighbours(int finite_patterns) {
  for (int bits = 0; bits + 1 < finite_patterns; ++bits) {
    const double low = static_cast<float>(T::from_bits(static_cast<std::uint16_t>(bits)));
    const double high = static_cast<float>(T::from_bits(static_cast<std::uint16_t>(bits + 1)));
    const double middle = (low + high) / 2;
    EXPECT_EQ(T(middle).bits, bits % 2 == 0 ? bits : bits + 1);
    EXPECT_EQ(T(std::nextafter(middle, low)).bits, bits);
    EXPECT_EQ(T(std::nextafter(middle, high)).bits, bits + 1);
    EXPECT_EQ(T(-middle).bits, T(middle).bits | 0x8000);
  }
}

TEST(Float16, RoundTripsEveryPattern) { expect_round_trip_of_every_pattern<float16>(); }
TEST(Bfloat16, RoundTripsEveryPattern) { expect_round_trip_of_every_pattern<bfloat16>(); }

TEST(Float16, RoundsToNearestEven) { expect_nearest_even_between_neighbours<float16>(0x7c00); }
TEST(Bfloat16, RoundsToNearestEven) { expect_nearest_even_between_neighbours<bfloat16>(0x7f80); }

TEST(Float16, KnownValues) {
  EXPECT_EQ(float16(1.0f).bits, 0x3c00);
  EXPECT_EQ(float16(-2).bits, 0xc000);
  EXPECT_EQ(float16(65504.0).bits, 0x7bff);
  EXPECT_EQ(float16(65519.99).bits, 0x7bff);
  EXPECT_EQ(float16(65520.0).bits, 0x7c00);
  EXPECT_EQ(float16(1e300).bits, 0x7c00);
  EXPECT_EQ(float16(-std::numeric_limits<float>::infinity()).bits, 0xfc00);
  EXPECT_EQ(float16(0x1p-24).bits, 0x0001);
  EXPECT_EQ(float16(0x1p-25).bits, 0x0000);
  EXPECT_EQ(float16(0x1.8p-25).bits, 0x0001);
  EXPECT_EQ(float16(std::numeric_limits<float>::denorm_min()).bits, 0x0000);
  EXPECT_EQ(static_cast<float>(float16::from_bits(0x0001)), 0x1p-24f);
  EXPECT_EQ(static_cast<float>(float16::from_bits(0x7bff)), 65504.0f);
}

TEST(Bfloat16, KnownValues) {
  EXPECT_EQ(bfloat16(1.0f).bits, 0x3f80);
  EXPECT_EQ(bfloat16(1.00390625f).bits, 0x3f80);  // 1 + 2^-8: halfway, 1 is even
  EXPECT_EQ(bfloat16(1.01171875f).bits, 0x3f82);  // 1 + 3 * 2^-8: halfway, 0x82 is even
  EXPECT_EQ(bfloat16(std::numeric_limits<float>::max()).bits, 0x7f80);
  EXPECT_EQ(bfloat16(0x1p-133f).bits, 0x0001);
}

TEST(Float16, DoubleIsRoundedOnce) {
  // Just above a midpoint: rounding to float first would land on it, and then on the even
  // neighbour.
  const double value = 1.0 + 0x1p-11 + 0x1p-40;
  EXPECT_EQ(float16(value).bits, 0x3c01);
  EXPECT_EQ(float16(static_cast<float>(value)).bits, 0x3c00);
}

}  // namespace
