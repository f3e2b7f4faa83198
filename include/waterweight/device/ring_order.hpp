// How far a ring of tiles (weight_ring.cuh) may run ahead, so that no wait takes one use of a slot
// for another.
#pragma once

#include <waterweight/config.hpp>

WATERWEIGHT_NAMESPACE_BEGIN

/// The most tiles that may be under way in a ring of `slots`, filled by `producers` warps that take
/// turns at the tiles and emptied by `consumers` that do.
///
/// A barrier tells only two phases apart: whoever waits for a tile must know that the one before it
/// in the same slot has landed, and that the one after it has not. A consumer knows by the tile it
/// had before, `consumers` earlier, which was not asked for until all but those under way of its
/// predecessors had landed. A single producer knows by its own order. Producers that take turns
/// wait for each other's tiles, and one may be as far behind the others as tiles may be under way
/// and one turn.
WATERWEIGHT_HOST_DEVICE constexpr int ring_most_in_flight(int slots, int producers, int consumers) {
  const int by_producers = producers == 1 ? slots : (slots - producers + 1) / 2;
  const int by_consumers = slots - consumers;
  return by_producers < by_consumers ? by_producers : by_consumers;
}

WATERWEIGHT_NAMESPACE_END
