// The decode step under every granularity, interval and bound: against its own parts bit for bit,
// and against the oracle on original indices.
#include <algorithm>

#include <waterweight/reference/h2o_oracle.hpp>

#include "tests/attention/decode_fixture.cuh"

namespace {

using test::Shape;
using waterweight::h2o_granularity;
using waterweight::h2o_policy;
using waterweight::rotary_view;
namespace reference = waterweight::reference;
constexpr auto kPerLayer = h2o_granularity::per_layer, kPerModel = h2o_granularity::per_model;

class DecodePolicyTest : public test::DecodeFixture<__half> {
 protected:
  using Harness = test::CacheHarness<__half>;

  static Harness harness(const Shape& s, const h2o_policy& policy, int layers = 1) {
    return Harness(s.batch, s.heads, s.kv_heads, policy.capacity(), s.head_dim, true, layers);
  }

  /// One token of all layers; layer l's token t is token t * layers + l of `run`.
  cudaError_t model_step(Run& run, Harness& caches, const h2o_policy& policy, int t) {
    for (int l = 0; l < caches.layers; ++l) {
      const int i = t * caches.layers + l;
      const cudaError_t status = waterweight::h2o_decode_attention(
          device, run.q.device_token(i), run.k.device_token(i), run.v.device_token(i), run.rotary(),
          caches.cache(l), caches.state().layer(l, caches.capacity), policy,
          run.out.device_token(i), caches.workspace(), stream);
      if (status != cudaSuccess) return status;
    }
    if (policy.granularity != h2o_granularity::per_head) {
      const cudaError_t status = waterweight::h2o_evict(caches.cache(), caches.state(), policy,
                                                        caches.workspace(), stream);
      if (status != cudaSuccess) return status;
    }
    return waterweight::h2o_advance(caches.state(), caches.batch, caches.capacity, policy, stream);
  }

  static void expect_same_bits(Harness& a, Harness& b) {
    a.download();
    b.download();
    EXPECT_EQ(a.position, b.position);
    EXPECT_EQ(a.free_slot, b.free_slot);
    EXPECT_EQ(a.length, b.length);
    EXPECT_EQ(a.step, b.step);
    EXPECT_TRUE(test::same_bits(a.score, b.score));
    EXPECT_TRUE(test::same_bits(a.k, b.k));
    EXPECT_TRUE(test::same_bits(a.v, b.v));
  }

  static reference::h2o_oracle::vector widened(const __half* data, int count) {
    reference::h2o_oracle::vector result;
    for (int i = 0; i < count; ++i) result.push_back(static_cast<float>(data[i]));
    return result;
  }

