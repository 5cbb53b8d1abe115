#include <rewind/autograd/ops/sample.h>
#include <rewind/core/random.h>

#include <cmath>
#include <vector>

namespace rewind_lib::ops {
namespace {

std::vector<std::int64_t> scramble(std::int64_t n, int salt) {
  std::vector<std::int64_t> order(static_cast<std::size_t>(n));
  random::fill_permutation(order.data(), n, 0x5eedU + static_cast<std::uint64_t>(salt), 0);
  return order;
}

}  // namespace

Tensor sample(const Shape& shape, double low, double high, int salt) { return sample_avoiding(shape, {}, low, high, salt); }

Tensor sample_avoiding(const Shape& shape, std::initializer_list<double> kinks, double low, double high, int salt, double margin) {
  Tensor t = empty(shape, float64);
  if (DryLedger::active()) return t;
  const std::int64_t n = t.numel();
  const auto order = scramble(n, salt);
  auto v = t.mutate<double>();
  for (std::size_t i = 0; i < v.size(); ++i) {
    v[i] = low + (high - low) * (static_cast<double>(order[i]) + 0.5) / static_cast<double>(n);
    for (const double k : kinks)
      if (std::abs(v[i] - k) < margin) v[i] = v[i] < k ? k - margin : k + margin;
  }
  return t;
}

Tensor sample_labels(std::int64_t n, std::int64_t limit, DType dtype, int salt) {
  Tensor t = empty({n}, dtype);
  if (DryLedger::active()) return t;
  const auto order = scramble(n, salt);
  visit_dtype(dtype, [&](auto zero) {
    auto v = t.mutate<decltype(zero)>();
    for (std::size_t i = 0; i < v.size(); ++i) v[i] = static_cast<decltype(zero)>(order[i] % limit);
  });
  return t;
}

}  // namespace rewind_lib::ops
