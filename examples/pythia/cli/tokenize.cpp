// pythia tokenize: texts to ids and back.
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "examples/pythia/cli/commands.hpp"
#include "examples/pythia/cli/input.hpp"
#include "examples/pythia/cli/options.hpp"
#include "examples/pythia/cli/output_file.hpp"
#include "examples/pythia/io/message.hpp"

namespace pythia {
namespace {

struct TokenizeOptions {
  ModelOptions model;
  std::string texts_file;
  std::string ids_file;
  std::string text;
};

Json require_array(const std::string& file, const std::string& of_what) {
  Json array = read_json(file);
  if (!array.is_array())
    throw pythia::mismatch(file, "file", "a JSON array of " + of_what, describe(array));
  return array;
}

nlohmann::ordered_json encode_all(const Tokenizer& tokenizer, const std::string& file) {
  auto result = nlohmann::ordered_json::array();
  for (const Json& text : require_array(file, "strings")) {
    if (!text.is_string()) {
      throw pythia::mismatch(file, "[" + std::to_string(result.size()) + "]", "a string",
                             describe(text));
    }
    result.push_back(tokenizer.encode(text.get_ref<const std::string&>()));
  }
  return result;
}

nlohmann::ordered_json decode_all(const Tokenizer& tokenizer, const std::string& file) {
  auto result = nlohmann::ordered_json::array();
  for (const Json& ids : require_array(file, "arrays of token ids")) {
    const std::string where = "[" + std::to_string(result.size()) + "]";
    result.push_back(tokenizer.decode(to_ids(ids, file, where, tokenizer.size())));
  }
  return result;
}

void run_tokenize(const TokenizeOptions& options, bool text_given) {
  const OutputFile output(options.model.json);
  const Tokenizer tokenizer = model_tokenizer(model_source(options.model));
  nlohmann::ordered_json result;
  if (!options.texts_file.empty()) {
    result = encode_all(tokenizer, options.texts_file);
  } else if (!options.ids_file.empty()) {
    result = decode_all(tokenizer, options.ids_file);
  } else {
    result = tokenizer.encode(text_given ? repaired("--text", options.text) : read_stdin());
  }
  if (output) {
    output.write_json(result);
  } else {
    write_stdout(result.dump() + "\n");
  }
}

}  // namespace

void add_tokenize(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "tokenize", "Turn texts into token ids, or back, as JSON on standard output or in --json");
  const auto options = std::make_shared<TokenizeOptions>();
  auto* texts =
      command->add_option("--texts", options->texts_file,
                          "file with a JSON array of strings; gives an array of id arrays");
  auto* ids = command->add_option("--ids", options->ids_file,
                                  "file with a JSON array of id arrays; gives an array of strings");
  auto* text = command->add_option("--text", options->text,
                                   "one text; gives one id array (default: standard input)");
  texts->excludes(ids)->excludes(text);
  ids->excludes(text);
  add_model_options(*command, options->model);
  command->final_callback([options, text] { run_tokenize(*options, text->count() > 0); });
}

}  // namespace pythia