  /// Decodes from nothing on the device and with the oracle. A sequence is followed until the two
  /// part, which only a near-tie may bring about.
  void check_oracle(const Shape& s, const h2o_policy& policy, int layers, int tokens,
                    const std::vector<std::int32_t>& bounds, std::mt19937& generator) {
    SCOPED_TRACE(::testing::Message()
                 << "policy " << policy.sinks << "+" << policy.heavy << "+" << policy.recent
                 << " every " << policy.evict_every << " granularity "
                 << static_cast<int>(policy.granularity) << ", " << layers << " layers");
    constexpr double kNearTie = 5e-3;  // fp16 keys, over some tens of queries
    Run run(s, tokens * layers, generator);
    Harness caches(s.batch, s.heads, s.kv_heads, policy.capacity(), s.head_dim, true, layers);
    if (!bounds.empty()) caches.bound(bounds);
    const int group = s.heads / s.kv_heads;
    std::vector<reference::h2o_oracle> oracles;
    for (int b = 0; b < s.batch; ++b) {
      oracles.emplace_back(bounds.empty() ? policy : policy.bounded(bounds[b]), layers, s.kv_heads,
                           group, run.inv_freq);
    }
    std::vector<bool> together(oracles.size(), true);
    int followed = 0;
    for (int t = 0; t < tokens; ++t) {
      ASSERT_CUDA(model_step(run, caches, policy, t));
      ASSERT_CUDA(cudaStreamSynchronize(stream));
      caches.download();
      run.out.download();
      for (int b = 0; b < s.batch; ++b) {
        reference::h2o_oracle& oracle = oracles[b];
        if (!together[b]) continue;
        for (int row = 0; row < layers * s.kv_heads; ++row) {
          const int i = t * layers + row / s.kv_heads, h = row % s.kv_heads;
          std::vector<reference::h2o_oracle::vector> queries;
          for (int g = 0; g < group; ++g) {
            queries.push_back(
                widened(reference::head_data(run.q.token(i), b, 0, h * group + g), s.head_dim));
          }
          const auto outputs = oracle.decode(
              row, queries, widened(reference::head_data(run.k.token(i), b, 0, h), s.head_dim),
              widened(reference::head_data(run.v.token(i), b, 0, h), s.head_dim));
          for (int g = 0; g < group; ++g) {
            const __half* got = reference::head_data(run.out.token(i), b, 0, h * group + g);
            for (int d = 0; d < s.head_dim; ++d) {
              ASSERT_NEAR(outputs[g][d], static_cast<float>(got[d]), 1e-2)
                  << "token " << t << " row " << row;
            }
          }
        }
        oracle.end_token();
        ASSERT_EQ(oracle.tokens(), caches.step[b]);
        for (int row = 0; row < layers * s.kv_heads; ++row) {
          const std::size_t first = caches.first(row / s.kv_heads, b, row % s.kv_heads);
          std::vector<int> kept(caches.position.begin() + first,
                                caches.position.begin() + first + caches.capacity);
          kept.erase(std::remove(kept.begin(), kept.end(), -1), kept.end());
          std::sort(kept.begin(), kept.end());
          ASSERT_EQ(static_cast<int>(kept.size()), caches.length[b]) << "token " << t;
          if (kept == oracle.kept(row)) continue;
          ASSERT_EQ(kept.size(), oracle.kept(row).size()) << "token " << t;
          EXPECT_LT(oracle.least_gap(), kNearTie) << "token " << t << " row " << row;
          together[b] = false;
        }
        followed += together[b];
      }
    }
    EXPECT_GT(followed, s.batch * (policy.capacity() + tokens) / 3)
        << "too few steps before a near-tie: another seed is needed";
    EXPECT_TRUE(caches.workspace_is_zero());
  }
};

TEST_F(DecodePolicyTest, KeepsWhatTheOracleKeeps) {
  std::mt19937 generator(81);
  check_oracle({2, 4, 2, 64}, {1, 9, 5}, 1, 45, {}, generator);
  check_oracle({2, 2, 1, 80}, {1, 9, 5, 4}, 1, 60, {}, generator);
  check_oracle({2, 2, 2, 64}, {1, 9, 5, 1, kPerLayer}, 2, 40, {}, generator);
  check_oracle({1, 4, 2, 32}, {0, 8, 4, 3, kPerLayer}, 2, 50, {}, generator);
  check_oracle({2, 2, 2, 64}, {1, 9, 5, 1, kPerModel}, 3, 40, {}, generator);
  check_oracle({1, 4, 2, 32}, {0, 8, 4, 3, kPerModel}, 3, 50, {}, generator);
  check_oracle({3, 2, 1, 64}, {1, 9, 5}, 1, 40, {8, 12, 100}, generator);
  check_oracle({3, 2, 1, 64}, {1, 9, 5, 2, kPerModel}, 2, 40, {8, 12, 100}, generator);
  check_oracle({1, 2, 2, 64}, h2o_policy::streaming(3, 9, 2), 1, 60, {}, generator);
  check_oracle({1, 2, 2, 64}, h2o_policy::sliding_window(11), 1, 60, {}, generator);
}

TEST_F(DecodePolicyTest, TheFusedEvictionIsTheSeparateOneBitForBit) {
  // A layer of one KV head: a set per layer is a set per head, but h2o_evict chooses it.
  std::mt19937 generator(82);
  for (const int evict_every : {1, 3, 20}) {
    for (const bool bounded : {false, true}) {
      const h2o_policy fused{2, 11, 6, evict_every};
      h2o_policy parts = fused;
      parts.granularity = kPerLayer;
      const Shape s{3, 2, 1, 80};
      Run run(s, 100, generator);
      Harness a = harness(s, fused), b = harness(s, parts);
      if (bounded) {
        a.bound({9 + evict_every, 14 + evict_every, 1000});
        b.bound({9 + evict_every, 14 + evict_every, 1000});
      }
      for (int t = 0; t < 100; ++t) {
        ASSERT_CUDA(model_step(run, a, fused, t));
        ASSERT_CUDA(cudaStreamSynchronize(stream));
        run.out.download();
        const auto out = run.out.host;
        ASSERT_CUDA(model_step(run, b, parts, t));
        ASSERT_CUDA(cudaStreamSynchronize(stream));
        run.out.download();
        ASSERT_TRUE(test::same_bits(out, run.out.host)) << "step " << t;
        expect_same_bits(a, b);
        ASSERT_FALSE(HasFailure()) << "step " << t << ", every " << evict_every;
      }
    }
  }
}

TEST_F(DecodePolicyTest, ABudgetAboveTheLengthIsFullAttentionBitForBit) {
  std::mt19937 generator(83);
  const Shape s{2, 4, 2, 64};
  const int layers = 2, tokens = 50;
  Run run(s, tokens * layers, generator);
  std::vector<__half> outputs;
  for (const h2o_policy& policy : {h2o_policy{1, 40, 9, 7}, h2o_policy{1, 40, 9, 7, kPerLayer},
                                   h2o_policy{1, 40, 9, 7, kPerModel}}) {
    for (const bool scored : {false, true}) {
      Harness caches(s.batch, s.heads, s.kv_heads, policy.capacity(), s.head_dim, scored, layers);
      run.out.poison();
      for (int t = 0; t < tokens; ++t) {
        for (int l = 0; !scored && l < layers; ++l) {
          const int i = t * layers + l;
          ASSERT_CUDA(waterweight::h2o_decode_attention(
              device, run.q.device_token(i), run.k.device_token(i), run.v.device_token(i),
              run.rotary(), caches.cache(l), caches.state().layer(l, caches.capacity), {},
              run.out.device_token(i), caches.workspace(), stream));
        }
        if (scored) {
          ASSERT_CUDA(model_step(run, caches, policy, t));
        } else {
          ASSERT_CUDA(
              waterweight::h2o_advance(caches.state(), s.batch, caches.capacity, {}, stream));
        }
      }
      ASSERT_CUDA(cudaStreamSynchronize(stream));
      run.out.download();
      if (outputs.empty()) outputs = run.out.host;
      EXPECT_TRUE(test::same_bits(outputs, run.out.host));
    }
  }
}

TEST_F(DecodePolicyTest, ABoundedSequenceInABatchIsTheSequenceAloneBitForBit) {
  std::mt19937 generator(84);
  const Shape s{4, 4, 2, 64};
  const h2o_policy policy{1, 20, 7, 2};
  const std::vector<std::int32_t> bounds{30, 12, 17, 0};
  Run run(s, 70, generator);
  Harness together = harness(s, policy);
  together.bound(bounds);
  for (int t = 0; t < 70; ++t) ASSERT_CUDA(model_step(run, together, policy, t));
  ASSERT_CUDA(cudaStreamSynchronize(stream));
  run.out.download();
  together.download();
  const auto all = run.out.host;
  for (int b = 0; b < s.batch; ++b) {
    const h2o_policy own = policy.bounded(bounds[static_cast<std::size_t>(b)]);
    Harness alone = harness({1, s.heads, s.kv_heads, s.head_dim}, own);
    const auto only = [&](waterweight::heads_view<__half> view) {
      view.data += b * view.batch_stride;
      view.batch = 1;
      return view;
    };
    run.out.poison();
    for (int t = 0; t < 70; ++t) {
      ASSERT_CUDA(waterweight::h2o_decode_attention(
          device, only(run.q.device_token(t)), only(run.k.device_token(t)),
          only(run.v.device_token(t)), run.rotary(), alone.cache(), alone.state(), own,
          only(run.out.device_token(t)), alone.workspace(), stream));
      ASSERT_CUDA(waterweight::h2o_advance(alone.state(), 1, own.capacity(), own, stream));
    }
    ASSERT_CUDA(cudaStreamSynchronize(stream));
    run.out.download();
    alone.download();
    for (int t = 0; t < 70; ++t) {
      for (int h = 0; h < s.heads; ++h) {
        const __half* got = reference::head_data(run.out.token(t), b, 0, h);
        const __half* want = all.data() + (got - run.out.host.data());
        ASSERT_EQ(0, std::memcmp(want, got, s.head_dim * sizeof(__half))) << "step " << t;
      }
    }
    for (int h = 0; h < s.kv_heads; ++h) {
      EXPECT_TRUE(std::equal(alone.position.begin() + alone.first(0, 0, h),
                             alone.position.begin() + alone.first(0, 0, h) + alone.capacity,
                             together.position.begin() + together.first(0, b, h)));
    }
  }
}

TEST_F(DecodePolicyTest, OneCapturedGraphServesGrowthAndSteadyStateBitForBit) {
  std::mt19937 generator(85);
  const Shape s{2, 2, 2, 64};
  for (const h2o_policy& policy : {h2o_policy{1, 9, 4, 5}, h2o_policy{1, 9, 4, 1, kPerLayer},
                                   h2o_policy{1, 9, 4, 3, kPerModel}}) {
    const int layers = 3;
    Run run(s, layers, generator);  // the same token again and again
    Harness eager = harness(s, policy, layers), captured = harness(s, policy, layers);
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    ASSERT_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    const cudaError_t status = model_step(run, captured, policy, 0);
    ASSERT_CUDA(cudaStreamEndCapture(stream, &graph));
    ASSERT_CUDA(status);
    ASSERT_CUDA(cudaGraphInstantiate(&executable, graph, 0));
    for (int t = 0; t < 40; ++t) {
      ASSERT_CUDA(model_step(run, eager, policy, 0));
      ASSERT_CUDA(cudaGraphLaunch(executable, stream));
      ASSERT_CUDA(cudaStreamSynchronize(stream));
      expect_same_bits(eager, captured);
      ASSERT_FALSE(HasFailure()) << "step " << t;
    }
    ASSERT_CUDA(cudaGraphExecDestroy(executable));
    ASSERT_CUDA(cudaGraphDestroy(graph));
  }
}

TEST(DecodeArguments, AreCheckedBeforeAnyLaunch) {
  alignas(16) __half data[512];
  float score[16], inv_freq[8];
  std::int32_t integers[16];
  waterweight::device_info device{90, 132, 227 * 1024, 0};
  const waterweight::heads_view<__half> good{data, 1, 1, 2, 64, 128, 128, 64};
  const waterweight::kv_cache_view<__half> cache{data, data, 1, 2, 4, 64};
  const waterweight::h2o_state_view state{score, integers, integers, integers, integers};
  const h2o_policy budget{0, 2, 1};
  const auto call = [&](waterweight::heads_view<__half> q, waterweight::kv_cache_view<__half> c,
                        waterweight::h2o_state_view st, h2o_policy b, rotary_view rotary,
                        std::size_t bytes = 1 << 20) {
    return waterweight::h2o_decode_attention(device, q, good, good, rotary, c, st, b, q,
                                             {data, bytes}, nullptr);
  };
  const rotary_view rotary{inv_freq, 16};
  auto q = good;
  q.tokens = 2;
  EXPECT_EQ(cudaErrorInvalidValue, call(q, cache, state, budget, rotary));
  q = good;
  q.heads = 3;
  EXPECT_EQ(cudaErrorInvalidValue, call(q, cache, state, budget, rotary));
  auto c = cache;
  c.k = nullptr;
  EXPECT_EQ(cudaErrorInvalidValue, call(good, c, state, budget, rotary));
  c = cache;
  c.capacity = 5;  // not the budget's
  EXPECT_EQ(cudaErrorInvalidValue, call(good, c, state, budget, rotary));
  auto st = state;
  st.step = nullptr;
  EXPECT_EQ(cudaErrorInvalidValue, call(good, cache, st, budget, rotary));
  EXPECT_EQ(cudaErrorInvalidValue, call(good, cache, state, {-1, 3, 1}, rotary));
  EXPECT_EQ(cudaErrorInvalidValue, call(good, cache, state, budget, {nullptr, 16}));
  EXPECT_EQ(cudaErrorInvalidValue, call(good, cache, state, budget, {inv_freq, 7}));
  c = cache;
  c.capacity = 1 << 20;  // more scores than a block's shared memory holds
  EXPECT_EQ(cudaErrorInvalidValue, call(good, c, state, {0, (1 << 20) - 1, 0}, rotary));
  EXPECT_EQ(cudaErrorInvalidValue,
            call(good, cache, state, budget, rotary, 64));  // short workspace
  st = state;
  st.layers = 2;
  EXPECT_EQ(cudaErrorInvalidValue, call(good, cache, st, budget, rotary));
  st = state;
  st.score = nullptr;
  st.capacity_of = integers;  // nothing is evicted, so nothing bounds
  EXPECT_EQ(cudaErrorInvalidValue, call(good, cache, st, budget, rotary));
  EXPECT_EQ(cudaErrorInvalidValue, call(good, cache, state, {0, 3, 1, 0}, rotary));
  EXPECT_EQ(cudaErrorInvalidValue, waterweight::h2o_advance(state, 0, 4, budget, nullptr));
}

}  // namespace
