// h2o_select_and_compact against the reference: the choice is exact, ties included.
#include "tests/support/cache_harness.cuh"

namespace {

using waterweight::h2o_policy;
namespace reference = waterweight::reference;

template <class T>
class SelectTest : public test::GpuTest {
 protected:
  void check(int batch, int kv_heads, int head_dim, int tokens,
             const std::vector<std::int32_t>& lengths, const h2o_policy& budget,
             const std::vector<float>& sums, std::mt19937& generator) {
    SCOPED_TRACE(::testing::Message() << "tokens " << tokens << " budget " << budget.sinks << "+"
                                      << budget.heavy << "+" << budget.recent);
    test::Heads<T> k(batch, tokens, kv_heads, head_dim), v(batch, tokens, kv_heads, head_dim);
    k.fill(generator);
    v.fill(generator);
    test::CacheHarness<T> layer(batch, kv_heads, kv_heads, budget.capacity(), head_dim, true);
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
                                 layer.state(), budget, {}, stream);
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

TYPED_TEST(SelectTest, NaNScoresLeaveFirst) {
  std::mt19937 generator(45);
  auto sums = this->random_sums(200, 0, generator);
  for (int i = 0; i < 200; i += 3) sums[static_cast<std::size_t>(i)] = NAN;
  this->check(1, 1, 64, 200, {}, {0, 60, 20}, sums, generator);
  this->check(1, 1, 64, 200, {}, {0, 150, 20}, sums, generator);
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
}

}  // namespace
