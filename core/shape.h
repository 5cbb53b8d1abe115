#pragma once
// Shape: the extents of a tensor, at most eight of them, held in place (no heap).

#include <rewind/core/error.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <iosfwd>
#include <span>

namespace rewind_lib {

class Shape {
 public:
  static constexpr int max_rank = 8;

  constexpr Shape() = default;
  Shape(std::initializer_list<std::int64_t> extents) : Shape(std::span(extents.begin(), extents.size())) {}
  /// Throws Error when there are more than max_rank extents or one is negative.
  explicit Shape(std::span<const std::int64_t> extents);

  int rank() const { return rank_; }
  /// Number of elements; 1 for rank 0.
  std::int64_t numel() const {
    std::uint64_t n = 1;  // without a sign: an extent of 0 may stand behind others whose product is no number
    for (int i = 0; i < rank_; ++i) n *= static_cast<std::uint64_t>(extent_[i]);
    return static_cast<std::int64_t>(n);
  }
  /// The same, or -1 where that is no std::int64_t: for a shape that no tensor has yet.
  std::int64_t numel_or_none() const;
  /// Extent of an axis; negative axes count from the end. Throws Error when out of range.
  std::int64_t operator[](int axis) const { return extent_[static_cast<std::size_t>(normalize_axis(axis))]; }
  void set(int axis, std::int64_t extent) {
    if (extent < 0) bad_extent(extent);
    extent_[static_cast<std::size_t>(normalize_axis(axis))] = extent;
  }
  void push_back(std::int64_t extent);
  /// Maps an axis in [-rank, rank) to [0, rank). Throws Error when out of range.
  int normalize_axis(int axis) const {
    if (axis < -rank_ || axis >= rank_) bad_axis(axis);
    return axis < 0 ? axis + rank_ : axis;
  }

  const std::int64_t* begin() const { return extent_; }
  const std::int64_t* end() const { return extent_ + rank_; }

  friend bool operator==(const Shape& a, const Shape& b) {
    if (a.rank_ != b.rank_) return false;
    for (int i = 0; i < a.rank_; ++i)
      if (a.extent_[i] != b.extent_[i]) return false;
    return true;
  }

 private:
  [[noreturn]] void bad_axis(int axis) const;
  [[noreturn]] static void bad_extent(std::int64_t extent);

  std::int32_t rank_ = 0;
  std::int64_t extent_[max_rank] = {};
};

/// "[2, 3, 4]"
void append(std::string& out, const Shape& shape);
std::ostream& operator<<(std::ostream& out, const Shape& shape);

/// The shape that a and b broadcast to (NumPy's rule: align right, extents equal or 1).
/// Throws Error naming `op` and both shapes when they do not broadcast.
Shape broadcast(const Shape& a, const Shape& b, std::string_view op);

}  // namespace rewind_lib
