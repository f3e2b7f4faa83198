// See config.hpp. The fields and their defaults are those of transformers' GPTNeoXConfig; the sizes
// a model is useless without have no default here.
#include "examples/pythia/io/config.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <string_view>

#include "examples/pythia/io/json.hpp"
#include "examples/pythia/io/message.hpp"

namespace pythia {
namespace {

constexpr std::size_t max_config_bytes = std::size_t{1} << 20;

// Far above any GPT-NeoX, and low enough that products of two of them fit 64 bits with room to
// spare.
constexpr std::int64_t max_vocab = 1 << 22;
constexpr std::int64_t max_width = 1 << 20;
constexpr std::int64_t max_layers = 1 << 12;
constexpr std::int64_t max_context = 1 << 24;

constexpr std::array<int, 6> head_dims = {32, 64, 80, 96, 128, 256};

constexpr double default_rotary_pct = 0.25;
constexpr double default_rotary_base = 10000.0;

int size_field(const JsonObject& config, const std::string& key, std::int64_t max) {
  return static_cast<int>(config.integer(key, 1, max));
}

// Refuses a value that this decoder would silently ignore.
void require_boolean(const JsonObject& config, const std::string& key, bool required) {
  if (config.boolean_or(key, required) != required) {
    throw config.wrong(key, required ? "true" : "false");
  }
}

// `rope_parameters` (new) and `rope_scaling` (old) both may ask for a scaled rotary embedding,
// which GPT-NeoX checkpoints do not use.
void require_default_rope(const JsonObject& rope) {
  for (const char* key : {"rope_type", "type"}) {
    if (rope.find(key) != nullptr && rope.string(key) != "default") {
      throw rope.wrong(key, "\"default\"");
    }
  }
}

// One rotary setting has had several names. A file may carry more than one of them; they must
// agree.
class RotarySetting {
 public:
  RotarySetting(double min, double max) : min_(min), max_(max) {}

  void read(const JsonObject& object, const std::string& key) {
    if (object.find(key) == nullptr) return;
    const double value = object.number(key);
    if (!(value > min_ && value <= max_)) {
      throw object.wrong(
          key, "a number above " + Json(min_).dump() + " and at most " + Json(max_).dump());
    }
    if (value_ && *value_ != value) {
      throw object.wrong(key, "the value of " + source_ + " (" + Json(*value_).dump() + ")");
    }
    value_ = value;
    source_ = object.name(key);
  }

  double value_or(double fallback) const { return value_.value_or(fallback); }

 private:
  double min_;
  double max_;
  std::optional<double> value_;
  std::string source_;
};

void read_rotary(const JsonObject& json, Config& config) {
  RotarySetting pct(0.0, 1.0);
  RotarySetting base(0.0, 1e12);
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    if (json.find(key) == nullptr) continue;
    const JsonObject rope = json.object(key);
    require_default_rope(rope);
    pct.read(rope, "partial_rotary_factor");
    base.read(rope, "rope_theta");
  }
  pct.read(json, "partial_rotary_factor");
  pct.read(json, "rotary_pct");
  base.read(json, "rope_theta");
  base.read(json, "rotary_emb_base");

