// Rotary embedding and prefill attention (output, log-sum-exp, column sums) against fp64.
#include <waterweight/attention.cuh>
#include <waterweight/reference/attention.hpp>
#include <waterweight/reference/rotary.hpp>

#include "tests/support/heads.cuh"

namespace {

using waterweight::heads_view;
namespace reference = waterweight::reference;

template <class T>
class PrefillTest : public test::GpuTest {
 protected:
  struct Shape {
    int batch, tokens, heads, kv_heads, head_dim;
  };

  void check(const Shape& s, const std::vector<std::int32_t>& lengths, float deviation,
             std::mt19937& generator) {
    SCOPED_TRACE(::testing::Message() << "batch " << s.batch << " tokens " << s.tokens << " heads "
                                      << s.heads << "/" << s.kv_heads << " dim " << s.head_dim);
    test::Heads<T> q(s.batch, s.tokens, s.heads, s.head_dim);
    test::Heads<T> k(s.batch, s.tokens, s.kv_heads, s.head_dim);
    test::Heads<T> v(s.batch, s.tokens, s.kv_heads, s.head_dim);
    test::Heads<T> out(s.batch, s.tokens, s.heads, s.head_dim);
    for (auto* input : {&q, &k, &v}) input->fill(generator, deviation);
    test::DeviceBuffer<float> lse(static_cast<std::size_t>(s.batch) * s.heads * s.tokens);
    test::DeviceBuffer<float> sums(static_cast<std::size_t>(s.batch) * s.kv_heads * s.tokens);
    test::DeviceBuffer<std::int32_t> d_lengths(lengths.empty() ? std::vector<std::int32_t>{0}
                                                               : lengths);

    std::vector<T> first_out;
    std::vector<float> first_sums;
    run_eager_and_captured(
        [&] {
          out.poison();
          lse.poison();
          sums.poison();
        },
        [&] {
          return waterweight::h2o_prefill_attention(device, q.device(), k.device(), v.device(),
                                                    lengths.empty() ? nullptr : d_lengths.data(),
                                                    out.device(), lse.data(), sums.data(), stream);
        },
        [&](int) {
          out.download();
          const std::vector<float> got_sums = sums.download();
          if (first_out.empty()) {
            first_out = out.host;
            first_sums = got_sums;
            compare(s, lengths, q, k, v, out, lse.download(), got_sums);
          }
          EXPECT_TRUE(test::same_bits(first_out, out.host)) << "out differs from run to run";
          EXPECT_TRUE(test::same_bits(first_sums, got_sums)) << "sums differ from run to run";
        });

    // A device of one SM takes the tiles and teams of long prompts, and the sums may be asked for
    // later.
    waterweight::device_info small = device;
    small.sm_count = 1;
    out.poison();
    lse.poison();
    sums.poison();
    const std::int32_t* const some_lengths = lengths.empty() ? nullptr : d_lengths.data();
    ASSERT_CUDA(waterweight::h2o_prefill_attention(small, q.device(), k.device(), v.device(),
                                                   some_lengths, out.device(), lse.data(),
                                                   sums.data(), stream));
    ASSERT_CUDA(cudaStreamSynchronize(stream));
    EXPECT_TRUE(test::same_bits(first_sums, sums.download())) << "sums differ with the teams";
    sums.poison();
    ASSERT_CUDA(waterweight::h2o_column_sums(q.device(), k.device(), some_lengths, lse.data(),
                                             sums.data(), stream));
    ASSERT_CUDA(cudaStreamSynchronize(stream));
    out.download();
    EXPECT_TRUE(test::same_bits(first_out, out.host)) << "out differs with the tile";
    EXPECT_TRUE(test::same_bits(first_sums, sums.download())) << "sums differ from those in one";
  }

