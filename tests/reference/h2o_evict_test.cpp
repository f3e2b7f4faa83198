// Who leaves a full cache, by hand: one or several at once, sets shared by heads and layers, bounds
// of single sequences, and the scores that decide.
#include <waterweight/reference/h2o.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

namespace {

namespace ref = waterweight::reference;
using waterweight::h2o_granularity;
using waterweight::h2o_policy;
using waterweight::h2o_state_view;
using Positions = std::vector<std::int32_t>;

const float kNan = std::numeric_limits<float>::quiet_NaN();

/// Layers of [batch, kv_heads] heads with rows of one element, which holds the row's first position
/// so that it can be followed; gaps between layers.
struct Slots {
  Slots(int layers, int batch, int kv_heads, int capacity)
      : stride(std::int64_t{batch} * kv_heads + 2),
        capacity(capacity),
        kv_heads(kv_heads),
        position(static_cast<std::size_t>(layers * stride * capacity), -1),
        score(position.size(), 0.0f),
        k(position.size(), 0.0),
        v(position.size(), 0.0),
        free_slot(static_cast<std::size_t>(layers * stride), -7),
        step(static_cast<std::size_t>(batch), 0),
        length(step),
        cache{k.data(), v.data(), batch, kv_heads, capacity, 1},
        state{score.data(),  position.data(), free_slot.data(), step.data(),
              length.data(), nullptr,         layers,           stride} {}
  Slots(Slots&&) = default;  // the views follow the vectors' memory

  std::size_t first(int layer, int b, int h) const {
    return static_cast<std::size_t>((layer * stride + std::int64_t{b} * kv_heads + h) * capacity);
  }
  void set(int layer, int b, int h, const Positions& positions, const std::vector<float>& scores) {
    std::copy(positions.begin(), positions.end(), position.begin() + first(layer, b, h));
    std::copy(scores.begin(), scores.end(), score.begin() + first(layer, b, h));
    for (std::size_t s = 0; s < positions.size(); ++s) {
      k[first(layer, b, h) + s] = positions[s];
      v[first(layer, b, h) + s] = -positions[s];
    }
  }
  Positions get(int layer, int b, int h) const {
    const auto begin = position.begin() + first(layer, b, h);
    return {begin, begin + capacity};
  }
  std::int32_t free_of(int layer, int b, int h) const {
    return free_slot[static_cast<std::size_t>(layer * stride + std::int64_t{b} * kv_heads + h)];
  }
  /// Every live slot still holds the row of its position.
  bool rows_follow() const {
    for (std::size_t i = 0; i < position.size(); ++i) {
      if (position[i] >= 0 && (k[i] != position[i] || v[i] != -position[i])) return false;
    }
    return true;
  }

