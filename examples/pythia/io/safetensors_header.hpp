// The header of one safetensors file: 8 bytes of length, JSON that describes the tensors, their
// data.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "examples/pythia/io/checkpoint.hpp"
#include "examples/pythia/io/mapped_file.hpp"

namespace pythia {

struct SafetensorsHeader {
  std::vector<Tensor> tensors;  ///< in the order of their data
  std::map<std::string, std::string> metadata;
};

/// The largest header the format allows.
inline constexpr std::size_t max_safetensors_header = 100'000'000;

/// Parses and checks the header: the data of the tensors must fill the rest of the file without
/// gaps or overlaps, each as many bytes as its shape and dtype say. Throws Error naming file and
/// tensor.
SafetensorsHeader parse_safetensors(const MappedFile& file);

}  // namespace pythia
