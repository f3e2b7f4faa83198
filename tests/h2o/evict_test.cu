// h2o_evict and h2o_advance against the reference, from random states: the choice is exact, ties
// and NaN included, and rows follow their positions bit for bit.
#include <numeric>

#include "tests/support/cache_harness.cuh"

namespace {

using waterweight::h2o_granularity;
using waterweight::h2o_policy;
namespace reference = waterweight::reference;
constexpr auto kPerHead = h2o_granularity::per_head, kPerLayer = h2o_granularity::per_layer,
               kPerModel = h2o_granularity::per_model;

class EvictTest : public test::GpuTest {
 protected:
  using Harness = test::CacheHarness<__half>;

  /// A state such as decoding leaves it just before the eviction: `missing[b]` slots from full.
  /// Scores are multiples of 1/4 up to `levels`, now and then NaN: sums are exact and ties common.
  static void fill(Harness& caches, const h2o_policy& policy, const std::vector<int>& missing,
                   int levels, std::mt19937& generator) {
    caches.download();
    for (auto* rows : {&caches.k, &caches.v}) {
      *rows = test::random_normal<__half>(rows->size(), 1.0f, generator);
    }
    for (int b = 0; b < caches.batch; ++b) {
      const int full = reference::sequence_policy(caches.host_state(), policy, b).capacity();
      const int live = std::max(full - missing[static_cast<std::size_t>(b)], 1);
      const bool dropped = live > policy.sinks + policy.recent;
      const int step = live - 1 + (dropped ? test::random_int(0, 50, generator) : 0);
      caches.length[b] = live - 1;
      caches.step[b] = step;
      for (const auto& set :
           reference::keep_sets(policy.granularity, caches.layers, caches.kv_heads)) {
        // The sinks and the last tokens are always among the live ones.
        std::vector<std::int32_t> positions(static_cast<std::size_t>(step) + 1);
        std::iota(positions.begin(), positions.end(), 0);
        while (static_cast<int>(positions.size()) > live) {
          const int last = static_cast<int>(positions.size()) - 1;
          positions.erase(positions.begin() +
                          test::random_int(policy.sinks, last - policy.recent, generator));
        }
        std::shuffle(positions.begin(), positions.end(), generator);
        for (const auto& at : set) {
          const std::size_t first = caches.first(at.layer, b, at.head);
          caches.free_slot[first / caches.capacity] = test::random_int(0, live - 1, generator);
          for (int slot = 0; slot < caches.capacity; ++slot) {
            const bool is_live = slot < live;
            caches.position[first + slot] = is_live ? positions[slot] : -1;
            caches.score[first + slot] =
                is_live ? 0.25f * static_cast<float>(test::random_int(0, levels, generator)) : 0.0f;
            if (is_live && test::random_int(0, 40, generator) == 0) {
              caches.score[first + slot] = NAN;
            }
          }
        }
      }
    }
  }

