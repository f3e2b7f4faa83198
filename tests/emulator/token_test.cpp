// The token kernel's own sources, emulated: its results, whatever order warps, copies and stores
// take, and that it ends.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "tests/emulator/token_model.hpp"
#include "tests/emulator/token_reference.hpp"

namespace {

using emulator::TokenCase;
using emulator::TokenModel;

/// Of logits up to about 4, computed from 16-bit activations; those here are within 1e-3.
constexpr double kTolerance = 2e-3;

int most_in_flight(int ring_slots) {
  return waterweight::ring_most_in_flight(ring_slots, pythia::kTokenProducers,
                                          pythia::kTokenMultiplyWarps);
}

TokenCase bundled_model() {
  TokenCase bundled;
  bundled.ring_slots = pythia::kMaxRingSlots;
  bundled.in_flight = most_in_flight(bundled.ring_slots);
  return bundled;
}

/// `tokens` of them, each near the reference, and the same bits for all seeds.
template <class T, class Element>
void expect_tokens(const TokenCase& sizes, int tokens, int seeds, std::uint64_t data = 1) {
  std::vector<std::vector<unsigned char>> states;  // of the first seed, after each token
  for (int seed = 0; seed < seeds; ++seed) {
    TokenModel<T, Element> model(sizes, data);
    for (int t = 0; t < tokens; ++t) {
      SCOPED_TRACE(testing::Message() << "data " << data << " seed " << seed << " token " << t);
      const int step = model.step();
      const auto expected =
          seed == 0 ? emulator::TokenReference<T, Element>(model).logits() : std::vector<double>();
      ASSERT_NO_THROW(model.run(static_cast<std::uint64_t>(seed * tokens + t) + 1000 * data));
      if (seed != 0) {
        ASSERT_EQ(model.state(), states[static_cast<std::size_t>(t)]) << "other bits";
        continue;
      }
      states.push_back(model.state());
      for (int i = 0; i < sizes.vocab; ++i) {
        ASSERT_NEAR(model.logits()[i], expected[i], kTolerance) << i;
      }
      EXPECT_EQ(model.token(),
                std::max_element(model.logits(), model.logits() + sizes.vocab) - model.logits());
      EXPECT_EQ(model.step(), step + 1);
    }
  }
}

/// Shapes and limits drawn by `number`.
TokenCase random_case(int number, int rows) {
  emulator::Random random(static_cast<std::uint64_t>(number));
  const auto one_of = [&](std::initializer_list<int> values) {
    return values.begin()[random.below(static_cast<std::uint32_t>(values.size()))];
  };
  TokenCase sizes;
  sizes.layers = one_of({1, 2, 3});
  sizes.vocab = rows * one_of({13, 64, 129});
  sizes.gelu_tanh = random.one_in(3);
  const int groups = emulator::kHidden / rows, least = groups / pythia::kMaxTokenGroups;
  sizes.blocks = one_of({least, least + 1, least + 5, groups});
  sizes.ring_slots = one_of({8, 9, 12, 17, 40});
  sizes.in_flight = std::min(one_of({2, 3, 5, 64}), most_in_flight(sizes.ring_slots));
  sizes.h2o = !random.one_in(3);
  sizes.heavy = one_of({0, 5, 16, 150});
  sizes.recent = one_of({3, 16});
  sizes.sinks = one_of({0, 4});
  sizes.evict_every = one_of({1, 1, 3, 16});
  sizes.capacity = one_of({40, 200, 300});
  // The cache is nearly full, so that tokens evict, or half so.
  sizes.start = sizes.h2o ? std::max(1, one_of({sizes.slots() - 2, sizes.slots() / 2}))
                          : one_of({1, sizes.capacity - 4});
  sizes.ahead = one_of({0, 1, 8});
  sizes.in_flight_beside_many = pythia::kLeastInFlight;
  sizes.many_live = sizes.start + one_of({1, 2, 100});
  return sizes;
}

TEST(EmulatedToken, BundledModelInt8) { expect_tokens<__half, std::int8_t>(bundled_model(), 1, 3); }

TEST(EmulatedToken, BundledModelHalf) {
  TokenCase sizes = bundled_model();
  sizes.blocks = emulator::kHidden / pythia::TokenTile<__half>::kRows;
  expect_tokens<__half, __half>(sizes, 1, 2);
}

TEST(EmulatedToken, BundledModelEvicting) {
  TokenCase sizes = bundled_model();
  sizes.h2o = true;
  sizes.start = sizes.slots() - 1;
  expect_tokens<__half, std::int8_t>(sizes, 2, 2);
}

TEST(EmulatedToken, RandomShapesInt8) {
  for (int number = 0; number < 6; ++number) {
    expect_tokens<__half, std::int8_t>(random_case(number, pythia::TokenTile<std::int8_t>::kRows),
                                       3, 3, static_cast<std::uint64_t>(number + 1));
  }
}

TEST(EmulatedToken, RandomShapesHalf) {
  for (int number = 0; number < 3; ++number) {
    expect_tokens<__half, __half>(random_case(100 + number, pythia::TokenTile<__half>::kRows), 2, 2,
                                  static_cast<std::uint64_t>(number + 1));
  }
}

// Beyond ring_most_in_flight a wait takes one use of a slot for another: what the emulator is for.
TEST(EmulatedToken, TooManyTilesUnderWayAreCaught) {
  TokenCase sizes;
  sizes.layers = 2;
  sizes.vocab = 512;
  sizes.blocks = 9;
  sizes.ring_slots = 9;
  const int most = most_in_flight(sizes.ring_slots);
  const auto run = [&](int in_flight) {
    sizes.in_flight = in_flight;
    TokenModel<__half, std::int8_t>(sizes, 1).run(1);
  };
  EXPECT_NO_THROW(run(most));
  EXPECT_THROW(run(sizes.ring_slots - 1), emulator::Fault);
}

}  // namespace
