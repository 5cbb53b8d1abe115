#pragma once
// Looking at values: the NaN guard and the comparison of replays.

#include <cstdint>

namespace rewind_lib::kernels {

/// Index of the first element that is infinite or NaN, or -1. T: float, double.
template <class T>
std::int64_t first_non_finite(const T* x, std::int64_t n);

/// 64-bit hash of n bytes in order (0.0 and -0.0 differ, NaNs differ by their bits). Not for adversaries.
std::uint64_t hash(const void* data, std::int64_t bytes);

}  // namespace rewind_lib::kernels
