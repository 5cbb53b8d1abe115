#pragma once
// Axes as ops keep them: normalised numbers, and bit masks for sets (bit i: axis i).

#include <rewind/autograd/op.h>

namespace rewind_lib::ops {

inline void check_defined(std::string_view op, Inputs in) {
  for (std::size_t i = 0; i < in.size(); ++i)
    if (!in[i].defined()) fail(str(op, ": input ", i, " is undefined (default-constructed or moved from)"));
}

/// An axis of `shape` in [-rank, rank), mapped to [0, rank).
inline int check_axis(std::string_view op, const Shape& shape, int axis) {
  const int rank = shape.rank();
  if (axis >= -rank && axis < rank) return axis < 0 ? axis + rank : axis;
  fail(rank == 0 ? str(op, ": axis ", axis, " does not exist: the shape [] has no axes")
                 : str(op, ": axis ", axis, " does not exist in shape ", shape, ": axes go from ", -rank, " to ", rank - 1));
}

constexpr std::uint32_t all_axes(int rank) { return (std::uint32_t{1} << rank) - 1; }

/// The set of `axes`; all when none are given.
inline std::uint32_t axis_mask(std::string_view op, const Shape& shape, const std::vector<int>& axes) {
  if (axes.empty()) return all_axes(shape.rank());
  std::uint32_t mask = 0;
  for (const int a : axes) {
    const std::uint32_t one = bit(check_axis(op, shape, a));
    if ((mask & one) != 0) fail(str(op, ": axis ", a, " of shape ", shape, " is given twice"));
    mask |= one;
  }
  return mask;
}

inline void check_mask(std::string_view op, const Shape& shape, std::uint32_t axes) {
  for (int i = shape.rank(); i < 32; ++i)
    if ((axes & bit(i)) != 0) check_axis(op, shape, i);
}

/// `shape` without the axes of a set; with keep, they stay with extent 1.
inline Shape reduced_shape(const Shape& shape, std::uint32_t axes, bool keep) {
  Shape out;
  for (int i = 0; i < shape.rank(); ++i) {
    if ((axes & bit(i)) == 0)
      out.push_back(shape[i]);
    else if (keep)
      out.push_back(1);
  }
  return out;
}

/// Elements of `shape` that come to one element of the reduced shape.
inline std::int64_t reduced_count(const Shape& shape, std::uint32_t axes) {
  std::int64_t n = 1;
  for (int i = 0; i < shape.rank(); ++i)
    if ((axes & bit(i)) != 0) n *= shape[i];
  return n;
}

}  // namespace rewind_lib::ops
