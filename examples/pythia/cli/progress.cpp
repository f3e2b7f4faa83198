#include "examples/pythia/cli/progress.hpp"

#include <unistd.h>

#include <cstdio>
#include <utility>

namespace pythia {
namespace {

constexpr int kBarCells = 30;
constexpr std::chrono::milliseconds kRedraw{50};
constexpr std::chrono::milliseconds kNextLine{5000};

}  // namespace

Progress::Progress(std::string label, std::string unit, std::int64_t total)
    : label_(std::move(label)),
      unit_(std::move(unit)),
      total_(total),
      terminal_(::isatty(STDERR_FILENO) != 0) {}

Progress::~Progress() {
  if (drawn_) std::fputc('\n', stderr);
}

void Progress::update(std::int64_t done) {
  if (total_ <= 0) return;
  const auto now = std::chrono::steady_clock::now();
  const bool first_or_last = terminal_ && (!drawn_ || done == total_);
  if (!first_or_last && now - last_draw_ < (terminal_ ? kRedraw : kNextLine)) return;
  last_draw_ = now;
  if (terminal_) return draw_bar(done);
  std::fprintf(stderr, "%s: %lld of %lld %s\n", label_.c_str(), static_cast<long long>(done),
               static_cast<long long>(total_), unit_.c_str());
}

void Progress::draw_bar(std::int64_t done) {
  const int filled = static_cast<int>(kBarCells * done / total_);
  const std::string bar = std::string(filled, '#') + std::string(kBarCells - filled, '.');
  std::fprintf(stderr, "\r%s [%s] %3d %% %lld/%lld %s", label_.c_str(), bar.c_str(),
               static_cast<int>(100 * done / total_), static_cast<long long>(done),
               static_cast<long long>(total_), unit_.c_str());
  std::fflush(stderr);
  drawn_ = true;
}

}  // namespace pythia
