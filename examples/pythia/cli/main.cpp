// pythia: a GPT-NeoX decoder on waterweight. Parses the command line and reports errors: one line
// on stderr and exit code 2 for anything the user can mend.
#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <exception>
#include <new>
#include <string>

#include "examples/pythia/cli/commands.hpp"
#include "examples/pythia/cli/interrupt.hpp"
#include "examples/pythia/io/error.hpp"
#include "examples/pythia/io/message.hpp"

namespace {

constexpr int kBadInput = 2;
constexpr std::size_t kMaxMessage = 2000;

int report(const std::string& message) {
  std::fprintf(stderr, "pythia: error: %s\n", pythia::printable(message, kMaxMessage).c_str());
  return kBadInput;
}

int run(int argc, char** argv) {
  CLI::App app("Runs GPT-NeoX (Pythia) models with INT8 weights and an H2O KV cache.", "pythia");
  app.require_subcommand(0, 1);  // none is said below, in words that list the commands
  pythia::add_generate(app);
  pythia::add_quantize(app);
  pythia::add_eval(app);
  pythia::add_tokenize(app);
  pythia::add_bench(app);
  try {
    app.parse(argc, argv);
    if (!app.get_subcommands().empty()) return 0;
    throw pythia::Error("expected a command: generate, quantize, eval, tokenize or bench");
  } catch (const CLI::Success& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    return report(std::string(error.what()) + " (see pythia --help)");
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // a closed pipe is a failed write, reported like the others
  try {
    return run(argc, argv);
  } catch (const pythia::Error& error) {
    return report(error.what());
  } catch (const pythia::Interrupted& interrupted) {
    pythia::die_of(interrupted.signal);
  } catch (const std::bad_alloc&) {
    return report("out of host memory");
  } catch (const std::exception& error) {
    return report(error.what());
  }
}