  void compare(const Shape& s, const std::vector<std::int32_t>& lengths, test::Heads<T>& q,
               test::Heads<T>& k, test::Heads<T>& v, test::Heads<T>& out,
               const std::vector<float>& lse, const std::vector<float>& sums) {
    // What lies beyond a sequence's length is zero.
    std::vector<double> expected_out(out.host.size(), 0.0);
    heads_view<double> expected{expected_out.data(),
                                s.batch,
                                s.tokens,
                                s.heads,
                                s.head_dim,
                                q.view().batch_stride,
                                q.view().token_stride,
                                q.view().head_stride};
    std::vector<double> expected_lse(lse.size(), 0.0), expected_sums(sums.size(), 0.0);
    reference::causal_attention<double>(q.view(), k.view(), v.view(),
                                        lengths.empty() ? nullptr : lengths.data(), expected,
                                        expected_lse.data(), expected_sums.data());
    // P is rounded to T before it multiplies V, and the output to T: two roundings.
    const double ulp = std::is_same_v<T, __half> ? 1.0 / 1024 : 1.0 / 128;
    int failures = 0;
    for (int b = 0; b < s.batch; ++b) {
      const int length = lengths.empty() ? s.tokens : lengths[b];
      for (int h = 0; h < s.heads; ++h) {
        for (int t = 0; t < s.tokens; ++t) {
          const T* got = reference::head_data(out.view(), b, t, h);
          const double* want = reference::head_data(expected, b, t, h);
          for (int d = 0; d < s.head_dim; ++d) {
            const double error = std::abs(static_cast<float>(got[d]) - want[d]);
            if (!(error <= 2 * ulp * (std::abs(want[d]) + 0.5)) && ++failures <= 5) {
              ADD_FAILURE() << "out[" << b << "," << t << "," << h << "," << d
                            << "] = " << static_cast<float>(got[d]) << ", expected " << want[d];
            }
          }
          const std::size_t row = (static_cast<std::size_t>(b) * s.heads + h) * s.tokens + t;
          EXPECT_NEAR(expected_lse[row], lse[row], 2e-4 * (1 + std::abs(expected_lse[row])));
        }
      }
      for (int h = 0; h < s.kv_heads; ++h) {
        double total = 0;
        for (int t = 0; t < s.tokens; ++t) {
          const std::size_t i = (static_cast<std::size_t>(b) * s.kv_heads + h) * s.tokens + t;
          EXPECT_NEAR(expected_sums[i], sums[i], 1e-3 * (0.01 + expected_sums[i]));
          total += sums[i];
        }
        // Every query hands out a mass of 1.
        const double mass = static_cast<double>(length) * s.heads / s.kv_heads;
        EXPECT_NEAR(mass, total, 1e-4 * mass + 1e-6);
      }
    }
  }
};

using ElementTypes = ::testing::Types<__half, __nv_bfloat16>;
TYPED_TEST_SUITE(PrefillTest, ElementTypes);

TYPED_TEST(PrefillTest, MatchesTheReferenceForEveryHeadDim) {
  std::mt19937 generator(21);
  for (int head_dim : {32, 64, 80, 96, 128, 256}) {
    for (int tokens : {1, 31, 64, 65, 130, 200}) {
      this->check({1, tokens, 2, 2, head_dim}, {}, 1.0f, generator);
    }
  }
}

TYPED_TEST(PrefillTest, GroupedQueriesShareKeys) {
  std::mt19937 generator(22);
  this->check({2, 77, 6, 2, 64}, {}, 1.0f, generator);
  this->check({1, 100, 8, 1, 80}, {}, 1.0f, generator);
  this->check({1, 730, 3, 1, 80}, {}, 1.0f, generator);  // parts that end in the midst of a head
}

TYPED_TEST(PrefillTest, RaggedLengths) {
  std::mt19937 generator(23);
  this->check({4, 150, 2, 1, 80}, {150, 1, 64, 99}, 1.0f, generator);
  this->check({3, 70, 2, 2, 256}, {0, 33, 70}, 1.0f, generator);
  this->check({3, 410, 4, 2, 80}, {410, 257, 128}, 1.0f, generator);  // several key tiles
}

TYPED_TEST(PrefillTest, SharpSoftmax) {
  std::mt19937 generator(24);
  this->check({1, 140, 2, 2, 64}, {}, 4.0f, generator);
}

TYPED_TEST(PrefillTest, ANaNStaysInItsHead) {
  std::mt19937 generator(25);
  using T = TypeParam;
  test::Heads<T> q(1, 90, 3, 64), k(1, 90, 3, 64), v(1, 90, 3, 64), clean(1, 90, 3, 64),
      dirty(1, 90, 3, 64);
  for (auto* input : {&q, &k, &v}) input->fill(generator);
  const auto run = [&](test::Heads<T>& out) {
    ASSERT_CUDA(waterweight::h2o_prefill_attention(this->device, q.device(), k.device(), v.device(),
                                                   nullptr, out.device(), nullptr, nullptr,
                                                   this->stream));
    ASSERT_CUDA(cudaStreamSynchronize(this->stream));
    out.download();
  };
  run(clean);
  reference::head_data(k.view(), 0, 10, 1)[5] = static_cast<T>(NAN);
  k.upload();
  run(dirty);
  for (int t = 0; t < 90; ++t) {
    for (int h : {0, 2}) {
      EXPECT_EQ(0, std::memcmp(reference::head_data(clean.view(), 0, t, h),
                               reference::head_data(dirty.view(), 0, t, h), 64 * sizeof(T)));
    }
  }
}

TYPED_TEST(PrefillTest, RotaryTurnsTheFirstDimsOnly) {
  std::mt19937 generator(26);
  using T = TypeParam;
  for (int dims : {2, 20, 80}) {
    test::Heads<T> x(2, 9, 3, 80), expected(2, 9, 3, 80);
    x.fill(generator);
    const std::vector<float> inv_freq = test::inverse_frequencies(dims);
    const std::vector<std::int32_t> first{5, 1900};
    test::DeviceBuffer<float> d_inv_freq(inv_freq);
    test::DeviceBuffer<std::int32_t> d_first(first);
    for (int b = 0; b < 2; ++b) {
      for (int t = 0; t < 9; ++t) {
        for (int h = 0; h < 3; ++h) {
          reference::rotate_head<double>(reference::head_data(x.view(), b, t, h),
                                         reference::head_data(expected.view(), b, t, h), 80,
                                         waterweight::rotary_view{inv_freq.data(), dims},
                                         first[b] + t);
        }
      }
    }
    ASSERT_CUDA(waterweight::rotary_embed(x.device(),
                                          waterweight::rotary_view{d_inv_freq.data(), dims},
                                          d_first.data(), this->stream));
    ASSERT_CUDA(cudaStreamSynchronize(this->stream));
    x.download();
    const double ulp = std::is_same_v<T, __half> ? 1.0 / 1024 : 1.0 / 128;
    for (std::size_t i = 0; i < x.host.size(); ++i) {
      const double want = static_cast<float>(expected.host[i]);
      if (std::isnan(want)) {
        EXPECT_TRUE(test::is_poison(x.host[i]));
        continue;
      }
      EXPECT_NEAR(want, static_cast<float>(x.host[i]), ulp * (std::abs(want) + 0.01));
    }
  }
}

TYPED_TEST(PrefillTest, RotaryOfTwoIsThatOfEach) {
  std::mt19937 generator(27);
  using T = TypeParam;
  for (int kv_heads : {1, 3}) {
    test::Heads<T> q(2, 9, 3, 80), k(2, 9, kv_heads, 80);
    q.fill(generator);
    k.fill(generator);
    const std::vector<float> inv_freq = test::inverse_frequencies(20);
    test::DeviceBuffer<float> d_inv_freq(inv_freq);
    const waterweight::rotary_view rotary{d_inv_freq.data(), 20};
    for (auto* x : {&q, &k}) {
      ASSERT_CUDA(waterweight::rotary_embed(x->device(), rotary, nullptr, this->stream));
    }
    ASSERT_CUDA(cudaStreamSynchronize(this->stream));
    const std::vector<T> plain_q = q.host, plain_k = k.host;
    q.download();
    k.download();
    const std::vector<T> want_q = q.host, want_k = k.host;
    q.host = plain_q;
    k.host = plain_k;
    q.upload();
    k.upload();
    ASSERT_CUDA(waterweight::rotary_embed(q.device(), k.device(), rotary, nullptr, this->stream));
    ASSERT_CUDA(cudaStreamSynchronize(this->stream));
    q.download();
    k.download();
    EXPECT_FALSE(test::same_bits(plain_q, q.host));
    EXPECT_TRUE(test::same_bits(want_q, q.host));
    EXPECT_TRUE(test::same_bits(want_k, k.host));
  }
}

TEST(PrefillArguments, AreCheckedBeforeAnyLaunch) {
  alignas(16) __half data[512];
  float lse[8], sums[8];
  waterweight::device_info device;
  device.sm_count = 1;
  const heads_view<__half> good{data, 1, 2, 2, 64, 256, 128, 64};
  const auto call = [&](heads_view<__half> q, heads_view<__half> k, heads_view<__half> out) {
    return waterweight::h2o_prefill_attention(device, q, k, k, nullptr, out, lse, sums, nullptr);
  };
  auto bad = good;
  bad.data = nullptr;
  EXPECT_EQ(cudaErrorInvalidValue, call(bad, good, good));
  EXPECT_EQ(cudaErrorInvalidValue, call(good, bad, good));
  EXPECT_EQ(cudaErrorInvalidValue, call(good, good, bad));
  bad = good;
  bad.head_dim = 72;
  EXPECT_EQ(cudaErrorInvalidValue, call(bad, bad, bad));
  bad = good;
  bad.data = data + 1;
  EXPECT_EQ(cudaErrorInvalidValue, call(bad, good, good));
  bad = good;
  bad.token_stride = 129;
  EXPECT_EQ(cudaErrorInvalidValue, call(good, bad, good));
  bad = good;
  bad.heads = 3;
  EXPECT_EQ(cudaErrorInvalidValue, call(bad, good, bad));  // 3 query heads, 2 KV heads
  bad = good;
  bad.tokens = 0;
  EXPECT_EQ(cudaErrorInvalidValue, call(bad, bad, bad));
  bad = good;
  bad.tokens = 8388481;  // one key tile more than a grid has
  EXPECT_EQ(cudaErrorInvalidValue, call(bad, bad, bad));
  EXPECT_EQ(cudaErrorInvalidValue,
            waterweight::h2o_prefill_attention(device, good, good, good, nullptr, good, nullptr,
                                               sums, nullptr));
  EXPECT_EQ(
      cudaErrorInvalidValue,
      waterweight::rotary_embed(good, waterweight::rotary_view{nullptr, 16}, nullptr, nullptr));
  EXPECT_EQ(cudaErrorInvalidValue,
            waterweight::rotary_embed(good, waterweight::rotary_view{lse, 15}, nullptr, nullptr));
  EXPECT_EQ(cudaErrorInvalidValue,
            waterweight::rotary_embed(good, waterweight::rotary_view{lse, 66}, nullptr, nullptr));
  bad = good;
  bad.heads = 3;
  EXPECT_EQ(cudaErrorInvalidValue,
            waterweight::rotary_embed(good, bad, waterweight::rotary_view{lse, 16}, nullptr,
                                      nullptr));  // more heads than the first
  EXPECT_EQ(cudaErrorInvalidValue,
            waterweight::h2o_column_sums(good, good, nullptr, nullptr, sums, nullptr));
  EXPECT_EQ(cudaErrorInvalidValue,
            waterweight::h2o_column_sums(good, good, nullptr, lse, nullptr, nullptr));
  EXPECT_EQ(cudaErrorInvalidValue,
            waterweight::h2o_column_sums(good, bad, nullptr, lse, sums, nullptr));
}

}  // namespace
