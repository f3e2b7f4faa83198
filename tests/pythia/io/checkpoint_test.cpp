// Model directories: real ones, and every way of breaking one.
#include "examples/pythia/io/checkpoint.hpp"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "tests/support/data_path.hpp"
#include "tests/support/expect_error.hpp"
#include "tests/support/raw_safetensors.hpp"
#include "tests/support/temp_dir.hpp"

namespace {

using nlohmann::json;
using pythia::Checkpoint;
using pythia::DType;
using test_support::expect_error;
using test_support::raw_safetensors;
using test_support::TempDir;
using test_support::write_file;

json entry(const char* dtype, const json& shape, const json& begin, const json& end) {
  return {{"dtype", dtype}, {"shape", shape}, {"data_offsets", json::array({begin, end})}};
}

class CheckpointTest : public ::testing::Test {
 protected:
  std::filesystem::path file(const std::string& name = "model.safetensors") const {
    return dir_.path() / name;
  }
  std::string path() const { return file().string(); }
  void write(const std::string& content) const { write_file(file(), content); }

  // The message must start with the file's name.
  void expect_refused(const std::string& content, std::initializer_list<std::string> parts) const {
    write(content);
    const auto open = [&] { Checkpoint::open(dir_.path()); };
    EXPECT_EQ(test_support::error_of(open).rfind(path() + ": ", 0), 0u);
    expect_error(open, parts);
  }
  void expect_refused(const json& header, std::size_t data_bytes,
                      std::initializer_list<std::string> parts) const {
    SCOPED_TRACE(header.dump());
    expect_refused(raw_safetensors(header.dump(), std::string(data_bytes, 'x')), parts);
  }

  // A shard that holds the named tensors, one byte each.
  void write_shard(const std::string& name, const std::vector<std::string>& tensors) const {
    json header = json::object();
    std::size_t position = 0;
    for (const std::string& tensor : tensors) {
      header[tensor] = entry("U8", {1}, position, position + 1);
      ++position;
    }
    write_file(file(name), raw_safetensors(header.dump(), std::string(position, 'x')));
  }
  void write_index(const json& weight_map) const {
    write_file(file("model.safetensors.index.json"), json{{"weight_map", weight_map}}.dump());
  }

