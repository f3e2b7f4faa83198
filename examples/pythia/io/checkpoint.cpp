// See checkpoint.hpp.
#include "examples/pythia/io/checkpoint.hpp"

#include <set>
#include <utility>

#include "examples/pythia/io/json.hpp"
#include "examples/pythia/io/mapped_file.hpp"
#include "examples/pythia/io/message.hpp"
#include "examples/pythia/io/safetensors_header.hpp"

namespace pythia {
namespace {

constexpr const char* single_name = "model.safetensors";
constexpr const char* index_name = "model.safetensors.index.json";
constexpr std::size_t max_index_bytes = std::size_t{64} << 20;

// Which shard holds each tensor. Shards lie beside the index: a name that leads elsewhere would let
// a downloaded index read any file of the machine.
std::map<std::string, std::string> read_index(const std::filesystem::path& file) {
  const Json root = load_json(file, max_index_bytes);
  const JsonObject weight_map = JsonObject(root, file).object("weight_map");
  std::map<std::string, std::string> shard_of;
  for (const auto& [tensor, value] : weight_map.json().items()) {
    const std::string& shard = weight_map.string(tensor);
    if (shard.empty() || shard == "." || shard == ".." ||
        shard.find_first_of(std::string("/\\\0", 3)) != std::string::npos) {
      throw weight_map.wrong(tensor, "a file name without a folder");
    }
    shard_of[tensor] = shard;
  }
  if (shard_of.empty()) {
    throw mismatch(file, "weight_map", "at least one tensor", "none");
  }
  return shard_of;
}

}  // namespace

Checkpoint::Checkpoint(std::filesystem::path dir) : dir_(std::move(dir)) {}
Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;
Checkpoint& Checkpoint::operator=(Checkpoint&&) noexcept = default;
Checkpoint::~Checkpoint() = default;

Checkpoint Checkpoint::open(const std::filesystem::path& dir) {
  Checkpoint checkpoint(dir);
  std::error_code ignored;
  if (std::filesystem::exists(std::filesystem::symlink_status(dir / single_name, ignored))) {
    checkpoint.add_file(dir / single_name);
    return checkpoint;
  }
  const std::filesystem::path index = dir / index_name;
  if (!std::filesystem::exists(std::filesystem::symlink_status(index, ignored))) {
    throw mismatch(dir, "weights", std::string(single_name) + " or " + index_name, "neither");
  }

  const auto shard_of = read_index(index);
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : shard_of) shards.insert(shard);
  for (const std::string& shard : shards) {
    if (!std::filesystem::exists(dir / shard, ignored)) {
      throw mismatch(index, "weight_map", "shard " + in_quotes(shard) + " in the same folder",
                     "no such file");
    }
    checkpoint.add_file(dir / shard);
  }
  for (const auto& [name, shard] : shard_of) {
    const auto it = checkpoint.tensors_.find(name);
    if (it == checkpoint.tensors_.end() || it->second.file.filename() != shard) {
      throw mismatch(dir / shard, "tensor " + in_quotes(name),
                     "in this shard, as " + std::string(index_name) + " says",
                     it == checkpoint.tensors_.end()
                         ? "no such tensor"
                         : "it in " + in_quotes(it->second.file.filename().string()));
    }
  }
  return checkpoint;
}

void Checkpoint::add_file(const std::filesystem::path& file) {
  files_.push_back(std::make_unique<MappedFile>(file));
  SafetensorsHeader header = parse_safetensors(*files_.back());
  for (Tensor& tensor : header.tensors) {
    const auto [it, inserted] = tensors_.try_emplace(tensor.name, tensor);
    if (!inserted) {
      throw mismatch(file, "tensor " + in_quotes(tensor.name), "it in one shard only",
                     "it in " + in_quotes(it->second.file.filename().string()) + " as well");
    }
  }
  metadata_.merge(header.metadata);
}

bool Checkpoint::contains(std::string_view name) const {
  return tensors_.find(name) != tensors_.end();
}

const Tensor& Checkpoint::at(std::string_view name) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) {
    throw mismatch(dir_, "tensor " + in_quotes(name), "it in the checkpoint",
                   "no such tensor among " + std::to_string(tensors_.size()));
  }
  return it->second;
}

const Tensor& Checkpoint::at(std::string_view name, const std::vector<std::int64_t>& shape) const {
  const Tensor& tensor = at(name);
  if (tensor.shape != shape) {
    throw mismatch(tensor.file, "tensor " + in_quotes(name) + ".shape", shape_text(shape),
                   printable(shape_text(tensor.shape)));
  }
  return tensor;
}

}  // namespace pythia
