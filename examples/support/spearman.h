#pragma once
// How far two ways to rank the same things agree.

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <vector>

namespace support {

/// 1 for the smallest value; equal values share the mean of their ranks.
inline std::vector<double> ranks(const std::vector<double>& values) {
  std::vector<double> result;
  for (const double value : values) {
    const auto below = std::ranges::count_if(values, [&](double other) { return other < value; });
    const auto equal = std::ranges::count(values, value);
    result.push_back(static_cast<double>(below) + static_cast<double>(equal + 1) / 2);
  }
  return result;
}

/// Pearson's correlation of the ranks (Spearman 1904): 1 for the same order, 0 for unrelated ones, -1 for the opposite order.
inline double spearman(const std::vector<double>& a, const std::vector<double>& b) {
  const double mean = static_cast<double>(a.size() + 1) / 2;
  const auto product = [&](const std::vector<double>& x, const std::vector<double>& y) {
    return std::inner_product(x.begin(), x.end(), y.begin(), 0.0, std::plus{},
                              [&](double p, double q) { return (p - mean) * (q - mean); });
  };
  const std::vector<double> x = ranks(a), y = ranks(b);
  return product(x, y) / std::sqrt(product(x, x) * product(y, y));
}

}  // namespace support
