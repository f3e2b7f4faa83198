#include "examples/pythia/cli/interrupt.hpp"

#include <csignal>
#include <cstdlib>

namespace pythia {
namespace {

volatile std::sig_atomic_t noted_signal = 0;

extern "C" void note_signal(int signal) { noted_signal = signal; }

void handle(void (*handler)(int)) {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESETHAND | SA_RESTART;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

}  // namespace

InterruptGuard::InterruptGuard() {
  noted_signal = 0;
  handle(note_signal);
}

InterruptGuard::~InterruptGuard() { handle(SIG_DFL); }

void InterruptGuard::check() const {
  if (noted_signal != 0) throw Interrupted{noted_signal};
}

void die_of(int signal) {
  std::signal(signal, SIG_DFL);
  std::raise(signal);
  std::abort();
}

}  // namespace pythia
