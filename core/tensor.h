#pragma once
// Tensor: a handle on contiguous elements with a shape and a dtype. Copying a Tensor copies the handle, not the data.
//
// Pass tensors by value and move them (`h = relu(std::move(h))`): the last handle on a value lets an op write its result
// into the same buffer, and lets memory go as early as it can.

#include <rewind/core/dtype.h>
#include <rewind/core/shape.h>
#include <rewind/core/storage.h>

#include <initializer_list>
#include <iosfwd>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace rewind_lib {

/// Where the recipe of a recorded value lives. core carries this for the tape and never looks inside; the tape learns
/// through dropped() that the last handle on a value is gone.
class Recorder {
 public:
  virtual void dropped(std::uint32_t entry, std::uint64_t serial) noexcept = 0;

 protected:
  ~Recorder() = default;
};

/// The value `output` of the entry `entry` of a tape; `serial` tells that entry from later ones in the same place.
struct ValueRef {
  Recorder* recorder = nullptr;
  std::uint64_t serial = 0;
  std::uint32_t entry = 0;
  std::uint32_t output = 0;
};

class Tensor;

namespace detail {
struct alignas(64) TensorImpl {
  RefCount refs;
  DType dtype;
  bool requires_grad;    // a leaf that collects a gradient, or computed from one
  std::uint8_t remakes;  // runs of ops that make it again from what the tape keeps in any case; 0: it is to be kept itself
  std::uint8_t shelved;  // how deeply nested the dry run is that has put the real gradient aside (DryLedger::depth())
  Storage* storage;
  std::size_t offset;  // bytes from storage->data
  ValueRef value;      // recorder == nullptr for leaves and constants
  TensorImpl* grad;    // a leaf's gradient; owned
  Shape shape;
};
static_assert(sizeof(TensorImpl) == 128, "two lines of the caches: one more to wait for, for every tensor that an op looks at");
TensorImpl* new_impl(Storage* storage, std::size_t offset, const Shape& shape, DType dtype);  // takes over the storage reference
void destroy(TensorImpl* impl) noexcept;
/// At the end of a dry run: leaves get back the gradients that they had before it.
void restore_gradients() noexcept;
}  // namespace detail

class Tensor {
 public:
  /// An undefined tensor: no shape, no data; defined() is false.
  Tensor() = default;
  Tensor(const Tensor& other) : impl_(other.impl_) {
    if (impl_ != nullptr) impl_->refs.add();
  }
  Tensor(Tensor&& other) noexcept : impl_(std::exchange(other.impl_, nullptr)) {}
  Tensor& operator=(Tensor other) noexcept {
    std::swap(impl_, other.impl_);
    return *this;
  }
  ~Tensor() {
    if (impl_ != nullptr && impl_->refs.drop()) detail::destroy(impl_);
  }

  bool defined() const { return impl_ != nullptr; }
  const Shape& shape() const { return impl().shape; }
  int rank() const { return impl().shape.rank(); }
  std::int64_t size(int axis) const { return impl().shape[axis]; }
  std::int64_t numel() const { return impl().shape.numel(); }
  DType dtype() const { return impl().dtype; }
  /// Bytes of this tensor's elements (a view's own share, not its storage's).
  std::size_t bytes() const { return static_cast<std::size_t>(numel()) * size_of(dtype()); }
  Category category() const { return impl().storage->category; }
  /// Counts the bytes under this tensor in another category from now on.
  void set_category(Category category) const { recategorize(impl().storage, category); }

  /// The elements, row by row, for reading. Throws Error when T is not the dtype, and for a tensor that a dry run has made.
  template <class T>
    requires is_element<T> std::span<const T> values()
  const { return {static_cast<const T*>(readable(dtype_of<T>)), static_cast<std::size_t>(numel())}; }
  /// The elements for writing. Throws Error as values() does, and for a tensor that a recorded op has computed: its history would
  /// no longer be that of its elements. So it does in a replay (docs/recompute.md) for a tensor that is older, which would be
  /// changed once more. A backward that saved them before, by another handle, will notice and throw.
  template <class T>
    requires is_element<T> std::span<T> mutate() {
      return {static_cast<T*>(writable(dtype_of<T>)), static_cast<std::size_t>(numel())};
    }
  /// The one element of a tensor of any shape with numel() == 1, converted to T. Throws Error otherwise.
  template <class T = double>
    requires std::is_arithmetic_v<T> T item()
  const {
    if constexpr (std::is_integral_v<T>)
      if (dtype() == int64 && numel() == 1) return static_cast<T>(values<std::int64_t>()[0]);  // not every one is a double
    return static_cast<T>(item_as_double());
  }
  /// A copy of the elements. Throws Error when T is not the dtype.
  template <class T>
    requires is_element<T> std::vector<T> to_vector()
  const {
    const auto v = values<T>();
    return {v.begin(), v.end()};
  }

