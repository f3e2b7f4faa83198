// What a decode step must not depend on: how the prompt filled the cache, the order of the slots,
// and whether query heads share their keys.
#include <algorithm>
#include <numeric>

#include <waterweight/reference/h2o_oracle.hpp>

#include "tests/attention/decode_fixture.cuh"

namespace {

using test::Shape;
using waterweight::h2o_policy;
namespace reference = waterweight::reference;

class DecodeInvarianceTest : public test::DecodeFixture<__half> {
 protected:
  using Harness = test::CacheHarness<__half>;
  using vector = reference::h2o_oracle::vector;

  static vector widened(const __half* data, int count) {
    vector result;
    for (int i = 0; i < count; ++i) result.push_back(static_cast<float>(data[i]));
    return result;
  }

  static std::vector<int> kept(const Harness& caches, int head) {
    const auto first = caches.position.begin() + caches.first(0, 0, head);
    std::vector<int> positions(first, first + caches.capacity);
    positions.erase(std::remove(positions.begin(), positions.end(), -1), positions.end());
    std::sort(positions.begin(), positions.end());
    return positions;
  }

  /// A prompt's scores from the host, then select, compact and `steps` replays of one captured
  /// step; the same eagerly; the same with the oracle, until a near-tie parts them.
  void check_prompt(const h2o_policy& policy, int prompt, int steps, std::mt19937& generator) {
    SCOPED_TRACE(::testing::Message() << "prompt " << prompt << ", budget " << policy.budget());
    const Shape s{1, 2, 2, 32};
    Run run(s, prompt + steps, generator);
    test::Heads<__half> q(1, prompt, 2, 32), k(1, prompt, 2, 32), v(1, prompt, 2, 32);
    const auto prompt_of = [&](waterweight::heads_view<__half> view) {
      view.tokens = prompt;
      return view;
    };
    reference::apply_rotary<double>(prompt_of(run.q.view()), run.host_rotary(), 0, q.view());
    reference::apply_rotary<double>(prompt_of(run.k.view()), run.host_rotary(), 0, k.view());
    reference::apply_rotary<double>(prompt_of(run.v.view()), {}, 0, v.view());
    k.upload();
    v.upload();
    std::vector<double> mass(static_cast<std::size_t>(2) * prompt);
    std::vector<double> ignored(q.host.size());
    auto shape = q.view();
    reference::causal_attention<double>(
        q.view(), k.view(), v.view(), nullptr,
        waterweight::heads_view<double>{ignored.data(), 1, prompt, 2, 32, shape.batch_stride,
                                        shape.token_stride, shape.head_stride},
        static_cast<double*>(nullptr), mass.data());
    for (int h = 0; h < 2; ++h) {
      EXPECT_NEAR(prompt, std::accumulate(&mass[h * prompt], &mass[h * prompt] + prompt, 0.0),
                  1e-6);
    }
    test::DeviceBuffer<float> sums(std::vector<float>(mass.begin(), mass.end()));

    reference::h2o_oracle oracle(policy, 1, 2, 1, run.inv_freq);
    for (int h = 0; h < 2; ++h) {
      std::vector<std::vector<vector>> queries;
      std::vector<vector> keys, values;
      for (int t = 0; t < prompt; ++t) {
        queries.push_back({widened(reference::head_data(run.q.view(), 0, t, h), 32)});
        keys.push_back(widened(reference::head_data(run.k.view(), 0, t, h), 32));
        values.push_back(widened(reference::head_data(run.v.view(), 0, t, h), 32));
      }
      oracle.prefill(h, queries, keys, values);
    }
    oracle.end_prompt();

    Harness eager(1, 2, 2, policy.capacity(), 32, true);
    Harness captured(1, 2, 2, policy.capacity(), 32, true);
    for (auto* caches : {&eager, &captured}) {
      ASSERT_CUDA(waterweight::h2o_select_and_compact(k.device(), v.device(), sums.data(), nullptr,
                                                      caches->cache(), caches->state(), policy, {},
                                                      stream));
    }
    // The graph reads its token from one place.
    Run one(s, 1, generator);
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    ASSERT_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    const cudaError_t status = step(one, captured, policy, 0);
    ASSERT_CUDA(cudaStreamEndCapture(stream, &graph));
    ASSERT_CUDA(status);
    ASSERT_CUDA(cudaGraphInstantiate(&executable, graph, 0));
    bool together = true;
    for (int i = -1; i < steps; ++i) {
      if (i >= 0) {
        const int t = prompt + i;
        for (auto pair : {std::make_pair(&one.q, &run.q), std::make_pair(&one.k, &run.k),
                          std::make_pair(&one.v, &run.v)}) {
          for (int h = 0; h < 2; ++h) {
            std::copy_n(reference::head_data(pair.second->view(), 0, t, h), 32,
                        reference::head_data(pair.first->view(), 0, 0, h));
          }
          pair.first->upload();
        }
        ASSERT_CUDA(step(run, eager, policy, t));
        ASSERT_CUDA(cudaGraphLaunch(executable, stream));
        ASSERT_CUDA(cudaStreamSynchronize(stream));
        for (int h = 0; h < 2; ++h) {
          oracle.decode(h, {widened(reference::head_data(run.q.view(), 0, t, h), 32)},
                        widened(reference::head_data(run.k.view(), 0, t, h), 32),
                        widened(reference::head_data(run.v.view(), 0, t, h), 32));
        }
        oracle.end_token();
      }
      ASSERT_CUDA(cudaStreamSynchronize(stream));
      eager.download();
      captured.download();
      ASSERT_EQ(eager.position, captured.position) << "step " << i;
      ASSERT_TRUE(test::same_bits(eager.score, captured.score)) << "step " << i;
      ASSERT_TRUE(test::same_bits(eager.k, captured.k)) << "step " << i;
      ASSERT_EQ(prompt + i + 1, eager.step[0]);
      for (int h = 0; h < 2 && together; ++h) {
        if (kept(eager, h) == oracle.kept(h)) continue;
        EXPECT_LT(oracle.least_gap(), 5e-3) << "step " << i << " head " << h;
        together = false;
      }
    }
    ASSERT_CUDA(cudaGraphExecDestroy(executable));
    ASSERT_CUDA(cudaGraphDestroy(graph));
  }
};

TEST_F(DecodeInvarianceTest, PromptsAroundTheBudgetGrowIntoTheSteadyState) {
  std::mt19937 generator(91);
  const h2o_policy one{2, 10, 8}, four{2, 10, 8, 4};
  for (const int prompt : {1, 19, 20, 21, 22, 24, 25, 200}) {
    check_prompt(one, prompt, 30, generator);
    check_prompt(four, prompt, 30, generator);
  }
  check_prompt({4, 250, 250}, 2048, 6, generator);
}

TEST_F(DecodeInvarianceTest, TheOrderOfTheSlotsDoesNotMatter) {
  std::mt19937 generator(92);
  const Shape s{1, 2, 2, 64};
  const h2o_policy policy{1, 10, 6};
  const int tokens = 60, half = 30;
  Run run(s, tokens, generator);
  Harness plain(1, 2, 2, policy.capacity(), 64, true);
  Harness shuffled(1, 2, 2, policy.capacity(), 64, true);
  for (int t = 0; t < half; ++t) ASSERT_CUDA(step(run, plain, policy, t));
  ASSERT_CUDA(cudaStreamSynchronize(stream));
  plain.download();
  shuffled.download();
  std::vector<int> order(static_cast<std::size_t>(policy.capacity()));
  std::iota(order.begin(), order.end(), 0);
  for (int h = 0; h < 2; ++h) {
    std::shuffle(order.begin(), order.end(), generator);
    const std::size_t first = plain.first(0, 0, h);
    for (int slot = 0; slot < policy.capacity(); ++slot) {
      const std::size_t to = first + slot, from = first + order[slot];
      shuffled.position[to] = plain.position[from];
      shuffled.score[to] = plain.score[from];
      std::copy_n(&plain.k[from * 64], 64, &shuffled.k[to * 64]);
      std::copy_n(&plain.v[from * 64], 64, &shuffled.v[to * 64]);
      if (order[slot] == plain.free_slot[h]) shuffled.free_slot[h] = slot;
    }
  }
  shuffled.step = plain.step;
  shuffled.length = plain.length;
  shuffled.upload();
  for (int t = half; t < tokens; ++t) {
    ASSERT_CUDA(step(run, plain, policy, t));
    ASSERT_CUDA(cudaStreamSynchronize(stream));
    run.out.download();
    const auto want = run.out.host;
    ASSERT_CUDA(step(run, shuffled, policy, t));
    ASSERT_CUDA(cudaStreamSynchronize(stream));
    run.out.download();
    plain.download();
    shuffled.download();
    for (int h = 0; h < 2; ++h) {
      // Sums in another order differ in the last bits.
      ASSERT_EQ(kept(plain, h), kept(shuffled, h)) << "step " << t;
      const __half* got = reference::head_data(run.out.token(t), 0, 0, h);
      for (int d = 0; d < 64; ++d) {
        ASSERT_NEAR(static_cast<float>(want[got - run.out.host.data() + d]),
                    static_cast<float>(got[d]), 2e-3);
      }
    }
  }
}

TEST_F(DecodeInvarianceTest, SharedKeysAreTheSameKeysRepeated) {
  std::mt19937 generator(93);
  const int tokens = 40, group = 3, heads = 6;
  const h2o_policy policy{1, 40, 9};
  Run grouped({1, heads, 2, 64}, tokens, generator),
      repeated({1, heads, heads, 64}, tokens, generator);
  repeated.q.host = grouped.q.host;
  for (int t = 0; t < tokens; ++t) {
    for (int h = 0; h < heads; ++h) {
      std::copy_n(reference::head_data(grouped.k.view(), 0, t, h / group), 64,
                  reference::head_data(repeated.k.view(), 0, t, h));
      std::copy_n(reference::head_data(grouped.v.view(), 0, t, h / group), 64,
                  reference::head_data(repeated.v.view(), 0, t, h));
    }
  }
  repeated.q.upload();
  repeated.k.upload();
  repeated.v.upload();
  Harness a(1, heads, 2, policy.capacity(), 64, true);
  Harness b(1, heads, heads, policy.capacity(), 64, true);
  grouped.out.poison();
  repeated.out.poison();
  for (int t = 0; t < tokens; ++t) {
    ASSERT_CUDA(step(grouped, a, policy, t));
    ASSERT_CUDA(step(repeated, b, policy, t));
  }
  ASSERT_CUDA(cudaStreamSynchronize(stream));
  grouped.out.download();
  repeated.out.download();
  EXPECT_TRUE(test::same_bits(grouped.out.host, repeated.out.host));
  a.download();
  b.download();
  for (int h = 0; h < 2; ++h) {
    for (int slot = 0; slot < tokens; ++slot) {
      float sum = 0.0f;
      for (int g = 0; g < group; ++g) sum += b.score[b.first(0, 0, h * group + g) + slot];
      EXPECT_NEAR(sum, a.score[a.first(0, 0, h) + slot], 1e-4);
    }
  }
}

/// Slots that no token has taken yet divide no head: a larger cache gives the same bits, as long as
/// what a split holds is the same.
TEST_F(DecodeInvarianceTest, EmptySlotsChangeNothing) {
  std::mt19937 generator(96);
  const int tokens = 300;
  for (const Shape s : {Shape{1, 2, 2, 80}, Shape{2, 6, 2, 64}}) {
    Run run(s, tokens, generator);
    const auto decode = [&](int capacity) {
      Harness caches(s.batch, s.heads, s.kv_heads, capacity, s.head_dim, false);
      run.out.poison();
      for (int t = 0; t < tokens; ++t) EXPECT_EQ(cudaSuccess, step(run, caches, {}, t));
      EXPECT_EQ(cudaSuccess, cudaStreamSynchronize(stream));
      run.out.download();
      return run.out.host;
    };
    const auto small = decode(9 * 128);
    EXPECT_TRUE(test::same_bits(small, decode(16 * 128)));
    EXPECT_TRUE(test::same_bits(small, decode(12 * 128)));
  }
}

/// Enough heads to fill the card several times over, where another kernel runs than for one
/// sequence alone, from the first token until each step evicts.
class ManySequencesTest : public DecodeInvarianceTest {
 protected:
  void expect_each_alone(const Shape& s, const h2o_policy& policy, std::vector<int> sequences);
};

void ManySequencesTest::expect_each_alone(const Shape& s, const h2o_policy& policy,
                                          std::vector<int> sequences) {
  std::mt19937 generator(95);
  const int tokens = policy.capacity() + 15;
  Run run(s, tokens, generator);
  Harness together(s.batch, s.heads, s.kv_heads, policy.capacity(), s.head_dim, true);
  run.out.poison();
  for (int t = 0; t < tokens; ++t) ASSERT_CUDA(step(run, together, policy, t));
  ASSERT_CUDA(cudaStreamSynchronize(stream));
  run.out.download();
  together.download();
  const std::vector<__half> all = run.out.host;
  for (const int b : sequences) {
    const auto only = [&](waterweight::heads_view<__half> view) {
      view.data += b * view.batch_stride;
      view.batch = 1;
      return view;
    };
    Harness alone(1, s.heads, s.kv_heads, policy.capacity(), s.head_dim, true);
    run.out.poison();
    for (int t = 0; t < tokens; ++t) {
      ASSERT_CUDA(waterweight::h2o_decode_attention(
          device, only(run.q.device_token(t)), only(run.k.device_token(t)),
          only(run.v.device_token(t)), run.rotary(), alone.cache(), alone.state(), policy,
          only(run.out.device_token(t)), alone.workspace(), stream));
      ASSERT_CUDA(waterweight::h2o_advance(alone.state(), 1, policy.capacity(), policy, stream));
    }
    ASSERT_CUDA(cudaStreamSynchronize(stream));
    run.out.download();
    alone.download();
    for (int t = 0; t < tokens; ++t) {
      for (int h = 0; h < s.heads; ++h) {
        const __half* got = reference::head_data(run.out.token(t), b, 0, h);
        ASSERT_EQ(0, std::memcmp(&all[got - run.out.host.data()], got, s.head_dim * sizeof(__half)))
            << "sequence " << b << " step " << t << " head " << h;
      }
    }
    const auto first = together.score.begin() + together.first(0, b, 0);
    EXPECT_TRUE(test::same_bits(alone.score, {first, first + alone.score.size()}));
    const auto position = together.position.begin() + together.first(0, b, 0);
    EXPECT_TRUE(std::equal(alone.position.begin(), alone.position.end(), position));
  }
}

TEST_F(ManySequencesTest, GroupedQueries) {
  expect_each_alone({7, 32, 16, 80}, {4, 150, 140}, {0, 6});
}

/// One query head to each KV head: heads stream through the blocks, a different number of them
/// through each; caches of less than one place of the ring up to all of it, and widths whose rows
/// are copied one by one.
TEST_F(ManySequencesTest, HeadsThatStreamThroughBlocks) {
  device.beside_others = true;
  expect_each_alone({9, 37, 37, 80}, {4, 150, 140}, {0, 8});
  expect_each_alone({65, 16, 16, 64}, {0, 20, 20}, {3, 64});
  expect_each_alone({30, 32, 32, 80}, {4, 30, 80}, {29});
  expect_each_alone({70, 4, 4, 128}, {2, 30, 70}, {0, 69});
  expect_each_alone({9, 32, 32, 80}, {4, 252, 252}, {7});
}

/// The same with a few blocks, which have several heads each, and many, and short caches.
TEST_F(ManySequencesTest, HeadsThatStreamThroughAFewBlocks) {
  device.beside_others = true;
  device.sm_count = 4;
  expect_each_alone({7, 3, 3, 80}, {2, 5, 6}, {0, 6});
  expect_each_alone({10, 7, 7, 80}, {2, 5, 6}, {9});
}

TEST_F(ManySequencesTest, LongCachesOfManyHeadsStreamThroughFewBlocks) {
  device.beside_others = true;
  device.sm_count = 4;
  expect_each_alone({9, 5, 5, 80}, {4, 150, 140}, {0, 8});
  expect_each_alone({8, 5, 5, 64}, {4, 252, 252}, {7});
}

/// Layers in turn, captured and eager, with and without promises to the kernel: the same bits. More
/// heads than the card has SMs, so that blocks of several steps wait for each other, and few.
TEST_F(DecodeInvarianceTest, EarlyReadsChangeNothing) {
  std::mt19937 generator(94);
  constexpr int kLayers = 3;
  for (const Shape s : {Shape{1, 4, 4, 80}, Shape{9, 32, 32, 64}}) {
    const int tokens = s.batch == 1 ? 330 : 150;
    const h2o_policy policy{4, tokens / 2, tokens / 4};
    Run run(s, tokens * kLayers, generator);
    const auto decode = [&](waterweight::early_read early, bool captured) {
      Harness model(s.batch, s.heads, s.kv_heads, policy.capacity(), s.head_dim, true, kLayers);
      run.out.poison();
      const auto enqueue = [&] {
        for (int t = 0; t < tokens; ++t) {
          for (int l = 0; l < kLayers; ++l) {
            const int i = t * kLayers + l;
            ASSERT_CUDA(waterweight::h2o_decode_attention(
                device, run.q.device_token(i), run.k.device_token(i), run.v.device_token(i),
                run.rotary(), model.cache(l), model.state().layer(l, model.capacity), policy,
                run.out.device_token(i), model.workspace(), stream, early));
          }
          ASSERT_CUDA(
              waterweight::h2o_advance(model.state(), s.batch, model.capacity, policy, stream));
        }
      };
      if (captured) {
        cudaGraph_t graph = nullptr;
        cudaGraphExec_t executable = nullptr;
        ASSERT_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
        enqueue();
        ASSERT_CUDA(cudaStreamEndCapture(stream, &graph));
        ASSERT_CUDA(cudaGraphInstantiate(&executable, graph, 0));
        ASSERT_CUDA(cudaGraphLaunch(executable, stream));
        ASSERT_CUDA(cudaStreamSynchronize(stream));
        ASSERT_CUDA(cudaGraphExecDestroy(executable));
        ASSERT_CUDA(cudaGraphDestroy(graph));
      } else {
        enqueue();
        ASSERT_CUDA(cudaStreamSynchronize(stream));
      }
      run.out.download();
    };
    decode(waterweight::early_read::nothing, false);
    const auto want = run.out.host;
    for (const bool captured : {false, true}) {
      decode(waterweight::early_read::cache, captured);
      EXPECT_TRUE(test::same_bits(want, run.out.host)) << "batch " << s.batch << " " << captured;
      decode(waterweight::early_read::nothing, captured);
      EXPECT_TRUE(test::same_bits(want, run.out.host)) << "batch " << s.batch << " " << captured;
    }
  }
}

}  // namespace
