// Weights in device memory against what the host reads: random, converted, quantized.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>
#include <waterweight/reference/float16.hpp>

#include "examples/pythia/cli/int8_checkpoint.hpp"
#include "examples/pythia/model/cuda_graph.hpp"
#include "examples/pythia/model/cuda_quantizer.hpp"
#include "examples/pythia/model/cuda_weights.hpp"
#include "tests/pythia/model/cuda_fixture.cuh"
#include "tests/support/device.cuh"
#include "tests/support/expect_error.hpp"
#include "tests/support/temp_dir.hpp"

namespace {

using cuda_test::CudaEngineTest;
using pythia::ModelSource;
using pythia::WeightId;
using pythia::WeightSpec;
using pythia::WeightType;

class CudaWeightsTest : public CudaEngineTest {};

template <class T>
struct Loaded {
  Loaded(const ModelSource& source, const pythia::Config& config, WeightType type)
      : data(pythia::open_weights(source, config, type)) {
    pythia::plan_weights(config, type, &arena, &weights);
    arena.allocate(pythia::weight_staging_bytes(), &meter);
    pythia::load_weights(source, *data, config, &meter, stream.get(), &weights);
  }

  pythia::MemoryMeter meter;
  pythia::CudaStream stream;
  pythia::DeviceArena arena;
  pythia::CudaWeights<T> weights;
  std::unique_ptr<pythia::WeightSource> data;
};

template <class T>
std::vector<T> download(const T* source, std::int64_t count) {
  std::vector<T> host(static_cast<std::size_t>(count));
  EXPECT_CUDA(cudaMemcpy(host.data(), source, host.size() * sizeof(T), cudaMemcpyDeviceToHost));
  return host;
}

WeightSpec find(const pythia::Config& config, WeightId id, int layer) {
  for (const WeightSpec& spec : pythia::list_weights(config)) {
    if (spec.id == id && spec.layer == layer) return spec;
  }
  ADD_FAILURE() << "no such weight";
  return {};
}

std::vector<float> host_values(const pythia::WeightSource& data, const WeightSpec& spec) {
  std::vector<float> values(static_cast<std::size_t>(spec.elements()));
  data.read_float(spec, 0, spec.elements(), values.data());
  return values;
}

std::vector<float> widen(const std::vector<__half>& values) {
  std::vector<float> result;
  for (const __half value : values) result.push_back(__half2float(value));
  return result;
}

TEST_F(CudaWeightsTest, RandomWeightsAreThoseOfTheHost) {
  const pythia::Config config = pythia::named_config("14m");
  const Loaded<__half> loaded({{}, "14m"}, config, WeightType::fp16);
  const WeightSpec table = find(config, WeightId::embed_in, -1);
  EXPECT_EQ(host_values(*loaded.data, table),
            widen(download(loaded.weights.embedding, table.elements())));
  const WeightSpec up = find(config, WeightId::up_weight, 5);
  const auto& layer = loaded.weights.layers[5];
  EXPECT_EQ(host_values(*loaded.data, up), widen(download(layer.up.weight, up.elements())));
  const WeightSpec norm = find(config, WeightId::input_norm_weight, 5);
  EXPECT_EQ(host_values(*loaded.data, norm),
            download(layer.attention_norm.weight, norm.elements()));
}

TEST_F(CudaWeightsTest, QuantizesAsTheHostDoes) {
  const ModelSource source{test_support::data_path("hd80"), ""};
  const pythia::Config config = pythia::source_config(source);
  const Loaded<__half> loaded(source, config, WeightType::int8);
  const WeightSpec down = find(config, WeightId::down_weight, 1);
  const std::vector<float> values = host_values(*loaded.data, down);
  std::vector<std::int8_t> q(values.size()), device_q(values.size());
  std::vector<float> scale(static_cast<std::size_t>(down.rows())), device_scale(scale.size());
  EXPECT_EQ(-1, pythia::reference_row_quantizer()(values.data(), down.rows(), down.cols(), q.data(),
                                                  scale.data()));
  const auto& linear = loaded.weights.layers[1].down;
  EXPECT_EQ(q, download(linear.quantized, down.elements()));
  EXPECT_EQ(scale, download(linear.scale, down.rows()));

  pythia::CudaQuantizer quantizer;
  EXPECT_EQ(-1, quantizer.quantize(values.data(), down.rows(), down.cols(), device_q.data(),
                                   device_scale.data()));
  EXPECT_EQ(q, device_q);
  EXPECT_EQ(scale, device_scale);
}

TEST_F(CudaWeightsTest, QuantizerNamesTheFirstRowThatIsNotFinite) {
  std::vector<float> values(5 * 7, 1.0f);
  values[3 * 7 + 2] = std::numeric_limits<float>::infinity();
  values[4 * 7] = std::numeric_limits<float>::quiet_NaN();
  std::vector<std::int8_t> q(values.size());
  std::vector<float> scale(5);
  pythia::CudaQuantizer quantizer;
  EXPECT_EQ(3, quantizer.quantize(values.data(), 5, 7, q.data(), scale.data()));
  EXPECT_EQ(-1, quantizer.quantize(values.data(), 3, 7, q.data(), scale.data()));
}

TEST_F(CudaWeightsTest, AnInt8CheckpointEqualsQuantizingAtLoad) {
  const ModelSource source{host_test::tiny_neox(), ""};
  const pythia::Config config = pythia::source_config(source);
  const auto data = pythia::open_weights(source, config, WeightType::int8);
  const test_support::TempDir dir;
  pythia::write_int8_checkpoint(*data, pythia::list_weights(config), pythia::ActivationType::fp16,
                                pythia::reference_row_quantizer(), source.dir,
                                dir.path() / "model.safetensors", [](std::int64_t) {});
  std::filesystem::copy(source.dir / "config.json", dir.path());
  const auto options = cuda_test::with(WeightType::int8, pythia::Policy::full);
  const auto from_checkpoint = cuda_test::engine(dir.path(), options);
  const auto at_load = cuda_test::engine(source.dir, options);
  const cuda_test::Ids ids = cuda_test::arbitrary_ids(80, config.vocab_size, 5);
  EXPECT_EQ(from_checkpoint->score(ids).nll, at_load->score(ids).nll);
}

TEST_F(CudaWeightsTest, ConvertsFp16CheckpointsToBf16) {
  const ModelSource source{test_support::data_path("hd80"), ""};
  const pythia::Config config = pythia::source_config(source);
  const Loaded<__nv_bfloat16> loaded(source, config, WeightType::fp16);
  const WeightSpec qkv = find(config, WeightId::qkv_weight, 0);
  const auto found = download(loaded.weights.layers[0].qkv.weight, qkv.elements());
  const auto values = host_values(*loaded.data, qkv);
  for (std::size_t i = 0; i < values.size(); ++i) {
    ASSERT_EQ(__bfloat162float(found[i]),
              static_cast<float>(waterweight::reference::bfloat16(values[i])));
  }
}

}  // namespace