  TempDir dir_;
};

TEST_F(CheckpointTest, ReadsASingleFile) {
  const json header = {{"__metadata__", {{"format", "pt"}}},
                       {"b", entry("F32", {2, 1}, 3, 11)},
                       {"a", entry("I8", {3}, 0, 3)},
                       {"empty", entry("F16", {0, 7}, 3, 3)},
                       {"scalar", entry("BF16", json::array(), 11, 13)}};
  write(raw_safetensors(header.dump() + "   ", "abcdefghijklm"));
  const Checkpoint checkpoint = Checkpoint::open(dir_.path());
  EXPECT_EQ(checkpoint.tensors().size(), 4u);
  EXPECT_EQ(checkpoint.metadata().at("format"), "pt");

  const pythia::Tensor& b = checkpoint.at("b", {2, 1});
  EXPECT_EQ(b.dtype, DType::f32);
  EXPECT_EQ(b.bytes, 8u);
  EXPECT_EQ(std::memcmp(b.data, "defghijk", 8), 0);
  EXPECT_EQ(b.file, file());
  EXPECT_EQ(checkpoint.at("scalar", {}).bytes, 2u);
  EXPECT_EQ(checkpoint.at("empty").bytes, 0u);
  EXPECT_TRUE(checkpoint.contains("a"));
  EXPECT_FALSE(checkpoint.contains("__metadata__"));
}

TEST_F(CheckpointTest, SurvivesBeingMoved) {
  write(raw_safetensors(json{{"a", entry("U8", {2}, 0, 2)}}.dump(), "ok"));
  Checkpoint first = Checkpoint::open(dir_.path());
  Checkpoint second = std::move(first);
  EXPECT_EQ(std::memcmp(second.at("a").data, "ok", 2), 0);
}

TEST_F(CheckpointTest, ReadsTheBundledModelAndTheGoldens) {
  const Checkpoint tiny = Checkpoint::open(test_support::examples_path("pythia/models/tiny-neox"));
  EXPECT_EQ(tiny.at("gpt_neox.embed_in.weight", {2048, 256}).dtype, DType::f16);
  EXPECT_EQ(tiny.at("gpt_neox.layers.3.attention.query_key_value.bias", {768}).bytes, 1536u);

  const Checkpoint sharded = Checkpoint::open(test_support::data_path("hd80"));
  EXPECT_EQ(sharded.tensors().size(), 28u);
  EXPECT_EQ(sharded.at("embed_out.weight", {512, 160}).file.filename(),
            "model-00010-of-00010.safetensors");
}

TEST_F(CheckpointTest, NamesAMissingTensorAndAWrongShape) {
  write(raw_safetensors(json{{"a", entry("U8", {2, 3}, 0, 6)}}.dump(), "abcdef"));
  const Checkpoint checkpoint = Checkpoint::open(dir_.path());
  expect_error([&] { checkpoint.at("b"); },
               {dir_.path().string(), "tensor \"b\"", "no such tensor"});
  expect_error(
      [&] {
        checkpoint.at("a", {3, 2});
      },
      {path(), "tensor \"a\".shape: expected [3, 2], found [2, 3]"});
}

TEST_F(CheckpointTest, RefusesADirectoryWithoutWeights) {
  expect_error([&] { Checkpoint::open(dir_.path()); },
               {dir_.path().string(), "expected model.safetensors or model.safetensors.index.json",
                "found neither"});
  expect_error([&] { Checkpoint::open(file("nowhere")); }, {file("nowhere").string()});
}

TEST_F(CheckpointTest, RefusesWhatIsNoRegularFile) {
  std::filesystem::create_directory(file());
  expect_error([&] { Checkpoint::open(dir_.path()); }, {path(), "expected a regular file"});
  std::filesystem::remove(file());
  ASSERT_EQ(::mkfifo(file().c_str(), 0600), 0);
  expect_error([&] { Checkpoint::open(dir_.path()); }, {path(), "expected a regular file"});
  std::filesystem::remove(file());
  std::filesystem::create_symlink("gone", file());
  expect_error([&] { Checkpoint::open(dir_.path()); }, {path(), "cannot open"});
}

TEST_F(CheckpointTest, RefusesABrokenLength) {
  expect_refused("", {"size: expected at least 8 bytes, found 0"});
  expect_refused("1234567", {"size: expected at least 8 bytes, found 7"});
  expect_refused(raw_safetensors(3, "{}", ""),
                 {"header length: expected at most 2 in a file of 10 bytes, found 3"});
  expect_refused(raw_safetensors(~std::uint64_t{0}, "{}", ""), {"found 18446744073709551615"});
  expect_refused(raw_safetensors(0, "", "{}"), {"malformed JSON at byte 1 of 0"});
}

TEST_F(CheckpointTest, RefusesAHeaderAboveTheFormatsLimit) {
  write(raw_safetensors(100'000'001, "{}", ""));
  std::filesystem::resize_file(file(), 200'000'000);  // sparse: costs no disk
  expect_error([&] { Checkpoint::open(dir_.path()); },
               {path(), "header length: expected at most 100000000", "found 100000001"});
}

TEST_F(CheckpointTest, RefusesTruncatedFiles) {
  const json header = {{"a", entry("U8", {4}, 0, 4)}};
  const std::string whole = raw_safetensors(header.dump(), "abcd");
  write(whole);
  EXPECT_NO_THROW(Checkpoint::open(dir_.path()));
  for (std::size_t size = 0; size < whole.size(); ++size) {
    SCOPED_TRACE(size);
    expect_refused(whole.substr(0, size), {"expected ", "found "});
  }
  expect_refused(header, 3,
                 {"tensor \"a\".data_offsets: expected begin <= end <= 3", "found [0, 4]"});
  expect_refused(header, 5, {"data: expected 4 bytes", "found 5"});
}

TEST_F(CheckpointTest, RefusesMalformedHeaders) {
  expect_refused(raw_safetensors("{\"a\": ", ""), {"malformed JSON at byte 7 of 6"});
  expect_refused(raw_safetensors("[]", ""), {"expected an object, found an array of 0"});
  expect_refused(raw_safetensors(std::string(1'000'000, '['), ""), {"at most 64 levels"});
  expect_refused(json{{"a", 5}}, 0, {"tensor \"a\": expected an object, found number 5"});
  expect_refused(json{{"a", json::object()}}, 0, {"tensor \"a\".dtype", "found nothing"});
  expect_refused(json{{"__metadata__", {{"format", 3}}}}, 0,
                 {"__metadata__.format: expected a string, found number 3"});
  const std::string twice = R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                            R"("a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})";
  expect_refused(raw_safetensors(twice, "x"), {"key \"a\": expected one occurrence"});
}

TEST_F(CheckpointTest, RefusesWrongDTypes) {
  expect_refused(json{{"a", entry("F8_E4M3", {1}, 0, 1)}}, 1,
                 {"tensor \"a\".dtype: expected one of F16, BF16", "found string \"F8_E4M3\""});
  json header = {{"a", entry("U8", {1}, 0, 1)}};
  header["a"]["dtype"] = 16;
  expect_refused(header, 1, {"tensor \"a\".dtype: expected a string, found number 16"});
}

