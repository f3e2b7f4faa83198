// Damaged files either load or are refused by an Error: nothing else may happen.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "examples/pythia/io/checkpoint.hpp"
#include "examples/pythia/io/config.hpp"
#include "examples/pythia/io/error.hpp"
#include "tests/support/data_path.hpp"
#include "tests/support/mutate.hpp"
#include "tests/support/raw_safetensors.hpp"
#include "tests/support/temp_dir.hpp"

namespace {

using test_support::TempDir;
using test_support::write_file;

constexpr std::uint32_t rounds = 500;

// Loads `rounds` mutations of a file; both outcomes must occur.
template <class Load>
void expect_loaded_or_refused(const std::string& name, const std::string& content, Load&& load) {
  TempDir dir;
  std::uint32_t refused = 0;
  for (std::uint32_t seed = 0; seed < rounds; ++seed) {
    write_file(dir.path() / name, test_support::mutate(content, seed));
    try {
      load(dir.path());
    } catch (const pythia::Error& e) {
      ++refused;
      EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos) << e.what();
    } catch (const std::exception& e) {
      ADD_FAILURE() << "seed " << seed << ": " << e.what();
    }
  }
  EXPECT_GT(refused, 0u);
  EXPECT_LT(refused, rounds);
}

TEST(Mutation, Config) {
  const auto file = test_support::examples_path("pythia/models/tiny-neox/config.json");
  expect_loaded_or_refused("config.json", test_support::read_file(file),
                           [](const auto& dir) { pythia::load_config(dir); });
}

TEST(Mutation, Safetensors) {
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]},)"
      R"("b":{"dtype":"I8","shape":[5],"data_offsets":[12,17]},)"
      R"("c":{"dtype":"F32","shape":[],"data_offsets":[17,21]}}  )";
  const std::string content = test_support::raw_safetensors(header, std::string(21, 'x'));
  expect_loaded_or_refused("model.safetensors", content, [](const auto& dir) {
    // What loads must be readable to the last byte.
    const auto checkpoint = pythia::Checkpoint::open(dir);
    for (const auto& [name, tensor] : checkpoint.tensors()) {
      const std::string copy(reinterpret_cast<const char*>(tensor.data), tensor.bytes);
      EXPECT_EQ(copy.size(), tensor.bytes) << name;
    }
  });
}

TEST(Mutation, Index) {
  const auto source = test_support::data_path("hd80");
  const std::string content = test_support::read_file(source / "model.safetensors.index.json");
  expect_loaded_or_refused("model.safetensors.index.json", content, [&](const auto& dir) {
    for (const auto& entry : std::filesystem::directory_iterator(source)) {
      const auto link = dir / entry.path().filename();
      if (entry.path().extension() == ".safetensors" && !std::filesystem::exists(link)) {
        std::filesystem::create_symlink(entry.path(), link);
      }
    }
    pythia::Checkpoint::open(dir);
  });
}

}  // namespace
