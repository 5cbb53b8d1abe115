#pragma once
// Memory as the user sees it: every byte that tensors and kernels use has a category, a live count and a peak.

#include <rewind/core/error.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace rewind_lib {

/// What a byte is for. Every allocation carries one.
enum class Category : std::uint8_t { parameter, gradient, optimizer_state, activation, input, workspace };
inline constexpr int category_count = 6;
const char* name_of(Category category);

/// Thrown when an allocation would exceed the limit set by memory::set_limit, or the system has no more. The text names
/// the category totals and the five largest live tensors with the op that made them. Nothing is lost: free something
/// (a smaller batch, recompute) and go on.
class OutOfMemory : public Error {
 public:
  using Error::Error;
};

namespace memory {

/// Bytes by category. `total` is the sum for live(); for peak() it is the peak of the sum, which is at most the sum of
/// the categories' own peaks.
struct Usage {
  std::size_t bytes[category_count] = {};
  std::size_t total = 0;
  std::size_t operator[](Category c) const { return bytes[static_cast<int>(c)]; }
  bool operator==(const Usage&) const = default;
};

/// Bytes held now.
Usage live();
/// The most that was held since the last reset_peak(), each category for itself and in total.
Usage peak();
/// What the total was made of at the moment of its peak.
Usage at_peak();
/// Starts peaks anew from what is live now.
void reset_peak();

/// Refuses allocations that would take the live total above `bytes` (0: no limit).
void set_limit(std::size_t bytes);
std::size_t limit();

/// Category totals and peaks as a table, ready to print.
std::string report();

/// 1234567 -> "1.2 MB" (decimal units).
std::string human(std::size_t bytes);

/// Allocations made on this thread while alive are counted in `category`.
class CategoryScope {
 public:
  explicit CategoryScope(Category category);
  ~CategoryScope();
  CategoryScope(const CategoryScope&) = delete;
  CategoryScope& operator=(const CategoryScope&) = delete;

 private:
  Category saved_;
};
Category current_category();

/// Measures a piece of code by itself: the peak since construction, or since a reset_peak() within it, without disturbing the peak
/// of a scope around it. Peaks are the process's (in a dry run, those of this thread's): scopes of two threads at once disturb each
/// other.
class Scope {
 public:
  Scope();
  ~Scope();
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;
  /// Live bytes when the scope began.
  const Usage& before() const { return before_; }
  /// Peak since the scope began.
  Usage peak() const;
  /// What that peak was made of.
  Usage at_peak() const;

 private:
  Usage before_, outer_peak_, outer_at_peak_;
};

/// One change of the live total.
struct Event {
  Category category;
  std::int64_t delta;  ///< bytes allocated (positive) or freed (negative)
  std::size_t total;   ///< live total after the change
  const char* op;      ///< the op that ran, "" outside ops
  const char* module;  ///< the module path, "" outside modules
  bool operator==(const Event&) const = default;
};
/// Records every change until stop_timeline(), which returns them in order.
void start_timeline();
std::vector<Event> stop_timeline();

/// Test hook: the n-th allocation from now (1 is the next) throws OutOfMemory. 0 switches it off.
void fail_at(std::uint64_t n);

/// A live tensor storage, as listed in an out-of-memory error.
struct Holding {
  std::size_t bytes;
  Category category;
  const char* op;
  const char* module;
};
/// The `count` largest live storages, largest first.
std::vector<Holding> largest(int count);

/// Bytes of the process's memory that the arena has touched and not given back. At least live().total (but for
/// rounding), and kept within 2.5 % of the peak, or 5 MB, by giving free pages back before it would exceed that.
std::size_t resident();

}  // namespace memory
}  // namespace rewind_lib