TEST_F(CheckpointTest, RefusesImpossibleShapes) {
  const std::string shape = "tensor \"a\".shape: expected ";
  expect_refused(json{{"a", entry("U8", {-1}, 0, 1)}}, 1, {shape, "found number -1"});
  expect_refused(json{{"a", entry("U8", {-2, -3}, 0, 6)}}, 6, {shape, "found number -2"});
  expect_refused(json{{"a", entry("U8", {1.0}, 0, 1)}}, 1, {shape, "found number 1.0"});
  expect_refused(json{{"a", entry("U8", "1", 0, 1)}}, 1, {shape, "found string \"1\""});
  expect_refused(json{{"a", entry("U8", {18446744073709551615ULL}, 0, 1)}}, 1,
                 {shape, "found number 18446744073709551615"});
  // 2^32 x 2^32 elements wrap to 0, 2^62 of F32 too.
  expect_refused(json{{"a", entry("U8", {4294967296LL, 4294967296LL}, 0, 0)}}, 0,
                 {shape, "64 bits", "found [4294967296, 4294967296]"});
  expect_refused(json{{"a", entry("F32", {4611686018427387904LL}, 0, 0)}}, 0, {shape, "64 bits"});
}

TEST_F(CheckpointTest, RefusesBytesThatAreNotShapeTimesDType) {
  expect_refused(json{{"a", entry("F16", {3}, 0, 4)}}, 4,
                 {"tensor \"a\".data_offsets: expected 6 bytes for F16 [3], found 4 ([0, 4])"});
}

TEST_F(CheckpointTest, RefusesOffsetsThatDoNotTile) {
  const std::string offsets = "tensor \"b\".data_offsets: expected ";
  const json a = entry("U8", {4}, 0, 4);
  expect_refused(json{{"a", a}, {"b", entry("U8", {4}, 2, 6)}}, 6,
                 {offsets, "starts at 4", "found 2 (they overlap)"});
  expect_refused(json{{"a", a}, {"b", entry("U8", {4}, 0, 4)}}, 4,
                 {offsets, "found 0 (they overlap)"});
  expect_refused(json{{"a", a}, {"b", entry("U8", {2}, 6, 8)}}, 8, {offsets, "found 6 (a gap)"});
  expect_refused(json{{"b", entry("U8", {4}, 1, 5)}}, 5, {offsets, "starts at 0", "(a gap)"});
  expect_refused(json{{"b", entry("U8", {4}, 5, 1)}}, 5, {offsets, "begin <= end", "found [5, 1]"});
  expect_refused(json{{"b", entry("U8", {4}, 9223372036854775807LL, 9223372036854775807LL)}}, 4,
                 {offsets, "<= 4"});
  expect_refused(json{{"b", entry("U8", {4}, -4, 0)}}, 4, {offsets, "found number -4"});
  json header = {{"b", a}};
  header["b"]["data_offsets"] = {0, 4, 4};
  expect_refused(header, 4, {offsets, "two integers", "found an array of 3"});
}

TEST_F(CheckpointTest, RefusesBrokenShardSets) {
  const auto open = [&] { Checkpoint::open(dir_.path()); };
  const std::string index = file("model.safetensors.index.json").string();
  write_shard("s1", {"a"});
  write_shard("s2", {"b", "extra"});
  write_index({{"a", "s1"}, {"b", "s2"}});
  EXPECT_EQ(Checkpoint::open(dir_.path()).tensors().size(), 3u);

  write_index({{"a", "s1"}, {"b", "s3"}});
  expect_error(open, {index, "weight_map: expected shard \"s3\"", "found no such file"});
  write_index({{"a", "s1"}, {"c", "s2"}});
  expect_error(open, {file("s2").string(), "tensor \"c\"", "found no such tensor"});
  write_index({{"a", "s1"}, {"b", "s1"}, {"extra", "s2"}});
  expect_error(open, {file("s1").string(), "tensor \"b\"", "found it in \"s2\""});
  write_shard("s2", {"a", "b"});
  write_index({{"a", "s1"}, {"b", "s2"}});
  expect_error(open, {file("s2").string(), "tensor \"a\"", "one shard only", "\"s1\" as well"});

  for (const char* shard : {"../s1", "/etc/passwd", "sub/s1", "..", ".", "", "a\\b"}) {
    SCOPED_TRACE(shard);
    write_index({{"a", shard}});
    expect_error(open, {index, "weight_map.a: expected a file name without a folder"});
  }
  write_index({{"a", std::string("s1\0", 3)}});
  expect_error(open, {index, "weight_map.a", "found string \"s1\\x00\""});
  write_index({{"a", 7}});
  expect_error(open, {index, "weight_map.a: expected a string, found number 7"});
  write_index(json::object());
  expect_error(open, {index, "weight_map: expected at least one tensor"});
  write_file(index, "{}");
  expect_error(open, {index, "weight_map: expected an object, found nothing"});
  write_file(index, "{\"weight_map\": {\"a\": \"s1\"}");
  expect_error(open, {index, "malformed JSON at byte"});
}

}  // namespace
