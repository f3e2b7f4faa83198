// The barriers of a ring of tiles, played through on the host in random orders: within
// ring_most_in_flight() nobody takes one use of a slot for another, beyond it somebody does.
#include <gtest/gtest.h>

#include <random>
#include <tuple>
#include <vector>

#include <waterweight/device/ring_order.hpp>

namespace {

/// What a parity wait sees of an mbarrier: how many of its phases are over.
struct Barrier {
  int phases = 0;
  bool passes(int parity) const { return (phases & 1) != parity; }
};

/// A place in the sequence of tiles, as ring_cursor has it.
struct Place {
  int slot, parity;
  Place(int tile, int slots) : slot(tile % slots), parity(tile / slots % 2) {}
};

class Ring {
 public:
  Ring(int slots, int in_flight, int producers, int consumers, unsigned seed)
      : slots_(slots),
        in_flight_(in_flight),
        producers_(producers),
        consumers_(consumers),
        full_(static_cast<std::size_t>(slots)),
        empty_(static_cast<std::size_t>(slots)),
        held_(static_cast<std::size_t>(slots), -1),
        generator_(seed) {
    for (int i = 0; i < producers; ++i) {
      next_push_.push_back(i);
      landed_.push_back(0);
    }
    for (int i = 0; i < consumers; ++i) next_take_.push_back(i);
  }

  /// Whether `tiles` tiles get through, each to the consumer that waits for it.
  bool runs(int tiles) {
    // Now and then one actor rests for a while, so that the others get as far ahead as they may.
    const int actors = producers_ + consumers_ + 1;
    int resting = -1;
    for (int taken = 0, idle = 0; taken < tiles;) {
      if (draw(40) == 0) resting = draw(2 * actors);
      const int actor = draw(actors);
      if (actor == resting && idle < 50 * actors) {
        ++idle;
        continue;
      }
      bool moved = false;
      if (actor < producers_) {
        moved = push(next_push_[static_cast<std::size_t>(actor)], tiles);
      } else if (actor < producers_ + consumers_) {
        int& tile = next_take_[static_cast<std::size_t>(actor - producers_)];
        moved = take(tile, tiles);
        if (moved) {
          tile += consumers_;
          ++taken;
        }
      } else if (!under_way_.empty()) {
        land();
        moved = true;
      }
      if (wrong_) return false;
      idle = moved ? 0 : idle + 1;
      if (idle > 500 * actors) return false;  // everybody waits
    }
    return true;
  }

 private:
  int draw(int below) { return std::uniform_int_distribution<int>(0, below - 1)(generator_); }
  static std::size_t at(int slot) { return static_cast<std::size_t>(slot); }

  /// As ring_producer::acquire() and what follows it.
  bool push(int& tile, int tiles) {
    if (tile >= tiles) return false;
    int& landed = landed_[at(tile % producers_)];
    for (; landed <= tile - in_flight_; ++landed) {
      const Place before(landed, slots_);
      if (!full_[at(before.slot)].passes(before.parity)) return false;
    }
    const Place place(tile, slots_);
    if (!empty_[at(place.slot)].passes(place.parity ^ 1)) return false;
    wrong_ = wrong_ || held_[at(place.slot)] != -1;  // still under way, or not read yet
    held_[at(place.slot)] = tile;
    under_way_.push_back(tile);
    tile += producers_;
    return true;
  }

  /// One of the copies under way, whichever.
  void land() {
    const int i = draw(static_cast<int>(under_way_.size()));
    ++full_[at(under_way_[at(i)] % slots_)].phases;
    under_way_.erase(under_way_.begin() + i);
  }

  bool take(int tile, int tiles) {
    if (tile >= tiles) return false;
    const Place place(tile, slots_);
    if (!full_[at(place.slot)].passes(place.parity)) return false;
    wrong_ = wrong_ || held_[at(place.slot)] != tile ||
             full_[at(place.slot)].phases != tile / slots_ + 1;
    held_[at(place.slot)] = -1;
    ++empty_[at(place.slot)].phases;
    return true;
  }

  int slots_, in_flight_, producers_, consumers_;
  std::vector<Barrier> full_, empty_;
  std::vector<int> held_;  ///< by slot: the tile that is in it or on its way, -1 for none
  std::vector<int> under_way_, next_push_, next_take_;
  std::vector<int> landed_;  ///< by producer: so many it has seen
  std::mt19937 generator_;
  bool wrong_ = false;
};

int failures(int slots, int in_flight, int producers, int consumers, int orders) {
  int count = 0;
  for (int seed = 0; seed < orders; ++seed) {
    const auto start = static_cast<unsigned>(seed);
    if (!Ring(slots, in_flight, producers, consumers, start).runs(20 * slots)) ++count;
  }
  return count;
}

TEST(RingOrder, NobodyMistakesATileWithinTheLimit) {
  for (const auto& [slots, producers, consumers] :
       {std::tuple(13, 2, 6), std::tuple(13, 1, 7), std::tuple(8, 2, 3), std::tuple(9, 2, 6),
        std::tuple(14, 3, 5), std::tuple(52, 2, 6), std::tuple(4, 1, 3)}) {
    const int most = waterweight::ring_most_in_flight(slots, producers, consumers);
    ASSERT_GE(most, 1);
    for (int in_flight = 1; in_flight <= most; ++in_flight) {
      EXPECT_EQ(failures(slots, in_flight, producers, consumers, 100), 0)
          << slots << " slots, " << in_flight << " in flight, " << producers << " producers, "
          << consumers << " consumers";
    }
  }
}

TEST(RingOrder, BeyondItSomebodyDoes) {
  EXPECT_EQ(waterweight::ring_most_in_flight(13, 2, 6), 6);
  EXPECT_GT(failures(13, 7, 2, 6, 400), 0);
  EXPECT_EQ(waterweight::ring_most_in_flight(4, 1, 3), 1);
  EXPECT_GT(failures(4, 4, 1, 3, 400), 0);
}

}  // namespace
