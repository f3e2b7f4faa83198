// config.json of a GPT-NeoX model, as Hugging Face transformers writes it (old and new rotary
// keys).
#pragma once

#include <filesystem>
#include <string>

namespace pythia {

enum class Activation { gelu_erf, gelu_tanh };

struct Config {
  int vocab_size = 0;  ///< rows of the embedding: padded above what the tokenizer knows
  int hidden_size = 0;
  int num_layers = 0;
  int num_heads = 0;
  int intermediate_size = 0;
  int max_position = 0;  ///< the context the model was trained for
  int rotary_dims = 0;   ///< int(head_dim * rotary_pct), even
  double rotary_base = 10000.0;
  double layer_norm_eps = 1e-5;
  bool parallel_residual = true;
  Activation activation = Activation::gelu_erf;
  int eos_token_id = 0;  ///< the first where the file lists several, -1 where it names none

  int head_dim() const { return hidden_size / num_heads; }
};

/// Reads and checks DIR/config.json. Throws Error naming file and field.
Config load_config(const std::filesystem::path& dir);

/// The published shape of a size name ("14m" ... "12b", with or without "pythia-"). Throws Error
/// listing the known names.
Config named_config(const std::string& size);

}  // namespace pythia
