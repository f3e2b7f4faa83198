// The engine's own kernels against the host: LayerNorm, scoring, sampling, random weights.
#include <cuda_fp16.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "examples/pythia/model/cuda_embedding.cuh"
#include "examples/pythia/model/cuda_last_rows.cuh"
#include "examples/pythia/model/cuda_layernorm.cuh"
#include "examples/pythia/model/cuda_nll.cuh"
#include "examples/pythia/model/cuda_sampling.cuh"
#include "examples/pythia/model/host_sampler.hpp"
#include "tests/support/device.cuh"

namespace {

using pythia::SamplingOptions;
using test::DeviceBuffer;

class PythiaKernels : public test::GpuTest {};

std::vector<float> oracle_layernorm(const std::vector<float>& x, std::size_t row, int hidden,
                                    float eps, const std::vector<float>& weight,
                                    const std::vector<float>& bias) {
  const auto size = static_cast<std::size_t>(hidden);
  double mean = 0;
  for (std::size_t i = 0; i < size; ++i) mean += x[row * size + i] / size;
  double variance = 0;
  for (std::size_t i = 0; i < size; ++i) variance += std::pow(x[row * size + i] - mean, 2) / size;
  std::vector<float> out;
  for (std::size_t i = 0; i < size; ++i) {
    out.push_back(static_cast<float>(
        (x[row * size + i] - mean) / std::sqrt(variance + eps) * weight[i] + bias[i]));
  }
  return out;
}

TEST_F(PythiaKernels, LayerNormOfAnyWidthThroughTwoWeights) {
  std::mt19937 random(1);
  for (const int hidden : {1, 7, 128, 160, 1001, 1025, 2560, 5120, 5121, 8192}) {
    const int rows = hidden == 160 ? 1204 : 4;  // more than there are blocks, or fewer
    const auto size = static_cast<std::size_t>(hidden);
    auto x = test::random_normal<float>(rows * size, 3.0f, random);
    for (float& value : x) value += 5.0f;
    const auto weight = test::random_normal<float>(size, 1.0f, random);
    const auto bias = test::random_normal<float>(size, 1.0f, random);
    const auto other = test::random_normal<float>(size, 1.0f, random);
    DeviceBuffer<float> dx(x), dw(weight), db(bias), dother(other);
    DeviceBuffer<__half> first(rows * size), second(rows * size);
    const float eps = 1e-5f;
    ASSERT_CUDA(pythia::layernorm<__half>(dx.data(), nullptr, rows, hidden, eps,
                                          {dw.data(), db.data(), first.data()},
                                          {dother.data(), db.data(), second.data()}, stream));
    ASSERT_CUDA(cudaStreamSynchronize(stream));
    const auto a = first.download(), b = second.download();
    for (int r = 0; r < rows; ++r) {
      const auto row = static_cast<std::size_t>(r);
      const auto expected_a = oracle_layernorm(x, row, hidden, eps, weight, bias);
      const auto expected_b = oracle_layernorm(x, row, hidden, eps, other, bias);
      for (std::size_t i = 0; i < size; ++i) {
        const auto tolerance = [](float value) { return 2e-3f + 1e-3f * std::fabs(value); };
        ASSERT_NEAR(__half2float(a[r * size + i]), expected_a[i], tolerance(expected_a[i]));
        ASSERT_NEAR(__half2float(b[r * size + i]), expected_b[i], tolerance(expected_b[i]));
      }
    }
  }
}

TEST_F(PythiaKernels, LayerNormOfASumKeepsTheSum) {
  std::mt19937 random(9);
  for (const int hidden : {7, 160, 2560}) {
    const int rows = hidden == 160 ? 803 : 3;
    const auto size = static_cast<std::size_t>(hidden);
    const auto x = test::random_normal<float>(rows * size, 3.0f, random);
    const auto addend = test::random_normal<float>(rows * size, 2.0f, random);
    const auto weight = test::random_normal<float>(size, 1.0f, random);
    const auto bias = test::random_normal<float>(size, 1.0f, random);
    std::vector<float> sum(x);
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += addend[i];
    DeviceBuffer<float> dx(x), da(addend), dsum(sum), dw(weight), db(bias);
    DeviceBuffer<__half> out(rows * size), expected(rows * size);
    const auto normalise = [&](float* from, const float* added, __half* to) {
      return pythia::layernorm<__half>(from, added, rows, hidden, 1e-5f, {dw.data(), db.data(), to},
                                       {}, stream);
    };
    ASSERT_CUDA(normalise(dx.data(), da.data(), out.data()));
    ASSERT_CUDA(normalise(dsum.data(), nullptr, expected.data()));
    ASSERT_CUDA(cudaStreamSynchronize(stream));
    EXPECT_EQ(dx.download(), sum);
    EXPECT_EQ(da.download(), addend);
    const auto a = out.download(), b = expected.download();
    for (std::size_t i = 0; i < a.size(); ++i) {
      ASSERT_EQ(__half2float(a[i]), __half2float(b[i])) << hidden << " " << i;
    }
  }
}

TEST_F(PythiaKernels, LayerNormRefusesRowsThatDoNotFitABlock) {
  EXPECT_EQ(pythia::layernorm<__half>(nullptr, nullptr, 1, 8193, 1e-5f, {}, {}, stream),
            cudaErrorInvalidValue);
}

TEST_F(PythiaKernels, EmbeddingCopiesRows) {
  std::mt19937 random(2);
  const int vocab = 50, hidden = 33;
  std::vector<__half> table;
  for (const float v : test::random_normal<float>(vocab * hidden, 1.0f, random)) {
    table.push_back(__float2half(v));
  }
  const std::vector<std::int32_t> tokens = {0, 49, 7, 7};
  DeviceBuffer<__half> dtable(table);
  DeviceBuffer<std::int32_t> dtokens(tokens);
  DeviceBuffer<float> out(tokens.size() * hidden);
  ASSERT_CUDA(pythia::embed(dtable.data(), dtokens.data(), 4, hidden, out.data(), stream));
  ASSERT_CUDA(cudaStreamSynchronize(stream));
  const auto found = out.download();
  for (std::size_t i = 0; i < found.size(); ++i) {
    const std::size_t row = static_cast<std::size_t>(tokens[i / hidden]);
    ASSERT_EQ(found[i], __half2float(table[row * hidden + i % hidden]));
  }
}

TEST_F(PythiaKernels, NllAndArgmaxMatchTheHost) {
  std::mt19937 random(3);
  for (const int vocab : {1, 31, 320, 2048, 50304}) {
    const int count = 6, first = 1, rows = 5;
    std::vector<float> logits =
        test::random_normal<float>(static_cast<std::size_t>(rows) * vocab, 6.0f, random);
    for (int i = 3; i < vocab; i += 5) logits[i] = logits[vocab - 1] = 40.0f;  // ties in row 0
    std::vector<std::int32_t> ids;
    for (int i = 0; i < count; ++i) ids.push_back(test::random_int(0, vocab - 1, random));
    DeviceBuffer<float> dlogits(logits), nll(count);
    DeviceBuffer<std::int32_t> dids(ids), dcount(std::vector<std::int32_t>{count}), argmax(count),
        next(1);
    const pythia::ScoredSequence sequence{dids.data(), dcount.data(), nll.data(), argmax.data()};
    ASSERT_CUDA(pythia::score_rows(dlogits.data(), rows, vocab, sequence, nullptr, first,
                                   next.data(), stream));
    ASSERT_CUDA(cudaStreamSynchronize(stream));
    const auto found_nll = nll.download();
    const auto found_argmax = argmax.download();
    EXPECT_TRUE(test::is_poison(found_nll[0])) << "a position before the first was written";
    EXPECT_TRUE(test::is_poison(found_nll[count - 1])) << "the last position has no target";
    for (int r = 0; r < rows; ++r) {
      const float* row = logits.data() + static_cast<std::size_t>(r) * vocab;
      const auto position = static_cast<std::size_t>(first + r);
      EXPECT_EQ(found_argmax[position], pythia::argmax(row, vocab));
      if (position + 1 == count) continue;
      const float expected = pythia::negative_log_likelihood(row, vocab, ids[position + 1]);
      EXPECT_NEAR(found_nll[position], expected, 1e-5f * (1.0f + std::fabs(expected)));
    }
    EXPECT_EQ(next.download()[0], ids[count - 1]);
  }
}

/// Samples every row at once and compares each with the host's choice.
void expect_same_choice(const std::vector<float>& logits, int vocab, SamplingOptions sampling,
                        cudaStream_t stream) {
  const int batch = static_cast<int>(logits.size()) / vocab;
  std::vector<std::int32_t> positions;
  for (int b = 0; b < batch; ++b) positions.push_back(100 * b + 3);
  SamplingOptions resolved = sampling;
  if (resolved.vocab_limit == 0) resolved.vocab_limit = vocab;
  DeviceBuffer<float> dlogits(logits);
  DeviceBuffer<std::int32_t> dpositions(positions), tokens(positions.size()),
      seen(positions.size());
  DeviceBuffer<SamplingOptions> doptions(std::vector<SamplingOptions>{resolved});
  ASSERT_CUDA(pythia::sample(dlogits.data(), batch, vocab, dpositions.data(), 1,
                             {doptions.data(), tokens.data(), seen.data()}, stream));
  ASSERT_CUDA(cudaStreamSynchronize(stream));
  const auto found = tokens.download();
  EXPECT_EQ(found, seen.download());
  for (int b = 0; b < batch; ++b) {
    const auto i = static_cast<std::size_t>(b);
    EXPECT_EQ(found[i],
              pythia::sample_token(logits.data() + i * vocab, vocab, sampling, b, positions[i] + 1))
        << "row " << b << ", temperature " << sampling.temperature << ", top_k " << sampling.top_k
        << ", top_p " << sampling.top_p << ", vocabulary " << vocab;
  }
}

TEST_F(PythiaKernels, SamplingChoosesWhatTheHostChooses) {
  std::mt19937 random(4);
  for (const int vocab : {1, 2, 97, 2048, 50304}) {
    const auto logits =
        test::random_normal<float>(static_cast<std::size_t>(16) * vocab, 4.0f, random);
    for (const float temperature : {0.0f, 0.3f, 1.0f, 3.0f}) {
      for (const int top_k : {0, 1, 5, 300}) {
        for (const float top_p : {1.0f, 0.9f, 0.3f, 1e-6f}) {
          SamplingOptions sampling;
          sampling.temperature = temperature;
          sampling.top_k = top_k;
          sampling.top_p = top_p;
          sampling.seed = 0x123456789abcdefULL;
          expect_same_choice(logits, vocab, sampling, stream);
        }
      }
    }
  }
}

TEST_F(PythiaKernels, SamplingWithTiesNansInfinitiesAndALimit) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  const int vocab = 600;
  std::vector<float> logits;
  for (int i = 0; i < 4 * vocab; ++i) {
    const int row = i / vocab, id = i % vocab;
    if (row == 0) logits.push_back(1.0f);  // all tied
    if (row == 1) logits.push_back(id % 3 == 0 ? nan : 0.01f * static_cast<float>(id % 7));
    if (row == 2) logits.push_back(id % 2 == 0 ? -inf : (id % 4 == 1 ? 0.0f : -0.0f));
    if (row == 3) logits.push_back(id > 500 ? 9.0f : -1.0f);  // the best lie above the limit
  }
  for (const float temperature : {0.0f, 0.7f}) {
    for (const int top_k : {0, 1, 10, 130}) {
      for (const float top_p : {1.0f, 0.5f}) {
        SamplingOptions sampling;
        sampling.temperature = temperature;
        sampling.top_k = top_k;
        sampling.top_p = top_p;
        sampling.vocab_limit = 500;
        expect_same_choice(logits, vocab, sampling, stream);
      }
    }
  }
}