  /// In place: every element becomes `value`; every element is copied from `source` (same shape, any dtype; else Error). Throws
  /// Error where mutate() does. In a dry run, elements stay as they are.
  void fill(double value);
  void copy_from(const Tensor& source);
  /// A tensor with its own copy of the elements; and one converted to another dtype. Neither carries a gradient.
  Tensor clone() const;
  Tensor to(DType dtype) const;
  /// The same elements without a history: no gradient flows through.
  Tensor detach() const;

  /// Marks a leaf whose gradient backward() collects. Throws Error on a computed tensor or an integer one.
  Tensor& set_requires_grad(bool on = true);
  bool requires_grad() const { return impl().requires_grad; }
  /// True when this tensor was not computed by a recorded op.
  bool is_leaf() const { return impl().value.recorder == nullptr; }
  /// The gradient collected so far; undefined when there is none.
  Tensor grad() const;
  /// Throws Error unless it has this tensor's shape and dtype, or is undefined.
  void set_grad(Tensor grad) const;
  /// Moves the gradient out, so that its buffer can be used again.
  Tensor take_grad() const;

  /// Whether two handles are the same tensor object, and whether two tensors share memory.
  bool same(const Tensor& other) const { return impl_ == other.impl_; }
  bool shares_storage(const Tensor& other) const { return impl().storage == other.impl().storage; }

  // For the tape and for ops; user code has no need of them.
  detail::TensorImpl& impl() const {
    if (impl_ == nullptr) undefined();
    return *impl_;
  }
  detail::TensorImpl* release() { return std::exchange(impl_, nullptr); }
  static Tensor adopt(detail::TensorImpl* impl) {
    Tensor t;
    t.impl_ = impl;
    return t;
  }
  /// Raw bytes without checks, for kernels; nullptr in a dry run.
  template <class T>
  T* raw() const {
    Storage* s = impl().storage;
    return s->data == nullptr ? nullptr : reinterpret_cast<T*>(s->data + impl().offset);
  }

 private:
  [[noreturn]] static void undefined();
  void refuse_history(const char* what) const;
  const void* readable(DType as) const;
  void* writable(DType as);
  double item_as_double() const;

  detail::TensorImpl* impl_ = nullptr;
};

namespace detail {
/// Asks for what describes a tensor (fetch.h).
inline void fetch(const TensorImpl* t) {
  if (t != nullptr) fetch(t, sizeof *t);
}
inline void fetch(const Tensor& t) {
  if (t.defined()) fetch(&t.impl());
}
}  // namespace detail

/// Uninitialised elements. All factories allocate in the current memory category (CategoryScope).
Tensor empty(const Shape& shape, DType dtype = float32);
Tensor zeros(const Shape& shape, DType dtype = float32);
Tensor ones(const Shape& shape, DType dtype = float32);
Tensor full(const Shape& shape, double value, DType dtype = float32);
/// Rank 0.
Tensor scalar(double value, DType dtype = float32);
/// 0, 1, ..., n - 1.
Tensor arange(std::int64_t n, DType dtype = float32);
/// Copies elements in row-major order. Throws Error when their number is not shape.numel().
template <class T>
  requires is_element<T> Tensor from(std::span<const T> elements, const Shape& shape);
template <class T>
  requires is_element<T> Tensor from(std::initializer_list<T> elements, const Shape& shape) {
    return from(std::span<const T>(elements.begin(), elements.size()), shape);
  }
template <class T>
  requires is_element<T> Tensor from(const std::vector<T>& elements, const Shape& shape) {
    return from(std::span<const T>(elements), shape);
  }
/// Standard normal, and uniform on [low, high), from the default generator (random.h). Throws Error for integer dtypes, and when
/// low is above high, or further below than the dtype can say.
Tensor randn(const Shape& shape, DType dtype = float32);
Tensor uniform(const Shape& shape, double low = 0, double high = 1, DType dtype = float32);

/// A tensor on the same memory: the same elements in another shape; rows [begin, end) of the leading axis. These views
/// carry no gradient; rewind::reshape and rewind::slice do. Throws Error when the shape has another number of elements, or the rows
/// are not there.
Tensor view_as(const Tensor& tensor, const Shape& shape);
Tensor view_rows(const Tensor& tensor, std::int64_t begin, std::int64_t end);

/// 64 bits that depend on every bit of the elements in order, for comparing results of two runs.
std::uint64_t hash(const Tensor& tensor);

/// "float32 [2, 3] [[1, 2, 3], [4, 5, 6]]", long axes cut in the middle.
std::string to_string(const Tensor& tensor);
std::ostream& operator<<(std::ostream& out, const Tensor& tensor);

}  // namespace rewind_lib
