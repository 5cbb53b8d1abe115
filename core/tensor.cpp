#include <rewind/core/kernels/check.h>
#include <rewind/core/kernels/copy.h>
#include <rewind/core/pool.h>
#include <rewind/core/random.h>
#include <rewind/core/tensor.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <new>
#include <ostream>

namespace rewind_lib {

namespace detail {

TensorImpl* new_impl(Storage* storage, std::size_t offset, const Shape& shape, DType dtype) {
  TensorImpl* impl = Pool<TensorImpl>::take();
  if (impl == nullptr) {
    release(storage);
    throw OutOfMemory("out of memory: the system has no memory for a tensor record");
  }
  return new (impl) TensorImpl{1, dtype, false, 0, 0, storage, offset, {}, nullptr, shape};
}

void destroy(TensorImpl* impl) noexcept {
  const ValueRef value = impl->value;
  if (impl->grad != nullptr) Tensor::adopt(impl->grad);  // drops the reference
  release(impl->storage);
  impl->~TensorImpl();
  Pool<TensorImpl>::give(impl);
  if (value.recorder != nullptr) value.recorder->dropped(value.entry, value.serial);
}

namespace {

/// A leaf whose gradient changes in a dry run, and the gradient that it gets back.
struct Shelved {
  Tensor leaf, grad;
  std::uint8_t depth, before;  // of the dry run that put it aside, and of one around it that had done so before
};
thread_local std::vector<Shelved> shelf;

}  // namespace

// The first time that a dry run touches the gradient of a real leaf: the real one is put aside, and a stand-in takes its
// place, with the same bytes in the dry ledger.
static void shelve_gradient(const Tensor& leaf) {
  TensorImpl& t = leaf.impl();
  if (t.storage->dry == DryLedger::current() || t.shelved == DryLedger::depth()) return;
  if (shelf.size() == shelf.capacity()) shelf.reserve(2 * shelf.size() + 16);
  Tensor stand_in;
  if (t.grad != nullptr) stand_in = Tensor::adopt(new_impl(new_stand_in(*t.grad->storage), 0, t.grad->shape, t.grad->dtype));
  // From here on nothing throws.
  const std::uint8_t before = std::exchange(t.shelved, DryLedger::depth());
  shelf.push_back({leaf, Tensor::adopt(t.grad), t.shelved, before});
  t.grad = stand_in.release();
}

void restore_gradients() noexcept {
  while (!shelf.empty() && shelf.back().depth == DryLedger::depth()) {
    Shelved s = std::move(shelf.back());
    shelf.pop_back();
    const Tensor dry = Tensor::adopt(std::exchange(s.leaf.impl().grad, s.grad.release()));
    s.leaf.impl().shelved = s.before;
  }
}

}  // namespace detail

namespace {

std::size_t byte_count(const Shape& shape, DType dtype) {
  if (shape.numel_or_none() == 0) return 0;
  std::size_t n = size_of(dtype);
  for (const std::int64_t e : shape)
    if (__builtin_mul_overflow(n, static_cast<std::size_t>(e), &n) || n > (std::size_t{1} << 62))
      fail(str("shape ", shape, " of ", dtype, " has more bytes than can be addressed"));
  return n;
}

template <class T>
void append_element(std::string& out, T v) {
  char text[32];
  if constexpr (std::is_floating_point_v<T>)
    std::snprintf(text, sizeof text, "%.6g", static_cast<double>(v));
  else
    std::snprintf(text, sizeof text, "%lld", static_cast<long long>(v));
  out += text;
}

// Prints axis `axis` of the block at `data`; of more than eight elements, the first and last three.
template <class T>
void append_block(std::string& out, const T* data, const Shape& shape, int axis) {
  if (axis == shape.rank()) return append_element(out, *data);
  std::int64_t stride = 1;
  for (int i = axis + 1; i < shape.rank(); ++i) stride *= shape[i];
  const std::int64_t n = shape[axis];
  out += '[';
  for (std::int64_t i = 0; i < n; ++i) {
    if (i > 0) out += ", ";
    if (n > 8 && i == 3) {
      out += "..., ";
      i = n - 3;
    }
    append_block(out, data + i * stride, shape, axis + 1);
  }
  out += ']';
}

}  // namespace

void Tensor::undefined() { fail("this tensor is undefined: it was default-constructed, moved from, or has no gradient yet"); }

const void* Tensor::readable(DType as) const {
  const detail::TensorImpl& t = impl();
  if (t.dtype != as)
    fail(
        str("the tensor ", t.shape, " is ", t.dtype, " but its elements were asked for as ", as, "; convert it with to(", as, ")"));
  if (t.storage->dry != 0) fail(str("the tensor ", t.shape, " belongs to a dry run and has no elements to read or write"));
  return t.storage->data + t.offset;
}

void Tensor::refuse_history(const char* what) const {
  if (!is_leaf())
    fail(str(what, ": this tensor ", shape(),
             " was computed by a recorded op, and backward would not know that it has changed. Write to ",
             "a detach(), or compute it under NoGrad"));
}

void* Tensor::writable(DType as) {
  const void* data = readable(as);
  refuse_history("mutate");
  if (impl().storage->era < location().replay)
    fail(
        str("a tensor ", dtype(), " ", shape(), location().module[0] != 0 ? str(", in module ", location().module) : "",
            ", is changed in place by what is recomputed, and existed before: each run would change it again. Let a layer move its "
            "state only if (!replaying()); for scratch, make a tensor in there"));
  ++impl().storage->version;
  return const_cast<void*>(data);
}

double Tensor::item_as_double() const {
  if (numel() != 1) fail(str("item: needs a tensor with one element, this one has shape ", shape()));
  return visit_dtype(dtype(), [&](auto zero) { return static_cast<double>(values<decltype(zero)>()[0]); });
}

void Tensor::fill(double value) {
  refuse_history("fill");
  if (DryLedger::active()) return;
  visit_dtype(dtype(), [&](auto zero) {
    decltype(zero) v;
    kernels::cast(&value, &v, 1);
    std::ranges::fill(mutate<decltype(zero)>(), v);
  });
}

void Tensor::copy_from(const Tensor& source) {
  if (!(shape() == source.shape())) fail(str("copy_from: shapes differ: ", shape(), " from ", source.shape()));
  refuse_history("copy_from");
  if (DryLedger::active()) return;
  const std::size_t begin = impl().offset, from = source.impl().offset;
  if (shares_storage(source) && begin < from + source.bytes() && from < begin + bytes()) return copy_from(source.clone());
  visit_dtype(source.dtype(), [&](auto from_zero) {
    visit_dtype(dtype(), [&](auto to_zero) {
      kernels::cast(source.values<decltype(from_zero)>().data(), mutate<decltype(to_zero)>().data(), numel());
    });
  });
}

Tensor Tensor::clone() const { return to(dtype()); }

Tensor Tensor::to(DType as) const {
  Tensor copy = empty(shape(), as);
  copy.copy_from(*this);
  return copy;
}

Tensor Tensor::detach() const { return view_as(*this, shape()); }

Tensor& Tensor::set_requires_grad(bool on) {
  if (on && !is_float(dtype())) fail(str("set_requires_grad: only float tensors have gradients, this one is ", dtype()));
  if (!is_leaf()) fail("set_requires_grad: this tensor was computed by a recorded op; only leaves can be marked (use detach())");
  impl().requires_grad = on;
  return *this;
}

Tensor Tensor::grad() const {
  detail::TensorImpl* g = impl().grad;
  if (g == nullptr) return {};
  g->refs.add();
  return adopt(g);
}

void Tensor::set_grad(Tensor grad) const {
  if (grad.defined() && (!(grad.shape() == shape()) || grad.dtype() != dtype()))
    fail(str("set_grad: the gradient is ", grad.dtype(), " ", grad.shape(), " but the tensor is ", dtype(), " ", shape()));
  const Tensor old = take_grad();
  impl().grad = std::exchange(grad.impl_, nullptr);
}

Tensor Tensor::take_grad() const {
  if (DryLedger::active()) detail::shelve_gradient(*this);
  return adopt(std::exchange(impl().grad, nullptr));
}

Tensor empty(const Shape& shape, DType dtype) {
  return Tensor::adopt(detail::new_impl(new_storage(byte_count(shape, dtype), memory::current_category()), 0, shape, dtype));
}

Tensor full(const Shape& shape, double value, DType dtype) {
  Tensor t = empty(shape, dtype);
  t.fill(value);
  return t;
}
Tensor zeros(const Shape& shape, DType dtype) { return full(shape, 0, dtype); }
Tensor ones(const Shape& shape, DType dtype) { return full(shape, 1, dtype); }
Tensor scalar(double value, DType dtype) { return full({}, value, dtype); }

Tensor arange(std::int64_t n, DType dtype) {
  Tensor t = empty({n}, dtype);
  if (DryLedger::active()) return t;
  visit_dtype(dtype, [&](auto zero) {
    auto v = t.mutate<decltype(zero)>();
    for (std::size_t i = 0; i < v.size(); ++i) v[i] = static_cast<decltype(zero)>(i);
  });
  return t;
}

template <class T>
  requires is_element<T> Tensor from(std::span<const T> elements, const Shape& shape) {
    if (static_cast<std::int64_t>(elements.size()) != shape.numel())
      fail(str("from: ", elements.size(), " elements do not fill shape ", shape, ", which has ", shape.numel()));
    Tensor t = empty(shape, dtype_of<T>);
    if (!DryLedger::active()) std::ranges::copy(elements, t.mutate<T>().begin());
    return t;
  }
template Tensor from(std::span<const float>, const Shape&);
template Tensor from(std::span<const double>, const Shape&);
template Tensor from(std::span<const std::int32_t>, const Shape&);
template Tensor from(std::span<const std::int64_t>, const Shape&);

namespace {

template <class Fill>
Tensor random_tensor(const Shape& shape, DType dtype, const char* name, Fill fill) {
  if (!is_float(dtype)) fail(str(name, ": needs a float dtype, got ", dtype));
  Tensor t = empty(shape, dtype);
  visit_float(dtype, [&](auto zero) {
    using T = decltype(zero);
    random::Generator& generator = random::default_generator();
    const std::uint64_t offset = generator.take(random::words<T>(t.numel()));
    if (!DryLedger::active()) fill(t.mutate<T>(), generator.seed(), offset);
  });
  return t;
}

}  // namespace

Tensor randn(const Shape& shape, DType dtype) {
  return random_tensor(shape, dtype, "randn", []<class T>(std::span<T> v, std::uint64_t seed, std::uint64_t offset) {
    random::fill_normal(v.data(), static_cast<std::int64_t>(v.size()), T{0}, T{1}, seed, offset);
  });
}

Tensor uniform(const Shape& shape, double low, double high, DType dtype) {
  if (!(low <= high)) fail(str("uniform: low must not be above high, got ", low, " and ", high));
  return random_tensor(shape, dtype, "uniform", [&]<class T>(std::span<T> v, std::uint64_t seed, std::uint64_t offset) {
    random::fill_uniform(v.data(), static_cast<std::int64_t>(v.size()), static_cast<T>(low), static_cast<T>(high), seed, offset);
  });
}

Tensor view_as(const Tensor& tensor, const Shape& shape) {
  const detail::TensorImpl& t = tensor.impl();
  if (shape.numel_or_none() != t.shape.numel())
    fail(str("view_as: shape ", shape, " does not have the ", t.shape.numel(), " elements of ", t.shape));
  retain(t.storage);
  return Tensor::adopt(detail::new_impl(t.storage, t.offset, shape, t.dtype));
}

Tensor view_rows(const Tensor& tensor, std::int64_t begin, std::int64_t end) {
  const detail::TensorImpl& t = tensor.impl();
  if (t.shape.rank() == 0) fail("view_rows: a tensor of rank 0 has no rows");
  if (begin < 0 || begin > end || end > t.shape[0])
    fail(str("view_rows: rows [", begin, ", ", end, ") do not lie in shape ", t.shape));
  Shape shape = t.shape;
  const std::int64_t row = t.shape[0] == 0 ? 0 : t.shape.numel() / t.shape[0];
  shape.set(0, end - begin);
  retain(t.storage);
  return Tensor::adopt(
      detail::new_impl(t.storage, t.offset + static_cast<std::size_t>(begin * row) * size_of(t.dtype), shape, t.dtype));
}

std::uint64_t hash(const Tensor& tensor) {
  return visit_dtype(tensor.dtype(), [&](auto zero) {
    return kernels::hash(tensor.values<decltype(zero)>().data(), static_cast<std::int64_t>(tensor.bytes()));
  });
}

std::string to_string(const Tensor& tensor) {
  if (!tensor.defined()) return "undefined";
  std::string out = str(tensor.dtype(), " ", tensor.shape());
  if (tensor.impl().storage->dry != 0) return out + " (dry)";
  out += ' ';
  if (tensor.numel() == 0) return out + "[]";
  visit_dtype(tensor.dtype(), [&](auto zero) { append_block(out, tensor.values<decltype(zero)>().data(), tensor.shape(), 0); });
  return out;
}

std::ostream& operator<<(std::ostream& out, const Tensor& tensor) { return out << to_string(tensor); }

}  // namespace rewind_lib
