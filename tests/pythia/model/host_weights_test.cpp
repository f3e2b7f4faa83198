// The list of weights, its check against a checkpoint, INT8 checkpoints, and random weights.
#include <gtest/gtest.h>
#include <waterweight/reference/float16.hpp>
#include <waterweight/reference/quantize.hpp>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "examples/pythia/io/safetensors_writer.hpp"
#include "examples/pythia/model/rotary_frequencies.hpp"
#include "tests/pythia/model/host_fixture.hpp"
#include "tests/support/expect_error.hpp"
#include "tests/support/temp_dir.hpp"

namespace {

using host_test::Ids;
using pythia::DType;
using pythia::EngineOptions;
using pythia::TensorSpec;
using pythia::WeightRole;
using pythia::WeightSpec;
using pythia::WeightType;
using test_support::expect_error;
using waterweight::reference::float16;

std::filesystem::path model_dir() { return test_support::data_path("hd32_sequential"); }

const char kDense[] = "gpt_neox.layers.1.attention.dense.weight";  // [128, 128]

/// A checkpoint's tensors in memory, to be changed and written to a directory of the test's own.
class Directory {
 public:
  explicit Directory(const std::filesystem::path& source) {
    const pythia::Checkpoint checkpoint = pythia::Checkpoint::open(source);
    for (const auto& [name, tensor] : checkpoint.tensors()) {
      set(name, tensor.dtype, tensor.shape,
          {reinterpret_cast<const char*>(tensor.data), tensor.bytes});
    }
    std::filesystem::copy_file(source / "config.json", dir_.path() / "config.json");
  }

  void set(const std::string& name, DType dtype, std::vector<std::int64_t> shape,
           std::string bytes) {
    tensors_[name] = {{name, dtype, std::move(shape)}, std::move(bytes)};
  }
  void erase(const std::string& name) { tensors_.erase(name); }
  TensorSpec& spec(const std::string& name) { return tensors_.at(name).first; }
  std::string& bytes(const std::string& name) { return tensors_.at(name).second; }

  const std::filesystem::path& write() const {
    std::vector<TensorSpec> specs;
    for (const auto& entry : tensors_) specs.push_back(entry.second.first);
    pythia::SafetensorsWriter writer(dir_.path() / "model.safetensors", specs, {});
    for (const auto& entry : tensors_)
      writer.write(entry.second.second.data(), entry.second.second.size());
    writer.finish();
    return dir_.path();
  }

  /// Quantizes every linear as `pythia quantize` does.
  void quantize() {
    for (const WeightSpec& weight : pythia::list_weights(pythia::load_config(dir_.path()))) {
      if (weight.role != WeightRole::linear) continue;
      const std::int64_t n = weight.rows(), k = weight.cols();
      std::vector<float16> stored(static_cast<std::size_t>(n * k));
      std::memcpy(stored.data(), bytes(weight.name).data(), bytes(weight.name).size());
      std::string q(static_cast<std::size_t>(n * k), '\0');
      std::vector<float> scale(static_cast<std::size_t>(n));
      waterweight::reference::quantize_per_channel(
          waterweight::matrix_view<const float16>{stored.data(), n, k, k},
          {reinterpret_cast<std::int8_t*>(q.data()), scale.data(), n, k, k});
      set(weight.name, DType::i8, {n, k}, q);
      set(pythia::scale_name(weight), DType::f32, {n},
          {reinterpret_cast<const char*>(scale.data()), scale.size() * sizeof(float)});
    }
  }

