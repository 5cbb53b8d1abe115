#pragma once
// Sums, means and maxima over any axes of a row-major array (rank up to 8), and the way back. T: float, double.
// `axes` has bit i set when axis i is reduced; outputs have the kept axes in order. An empty sum is 0.
// `scratch` has the number of elements that the function named *_scratch gives (it may be null when that is 0).

#include <cstdint>

namespace rewind_lib::kernels {

/// Doubles that sum() needs.
std::int64_t sum_scratch(const std::int64_t* extent, int rank, std::uint32_t axes);
/// y = scale * (sum of x over axes). The mean is scale = 1 / (product of the reduced extents).
template <class T>
void sum(const T* x, const std::int64_t* extent, int rank, std::uint32_t axes, T scale, T* y, double* scratch);

/// y[full] = scale * g[reduced]: g repeated along the reduced axes; the gradient of sum (and broadcasting itself).
template <class T>
void expand(const T* g, const std::int64_t* extent, int rank, std::uint32_t axes, T scale, T* y);

/// Maximum over axes: y its value, index its flat position in x (the first of equals; NaN counts as greatest). No reduced
/// axis is empty.
template <class T>
void max(const T* x, const std::int64_t* extent, int rank, std::uint32_t axes, T* y, std::int64_t* index);
/// Position along one axis of the maximum, x being [outer, n, inner]. Index: int32, int64.
template <class T, class Index>
void argmax(const T* x, std::int64_t outer, std::int64_t n, std::int64_t inner, Index* index);

/// y[i] = x[index[i]].
template <class T>
void gather(const T* x, const std::int64_t* index, std::int64_t n, T* y);
/// y = 0 but y[index[i]] = g[i]; indices differ. The transpose of gather and the gradient of max.
template <class T>
void scatter(const T* g, const std::int64_t* index, std::int64_t n, T* y, std::int64_t y_size);

}  // namespace rewind_lib::kernels