  void check(int layers, int batch, int kv_heads, int head_dim, const h2o_policy& policy,
             const std::vector<int>& missing, const std::vector<std::int32_t>& bounds, int levels,
             std::mt19937& generator) {
    SCOPED_TRACE(::testing::Message()
                 << layers << " layers, batch " << batch << ", heads " << kv_heads << ", dim "
                 << head_dim << ", policy " << policy.sinks << "+" << policy.heavy << "+"
                 << policy.recent << " every " << policy.evict_every << " granularity "
                 << static_cast<int>(policy.granularity));
    Harness caches(batch, kv_heads, kv_heads, policy.capacity(), head_dim, true, layers);
    if (!bounds.empty()) caches.bound(bounds);
    fill(caches, policy, missing, levels, generator);
    const auto k = caches.k, v = caches.v;
    const auto score = caches.score;
    const auto position = caches.position, free_slot = caches.free_slot, step = caches.step,
               length = caches.length;
    reference::h2o_evict(caches.host_cache(), caches.host_state(), policy);
    reference::h2o_advance(caches.host_state(), batch, caches.capacity, policy);
    const auto want_k = caches.k, want_v = caches.v;
    const auto want_score = caches.score;
    const auto want_position = caches.position, want_free = caches.free_slot;
    const auto want_step = caches.step, want_length = caches.length;
    const auto restore = [&] {
      caches.k = k, caches.v = v, caches.score = score, caches.position = position;
      caches.free_slot = free_slot, caches.step = step, caches.length = length;
      caches.upload();
    };
    const auto body = [&] {
      const cudaError_t status = waterweight::h2o_evict(caches.cache(), caches.state(), policy,
                                                        caches.workspace(), stream);
      return status != cudaSuccess
                 ? status
                 : waterweight::h2o_advance(caches.state(), batch, caches.capacity, policy, stream);
    };
    run_eager_and_captured(restore, body, [&](int) {
      caches.download();
      EXPECT_EQ(want_position, caches.position);
      EXPECT_EQ(want_free, caches.free_slot);
      EXPECT_EQ(want_step, caches.step);
      EXPECT_EQ(want_length, caches.length);
      EXPECT_TRUE(caches.workspace_is_zero());
      std::size_t wrong_rows = 0, wrong_scores = 0;
      for (std::size_t i = 0; i < want_position.size(); ++i) {
        if (want_position[i] < 0) continue;
        wrong_scores += std::memcmp(&want_score[i], &caches.score[i], sizeof(float)) != 0;
        const std::size_t row = i * head_dim, bytes = head_dim * sizeof(__half);
        wrong_rows += std::memcmp(&want_k[row], &caches.k[row], bytes) != 0;
        wrong_rows += std::memcmp(&want_v[row], &caches.v[row], bytes) != 0;
      }
      EXPECT_EQ(0u, wrong_rows);
      EXPECT_EQ(0u, wrong_scores);
    });
  }
};

TEST_F(EvictTest, EachHeadItsOwn) {
  std::mt19937 generator(61);
  check(1, 1, 1, 64, {0, 0, 0}, {0}, {}, 9, generator);
  check(1, 1, 3, 80, {2, 20, 9}, {0}, {}, 1000, generator);
  check(1, 3, 2, 64, {1, 12, 5}, {0, 1, 7}, {}, 6, generator);
  check(2, 2, 3, 32, {0, 300, 100}, {0, 0}, {}, 40, generator);
  check(1, 1, 2, 64, {4, 0, 60}, {0}, {}, 0, generator);
}

TEST_F(EvictTest, SeveralAtOnce) {
  std::mt19937 generator(62);
  check(1, 1, 1, 64, {0, 0, 0, 2}, {0}, {}, 9, generator);
  check(1, 2, 2, 80, {2, 20, 9, 5}, {0, 1}, {}, 30, generator);
  check(1, 1, 2, 256, {1, 3, 2, 40}, {0}, {}, 9, generator);  // more leave than stay
  check(2, 2, 2, 32, {0, 400, 50, 64}, {0, 0}, {}, 100, generator);
  check(1, 1, 1, 64, {0, 200, 50, 700}, {0}, {}, 100, generator);
}

TEST_F(EvictTest, OneSetPerLayer) {
  std::mt19937 generator(63);
  check(1, 1, 4, 64, {0, 10, 5, 1, kPerLayer}, {0}, {}, 10, generator);
  check(3, 2, 5, 32, {2, 70, 30, 1, kPerLayer}, {0, 3}, {}, 10, generator);
  check(2, 2, 3, 80, {1, 60, 30, 6, kPerLayer}, {0, 0}, {}, 30, generator);
}

TEST_F(EvictTest, OneSetPerModel) {
  std::mt19937 generator(64);
  check(1, 1, 1, 64, {0, 10, 5, 1, kPerModel}, {0}, {}, 10, generator);
  check(9, 2, 4, 32, {2, 70, 30, 1, kPerModel}, {0, 3}, {}, 10, generator);
  check(17, 1, 3, 32, {1, 40, 10, 4, kPerModel}, {0}, {}, 5, generator);
}

TEST_F(EvictTest, BoundsOfSingleSequences) {
  std::mt19937 generator(65);
  const std::vector<std::int32_t> bounds{20, 7, 1000, -3, 21};
  for (const auto granularity : {kPerHead, kPerLayer, kPerModel}) {
    check(2, 5, 2, 64, {2, 20, 5, 1, granularity}, {0, 0, 0, 0, 1}, bounds, 10, generator);
    check(2, 5, 2, 64, {2, 20, 5, 3, granularity}, {0, 1, 0, 0, 0}, bounds, 10, generator);
  }
}

TEST_F(EvictTest, RandomShapes) {
  std::mt19937 generator(66);
  const auto some = [&](int low, int high) { return test::random_int(low, high, generator); };
  const int dims[] = {32, 64, 80, 96, 128, 256};
  for (int i = 0; i < 40; ++i) {
    const h2o_policy policy{some(0, 4), some(0, 90), some(0, 40), some(0, 2) > 0 ? 1 : some(2, 30),
                            static_cast<h2o_granularity>(some(0, 2))};
    const int batch = some(1, 4);
    std::vector<int> missing;
    std::vector<std::int32_t> bounds;
    for (int b = 0; b < batch; ++b) {
      missing.push_back(std::max(some(-2, 3), 0));
      bounds.push_back(some(0, 140));
    }
    if (some(0, 1) == 0) bounds.clear();
    check(some(1, 4), batch, some(1, 5), dims[some(0, 5)], policy, missing, bounds, some(0, 50),
          generator);
  }
}

TEST(EvictArguments, AreCheckedBeforeAnyLaunch) {
  alignas(16) __half data[512];
  alignas(16) float numbers[64];
  std::int32_t integers[16];
  const waterweight::kv_cache_view<__half> cache{data, data, 1, 2, 4, 64};
  const waterweight::h2o_state_view state{numbers,  integers, integers, integers,
                                          integers, nullptr,  3,        2};
  const h2o_policy layer{0, 2, 1, 1, kPerLayer};
  const waterweight::workspace enough{numbers, sizeof(float) * 3 * 4};
  const auto call = [&](waterweight::kv_cache_view<__half> c, waterweight::h2o_state_view s,
                        h2o_policy p, waterweight::workspace ws) {
    return waterweight::h2o_evict(c, s, p, ws, nullptr);
  };
  const auto broken = [&](const auto& change) {
    auto c = cache;
    auto s = state;
    auto p = layer;
    auto ws = enough;
    change(c, s, p, ws);
    return call(c, s, p, ws);
  };
  EXPECT_EQ(sizeof(float) * 12, waterweight::h2o_workspace_bytes(layer, 3, 1, 4));
  EXPECT_EQ(sizeof(float) * 4, waterweight::h2o_workspace_bytes({0, 2, 1, 1, kPerModel}, 3, 1, 4));
  EXPECT_EQ(0u, waterweight::h2o_workspace_bytes({0, 2, 1}, 3, 1, 4));
  EXPECT_EQ(cudaErrorInvalidValue, broken([](auto& c, auto&, auto&, auto&) { c.k = nullptr; }));
  EXPECT_EQ(cudaErrorInvalidValue, broken([](auto& c, auto&, auto&, auto&) { c.head_dim = 60; }));
  EXPECT_EQ(cudaErrorInvalidValue, broken([](auto& c, auto&, auto&, auto&) { c.capacity = 5; }));
  EXPECT_EQ(cudaErrorInvalidValue, broken([](auto&, auto& s, auto&, auto&) { s.score = nullptr; }));
  EXPECT_EQ(cudaErrorInvalidValue, broken([](auto&, auto& s, auto&, auto&) { s.step = nullptr; }));
  EXPECT_EQ(cudaErrorInvalidValue, broken([](auto&, auto& s, auto&, auto&) { s.layers = 0; }));
  EXPECT_EQ(cudaErrorInvalidValue,
            broken([](auto&, auto& s, auto&, auto&) { s.layer_stride = 1; }));
  EXPECT_EQ(cudaErrorInvalidValue,
            broken([](auto&, auto&, auto& p, auto&) { p.evict_every = 0, p.heavy = 3; }));
  EXPECT_EQ(cudaErrorInvalidValue,
            broken([](auto&, auto&, auto& p, auto&) { p.sinks = -1, p.heavy = 3; }));
  EXPECT_EQ(cudaErrorInvalidValue, broken([](auto&, auto&, auto& p, auto&) {
              p.granularity = static_cast<h2o_granularity>(3);
            }));
  EXPECT_EQ(cudaErrorInvalidValue, broken([](auto&, auto&, auto&, auto& ws) { ws.bytes -= 1; }));
  EXPECT_EQ(cudaErrorInvalidValue,
            broken([](auto&, auto&, auto&, auto& ws) { ws.data = nullptr; }));
  auto s = state;
  EXPECT_EQ(cudaErrorInvalidValue, waterweight::h2o_advance(s, 1, 4, {0, 2, 1, 0}, nullptr));
  EXPECT_EQ(cudaErrorInvalidValue, waterweight::h2o_advance(s, 1, 4, {0, 2, 1, 5}, nullptr));
  s.length = nullptr;
  EXPECT_EQ(cudaErrorInvalidValue, waterweight::h2o_advance(s, 1, 4, layer, nullptr));
}

}  // namespace
