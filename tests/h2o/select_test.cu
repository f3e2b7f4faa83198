// h2o_select, h2o_compact and both in one against the reference: the choice is exact, ties
// included.
#include "tests/support/cache_harness.cuh"

namespace {

using waterweight::h2o_policy;
namespace reference = waterweight::reference;

template <class T>
class SelectTest : public test::GpuTest {
 protected:
  void check(int batch, int kv_heads, int head_dim, int tokens,
             const std::vector<std::int32_t>& lengths, const h2o_policy& budget,
             const std::vector<float>& sums, std::mt19937& generator,
             const std::vector<std::int32_t>& bounds = {}) {
    SCOPED_TRACE(::testing::Message() << "tokens " << tokens << " budget " << budget.sinks << "+"
                                      << budget.heavy << "+" << budget.recent);
    test::Heads<T> k(batch, tokens, kv_heads, head_dim), v(batch, tokens, kv_heads, head_dim);
    k.fill(generator);
    v.fill(generator);
    test::CacheHarness<T> layer(batch, kv_heads, kv_heads, budget.capacity(), head_dim, true);
    if (!bounds.empty()) layer.bound(bounds);
    layer.download();
    reference::h2o_select_and_compact(k.view(), v.view(), sums.data(),
                                      lengths.empty() ? nullptr : lengths.data(), budget,
                                      layer.host_cache(), layer.host_state());
    const auto want_k = layer.k, want_v = layer.v;
    const auto want_score = layer.score;
    const auto want_position = layer.position, want_free = layer.free_slot;
    const auto want_step = layer.step, want_length = layer.length;
    test::DeviceBuffer<float> d_sums(sums);
    test::DeviceBuffer<std::int32_t> d_lengths(lengths.empty() ? std::vector<std::int32_t>{0}
                                                               : lengths);
    run_eager_and_captured([&] { layer.empty(); },
                           [&] {
                             return waterweight::h2o_select_and_compact(
                                 k.device(), v.device(), d_sums.data(),
                                 lengths.empty() ? nullptr : d_lengths.data(), layer.cache(),
                                 layer.state(), budget, layer.workspace(), stream);
                           },
                           [&](int) {
                             layer.download();
                             EXPECT_EQ(want_position, layer.position);
                             EXPECT_EQ(want_free, layer.free_slot);
                             EXPECT_EQ(want_step, layer.step);
                             EXPECT_EQ(want_length, layer.length);
                             EXPECT_TRUE(test::same_bits(want_k, layer.k));
                             EXPECT_TRUE(test::same_bits(want_v, layer.v));
                             for (std::size_t i = 0; i < want_score.size(); ++i) {
                               if (want_position[i] < 0) {
                                 EXPECT_EQ(0.0f, layer.score[i]) << "an empty slot has no score";
                               } else if (std::isnan(want_score[i])) {
                                 EXPECT_TRUE(std::isnan(layer.score[i]));
                               } else {
                                 EXPECT_EQ(want_score[i], layer.score[i]);
                               }
                             }
                           });
  }

