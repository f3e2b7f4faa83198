// The H2O decode step against the slot reference in fp64, step by step, and what H2O promises. Each
// element type has its own source file.
#pragma once

#include <algorithm>
#include <set>

#include "tests/attention/decode_fixture.cuh"

namespace {

using test::Shape;
using waterweight::h2o_policy;
namespace reference = waterweight::reference;

template <class T>
class DecodeTest : public test::DecodeFixture<T> {
 protected:
  using typename test::DecodeFixture<T>::Run;

  /// Every step starts from the device's own state on both sides, so differences cannot pile up and
  /// each eviction is judged by the scores it was made from.
  void check_steps(const Shape& s, const h2o_policy& budget, bool scored, int capacity, int steps,
                   std::mt19937& generator) {
    SCOPED_TRACE(::testing::Message()
                 << "batch " << s.batch << " heads " << s.heads << "/" << s.kv_heads << " dim "
                 << s.head_dim << " budget " << budget.sinks << "+" << budget.heavy << "+"
                 << budget.recent << (scored ? "" : " (full attention)"));
    Run run(s, steps, generator);
    test::CacheHarness<T> layer(s.batch, s.heads, s.kv_heads, capacity, s.head_dim, scored);
    run.out.poison();
    const double ulp = std::is_same_v<T, __half> ? 1.0 / 1024 : 1.0 / 128;
    for (int t = 0; t < steps; ++t) {
      layer.download();
      auto expected_cache = layer.host_cache();
      auto expected_state = layer.host_state();
      std::vector<double> out(run.out.host.size());
      auto view = run.out.token(t);
      waterweight::heads_view<double> expected{
          out.data(),        s.batch,         1, s.heads, s.head_dim, view.batch_stride,
          view.token_stride, view.head_stride};
      reference::h2o_decode_attention<double>(run.q.token(t), run.k.token(t), run.v.token(t),
                                              run.host_rotary(), budget, expected_cache,
                                              expected_state, expected);
      reference::h2o_advance(expected_state, s.batch, capacity, budget);
      const auto want_score = layer.score;
      const auto want_position = layer.position, want_free = layer.free_slot;
      const auto want_step = layer.step, want_length = layer.length;

      ASSERT_CUDA(this->step(run, layer, budget, t));
      ASSERT_CUDA(cudaStreamSynchronize(this->stream));
      layer.download();
      run.out.download();
      EXPECT_EQ(want_step, layer.step);
      EXPECT_EQ(want_length, layer.length);
      for (int b = 0; b < s.batch; ++b) {
        for (int h = 0; h < s.heads; ++h) {
          const T* got = reference::head_data(run.out.token(t), b, 0, h);
          const double* want = reference::head_data(expected, b, 0, h);
          for (int d = 0; d < s.head_dim; ++d) {
            ASSERT_NEAR(want[d], static_cast<float>(got[d]), 2 * ulp * (std::abs(want[d]) + 0.3))
                << "step " << t << " head " << h << " element " << d;
          }
        }
      }
      if (!scored) continue;
      for (std::size_t head = 0; head < want_free.size(); ++head) {
        const std::size_t first = head * capacity;
        if (want_free[head] != layer.free_slot[head]) {
          // A near-tie: by the reference's scores the two victims are within rounding. Each side
          // still knows the score of the slot the other one freed.
          EXPECT_NEAR(layer.score[first + want_free[head]],
                      want_score[first + layer.free_slot[head]], ulp)
              << "step " << t << " head " << head << ": freed slot " << layer.free_slot[head]
              << ", reference " << want_free[head];
          continue;
        }
        for (int slot = 0; slot < capacity; ++slot) {
          ASSERT_EQ(want_position[first + slot], layer.position[first + slot]) << "step " << t;
          if (want_position[first + slot] < 0) continue;
          // A key whose rotation rounds the other way by one unit moves its logit, and so its mass.
          ASSERT_NEAR(want_score[first + slot], layer.score[first + slot],
                      0.5 * ulp * (0.05 + want_score[first + slot]))
              << "step " << t << " slot " << slot;
        }
      }
    }
    EXPECT_TRUE(layer.workspace_is_zero());
  }
};

TYPED_TEST_SUITE_P(DecodeTest);

TYPED_TEST_P(DecodeTest, MatchesTheReferenceForEveryHeadDim) {
  std::mt19937 generator(31);
  for (int head_dim : {32, 64, 80, 96, 128, 256}) {
    const h2o_policy budget{0, 7, 6};
    this->check_steps({1, 2, 2, head_dim}, budget, true, budget.capacity(), 40, generator);
  }
}

TYPED_TEST_P(DecodeTest, SinksBatchAndGroupedQueries) {
  std::mt19937 generator(32);
  const h2o_policy budget{3, 9, 5};
  this->check_steps({3, 4, 2, 64}, budget, true, budget.capacity(), 40, generator);
  this->check_steps({1, 8, 1, 80}, budget, true, budget.capacity(), 30, generator);
  this->check_steps({1, 12, 1, 64}, budget, true, budget.capacity(), 25, generator);
}

TYPED_TEST_P(DecodeTest, ExtremeBudgets) {
  std::mt19937 generator(33);
  for (const h2o_policy& budget :
       {h2o_policy{0, 8, 0}, h2o_policy{0, 0, 8}, h2o_policy{2, 0, 5}, h2o_policy{0, 1, 1},
        h2o_policy{0, 1, 0}, h2o_policy{0, 0, 0}, h2o_policy{1, 0, 0}}) {
    this->check_steps({1, 2, 2, 32}, budget, true, budget.capacity(), 25, generator);
  }
}

TYPED_TEST_P(DecodeTest, FullAttention) {
  std::mt19937 generator(34);
  this->check_steps({2, 2, 1, 80}, {}, false, 151, 150, generator);
}

TYPED_TEST_P(DecodeTest, ManySlotsPerHead) {
  std::mt19937 generator(39);
  // Several rounds per split, then all splits in use: head_dim 256 holds 32 slots at a time.
  this->check_steps({1, 2, 1, 256}, {}, false, 400, 300, generator);
  const h2o_policy budget{4, 200, 108};
  this->check_steps({1, 2, 2, 80}, budget, true, budget.capacity(), 330, generator);
}

TYPED_TEST_P(DecodeTest, ABudgetAboveTheLengthIsFullAttentionBitForBit) {
  std::mt19937 generator(35);
  using T = TypeParam;
  const Shape s{1, 3, 3, 80};
  const h2o_policy budget{2, 60, 37};
  typename TestFixture::Run run(s, 90, generator);
  test::CacheHarness<T> scored(1, 3, 3, budget.capacity(), 80, true);
  test::CacheHarness<T> plain(1, 3, 3, budget.capacity(), 80, false);
  std::vector<T> outputs[2];
  for (auto* layer : {&scored, &plain}) {
    run.out.poison();
    for (int t = 0; t < 90; ++t) ASSERT_CUDA(this->step(run, *layer, budget, t));
    ASSERT_CUDA(cudaStreamSynchronize(this->stream));
    run.out.download();
    outputs[layer == &plain] = run.out.host;
  }
  EXPECT_TRUE(test::same_bits(outputs[0], outputs[1]));
}

TYPED_TEST_P(DecodeTest, RaggedBatchEqualsEachSequenceAloneBitForBit) {
  std::mt19937 generator(40);
  using T = TypeParam;
  const h2o_policy budget{1, 9, 8};
  const int steps = 45;
  typename TestFixture::Run run({3, 4, 2, 80}, steps, generator);
  test::CacheHarness<T> together(3, 4, 2, budget.capacity(), 80, true);
  // Sequences start at different absolute positions, so they fill and evict at different steps.
  const std::vector<std::int32_t> first{0, 7, 1000};
  together.d_step.upload(first);
  for (int t = 0; t < steps; ++t) ASSERT_CUDA(this->step(run, together, budget, t));
  ASSERT_CUDA(cudaStreamSynchronize(this->stream));
  run.out.download();
  together.download();
  const std::vector<T> all = run.out.host;
  for (int b = 0; b < 3; ++b) {
    test::CacheHarness<T> alone(1, 4, 2, budget.capacity(), 80, true);
    alone.d_step.upload({first[static_cast<std::size_t>(b)]});
    const auto only = [&](waterweight::heads_view<T> view) {
      view.data += b * view.batch_stride;
      view.batch = 1;
      return view;
    };
    run.out.poison();
    for (int t = 0; t < steps; ++t) {
      ASSERT_CUDA(waterweight::h2o_decode_attention(
          this->device, only(run.q.device_token(t)), only(run.k.device_token(t)),
          only(run.v.device_token(t)), run.rotary(), alone.cache(), alone.state(), budget,
          only(run.out.device_token(t)), alone.workspace(), this->stream));
      ASSERT_CUDA(
          waterweight::h2o_advance(alone.state(), 1, budget.capacity(), budget, this->stream));
    }
    ASSERT_CUDA(cudaStreamSynchronize(this->stream));
    run.out.download();
    alone.download();
    const std::size_t begin = b * run.out.view().batch_stride;
    EXPECT_EQ(0, std::memcmp(all.data() + begin, run.out.host.data() + begin,
                             (45 * run.out.view().token_stride - 16) * sizeof(T)));
    EXPECT_TRUE(std::equal(alone.position.begin(), alone.position.end(),
                           together.position.begin() + b * alone.position.size()));
  }
}

TYPED_TEST_P(DecodeTest, EachStepAddsAMassOfOneAndEvictsOneKey) {
  std::mt19937 generator(36);
  using T = TypeParam;
  const Shape s{2, 4, 2, 64};
  const h2o_policy budget{2, 10, 8};
  typename TestFixture::Run run(s, 60, generator);
  test::CacheHarness<T> layer(2, 4, 2, budget.capacity(), 64, true);
  double dropped[4] = {};
  for (int t = 0; t < 60; ++t) {
    ASSERT_CUDA(waterweight::h2o_decode_attention(
        this->device, run.q.device_token(t), run.k.device_token(t), run.v.device_token(t),
        run.rotary(), layer.cache(), layer.state(), budget, run.out.device_token(t),
        layer.workspace(), this->stream));
    ASSERT_CUDA(cudaStreamSynchronize(this->stream));
    layer.download();
    for (int head = 0; head < 4; ++head) {
      std::set<int> kept;
      double mass = 0;
      for (int slot = 0; slot < budget.capacity(); ++slot) {
        const std::size_t i = static_cast<std::size_t>(head) * budget.capacity() + slot;
        if (layer.position[i] < 0) continue;
        EXPECT_TRUE(kept.insert(layer.position[i]).second) << "position held twice";
        mass += layer.score[i];
      }
      // Two query heads per KV head hand out 1 each at every step; an evicted key takes its own.
      const double total = 2.0 * (t + 1);
      if (t + 1 < budget.capacity()) {
        EXPECT_NEAR(total, mass, 1e-3);
        EXPECT_EQ(static_cast<std::size_t>(t) + 1, kept.size());
        dropped[head] = 0;
      } else {
        EXPECT_EQ(static_cast<std::size_t>(budget.capacity()) - 1, kept.size());
        EXPECT_GE(total - mass - dropped[head], -1e-3) << "an eviction cannot create mass";
        dropped[head] = total - mass;
      }
      for (int position = std::max(0, t - budget.recent + 1); position <= t; ++position) {
        EXPECT_TRUE(kept.count(position)) << "recent position " << position << " left";
      }
      for (int position = 0; position < std::min(budget.sinks, t + 1); ++position) {
        EXPECT_TRUE(kept.count(position)) << "sink " << position << " left";
      }
    }
    ASSERT_CUDA(
        waterweight::h2o_advance(layer.state(), 2, budget.capacity(), budget, this->stream));
  }
}

TYPED_TEST_P(DecodeTest, OneCapturedGraphServesGrowthAndSteadyStateBitForBit) {
  std::mt19937 generator(37);
  using T = TypeParam;
  const Shape s{1, 2, 2, 80};
  const h2o_policy budget{0, 12, 12};
  typename TestFixture::Run run(s, 1, generator);  // the same token again and again
  test::CacheHarness<T> eager(1, 2, 2, budget.capacity(), 80, true);
  test::CacheHarness<T> captured(1, 2, 2, budget.capacity(), 80, true);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  ASSERT_CUDA(cudaStreamBeginCapture(this->stream, cudaStreamCaptureModeThreadLocal));
  const cudaError_t status = this->step(run, captured, budget, 0);
  ASSERT_CUDA(cudaStreamEndCapture(this->stream, &graph));
  ASSERT_CUDA(status);
  ASSERT_CUDA(cudaGraphInstantiate(&executable, graph, 0));
  for (int t = 0; t < 50; ++t) {
    ASSERT_CUDA(this->step(run, eager, budget, 0));
    ASSERT_CUDA(cudaStreamSynchronize(this->stream));
    run.out.download();
    const auto eager_out = run.out.host;
    ASSERT_CUDA(cudaGraphLaunch(executable, this->stream));
    ASSERT_CUDA(cudaStreamSynchronize(this->stream));
    run.out.download();
    EXPECT_TRUE(test::same_bits(eager_out, run.out.host)) << "step " << t;
    eager.download();
    captured.download();
    EXPECT_EQ(eager.position, captured.position);
    EXPECT_TRUE(test::same_bits(eager.score, captured.score));
  }
  ASSERT_CUDA(cudaGraphExecDestroy(executable));
  ASSERT_CUDA(cudaGraphDestroy(graph));
}

TYPED_TEST_P(DecodeTest, ANaNStaysInItsHeadAndEvictsNobodyProtected) {
  std::mt19937 generator(38);
  using T = TypeParam;
  const Shape s{1, 2, 2, 64};
  const h2o_policy budget{1, 6, 5};
  typename TestFixture::Run run(s, 40, generator);
  test::CacheHarness<T> clean(1, 2, 2, budget.capacity(), 64, true);
  for (int t = 0; t < 40; ++t) ASSERT_CUDA(this->step(run, clean, budget, t));
  ASSERT_CUDA(cudaStreamSynchronize(this->stream));
  run.out.download();
  const std::vector<T> clean_out = run.out.host;

  reference::head_data(run.q.view(), 0, 8, 1)[3] = static_cast<T>(NAN);
  reference::head_data(run.k.view(), 0, 20, 1)[0] = static_cast<T>(INFINITY);
  run.q.upload();
  run.k.upload();
  test::CacheHarness<T> dirty(1, 2, 2, budget.capacity(), 64, true);
  for (int t = 0; t < 40; ++t) {
    ASSERT_CUDA(this->step(run, dirty, budget, t));
    ASSERT_CUDA(cudaStreamSynchronize(this->stream));
    dirty.download();
    const auto first = dirty.position.begin() + budget.capacity();
    const std::set<int> kept(first, first + budget.capacity());
    for (int position = std::max(0, t - budget.recent + 1); position <= t; ++position) {
      EXPECT_TRUE(kept.count(position)) << "step " << t << ": recent position left";
    }
    EXPECT_TRUE(kept.count(0)) << "step " << t << ": the sink left";
  }
  run.out.download();
  clean.download();
  // Head 0 never saw the NaN.
  for (int t = 0; t < 40; ++t) {
    const T* dirty_head = reference::head_data(run.out.view(), 0, t, 0);
    const T* clean_head = clean_out.data() + (dirty_head - run.out.host.data());
    EXPECT_EQ(0, std::memcmp(clean_head, dirty_head, 64 * sizeof(T))) << "step " << t;
  }
  EXPECT_TRUE(std::equal(clean.position.begin(), clean.position.begin() + budget.capacity(),
                         dirty.position.begin()));
}

REGISTER_TYPED_TEST_SUITE_P(DecodeTest, MatchesTheReferenceForEveryHeadDim,
                            SinksBatchAndGroupedQueries, ExtremeBudgets, FullAttention,
                            ManySlotsPerHead, ABudgetAboveTheLengthIsFullAttentionBitForBit,
                            RaggedBatchEqualsEachSequenceAloneBitForBit,
                            EachStepAddsAMassOfOneAndEvictsOneKey,
                            OneCapturedGraphServesGrowthAndSteadyStateBitForBit,
                            ANaNStaysInItsHeadAndEvictsNobodyProtected);

}  // namespace
