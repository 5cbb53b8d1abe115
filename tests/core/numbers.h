#pragma once
// Input values for kernel tests: the same on every machine, in [-1, 1.02), different by seed.

#include <cstddef>
#include <cstdint>
#include <vector>

template <class T>
std::vector<T> numbers(std::int64_t n, int seed) {
  std::vector<T> v(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < v.size(); ++i)
    v[i] = static_cast<T>((i * 7919 + static_cast<std::size_t>(seed) * 104729) % 1009) / 500 - 1;
  return v;
}