  std::int64_t stride;
  int capacity, kv_heads;
  Positions position;
  std::vector<float> score;
  std::vector<double> k, v;
  Positions free_slot, step, length;
  waterweight::kv_cache_view<double> cache;
  h2o_state_view state;
};

/// One head whose last token, at `step`, has been entered.
Slots one_head(const Positions& positions, const std::vector<float>& scores, int capacity, int live,
               int step) {
  Slots slots(1, 1, 1, capacity);
  slots.set(0, 0, 0, positions, scores);
  slots.length[0] = live - 1;
  slots.step[0] = step;
  return slots;
}

TEST(H2oEvict, PicksTheLeastUnprotectedSlotWhateverTheOrder) {
  // capacity 6, step 9, recent 2 protects positions 8 and 9; sinks 1 protects position 0.
  std::vector<std::pair<std::int32_t, float>> order{{0, 0.0f}, {3, 2.0f}, {4, 1.0f},
                                                    {5, 1.0f}, {8, 0.1f}, {9, 0.0f}};
  do {
    Positions position;
    std::vector<float> score;
    for (const auto& slot : order) {
      position.push_back(slot.first);
      score.push_back(slot.second);
    }
    const auto victim = std::find(position.begin(), position.end(), 4) - position.begin();
    Slots slots(1, 1, 1, 6);
    slots.set(0, 0, 0, position, score);
    slots.length[0] = 5;
    slots.step[0] = 9;
    ref::h2o_evict(slots.cache, slots.state, {1, 2, 2});
    ASSERT_EQ(slots.free_of(0, 0, 0), victim);
    position[static_cast<std::size_t>(victim)] = -1;
    ASSERT_EQ(slots.get(0, 0, 0), position);
  } while (std::next_permutation(order.begin(), order.end()));
}

TEST(H2oEvict, NanLeavesFirstButNeverCostsAProtectedSlot) {
  Slots all = one_head({0, 1, 2, 3}, {kNan, kNan, kNan, kNan}, 4, 4, 3);
  ref::h2o_evict(all.cache, all.state, {1, 1, 1});
  EXPECT_EQ(all.get(0, 0, 0), (Positions{0, -1, 2, 3}));
  const float lowest = -std::numeric_limits<float>::infinity();
  Slots one = one_head({0, 1, 2, 3}, {0, lowest, kNan, 9}, 4, 4, 3);
  ref::h2o_evict(one.cache, one.state, {0, 2, 1});
  EXPECT_EQ(one.get(0, 0, 0), (Positions{0, 1, -1, 3}));
}

TEST(H2oEvict, RoomLeftMeansTheNextSlot) {
  Slots slots = one_head({5, 6}, {1, 2}, 4, 2, 6);
  ref::h2o_evict(slots.cache, slots.state, {0, 2, 1});
  EXPECT_EQ(slots.free_of(0, 0, 0), 2);
  EXPECT_EQ(slots.get(0, 0, 0), (Positions{5, 6, -1, -1}));
}

TEST(H2oEvict, SeveralLeaveAtOnceAndTheOthersCloseTheGaps) {
  // Budget 4 and 3 spare; the least of the unprotected are 2, 4 and 5.
  Slots slots = one_head({0, 4, 3, 2, 6, 5, 1}, {0, 1, 8, 2, 0, 3, 7}, 7, 7, 6);
  ref::h2o_evict(slots.cache, slots.state, {1, 2, 1, 3});
  // Slots 1, 3 and 5 are freed; slots 4 and 6 move into 1 and 3.
  EXPECT_EQ(slots.get(0, 0, 0), (Positions{0, 6, 3, 1, -1, -1, -1}));
  EXPECT_EQ(slots.score[1], 0.0f);
  EXPECT_EQ(slots.score[3], 7.0f);
  EXPECT_EQ(slots.free_of(0, 0, 0), 4);
  EXPECT_TRUE(slots.rows_follow());
}

TEST(H2oEvict, TheHeadsOfALayerDropWhatTheirSumSays) {
  Slots slots(2, 1, 2, 4);
  const Positions positions{3, 1, 0, 2};
  slots.set(0, 0, 0, positions, {0, 5, 1, 2});
  slots.set(0, 0, 1, positions, {0, 1, 9, 3});  // sums: 6, 10, 5 for 1, 0, 2
  slots.set(1, 0, 0, positions, {0, 1, 9, 9});
  slots.set(1, 0, 1, positions, {0, 1, 9, 9});
  slots.length[0] = 3;
  slots.step[0] = 3;
  ref::h2o_evict(slots.cache, slots.state, {0, 2, 1, 1, h2o_granularity::per_layer});
  for (int h = 0; h < 2; ++h) {
    EXPECT_EQ(slots.get(0, 0, h), (Positions{3, 1, 0, -1}));
    EXPECT_EQ(slots.get(1, 0, h), (Positions{3, -1, 0, 2}));
    EXPECT_EQ(slots.free_of(0, 0, h), 3);
    EXPECT_EQ(slots.free_of(1, 0, h), 1);
  }
}

TEST(H2oEvict, TheWholeModelDropsWhatTheSumOverLayersSays) {
  Slots slots(2, 1, 2, 5);
  const Positions positions{4, 1, 0, 2, 3};
  slots.set(0, 0, 0, positions, {0, 5, 1, 2, 4});
  slots.set(0, 0, 1, positions, {0, 1, 9, 3, 4});
  slots.set(1, 0, 0, positions, {0, 1, 9, 9, 4});
  slots.set(1, 0, 1, positions, {0, 1, 9, 9, 4});  // sums: 8, 28, 23, 16
  slots.length[0] = 4;
  slots.step[0] = 4;
  ref::h2o_evict(slots.cache, slots.state, {0, 2, 1, 2, h2o_granularity::per_model});
  for (int layer = 0; layer < 2; ++layer)
    for (int h = 0; h < 2; ++h) {
      EXPECT_EQ(slots.get(layer, 0, h), (Positions{4, 2, 0, -1, -1}));
      EXPECT_EQ(slots.free_of(layer, 0, h), 3);
    }
  EXPECT_TRUE(slots.rows_follow());
}

TEST(H2oEvict, ASequenceIsFullAtItsOwnBound) {
  // sinks 1, recent 1, evict_every 1: a bound below 3 counts as 3, one above capacity as capacity.
  const h2o_policy policy{1, 3, 1};
  const Positions bounds{4, 0, 99, 6};
  Slots slots(1, 4, 1, 6);
  slots.state.capacity_of = bounds.data();
  for (int b = 0; b < 4; ++b) {
    slots.set(0, b, 0, {0, 1, 2, 3}, {0, 2, 1, 0});
    slots.length[b] = b == 1 ? 2 : 3;
    slots.step[b] = b == 1 ? 2 : 3;
  }
  ref::h2o_evict(slots.cache, slots.state, policy);
  EXPECT_EQ(slots.get(0, 0, 0), (Positions{0, 1, -1, 3, -1, -1}));
  EXPECT_EQ(slots.free_of(0, 0, 0), 2);
  EXPECT_EQ(slots.free_of(0, 1, 0), 1);  // position 2 is recent at step 2
  EXPECT_EQ(slots.free_of(0, 2, 0), 4);
  EXPECT_EQ(slots.free_of(0, 3, 0), 4);
  ref::h2o_advance(slots.state, 4, 6, policy);
  EXPECT_EQ(slots.length, (Positions{3, 2, 4, 4}));
}

TEST(H2oAdvance, LengthIsWhatTheEvictionLeft) {
  Positions step{4, 100}, length{3, 6};
  const h2o_state_view state{nullptr, nullptr, nullptr, step.data(), length.data()};
  ref::h2o_advance(state, 2, 7, {0, 3, 3});
  EXPECT_EQ(step, (Positions{5, 101}));
  EXPECT_EQ(length, (Positions{4, 6}));
  ref::h2o_advance(state, 2, 7, {0, 1, 2, 4});
  EXPECT_EQ(length, (Positions{5, 3}));
}

TEST(H2oAccumulate, ProbabilitiesOfAGroupAreAddedAndTheTokenIsEntered) {
  Slots slots = one_head({7, 8, 5}, {1, 2, 55}, 4, 3, 9);
  slots.free_slot[0] = 2;
  const std::vector<float> p{0.25f, 0.5f, 0.25f, kNan, -1, 0.5f, 0.25f, 0.25f, kNan, -1};
  ref::h2o_accumulate_scores<double>(waterweight::matrix_view<const float>{p.data(), 2, 4, 5}, 1, 1,
                                     slots.state);
  EXPECT_EQ(slots.get(0, 0, 0), (Positions{7, 8, 9, -1}));
  EXPECT_EQ(std::vector<float>(slots.score.begin(), slots.score.begin() + 4),
            (std::vector<float>{1.75f, 2.75f, 0.5f, 0.0f}));
}

TEST(H2oPolicy, SettingsAndBounds) {
  constexpr h2o_policy policy{2, 10, 5, 4};
  static_assert(policy.budget() == 17 && policy.capacity() == 21, "counts");
  static_assert(h2o_policy::streaming(4, 60) == h2o_policy{4, 0, 60}, "StreamingLLM");
  static_assert(h2o_policy::sliding_window(64, 8) == h2o_policy{0, 0, 64, 8}, "window");
  static_assert(policy.bounded(21) == policy && policy.bounded(1000) == policy, "no bound");
  static_assert(policy.bounded(20) == h2o_policy{2, 9, 5, 4}, "bound");
  static_assert(policy.bounded(11) == h2o_policy{2, 0, 5, 4}, "least");
  EXPECT_EQ(policy.bounded(-5).capacity(), 11);
  EXPECT_EQ(policy.bounded(std::numeric_limits<int>::min()).heavy, 0);
  EXPECT_NE(policy, (h2o_policy{2, 10, 5, 4, h2o_granularity::per_layer}));
}

}  // namespace
