#pragma once
// Data movement on row-major arrays of rank up to 8. T: float, double, int32, int64. Outputs never overlap inputs.

#include <cstdint>

namespace rewind_lib::kernels {

/// Axis i of y is axis axes[i] of x.
template <class T>
void permute(const T* x, const std::int64_t* extent, int rank, const int* axes, T* y);

/// y = x[start : start + size] on every axis; `extent` is that of x.
template <class T>
void slice(const T* x, const std::int64_t* extent, int rank, const std::int64_t* start, const std::int64_t* size, T* y);
/// y = value everywhere, but x at `start`; `extent` is that of y, `size` that of x. With value 0 the transpose of slice;
/// pad is start = before, extent = before + size + after, and slice is its transpose.
template <class T>
void paste(const T* x, const std::int64_t* extent, int rank, const std::int64_t* start, const std::int64_t* size, T value, T* y);

/// Copies `rows` rows of `width` elements between arrays with rows x_stride and y_stride elements apart. Concatenation
/// along an axis: outer = product of the extents before it, inner = product after it; piece p with extent e at offset o
/// of total E is copy_rows(x_p, e * inner, y + o * inner, E * inner, outer, e * inner). Splitting swaps the two.
template <class T>
void copy_rows(const T* x, std::int64_t x_stride, T* y, std::int64_t y_stride, std::int64_t rows, std::int64_t width);

template <class T>
void copy(const T* x, T* y, std::int64_t n);

/// Converts as static_cast does, but a float to an integer saturates, and NaN gives 0.
template <class From, class To>
void cast(const From* x, To* y, std::int64_t n);

}  // namespace rewind_lib::kernels