  static std::vector<float> random_sums(std::size_t count, int levels, std::mt19937& generator) {
    std::vector<float> sums(count);
    for (float& sum : sums) {
      sum = levels > 0 ? 0.25f * static_cast<float>(test::random_int(0, levels, generator))
                       : std::uniform_real_distribution<float>(0.0f, 30.0f)(generator);
    }
    return sums;
  }
};

class SelectModelTest : public test::GpuTest {};

using ElementTypes = ::testing::Types<__half, __nv_bfloat16>;
TYPED_TEST_SUITE(SelectTest, ElementTypes);

TYPED_TEST(SelectTest, PromptsAroundTheBudget) {
  std::mt19937 generator(41);
  const h2o_policy budget{2, 20, 18};
  for (int tokens : {1, 39, 40, 41, 42, 43, 100, 700, 2048}) {
    this->check(1, 2, 80, tokens, {}, budget,
                this->random_sums(static_cast<std::size_t>(2) * tokens, 0, generator), generator);
  }
}

TYPED_TEST(SelectTest, TiesAreBrokenByPosition) {
  std::mt19937 generator(42);
  for (int levels : {1, 3, 10}) {
    this->check(2, 3, 32, 900, {}, {1, 300, 50}, this->random_sums(6 * 900, levels, generator),
                generator);
  }
}

TYPED_TEST(SelectTest, ExtremeBudgets) {
  std::mt19937 generator(43);
  for (const h2o_policy& budget :
       {h2o_policy{0, 5, 0}, h2o_policy{0, 0, 5}, h2o_policy{5, 0, 0}, h2o_policy{3, 0, 4},
        h2o_policy{0, 1, 1}, h2o_policy{0, 0, 0}, h2o_policy{0, 599, 0}}) {
    this->check(1, 2, 64, 600, {}, budget, this->random_sums(2 * 600, 0, generator), generator);
  }
}

TYPED_TEST(SelectTest, RaggedLengths) {
  std::mt19937 generator(44);
  this->check(4, 2, 64, 120, {120, 1, 30, 31}, {1, 20, 9},
              this->random_sums(4 * 2 * 120, 0, generator), generator);
}

TYPED_TEST(SelectTest, OneSetPerLayerSeveralAtOnceAndBounds) {
  std::mt19937 generator(46);
  constexpr auto layer = waterweight::h2o_granularity::per_layer;
  this->check(2, 3, 64, 90, {90, 40}, {2, 20, 9, 1, layer},
              this->random_sums(2 * 3 * 90, 9, generator), generator);
  this->check(2, 2, 64, 90, {90, 31}, {2, 20, 9, 7}, this->random_sums(2 * 2 * 90, 9, generator),
              generator);
  this->check(4, 2, 64, 90, {90, 90, 14, 90}, {2, 20, 9, 2, layer},
              this->random_sums(4 * 2 * 90, 9, generator), generator, {15, 0, 15, 1000});
}

TYPED_TEST(SelectTest, NaNScoresLeaveFirst) {
  std::mt19937 generator(45);
  auto sums = this->random_sums(200, 0, generator);
  for (int i = 0; i < 200; i += 3) sums[static_cast<std::size_t>(i)] = NAN;
  this->check(1, 1, 64, 200, {}, {0, 60, 20}, sums, generator);
  this->check(1, 1, 64, 200, {}, {0, 150, 20}, sums, generator);
}

/// All layers at once, by the sums over the whole model, then row by row into each layer's slots.
TEST_F(SelectModelTest, OneSetForAllLayers) {
  std::mt19937 generator(47);
  const h2o_policy policies[] = {
      {2, 20, 9, 1, waterweight::h2o_granularity::per_model},
      {0, 30, 10, 6, waterweight::h2o_granularity::per_model},
      {1, 30, 10, 2, waterweight::h2o_granularity::per_layer},
      {1, 30, 10, 2, waterweight::h2o_granularity::per_head},
  };
  for (const h2o_policy& policy : policies) {
    const int layers = 11, batch = 2, kv_heads = 3, tokens = 70, head_dim = 64;
    const std::int64_t layer_stride = batch * kv_heads * tokens + 5;
    const std::vector<std::int32_t> lengths{70, 33};
    std::vector<float> sums(static_cast<std::size_t>(layers * layer_stride), NAN);
    for (int l = 0; l < layers; ++l) {
      for (int i = 0; i < batch * kv_heads * tokens; ++i) {
        sums[static_cast<std::size_t>(l * layer_stride + i)] =
            0.25f * static_cast<float>(test::random_int(0, 3, generator));
      }
    }
    test::Heads<__half> k(layers * batch, tokens, kv_heads, head_dim);
    test::Heads<__half> v(layers * batch, tokens, kv_heads, head_dim);
    k.fill(generator);
    v.fill(generator);
    const auto layer_of = [&](waterweight::heads_view<__half> view, int l) {
      view.data += l * batch * view.batch_stride;
      view.batch = batch;
      return view;
    };
    const int capacity = policy.capacity();
    test::CacheHarness<__half> caches(batch, kv_heads, kv_heads, capacity, head_dim, true, layers);
    test::DeviceBuffer<float> d_sums(sums);
    test::DeviceBuffer<std::int32_t> d_lengths(lengths);
    test::DeviceBuffer<float> scratch(
        waterweight::h2o_workspace_bytes(policy, layers, batch, tokens) / sizeof(float) + 1);
    scratch.upload(std::vector<float>(scratch.size(), 0.0f));
    caches.download();
    const auto view = [&](const float* data) {
      return waterweight::h2o_score_view{data, batch, kv_heads, tokens, layers, layer_stride};
    };
    reference::h2o_select(view(sums.data()), lengths.data(), policy, capacity, caches.host_state());
    for (int l = 0; l < layers; ++l) {
      reference::h2o_compact(layer_of(k.view(), l), layer_of(v.view(), l),
                             caches.host_state().layer(l, capacity).position, caches.host_cache(l));
    }
    const auto want_k = caches.k, want_v = caches.v;
    const auto want_score = caches.score;
    const auto want_position = caches.position, want_free = caches.free_slot;
    const auto want_length = caches.length, want_step = caches.step;
    const auto body = [&] {
      cudaError_t status =
          waterweight::h2o_select(view(d_sums.data()), d_lengths.data(), caches.state(), capacity,
                                  policy, {scratch.data(), scratch.bytes()}, stream);
      for (int l = 0; l < layers && status == cudaSuccess; ++l) {
        status = waterweight::h2o_compact(layer_of(k.device(), l), layer_of(v.device(), l),
                                          caches.state().layer(l, capacity).position,
                                          caches.cache(l), stream);
      }
      return status;
    };
    const auto compare = [&](int) {
      caches.download();
      EXPECT_EQ(want_position, caches.position);
      EXPECT_EQ(want_free, caches.free_slot);
      EXPECT_EQ(want_length, caches.length);
      EXPECT_EQ(want_step, caches.step);
      EXPECT_EQ(want_score, caches.score);
      EXPECT_TRUE(test::same_bits(want_k, caches.k));
      EXPECT_TRUE(test::same_bits(want_v, caches.v));
      EXPECT_EQ(std::vector<float>(scratch.size(), 0.0f), scratch.download());
    };
    run_eager_and_captured([&] { caches.empty(); }, body, compare);
    // Both in one: the sums then lie without gaps.
    std::vector<float> close;
    for (int l = 0; l < layers; ++l) {
      const auto layer = sums.begin() + l * layer_stride;
      close.insert(close.end(), layer, layer + batch * kv_heads * tokens);
    }
    test::DeviceBuffer<float> d_close(close);
    const auto both = [&] {
      return waterweight::h2o_select_and_compact(k.device(), v.device(), d_close.data(),
                                                 d_lengths.data(), caches.cache(0), caches.state(),
                                                 policy, {scratch.data(), scratch.bytes()}, stream);
    };
    run_eager_and_captured([&] { caches.empty(); }, both, compare);
  }
}

TEST(SelectArguments, AreCheckedBeforeAnyLaunch) {
  alignas(16) __half data[512];
  float numbers[16];
  std::int32_t integers[16];
  const waterweight::heads_view<__half> k{data, 1, 4, 2, 64, 512, 128, 64};
  const waterweight::kv_cache_view<__half> cache{data, data, 1, 2, 4, 64};
  const waterweight::h2o_state_view scored{numbers, integers, integers, integers, integers};
  waterweight::h2o_state_view plain = scored;
  plain.score = nullptr;
  const h2o_policy budget{0, 2, 1};
  const auto call = [&](const float* sums, waterweight::kv_cache_view<__half> c,
                        waterweight::h2o_state_view state) {
    return waterweight::h2o_select_and_compact(k, k, sums, nullptr, c, state, budget, {}, nullptr);
  };
  EXPECT_EQ(cudaErrorInvalidValue, call(nullptr, cache, scored));
  EXPECT_EQ(cudaErrorInvalidValue, call(nullptr, cache, plain));  // 4 tokens, 3 free slots
  auto c = cache;
  c.kv_heads = 1;
  EXPECT_EQ(cudaErrorInvalidValue, call(numbers, c, scored));
  c = cache;
  c.capacity = 9;
  EXPECT_EQ(cudaErrorInvalidValue, call(numbers, c, scored));
  auto state = scored;
  state.free_slot = nullptr;
  EXPECT_EQ(cudaErrorInvalidValue, call(numbers, cache, state));
  state = plain;
  state.capacity_of = integers;
  EXPECT_EQ(cudaErrorInvalidValue, call(numbers, cache, state));
  const auto with = [&](h2o_policy policy, waterweight::workspace ws) {
    return waterweight::h2o_select_and_compact(k, k, numbers, nullptr, cache, scored, policy, ws,
                                               nullptr);
  };
  constexpr auto layer = waterweight::h2o_granularity::per_layer;
  constexpr auto model = waterweight::h2o_granularity::per_model;
  EXPECT_EQ(cudaErrorInvalidValue, with({0, 2, 1, 1, layer}, {}));
  EXPECT_EQ(cudaErrorInvalidValue, with({0, 2, 1, 1, layer}, {numbers, 15}));
  EXPECT_EQ(cudaErrorInvalidValue, with({0, 2, 1, 1, model}, {numbers, 15}));
  EXPECT_EQ(cudaErrorInvalidValue, with({0, 2, 1, 0}, {}));
  const auto select = [&](waterweight::h2o_score_view scores, waterweight::h2o_state_view s) {
    return waterweight::h2o_select(scores, nullptr, s, 4, budget, {}, nullptr);
  };
  EXPECT_EQ(cudaErrorInvalidValue, select({nullptr, 1, 2, 4}, scored));
  EXPECT_EQ(cudaErrorInvalidValue, select({numbers, 1, 2, 0}, scored));
  EXPECT_EQ(cudaErrorInvalidValue, select({numbers, 1, 2, 4}, plain));
  EXPECT_EQ(cudaErrorInvalidValue, select({numbers, 1, 2, 4, 2, 8}, scored));
  auto two = scored;
  two.layers = 2;
  two.layer_stride = 2;
  EXPECT_EQ(cudaErrorInvalidValue, select({numbers, 1, 2, 4, 2, 7}, two));
  two.layer_stride = 1;
  EXPECT_EQ(cudaErrorInvalidValue, select({numbers, 1, 2, 4, 2, 8}, two));
  EXPECT_EQ(cudaErrorInvalidValue, waterweight::h2o_compact(k, k, nullptr, cache, nullptr));
  EXPECT_EQ(cudaErrorInvalidValue, waterweight::h2o_advance(scored, 0, 4, budget, nullptr));
}

}  // namespace
