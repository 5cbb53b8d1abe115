#include <rewind/core/shape.h>

#include <algorithm>
#include <ostream>

namespace rewind_lib {

Shape::Shape(std::span<const std::int64_t> extents) {
  for (std::int64_t e : extents) push_back(e);
}

void Shape::push_back(std::int64_t extent) {
  if (rank_ == max_rank) fail(str("shape: at most ", max_rank, " axes are supported, got one more after ", *this));
  if (extent < 0) fail(str("shape: extents must not be negative, got ", extent, " after ", *this));
  extent_[rank_++] = extent;
}

std::int64_t Shape::numel_or_none() const {
  std::int64_t n = 1;
  for (std::int64_t e : *this)
    if (e == 0) return 0;
  for (std::int64_t e : *this)
    if (__builtin_mul_overflow(n, e, &n)) return -1;
  return n;
}

void Shape::bad_extent(std::int64_t extent) { fail(str("shape: extents must not be negative, got ", extent)); }

void Shape::bad_axis(int axis) const {
  if (rank_ == 0) fail(str("axis ", axis, " does not exist: the shape [] has no axes"));
  fail(str("axis ", axis, " does not exist in shape ", *this, ": axes go from ", -rank_, " to ", rank_ - 1));
}

void append(std::string& out, const Shape& shape) {
  out += '[';
  for (int i = 0; i < shape.rank(); ++i) {
    if (i > 0) out += ", ";
    out += std::to_string(shape[i]);
  }
  out += ']';
}

std::ostream& operator<<(std::ostream& out, const Shape& shape) { return out << str(shape); }

Shape broadcast(const Shape& a, const Shape& b, std::string_view op) {
  const int rank = std::max(a.rank(), b.rank());
  Shape out;
  for (int i = 0; i < rank; ++i) {
    const int ia = i - (rank - a.rank()), ib = i - (rank - b.rank());
    const std::int64_t ea = ia < 0 ? 1 : a[ia], eb = ib < 0 ? 1 : b[ib];
    if (ea != eb && ea != 1 && eb != 1)
      fail(str(op, ": shapes ", a, " and ", b, " do not broadcast: aligned from the right, axis ", i, " has extents ", ea, " and ",
               eb, "; they must be equal, or one of them 1"));
    out.push_back(ea == 1 ? eb : ea);
  }
  return out;
}

}  // namespace rewind_lib
