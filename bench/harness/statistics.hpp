// Order statistics of a few dozen timings.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

namespace bench {

struct Statistics {
  double median = 0, p05 = 0, p95 = 0;
  double cv = 0;  ///< standard deviation / mean
  int samples = 0;
};

/// The q-quantile of ascending values, linear between neighbours.
inline double quantile(const std::vector<double>& ascending, double q) {
  const double at = q * static_cast<double>(ascending.size() - 1);
  const std::size_t below = static_cast<std::size_t>(at);
  const std::size_t above = std::min(below + 1, ascending.size() - 1);
  return ascending[below] +
         (at - static_cast<double>(below)) * (ascending[above] - ascending[below]);
}

/// Needs one sample at least.
inline Statistics summarise(std::vector<double> samples) {
  std::sort(samples.begin(), samples.end());
  const double count = static_cast<double>(samples.size());
  double sum = 0, squares = 0;
  for (const double sample : samples) sum += sample;
  const double mean = sum / count;
  for (const double sample : samples) squares += (sample - mean) * (sample - mean);
  return {quantile(samples, 0.5), quantile(samples, 0.05), quantile(samples, 0.95),
          std::sqrt(squares / count) / mean, static_cast<int>(samples.size())};
}

}  // namespace bench
