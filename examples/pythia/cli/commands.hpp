// The commands of `pythia`. Each function adds one to the command line; it runs when it was chosen.
#pragma once

#include <CLI/CLI.hpp>

namespace pythia {

void add_generate(CLI::App& app);
void add_quantize(CLI::App& app);
void add_eval(CLI::App& app);
void add_tokenize(CLI::App& app);
void add_bench(CLI::App& app);

}  // namespace pythia
