// h2o_accumulate_scores, from probabilities and from (q, k, log-sum-exp), against the reference.
#include "tests/support/cache_harness.cuh"

namespace {

using waterweight::h2o_policy;
namespace reference = waterweight::reference;

template <class T>
class AccumulateTest : public test::GpuTest {
 protected:
  /// Lengths differ by sequence; the token's slot is anywhere among the live ones.
  static void fill(test::CacheHarness<T>& caches, std::mt19937& generator) {
    caches.download();
    for (float& score : caches.score)
      score = static_cast<float>(test::random_int(0, 30, generator));
    for (int b = 0; b < caches.batch; ++b) {
      caches.length[b] = test::random_int(0, caches.capacity - 1, generator);
      caches.step[b] = caches.length[b] + test::random_int(0, 100, generator);
      for (int h = 0; h < caches.kv_heads; ++h) {
        const std::size_t first = caches.first(0, b, h);
        caches.free_slot[first / caches.capacity] =
            test::random_int(0, caches.length[b], generator);
        for (int slot = 0; slot <= caches.length[b]; ++slot) caches.position[first + slot] = slot;
        for (std::size_t i = first * caches.head_dim;
             i < (first + caches.length[b] + 1) * caches.head_dim; ++i) {
          caches.k[i] = static_cast<T>(std::normal_distribution<float>(0, 1)(generator));
        }
      }
    }
  }

  /// `reference` changes the host's copy, `body` the device's.
  template <class Reference, class Body>
  void check(test::CacheHarness<T>& caches, double tolerance, const Reference& want,
             const Body& body) {
    const auto score = caches.score;
    const auto position = caches.position;
    want();
    const auto want_score = caches.score;
    const auto want_position = caches.position;
    std::vector<float> first_run;
    const auto restore = [&] {
      caches.score = score, caches.position = position;
      caches.upload();
    };
    run_eager_and_captured(restore, body, [&](int run) {
      caches.download();
      EXPECT_EQ(want_position, caches.position);
      for (std::size_t i = 0; i < want_score.size(); ++i) {
        ASSERT_NEAR(want_score[i], caches.score[i], tolerance) << "slot " << i;
      }
      if (run == 0) first_run = caches.score;
      EXPECT_TRUE(test::same_bits(first_run, caches.score));
    });
  }

  template <class P>
  void check_probabilities(int batch, int group, int kv_heads, int capacity,
                           std::mt19937& generator) {
    test::CacheHarness<T> caches(batch, kv_heads * group, kv_heads, capacity, 64, true);
    fill(caches, generator);
    const int rows = batch * kv_heads * group, ld = capacity + 3;
    // What is not live is poison.
    std::vector<P> host(static_cast<std::size_t>(rows) * ld);
    std::memset(static_cast<void*>(host.data()), 0xFF, host.size() * sizeof(P));
    for (int row = 0; row < rows; ++row) {
      const int live = caches.length[row / (kv_heads * group)] + 1;
      for (int slot = 0; slot < live; ++slot) {
        host[static_cast<std::size_t>(row) * ld + slot] =
            static_cast<P>(std::uniform_real_distribution<float>(0, 2.0f / live)(generator));
      }
    }
    test::DeviceBuffer<P> device_copy(host);
    check(
        caches, 1e-5,
        [&] {
          reference::h2o_accumulate_scores<double>(
              waterweight::matrix_view<P>{host.data(), rows, capacity, ld}, batch, kv_heads,
              caches.host_state());
        },
        [&] {
          return waterweight::h2o_accumulate_scores(
              waterweight::matrix_view<P>{device_copy.data(), rows, capacity, ld}, batch, kv_heads,
              caches.state(), stream);
        });
  }

