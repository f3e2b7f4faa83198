// The fast host attention against the library's reference in double.
#include <gtest/gtest.h>
#include <waterweight/reference/attention.hpp>

#include <cstdint>
#include <random>
#include <vector>

#include "examples/pythia/model/host_attention.hpp"

namespace {

using waterweight::heads_view;

constexpr float kPoison = -777.0f;

/// q, k, v in one fused buffer [tokens, heads, 3, head_dim].
struct Problem {
  Problem(int tokens, int heads, int dim)
      : tokens(tokens),
        heads(heads),
        dim(dim),
        qkv(static_cast<std::size_t>(tokens) * heads * 3 * dim) {
    std::mt19937 random(static_cast<unsigned>(tokens * 100 + dim));
    std::normal_distribution<float> normal(0, 1.5f);
    for (float& value : qkv) value = normal(random);
  }
  heads_view<const float> part(int index) const {
    return {qkv.data() + index * dim,      1,      tokens, heads, dim, 0,
            std::int64_t{3} * heads * dim, 3 * dim};
  }
  template <class T>
  heads_view<T> output(std::vector<T>& data) const {
    return {data.data(), 1, tokens, heads, dim, 0, std::int64_t{heads} * dim, dim};
  }
  std::vector<float> run(int threads, std::vector<float>& column_sums) const {
    std::vector<float> out(static_cast<std::size_t>(tokens) * heads * dim, kPoison);
    column_sums.assign(static_cast<std::size_t>(heads) * tokens, kPoison);
    pythia::ThreadPool pool(threads);
    pythia::host_attention(pool, part(0), part(1), part(2), output(out), column_sums.data());
    return out;
  }
  int tokens, heads, dim;
  std::vector<float> qkv;
};

TEST(HostAttention, MatchesTheReference) {
  for (const int dim : {8, 32, 64, 80, 128, 256}) {
    for (const int tokens : {1, 2, 31, 32, 33, 100}) {
      SCOPED_TRACE(testing::Message() << "head_dim " << dim << ", tokens " << tokens);
      const Problem problem(tokens, 3, dim);
      std::vector<float> sums;
      const std::vector<float> out = problem.run(2, sums);
      std::vector<double> expected(out.size()), expected_sums(sums.size());
      waterweight::reference::causal_attention<double>(
          problem.part(0), problem.part(1), problem.part(2), nullptr, problem.output(expected),
          static_cast<double*>(nullptr), expected_sums.data());
      for (std::size_t i = 0; i < out.size(); ++i) ASSERT_NEAR(out[i], expected[i], 2e-5);
      for (std::size_t i = 0; i < sums.size(); ++i) ASSERT_NEAR(sums[i], expected_sums[i], 1e-4);
    }
  }
}

TEST(HostAttention, DoesNotDependOnTheThreadsOrOnWhetherMassIsAskedFor) {
  const Problem problem(150, 5, 64);
  std::vector<float> sums_one, sums_many;
  const std::vector<float> one = problem.run(1, sums_one);
  EXPECT_EQ(problem.run(4, sums_many), one);
  EXPECT_EQ(sums_one, sums_many);
  std::vector<float> out(one.size());
  pythia::ThreadPool pool(2);
  pythia::host_attention(pool, problem.part(0), problem.part(1), problem.part(2),
                         problem.output(out), nullptr);
  EXPECT_EQ(out, one);
}

}  // namespace