TEST_F(PythiaKernels, RowsWithoutAFiniteLogitAreReportedAndStayInTheVocabulary) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const int vocab = 300;
  const std::vector<float> logits(vocab, nan);
  SamplingOptions sampling;
  sampling.temperature = 1.0f;
  sampling.vocab_limit = vocab;
  DeviceBuffer<float> dlogits(logits);
  DeviceBuffer<std::int32_t> positions(std::vector<std::int32_t>{0}), tokens(1), seen(1);
  DeviceBuffer<SamplingOptions> options(std::vector<SamplingOptions>{sampling});
  ASSERT_CUDA(pythia::sample(dlogits.data(), 1, vocab, positions.data(), 0,
                             {options.data(), tokens.data(), seen.data()}, stream));
  ASSERT_CUDA(cudaStreamSynchronize(stream));
  EXPECT_EQ(seen.download()[0], -1);
  EXPECT_GE(tokens.download()[0], 0);
  EXPECT_LT(tokens.download()[0], vocab);
}

TEST_F(PythiaKernels, LastRowsAreTakenOfEverythingBehindTheAttention) {
  std::mt19937 random(9);
  const int hidden = 515, rows = 7;
  const std::vector<std::int32_t> wanted = {6, 0, 3};
  const auto stream_in = test::random_normal<float>(rows * hidden, 1.0f, random);
  std::vector<__half> out_in, mlp_in;
  for (auto* half : {&out_in, &mlp_in}) {
    for (const float v : test::random_normal<float>(rows * hidden, 1.0f, random)) {
      half->push_back(__float2half(v));
    }
  }
  DeviceBuffer<float> residual(stream_in), last_residual(wanted.size() * hidden);
  DeviceBuffer<__half> out(out_in), mlp(mlp_in), last_out(wanted.size() * hidden),
      last_mlp(wanted.size() * hidden);
  DeviceBuffer<std::int32_t> index(wanted);
  pythia::Activations<__half> from, to;
  from.residual = residual.data();
  from.attention_out = out.data();
  from.mlp_in = mlp.data();
  to.residual = last_residual.data();
  to.attention_out = last_out.data();
  to.mlp_in = last_mlp.data();
  ASSERT_CUDA(pythia::take_rows(from, to, index.data(), 3, hidden, stream));
  ASSERT_CUDA(cudaStreamSynchronize(stream));
  const auto taken = [&](const auto& source) {
    auto result = source;
    result.clear();
    for (const std::int32_t row : wanted) {
      result.insert(result.end(), source.begin() + row * hidden,
                    source.begin() + (row + 1) * hidden);
    }
    return result;
  };
  EXPECT_TRUE(test::same_bits(taken(stream_in), last_residual.download()));
  EXPECT_TRUE(test::same_bits(taken(out_in), last_out.download()));
  EXPECT_TRUE(test::same_bits(taken(mlp_in), last_mlp.download()));
}

}  // namespace
