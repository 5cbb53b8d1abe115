#pragma once
// Timing for the lecture's programs.

#include "progress.h"

#include <algorithm>
#include <limits>

namespace support {

/// Seconds that one call of f takes: the least of `rounds`, after one that warms caches and the allocator. What else runs on the
/// machine can only add to it.
template <class F>
double seconds_of(int rounds, F&& f) {
  double least = std::numeric_limits<double>::infinity();
  for (int round = 0; round <= rounds; ++round) {
    const auto start = Clock::now();
    f();
    if (round > 0) least = std::min(least, seconds_since(start));
  }
  return least;
}

}  // namespace support
