#pragma once
// Sample tensors for op declarations: float64, the same on every run, away from kinks when asked.

#include <rewind/core/tensor.h>

namespace rewind_lib::ops {

/// Values spread over [low, high], all different, in a scrambled order that `salt` chooses.
Tensor sample(const Shape& shape, double low = -2, double high = 2, int salt = 0);
/// As sample(), but every value keeps `margin` away from each of `kinks`.
Tensor sample_avoiding(const Shape& shape, std::initializer_list<double> kinks, double low = -2, double high = 2, int salt = 0,
                       double margin = 0.05);
/// Integers in [0, limit).
Tensor sample_labels(std::int64_t n, std::int64_t limit, DType dtype = int64, int salt = 0);

}  // namespace rewind_lib::ops
