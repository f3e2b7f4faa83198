// Runs the pythia executable as a user would and keeps what it said.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "tests/support/data_path.hpp"
#include "tests/support/temp_dir.hpp"

namespace cli_test {

using Arguments = std::vector<std::string>;

struct Outcome {
  int exit_code = -1;  ///< 128 + signal for a killed process
  std::string out;
  std::string err;
};

inline void redirect(int descriptor, const std::filesystem::path& file, int flags) {
  const int opened = ::open(file.c_str(), flags, 0666);
  if (opened < 0 || ::dup2(opened, descriptor) < 0) ::_exit(126);
}

/// Runs `pythia ARGUMENTS` with `input` on standard input. `stdout_file`: where standard output
/// goes instead of into Outcome::out.
inline Outcome run(const Arguments& arguments, std::string_view input = "",
                   const std::filesystem::path& stdout_file = "") {
  const test_support::TempDir dir;
  const auto in = dir.path() / "in", err = dir.path() / "err";
  const auto out = stdout_file.empty() ? dir.path() / "out" : stdout_file;
  test_support::write_file(in, input);
  const pid_t child = ::fork();
  if (child == 0) {
    redirect(STDIN_FILENO, in, O_RDONLY);
    redirect(STDOUT_FILENO, out, O_WRONLY | O_CREAT | O_TRUNC);
    redirect(STDERR_FILENO, err, O_WRONLY | O_CREAT | O_TRUNC);
    std::vector<char*> argv = {const_cast<char*>("pythia")};
    for (const std::string& argument : arguments)
      argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    ::execv(PYTHIA_EXECUTABLE, argv.data());
    ::_exit(127);
  }
  int status = 0;
  if (child < 0 || ::waitpid(child, &status, 0) != child) throw std::runtime_error("cannot run");
  Outcome outcome;
  outcome.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  if (stdout_file.empty()) outcome.out = test_support::read_file(out);
  outcome.err = test_support::read_file(err);
  return outcome;
}

/// The same on the CPU with the bundled model unless `arguments` name another one.
inline Outcome run_on_cpu(Arguments arguments, std::string_view input = "") {
  arguments.insert(arguments.end(), {"--device", "cpu"});
  if (std::none_of(arguments.begin(), arguments.end(),
                   [](const std::string& a) { return a.rfind("--model", 0) == 0; })) {
    arguments.insert(arguments.end(),
                     {"--model", test_support::examples_path("pythia/models/tiny-neox").string()});
  }
  return run(arguments, input);
}

/// Exit code 2, nothing on standard output, and one line on stderr that contains every part.
inline void expect_refusal(const Outcome& outcome, std::initializer_list<std::string> parts) {
  EXPECT_EQ(outcome.exit_code, 2) << outcome.err;
  EXPECT_EQ(outcome.out, "");
  EXPECT_EQ(outcome.err.rfind("pythia: error: ", 0), 0u) << outcome.err;
  EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
  for (const std::string& part : parts) {
    EXPECT_NE(outcome.err.find(part), std::string::npos) << outcome.err << "lacks: " << part;
  }
}

inline nlohmann::json json_of(const std::filesystem::path& file) {
  return nlohmann::json::parse(test_support::read_file(file));
}

inline bool is_empty_dir(const std::filesystem::path& dir) {
  return std::filesystem::directory_iterator(dir) == std::filesystem::directory_iterator();
}

}  // namespace cli_test