  void check_lse(int batch, int group, int kv_heads, int capacity, int head_dim,
                 std::mt19937& generator) {
    SCOPED_TRACE(::testing::Message() << "head_dim " << head_dim);
    const int heads = kv_heads * group;
    test::CacheHarness<T> caches(batch, heads, kv_heads, capacity, head_dim, true);
    fill(caches, generator);
    caches.upload();  // the keys
    test::Heads<T> q(batch, 1, heads, head_dim);
    q.fill(generator);
    std::vector<float> lse;
    for (int b = 0; b < batch; ++b) {
      for (int h = 0; h < heads; ++h) {
        std::vector<double> logits;
        const T* keys = caches.host_cache().k + caches.first(0, b, h / group) * head_dim;
        for (int slot = 0; slot <= caches.length[b]; ++slot) {
          logits.push_back(reference::dot<double>(reference::head_data(q.view(), b, 0, h),
                                                  keys + slot * head_dim, head_dim) /
                           std::sqrt(static_cast<double>(head_dim)));
        }
        lse.push_back(static_cast<float>(reference::softmax(logits)));
      }
    }
    test::DeviceBuffer<float> d_lse(lse);
    auto keys_only = caches.cache();
    keys_only.v = nullptr;
    check(
        caches, 1e-4,
        [&] {
          reference::h2o_accumulate_scores<double>(q.view(), lse.data(), caches.host_cache(),
                                                   caches.host_state());
        },
        [&] {
          return waterweight::h2o_accumulate_scores(q.device(), d_lse.data(), keys_only,
                                                    caches.state(), stream);
        });
  }
};

using ElementTypes = ::testing::Types<__half, __nv_bfloat16>;
TYPED_TEST_SUITE(AccumulateTest, ElementTypes);

TYPED_TEST(AccumulateTest, FromProbabilities) {
  std::mt19937 generator(71);
  this->template check_probabilities<float>(1, 1, 1, 1, generator);
  this->template check_probabilities<float>(3, 2, 2, 505, generator);
  this->template check_probabilities<TypeParam>(2, 3, 3, 131, generator);
}

TYPED_TEST(AccumulateTest, FromLogSumExp) {
  std::mt19937 generator(72);
  for (int head_dim : {32, 64, 80, 96, 128, 256}) {
    this->check_lse(2, 2, 2, 70, head_dim, generator);
  }
  this->check_lse(1, 1, 1, 1, 80, generator);
  this->check_lse(3, 5, 1, 505, 80, generator);
}

TEST(AccumulateArguments, AreCheckedBeforeAnyLaunch) {
  alignas(16) __half data[512];
  float numbers[16];
  std::int32_t integers[16];
  const waterweight::heads_view<__half> q{data, 1, 1, 4, 64, 256, 256, 64};
  const waterweight::kv_cache_view<__half> cache{data, nullptr, 1, 2, 4, 64};
  const waterweight::h2o_state_view state{numbers, integers, integers, integers, integers};
  const waterweight::matrix_view<const float> p{numbers, 4, 4, 4};
  auto plain = state, several = state;
  plain.score = nullptr;
  several.layers = 2;
  const auto from_p = [](auto matrix, int batch, int kv_heads, waterweight::h2o_state_view s) {
    return waterweight::h2o_accumulate_scores(matrix, batch, kv_heads, s, nullptr);
  };
  auto wrong = p;
  wrong.ld = 3;
  EXPECT_EQ(cudaErrorInvalidValue, from_p(wrong, 1, 2, state));
  EXPECT_EQ(cudaErrorInvalidValue, from_p(p, 1, 3, state));
  EXPECT_EQ(cudaErrorInvalidValue, from_p(p, 0, 2, state));
  EXPECT_EQ(cudaErrorInvalidValue, from_p(p, 1, 2, plain));
  EXPECT_EQ(cudaErrorInvalidValue, from_p(p, 1, 2, several));
  const auto from_lse = [&](waterweight::heads_view<__half> queries, const float* lse,
                            waterweight::kv_cache_view<__half> c, waterweight::h2o_state_view s) {
    return waterweight::h2o_accumulate_scores(queries, lse, c, s, nullptr);
  };
  EXPECT_EQ(cudaErrorInvalidValue, from_lse(q, nullptr, cache, state));
  EXPECT_EQ(cudaErrorInvalidValue, from_lse(q, numbers, cache, plain));
  auto queries = q;
  queries.heads = 3;
  EXPECT_EQ(cudaErrorInvalidValue, from_lse(queries, numbers, cache, state));
  queries = q;
  queries.head_dim = 72;
  EXPECT_EQ(cudaErrorInvalidValue, from_lse(queries, numbers, cache, state));
  auto c = cache;
  c.k = nullptr;
  EXPECT_EQ(cudaErrorInvalidValue, from_lse(q, numbers, c, state));
}

}  // namespace
