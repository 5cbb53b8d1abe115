#pragma once
// Timing for the lecture's programs.

#include "progress.h"

#include <algorithm>
#include <vector>

namespace support {

inline double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

/// Seconds that one call of f takes: the median of `rounds`, after one that warms caches and the allocator.
template <class F>
double seconds_of(int rounds, F&& f) {
  std::vector<double> seconds;
  for (int round = 0; round <= rounds; ++round) {
    const auto start = Clock::now();
    f();
    if (round > 0) seconds.push_back(seconds_since(start));
  }
  return median(std::move(seconds));
}

}  // namespace support
