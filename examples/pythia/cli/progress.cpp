#include "examples/pythia/cli/progress.hpp"

#include <unistd.h>

#include <cstdio>
#include <utility>

namespace pythia {
namespace {

constexpr int kBarCells = 30;
constexpr std::chrono::milliseconds kRedraw{50};

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
  if (terminal_) {
    const auto now = std::chrono::steady_clock::now();
    if (done < total_ && drawn_ && now - last_draw_ < kRedraw) return;
    last_draw_ = now;
    draw_bar(done);
    return;
  }
  const int tenth = static_cast<int>(10 * done / total_);
  if (tenth == last_tenth_) return;
  last_tenth_ = tenth;
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
