// Written checkpoints read back, and a failed write leaves nothing.
#include "examples/pythia/io/safetensors_writer.hpp"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <cstring>

#include "examples/pythia/io/checkpoint.hpp"
#include "tests/support/expect_error.hpp"
#include "tests/support/temp_dir.hpp"

namespace {

using pythia::Checkpoint;
using pythia::DType;
using pythia::SafetensorsWriter;
using pythia::TensorSpec;
using test_support::expect_error;
using test_support::TempDir;

class SafetensorsWriterTest : public ::testing::Test {
 protected:
  std::filesystem::path file() const { return dir_.path() / "model.safetensors"; }
  TempDir dir_;
};

TEST_F(SafetensorsWriterTest, RoundTrips) {
  // Every length of name, so that every amount of padding occurs.
  for (std::size_t length = 1; length <= 9; ++length) {
    const std::string name(length, 'n');
    const float values[3] = {1.5f, -2.0f, 3.25f};
    SafetensorsWriter writer(file(),
                             {{"odd", DType::i8, {3}},
                              {name, DType::f32, {3, 1}},
                              {"empty", DType::f16, {0, 4}},
                              {"scalar", DType::u8, {}}},
                             {{"format", "pt"}, {"quote", "\"\n"}});
    writer.write("abc", 3);
    writer.write(values, sizeof(values));
    writer.write(nullptr, 0);
    writer.write("z", 1);
    writer.finish();

    const Checkpoint read = Checkpoint::open(dir_.path());
    EXPECT_EQ(read.tensors().size(), 4u);
    EXPECT_EQ(read.metadata().at("quote"), "\"\n");
    EXPECT_EQ(std::memcmp(read.at("odd", {3}).data, "abc", 3), 0);
    EXPECT_EQ(std::memcmp(read.at(name, {3, 1}).data, values, sizeof(values)), 0);
    EXPECT_EQ(read.at("empty", {0, 4}).dtype, DType::f16);
    EXPECT_EQ(read.at("scalar", {}).dtype, DType::u8);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(read.at("odd").data) % 8, 0u)
        << "the data starts aligned";
  }
}

TEST_F(SafetensorsWriterTest, WritesAnEmptyCheckpoint) {
  SafetensorsWriter(file(), {}, {}).finish();
  EXPECT_TRUE(Checkpoint::open(dir_.path()).tensors().empty());
}

TEST_F(SafetensorsWriterTest, RefusesWhatDoesNotMatchTheSpecs) {
  SafetensorsWriter writer(file(), {{"a", DType::f16, {2}}}, {});
  expect_error([&] { writer.write("abc", 3); },
               {file().string(), "tensor \"a\": expected 4 bytes, found 3"});
  expect_error([&] { writer.finish(); }, {file().string(), "tensors: expected 1, found 0"});
  writer.write("abcd", 4);
  expect_error([&] { writer.write("abcd", 4); }, {"tensors: expected 1, found one more"});
}

TEST_F(SafetensorsWriterTest, RefusesImpossibleSpecs) {
  const auto make = [&](std::vector<TensorSpec> specs) { SafetensorsWriter(file(), specs, {}); };
  const std::int64_t huge = std::int64_t{1} << 62;
  expect_error(
      [&] {
        make({{"a", DType::u8, {1}}, {"a", DType::u8, {1}}});
      },
      {"tensor \"a\": expected a name of its own"});
  expect_error([&] { make({{"__metadata__", DType::u8, {1}}}); }, {"tensor \"__metadata__\""});
  expect_error([&] { make({{"a", DType::u8, {-1}}}); }, {"tensor \"a\".shape", "found [-1]"});
  expect_error([&] { make({{"a", DType::f64, {huge}}}); }, {"tensor \"a\".shape", "64 bits"});
  expect_error(
      [&] {
        make({{"a", DType::f16, {huge}}, {"b", DType::f16, {huge}}});
      },
      {"data: expected a size that 64 bits can hold"});
  expect_error([&] { make({{"\xFF", DType::u8, {1}}}); }, {"expected valid UTF-8"});
  EXPECT_FALSE(std::filesystem::exists(file()));
}

TEST_F(SafetensorsWriterTest, RemovesAnUnfinishedFile) {
  {
    SafetensorsWriter writer(file(), {{"a", DType::u8, {4}}}, {});
    writer.write("abcd", 4);
    EXPECT_TRUE(std::filesystem::exists(file()));
  }
  EXPECT_FALSE(std::filesystem::exists(file()));
}

TEST_F(SafetensorsWriterTest, ReportsAFileItCannotCreate) {
  const auto missing = dir_.path() / "missing" / "model.safetensors";
  expect_error([&] { SafetensorsWriter(missing, {}, {}); },
               {missing.string(), "cannot create: No such file or directory"});
  expect_error([&] { SafetensorsWriter(dir_.path(), {}, {}); },
               {dir_.path().string(), "cannot create: Is a directory"});
}

TEST_F(SafetensorsWriterTest, ReportsAFullDisk) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "no /dev/full";
  expect_error(
      [&] {
        SafetensorsWriter writer("/dev/full", {{"a", DType::u8, {4}}}, {});
        writer.write("abcd", 4);
        writer.finish();
      },
      {"/dev/full: cannot write: No space left on device"});
  EXPECT_TRUE(std::filesystem::exists("/dev/full"));
}

TEST_F(SafetensorsWriterTest, ReportsAShortWriteAndRemovesTheFile) {
  // A process may not write past its file size limit: the write in the middle of the data fails.
  struct rlimit old {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  struct rlimit small = old;
  small.rlim_cur = 64 * 1024;
  const auto old_handler = ::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::vector<char> data(1 << 20, 'x');
  expect_error(
      [&] {
        SafetensorsWriter writer(file(), {{"a", DType::u8, {1 << 20}}}, {});
        writer.write(data.data(), data.size());
        writer.finish();
      },
      {file().string(), "cannot write: File too large"});
  ::setrlimit(RLIMIT_FSIZE, &old);
  ::signal(SIGXFSZ, old_handler);
  EXPECT_FALSE(std::filesystem::exists(file()));
}

}  // namespace