  config.rotary_base = base.value_or(default_rotary_base);
  const double fraction = pct.value_or(default_rotary_pct);
  config.rotary_dims = static_cast<int>(config.head_dim() * fraction);
  if (config.rotary_dims % 2 != 0) {
    throw mismatch(json.file(), "rotary_pct", "an even number of rotary dimensions",
                   std::to_string(config.rotary_dims) + " (" + Json(fraction).dump() + " of " +
                       std::to_string(config.head_dim()) + ")");
  }
}

Activation read_activation(const JsonObject& json) {
  const std::string name = json.find("hidden_act") == nullptr ? "gelu" : json.string("hidden_act");
  if (name == "gelu") return Activation::gelu_erf;
  for (const char* tanh_form : {"gelu_new", "gelu_fast", "gelu_pytorch_tanh"}) {
    if (name == tanh_form) return Activation::gelu_tanh;
  }
  throw json.wrong("hidden_act", "gelu, gelu_new, gelu_fast or gelu_pytorch_tanh");
}

int read_eos(const JsonObject& json, int vocab_size) {
  const Json* value = json.find("eos_token_id");
  if (value == nullptr || (value->is_array() && value->empty())) return -1;
  const Json& first = value->is_array() ? value->front() : *value;
  std::int64_t id = 0;
  if (!integer_in_range(first, 0, vocab_size - 1, id)) {
    throw json.wrong("eos_token_id", "an id below vocab_size (" + std::to_string(vocab_size) +
                                         "), a list of them, or null");
  }
  return static_cast<int>(id);
}

void check_heads(const JsonObject& json, const Config& config) {
  if (config.hidden_size % config.num_heads != 0) {
    throw json.wrong("hidden_size", "a multiple of num_attention_heads (" +
                                        std::to_string(config.num_heads) + ")");
  }
  if (std::find(head_dims.begin(), head_dims.end(), config.head_dim()) == head_dims.end()) {
    std::string known;
    for (const int dim : head_dims) known += (known.empty() ? "" : ", ") + std::to_string(dim);
    throw mismatch(json.file(), "hidden_size / num_attention_heads", "one of " + known,
                   std::to_string(config.head_dim()));
  }
}

struct NamedSize {
  std::string_view name;
  int hidden;
  int layers;
  int heads;
  int vocab;
};

constexpr std::array<NamedSize, 10> named_sizes = {{{"14m", 128, 6, 4, 50304},
                                                    {"31m", 256, 6, 8, 50304},
                                                    {"70m", 512, 6, 8, 50304},
                                                    {"160m", 768, 12, 12, 50304},
                                                    {"410m", 1024, 24, 16, 50304},
                                                    {"1b", 2048, 16, 8, 50304},
                                                    {"1.4b", 2048, 24, 16, 50304},
                                                    {"2.8b", 2560, 32, 32, 50304},
                                                    {"6.9b", 4096, 32, 32, 50432},
                                                    {"12b", 5120, 36, 40, 50688}}};

}  // namespace

Config load_config(const std::filesystem::path& dir) {
  const std::filesystem::path file = dir / "config.json";
  const Json root = load_json(file, max_config_bytes);
  const JsonObject json(root, file);

  if (json.string("model_type") != "gpt_neox") throw json.wrong("model_type", "\"gpt_neox\"");
  require_boolean(json, "tie_word_embeddings", false);
  require_boolean(json, "attention_bias", true);

  Config config;
  config.vocab_size = size_field(json, "vocab_size", max_vocab);
  config.hidden_size = size_field(json, "hidden_size", max_width);
  config.num_layers = size_field(json, "num_hidden_layers", max_layers);
  config.num_heads = size_field(json, "num_attention_heads", max_width);
  config.intermediate_size = size_field(json, "intermediate_size", max_width);
  config.max_position = size_field(json, "max_position_embeddings", max_context);
  check_heads(json, config);
  read_rotary(json, config);
  if (json.find("layer_norm_eps") != nullptr) {
    config.layer_norm_eps = json.number("layer_norm_eps");
    if (!(config.layer_norm_eps > 0.0 && config.layer_norm_eps < 1.0)) {
      throw json.wrong("layer_norm_eps", "a number between 0 and 1");
    }
  }
  config.parallel_residual = json.boolean_or("use_parallel_residual", true);
  config.activation = read_activation(json);
  config.eos_token_id = read_eos(json, config.vocab_size);
  return config;
}

Config named_config(const std::string& size) {
  constexpr std::string_view prefix = "pythia-";
  std::string_view name = size;
  if (name.substr(0, prefix.size()) == prefix) name.remove_prefix(prefix.size());

  std::string known;
  for (const NamedSize& entry : named_sizes) {
    if (entry.name == name) {
      Config config;
      config.vocab_size = entry.vocab;
      config.hidden_size = entry.hidden;
      config.num_layers = entry.layers;
      config.num_heads = entry.heads;
      config.intermediate_size = 4 * entry.hidden;
      config.max_position = 2048;
      config.rotary_dims = static_cast<int>(config.head_dim() * default_rotary_pct);
      return config;
    }
    known += (known.empty() ? "" : ", ") + std::string(entry.name);
  }
  throw Error("model size: expected one of " + known + ", found " + in_quotes(size));
}

}  // namespace pythia