 private:
  test_support::TempDir dir_;
  std::map<std::string, std::pair<TensorSpec, std::string>> tensors_;
};

std::unique_ptr<pythia::Engine> load(const std::filesystem::path& dir, WeightType weights) {
  EngineOptions options;
  options.weights = weights;
  return host_test::engine(dir, options);
}

/// Loading the model after `change` must fail with all `parts` in the message.
void expect_refused(WeightType weights, bool int8, const std::function<void(Directory&)>& change,
                    std::initializer_list<std::string> parts) {
  Directory directory(model_dir());
  if (int8) directory.quantize();
  change(directory);
  const std::filesystem::path dir = directory.write();
  expect_error([&] { load(dir, weights); }, parts);
}

TEST(Weights, ListNamesEveryTensorOfTheCheckpointOnce) {
  const pythia::Config config = pythia::load_config(model_dir());
  std::set<std::string> names;
  int layer = -1;
  for (const WeightSpec& spec : pythia::list_weights(config)) {
    EXPECT_TRUE(names.insert(spec.name).second) << spec.name;
    if (spec.layer >= 0) {
      EXPECT_GE(spec.layer, layer) << "layers in order";
      layer = spec.layer;
    }
  }
  std::set<std::string> stored;
  const pythia::Checkpoint checkpoint = pythia::Checkpoint::open(model_dir());
  for (const auto& entry : checkpoint.tensors()) stored.insert(entry.first);
  EXPECT_EQ(names, stored);
}

TEST(Weights, ACopyOfTheModelLoads) {
  const Directory directory(model_dir());
  const Ids ids{1, 2, 3, 4};
  EXPECT_EQ(load(directory.write(), WeightType::fp16)->score(ids).last_logits,
            load(model_dir(), WeightType::fp16)->score(ids).last_logits);
}

TEST(Weights, Float32AndBfloat16CheckpointsLoad) {
  Directory wide(model_dir()), brain(model_dir());
  for (const WeightSpec& weight : pythia::list_weights(pythia::load_config(model_dir()))) {
    const auto count = static_cast<std::size_t>(weight.elements());
    std::vector<float16> stored(count);
    std::memcpy(stored.data(), wide.bytes(weight.name).data(), 2 * count);
    std::vector<float> floats(stored.begin(), stored.end());
    std::vector<waterweight::reference::bfloat16> brains(count);
    for (std::size_t i = 0; i < count; ++i) brains[i] = waterweight::reference::bfloat16(floats[i]);
    wide.set(weight.name, DType::f32, weight.shape,
             {reinterpret_cast<const char*>(floats.data()), 4 * count});
    brain.set(weight.name, DType::bf16, weight.shape,
              {reinterpret_cast<const char*>(brains.data()), 2 * count});
  }
  const Ids ids{5, 6, 7, 8, 9};
  for (const WeightType weights : {WeightType::fp16, WeightType::int8}) {
    const auto expected = load(model_dir(), weights)->score(ids).last_logits;
    EXPECT_EQ(load(wide.write(), weights)->score(ids).last_logits, expected);
    const double difference = host_test::relative_difference(
        load(brain.write(), weights)->score(ids).last_logits, expected);
    EXPECT_LT(difference, 0.05);
    EXPECT_GT(difference, 1e-5);
  }
}

TEST(Weights, AnInt8CheckpointIsTheModelQuantizedAtLoadBitForBit) {
  Directory directory(model_dir());
  directory.quantize();
  const Ids ids{1, 2, 3, 4, 5, 6};
  EXPECT_EQ(load(directory.write(), WeightType::int8)->score(ids).last_logits,
            load(model_dir(), WeightType::int8)->score(ids).last_logits);
}

TEST(Weights, BadCheckpointsAreRefused) {
  const auto nothing = [](Directory&) {};
  expect_refused(WeightType::fp16, false, [](Directory& d) { d.erase(kDense); }, {kDense});
  expect_refused(WeightType::fp16, false,
                 [](Directory& d) {
                   d.spec(kDense).shape = {64, 256};
                 },
                 {kDense, "64", "256", "128"});
  expect_refused(WeightType::fp16, false, [](Directory& d) { d.spec(kDense).dtype = DType::i16; },
                 {kDense, "F16", "I16"});
  expect_refused(WeightType::int8, false,
                 [](Directory& d) {
                   d.set("gpt_neox.final_layer_norm.bias", DType::i8, {128},
                         std::string(128, '\1'));
                 },
                 {"gpt_neox.final_layer_norm.bias", "F16", "I8"});
  expect_refused(WeightType::fp16, true, nothing, {"INT8 checkpoint", "--weights int8"});
}

TEST(Weights, BadScalesAreRefused) {
  const std::string name = std::string(kDense) + "_scale";
  const auto with_scale = [&](float value) {
    return [&name, value](Directory& d) { std::memcpy(d.bytes(name).data() + 7 * 4, &value, 4); };
  };
  expect_refused(WeightType::int8, true, [&](Directory& d) { d.erase(name); }, {kDense, name});
  expect_refused(WeightType::int8, true,
                 [&](Directory& d) { d.set(name, DType::f32, {127}, std::string(127 * 4, '\0')); },
                 {name, "127", "128"});
  expect_refused(WeightType::int8, true,
                 [&](Directory& d) { d.set(name, DType::f16, {128}, std::string(128 * 2, '\0')); },
                 {name, "F32", "F16"});
  expect_refused(WeightType::int8, true, with_scale(std::numeric_limits<float>::quiet_NaN()),
                 {name, "finite", "channel 7"});
  expect_refused(WeightType::int8, true, with_scale(std::numeric_limits<float>::infinity()),
                 {name, "channel 7"});
  expect_refused(WeightType::int8, true, with_scale(-1), {name, "-1", "channel 7"});
}

TEST(Weights, QuantizingANanNamesTheRow) {
  const auto poison = [](Directory& d) {
    const std::uint16_t nan = 0x7e00;
    std::memcpy(d.bytes(kDense).data() + (37 * 128 + 5) * 2, &nan, 2);
  };
  expect_refused(WeightType::int8, false, poison, {kDense, "row 37"});
}

TEST(RandomWeights, AreCloseToNormalAndTheSameHoweverTheyAreRead) {
  const pythia::Config config = pythia::named_config("14m");
  const pythia::RandomWeights source;
  for (const WeightSpec& spec : pythia::list_weights(config)) {
    const std::int64_t count = std::min<std::int64_t>(spec.elements(), 10001);
    std::vector<float> values(static_cast<std::size_t>(count)), piece(3);
    source.read_float(spec, 0, count, values.data());
    source.read_float(spec, 5, 3, piece.data());
    EXPECT_TRUE(std::equal(piece.begin(), piece.end(), values.begin() + 5)) << spec.name;
    if (spec.role == WeightRole::norm) {
      EXPECT_EQ(values, std::vector<float>(values.size(), 1.0f)) << spec.name;
    } else if (count > 10000) {
      EXPECT_NEAR(host_test::mean(values), 0, 0.001) << spec.name;
      EXPECT_NEAR(host_test::norm(values) / std::sqrt(static_cast<double>(count)), 0.02, 0.0005)
          << spec.name;
    }
  }
}

TEST(RandomWeights, DifferBetweenTensors) {
  const pythia::Config config = pythia::named_config("14m");
  const pythia::RandomWeights source;
  std::set<std::vector<float>> seen;
  std::size_t tensors = 0;
  for (const WeightSpec& spec : pythia::list_weights(config)) {
    if (spec.role == WeightRole::norm) continue;
    std::vector<float> start(8);
    source.read_float(spec, 0, 8, start.data());
    seen.insert(start);
    ++tensors;
  }
  EXPECT_EQ(seen.size(), tensors);
}

}  // namespace
