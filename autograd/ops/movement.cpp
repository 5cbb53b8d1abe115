// reshape, permute, concat, slice and pad. They move elements of any dtype; slice and pad are each other's transposes.

#include <rewind/autograd/functional.h>
#include <rewind/autograd/ops/axes.h>
#include <rewind/autograd/ops/check.h>
#include <rewind/autograd/ops/registry.h>
#include <rewind/autograd/ops/sample.h>
#include <rewind/core/kernels/copy.h>

namespace rewind_lib {
namespace {

using ops::check_defined;
using ops::sample;

struct ShapeAttr {
  Shape shape;
};

struct Reshape {
  static constexpr const char* name = "reshape";
  static constexpr const char* input_names = "x";
  static constexpr const char* output_names = "y";
  static constexpr Kind kind = Kind::movement;
  using Attr = ShapeAttr;

  static Specs infer(Inputs in, const Attr& a) {
    check_defined(name, in);
    if (const std::int64_t n = a.shape.numel_or_none(); in[0].numel() != n)
      fail(str(name, ": shape ", in[0].shape(), " has ", in[0].numel(), " elements, ", a.shape, " has ",
               n < 0 ? std::string("more than can be counted") : str(n)));
    return {{a.shape, in[0].dtype(), 0}};
  }
  static Cost cost(Inputs, const Specs&, const Attr&) { return {.bytes_read = 0, .bytes_written = 0}; }
  static void forward(const Forward&, const Attr&) {}
  static Saves saves(const Attr&, std::uint32_t) { return {}; }
  static void vjp(Vjp& v, const Attr&) {
    const Attr back{v.input_shape(0)};
    v.give(0, apply_one(ops::reshape_op, {v.grad(0)}, &back));
  }
  static void samples(Samples<Attr> s) {
    const Shape pairs[][2] = {{{}, {}},
                              {{}, {1}},
                              {{1}, {}},
                              {{1}, {1, 1}},
                              {{6}, {2, 3}},
                              {{6}, {3, 2}},
                              {{6}, {6}},
                              {{2, 3}, {6}},
                              {{2, 3}, {3, 2}},
                              {{2, 3}, {1, 6}},
                              {{2, 3}, {6, 1}},
                              {{2, 3}, {2, 1, 3}},
                              {{2, 3, 4}, {24}},
                              {{2, 3, 4}, {6, 4}},
                              {{2, 3, 4}, {2, 12}},
                              {{2, 3, 4}, {4, 3, 2}},
                              {{2, 3, 4}, {2, 2, 2, 3}},
                              {{17}, {1, 17}},
                              {{3, 17}, {51}},
                              {{0, 3}, {3, 0}},
                              {{2, 2, 2, 2}, {4, 4}}};
    for (const auto& p : pairs) s.add({sample(p[0])}, {p[1]});
    s.add({arange(6, int64)}, {Shape{2, 3}});
    s.error({sample({2, 3})}, {Shape{4}}, "shape [2, 3] has 6 elements, [4] has 4");
    s.error({sample({})}, {Shape{0}}, "shape [] has 1 elements");
    s.error({Tensor()}, {Shape{1}}, "input 0 is undefined");
  }
};

struct PermuteAttr {
  int axes[Shape::max_rank];
  int rank;
};

PermuteAttr permutation(std::initializer_list<int> axes) {
  PermuteAttr a{{}, 0};
  for (const int i : axes) a.axes[a.rank++] = i;
  return a;
}

struct Permute {
  static constexpr const char* name = "permute";
  static constexpr const char* input_names = "x";
  static constexpr const char* output_names = "y";
  static constexpr Kind kind = Kind::movement;
  using Attr = PermuteAttr;

  static Specs infer(Inputs in, const Attr& a) {
    check_defined(name, in);
    const Shape& x = in[0].shape();
    if (a.rank != x.rank()) fail(str(name, ": shape ", x, " needs ", x.rank(), " axes, got ", a.rank));
    Shape y;
    std::uint32_t seen = 0;
    for (int i = 0; i < a.rank; ++i) {
      const int axis = ops::check_axis(name, x, a.axes[i]);
      if ((seen & bit(axis)) != 0) fail(str(name, ": axis ", axis, " of shape ", x, " is given twice"));
      seen |= bit(axis);
      y.push_back(x[axis]);
    }
    return {{y, in[0].dtype()}};
  }
  static Cost cost(Inputs, const Specs&, const Attr&) { return {}; }
  static void forward(const Forward& f, const Attr& a) {
    visit_dtype(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      const Shape& x = f.in_shape(0);
      int axes[Shape::max_rank];
      for (int i = 0; i < a.rank; ++i) axes[i] = x.normalize_axis(a.axes[i]);
      kernels::permute(f.in<T>(0), x.begin(), x.rank(), axes, f.out<T>(0));
    });
  }
  static Saves saves(const Attr&, std::uint32_t) { return {}; }
  static void vjp(Vjp& v, const Attr& a) {
    Attr inverse{{}, a.rank};
    for (int i = 0; i < a.rank; ++i) inverse.axes[v.input_shape(0).normalize_axis(a.axes[i])] = i;
    v.give(0, apply_one(ops::permute_op, {v.grad(0)}, &inverse));
  }
  static void samples(Samples<Attr> s) {
    s.add({sample({})}, permutation({}));
    s.add({sample({5})}, permutation({0}));
    for (const Shape& shape : {Shape{2, 3}, Shape{1, 5}, Shape{17, 3}})
      for (const auto& p : {permutation({0, 1}), permutation({1, 0})}) s.add({sample(shape)}, p);
    for (const Shape& shape : {Shape{2, 3, 4}, Shape{3, 1, 2}})
      for (const auto& p : {permutation({0, 2, 1}), permutation({1, 0, 2}), permutation({1, 2, 0}), permutation({2, 0, 1}),
                            permutation({-1, 1, 0})})
        s.add({sample(shape)}, p);
    for (const auto& p :
         {permutation({0, 3, 1, 2}), permutation({0, 2, 3, 1}), permutation({3, 2, 1, 0}), permutation({1, 0, 3, 2})})
      s.add({sample({2, 3, 2, 2})}, p);
    s.add({sample({2, 1, 2, 3, 2})}, permutation({4, 2, 0, 1, 3}));
    s.add({arange(4, int32)}, permutation({0}));
    s.error({sample({2, 3})}, permutation({0}), "shape [2, 3] needs 2 axes, got 1");
    s.error({sample({2, 3})}, permutation({0, 2}), "axis 2 does not exist in shape [2, 3]");
    s.error({sample({2, 3})}, permutation({1, -1}), "axis 1 of shape [2, 3] is given twice");
    s.error({Tensor()}, permutation({}), "input 0 is undefined");
  }
};

/// A box of x: `size` elements from `start` on, on every axis.
struct BoxAttr {
  Shape start, size;
};

Tensor slice_box(Tensor x, const Shape& start, const Shape& size) {
  const BoxAttr attr{start, size};
  return apply_one(ops::slice_op, {std::move(x)}, &attr);
}

/// Elements put before and after x on every axis.
struct PadAttr {
  Shape before, after;
  double value;
};

Tensor pad_box(Tensor x, const PadAttr& attr) { return apply_one(ops::pad_op, {std::move(x)}, &attr); }

struct Slice {
  static constexpr const char* name = "slice";
  static constexpr const char* input_names = "x";
  static constexpr const char* output_names = "y";
  static constexpr Kind kind = Kind::movement;
  using Attr = BoxAttr;

  static Specs infer(Inputs in, const Attr& a) {
    check_defined(name, in);
    const Shape& x = in[0].shape();
    if (a.start.rank() != x.rank() || a.size.rank() != x.rank())
      fail(str(name, ": shape ", x, " needs ", x.rank(), " positions and sizes, got ", a.start.rank(), " and ", a.size.rank()));
    for (int i = 0; i < x.rank(); ++i)
      if (a.start[i] + a.size[i] > x[i])
        fail(str(name, ": elements [", a.start[i], ", ", a.start[i] + a.size[i], ") of axis ", i, " do not lie in shape ", x));
    Spec y{a.size, in[0].dtype()};
    if (leading(x, a)) y.view_offset = x.rank() == 0 ? 0 : a.start[0] * row_bytes(x, in[0].dtype());
    return {y};
  }
  static Cost cost(Inputs in, const Specs& out, const Attr& a) {
    const std::int64_t bytes =
        leading(in[0].shape(), a) ? 0 : out[0].shape.numel() * static_cast<std::int64_t>(size_of(out[0].dtype));
    return {.bytes_read = bytes, .bytes_written = bytes};
  }
  static void forward(const Forward& f, const Attr& a) {
    const Shape& x = f.in_shape(0);
    if (leading(x, a)) return;
    visit_dtype(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      kernels::slice(f.in<T>(0), x.begin(), x.rank(), a.start.begin(), a.size.begin(), f.out<T>(0));
    });
  }
  static Saves saves(const Attr&, std::uint32_t) { return {}; }
  static void vjp(Vjp& v, const Attr& a) {
    PadAttr back{a.start, v.input_shape(0), 0};
    for (int i = 0; i < a.start.rank(); ++i) back.after.set(i, v.input_shape(0)[i] - a.start[i] - a.size[i]);
    v.give(0, pad_box(v.grad(0), back));
  }
  static void samples(Samples<Attr> s) {
    s.add({sample({})}, {{}, {}});
    for (const auto& [start, size] : {std::pair{0, 7}, {0, 3}, {3, 4}, {6, 1}, {2, 0}})
      s.add({sample({7})}, {Shape{start}, Shape{size}});
    for (const Shape& start : {Shape{0, 0}, Shape{1, 0}, Shape{0, 2}, Shape{1, 2}})
      for (const Shape& size : {Shape{1, 1}, Shape{2, 3}}) s.add({sample({3, 5})}, {start, size});
    s.add({sample({3, 5})}, {Shape{1, 0}, Shape{2, 5}});
    for (const Shape& start : {Shape{0, 0, 0}, Shape{1, 0, 1}, Shape{0, 1, 2}})
      for (const Shape& size : {Shape{1, 2, 2}, Shape{1, 1, 1}}) s.add({sample({2, 3, 4})}, {start, size});
    s.add({sample({2, 2, 3, 2})}, {Shape{0, 1, 0, 0}, Shape{2, 1, 3, 2}});
    s.add({arange(7, int64)}, {Shape{2}, Shape{3}});
    s.error({sample({3, 5})}, {Shape{0, 3}, Shape{3, 3}}, "elements [3, 6) of axis 1 do not lie in shape [3, 5]");
    s.error({sample({3, 5})}, {Shape{0}, Shape{3}}, "shape [3, 5] needs 2 positions and sizes, got 1 and 1");
    s.error({Tensor()}, {{}, {}}, "input 0 is undefined");
  }

 private:
  /// Whole rows of the leading axis lie together: a view will do.
  static bool leading(const Shape& x, const Attr& a) {
    for (int i = 1; i < x.rank(); ++i)
      if (a.size[i] != x[i]) return false;
    return true;
  }
  static std::int64_t row_bytes(const Shape& x, DType dtype) {
    std::int64_t n = static_cast<std::int64_t>(size_of(dtype));
    for (int i = 1; i < x.rank(); ++i) n *= x[i];
    return n;
  }
};

struct Pad {
  static constexpr const char* name = "pad";
  static constexpr const char* input_names = "x";
  static constexpr const char* output_names = "y";
  static constexpr Kind kind = Kind::movement;
  using Attr = PadAttr;

  static Specs infer(Inputs in, const Attr& a) {
    check_defined(name, in);
    const Shape& x = in[0].shape();
    if (a.before.rank() != x.rank() || a.after.rank() != x.rank())
      fail(str(name, ": shape ", x, " needs ", x.rank(), " pairs of widths, got ", a.before.rank()));
    Shape y;
    for (int i = 0; i < x.rank(); ++i) y.push_back(a.before[i] + x[i] + a.after[i]);
    return {{y, in[0].dtype()}};
  }
  static Cost cost(Inputs, const Specs&, const Attr&) { return {}; }
  static void forward(const Forward& f, const Attr& a) {
    visit_dtype(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      const Shape &x = f.in_shape(0), &y = f.out_shape(0);
      T value;
      kernels::cast(&a.value, &value, 1);  // saturates, as fill() does
      kernels::paste(f.in<T>(0), y.begin(), y.rank(), a.before.begin(), x.begin(), value, f.out<T>(0));
    });
  }
  static Saves saves(const Attr&, std::uint32_t) { return {}; }
  static void vjp(Vjp& v, const Attr& a) { v.give(0, slice_box(v.grad(0), a.before, v.input_shape(0))); }
  static void samples(Samples<Attr> s) {
    s.add({sample({})}, {{}, {}, 0});
    for (const std::int64_t before : {0, 1, 3})
      for (const std::int64_t after : {0, 2}) s.add({sample({5})}, {Shape{before}, Shape{after}, 0.5});
    for (const Shape& before : {Shape{0, 0}, Shape{1, 0}, Shape{0, 2}})
      for (const Shape& after : {Shape{0, 0}, Shape{1, 1}, Shape{0, 3}}) s.add({sample({2, 3})}, {before, after, 0});
    s.add({sample({2, 3, 2})}, {Shape{1, 0, 2}, Shape{0, 1, 1}, -1});
    s.add({sample({2, 3, 2})}, {Shape{0, 1, 0}, Shape{0, 0, 0}, 0});
    s.add({sample({1, 4, 3, 2})}, {Shape{0, 1, 1, 0}, Shape{0, 1, 1, 0}, 0});
    s.add({sample({1, 2, 17})}, {Shape{0, 0, 1}, Shape{1, 0, 0}, 2});
    s.add({arange(3, int32)}, {Shape{1}, Shape{1}, 7});
    s.add({arange(3, int32)}, {Shape{1}, Shape{1}, 1e12});
    s.error({sample({2, 3})}, {Shape{1}, Shape{1}, 0}, "shape [2, 3] needs 2 pairs of widths, got 1");
    s.error({sample({})}, {Shape{1}, Shape{1}, 0}, "shape [] needs 0 pairs");
    s.error({Tensor()}, {{}, {}, 0}, "input 0 is undefined");
  }
};

struct Concat {
  static constexpr const char* name = "concat";
  static constexpr Kind kind = Kind::movement;
  struct Attr {
    int axis;
  };

  static Specs infer(Inputs in, const Attr& a) {
    if (in.empty() || in.size() > most_tensors) fail(str(name, ": takes 1 to ", most_tensors, " tensors, got ", in.size()));
    return {{joined(in, a), in[0].dtype()}};
  }
  /// The shape of so many tensors, one behind the other.
  static Shape joined(Inputs in, const Attr& a) {
    check_defined(name, in);
    Shape y = in[0].shape();
    const int axis = ops::check_axis(name, y, a.axis);
    for (std::size_t p = 1; p < in.size(); ++p) {
      const Shape& x = in[p].shape();
      bool fits = x.rank() == y.rank() && in[p].dtype() == in[0].dtype();
      for (int i = 0; fits && i < x.rank(); ++i) fits = i == axis || x[i] == y[i];
      if (!fits)
        fail(str(name, ": tensors must agree in dtype and in every axis but ", axis, ", but input 0 is ", in[0].dtype(), " ",
                 in[0].shape(), " and input ", p, " is ", in[p].dtype(), " ", x));
      y.set(axis, y[axis] + x[axis]);
    }
    return y;
  }
  static Cost cost(Inputs, const Specs&, const Attr&) { return {}; }
  static void forward(const Forward& f, const Attr& a) {
    const Shape& y = f.out_shape(0);
    const int axis = y.normalize_axis(a.axis);
    const std::int64_t outer = ops::reduced_count(y, ops::all_axes(axis));
    const std::int64_t inner = ops::reduced_count(y, ops::all_axes(y.rank()) & ~ops::all_axes(axis + 1));
    visit_dtype(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      T* to = f.out<T>(0);
      for (int p = 0; p < f.inputs(); ++p) {
        const std::int64_t width = f.in_shape(p)[axis] * inner;
        kernels::copy_rows(f.in<T>(p), width, to, y[axis] * inner, outer, width);
        to += width;
      }
    });
  }
  static Saves saves(const Attr&, std::uint32_t) { return {}; }
  static void vjp(Vjp& v, const Attr& a) {
    const int axis = v.output_shape(0).normalize_axis(a.axis);
    const Tensor g = v.grad(0);
    Shape start = v.output_shape(0);
    for (int i = 0; i < start.rank(); ++i) start.set(i, 0);
    for (int p = 0; p < v.inputs(); ++p) {
      const Shape& x = v.input_shape(p);
      if (v.needs(p)) v.give(p, slice_box(g, start, x));
      start.set(axis, start[axis] + x[axis]);
    }
  }
  static void samples(Samples<Attr> s) {
    for (const int n : {1, 2, 3, 5})
      for (const auto& [shape, axis] :
           {std::pair{Shape{3}, 0}, {Shape{2, 3}, 0}, {Shape{2, 3}, 1}, {Shape{2, 3, 2}, 1}, {Shape{2, 3, 2}, -1}}) {
        std::vector<Tensor> xs;
        for (int p = 0; p < n; ++p) {
          Shape part = shape;
          part.set(axis, p + 1);
          xs.push_back(sample(part, -2, 2, p));
        }
        s.add(std::move(xs), {axis});
      }
    s.add({sample({2, 0}), sample({2, 3})}, {1});
    s.add({arange(3, int64), arange(2, int64)}, {0});
    s.error({sample({2, 3}), sample({2, 4})}, {0}, "input 0 is float64 [2, 3] and input 1 is float64 [2, 4]");
    s.error({sample({2, 3}), sample({3})}, {1}, "every axis but 1");
    s.error({sample({2}), sample({2}).to(float32)}, {0}, "input 1 is float32 [2]");
    s.error({sample({2}), sample({2})}, {1}, "axis 1 does not exist in shape [2]");
    s.error({sample({2}), Tensor()}, {0}, "input 1 is undefined");
    s.error({}, {0}, "takes 1 to 32 tensors, got 0");
  }
};

}  // namespace

namespace ops {
constinit const OpDecl reshape_op = declare<Reshape>();
constinit const OpDecl permute_op = declare<Permute>();
constinit const OpDecl slice_op = declare<Slice>();
constinit const OpDecl pad_op = declare<Pad>();
constinit const OpDecl concat_op = declare<Concat>();
}  // namespace ops

Tensor reshape(Tensor x, std::span<const std::int64_t> extents) {
  check_defined("reshape", {&x, 1});
  Shape shape;
  std::int64_t known = 1;
  int open = -1;
  for (const std::int64_t extent : extents) {
    if (extent < -1)
      fail(str("reshape: extent ", extent, " makes no sense; only one may be -1, to be worked out (from shape ", x.shape(), ")"));
    if (extent == -1 && std::exchange(open, shape.rank()) >= 0)
      fail(str("reshape: only one extent may be -1 (from shape ", x.shape(), ")"));
    if (extent >= 0 && __builtin_mul_overflow(known, extent, &known)) known = 0;  // refused below, or by the op
    shape.push_back(extent >= 0 ? extent : 0);
  }
  if (open >= 0) {
    if (known == 0 || x.numel() % known != 0)
      fail(str("reshape: the ", x.numel(), " elements of ", x.shape(),
               " cannot be divided over the extent -1 and others with product ", known));
    shape.set(open, x.numel() / known);
  }
  const ShapeAttr attr{shape};
  if (x.shape() == attr.shape) return ops::as_it_is(std::move(x));
  return apply_one(ops::reshape_op, {std::move(x)}, &attr);
}

Tensor permute(Tensor x, std::span<const int> axes) {
  check_defined("permute", {&x, 1});
  if (axes.size() > Shape::max_rank) fail(str("permute: shape ", x.shape(), " needs ", x.rank(), " axes, got ", axes.size()));
  PermuteAttr attr{{}, static_cast<int>(axes.size())};
  for (std::size_t i = 0; i < axes.size(); ++i) attr.axes[i] = axes[i];
  return apply_one(ops::permute_op, {std::move(x)}, &attr);
}

Tensor concat(std::vector<Tensor> xs, int axis) {
  if (xs.empty()) fail("concat: takes at least one tensor");
  const Concat::Attr attr{axis};
  // More than one call takes: neighbours first, then the results. All are looked at before, so that an error counts them as given.
  if (xs.size() > most_tensors) Concat::joined(xs, attr);
  while (xs.size() > most_tensors) {
    std::vector<Tensor> parts;
    for (std::size_t begin = 0; begin < xs.size(); begin += most_tensors) {
      const std::span<Tensor> part(&xs[begin], std::min<std::size_t>(most_tensors, xs.size() - begin));
      apply(ops::concat_op, part, &attr, {&parts.emplace_back(), 1});
      for (Tensor& x : part) x = Tensor();
    }
    xs = std::move(parts);
  }
  Tensor out;
  apply(ops::concat_op, xs, &attr, {&out, 1});
  return out;
}

Tensor concat(Tensor a, Tensor b, int axis) {
  const Concat::Attr attr{axis};
  return apply_one(ops::concat_op, {std::move(a), std::move(b)}, &attr);
}

Tensor slice(Tensor x, int axis, std::int64_t begin, std::int64_t end) {
  check_defined("slice", {&x, 1});
  const int at = ops::check_axis("slice", x.shape(), axis);
  const std::int64_t n = x.size(at), from = begin < 0 ? begin + n : begin, to = end < 0 ? end + n : end;
  if (from < 0 || from > to || to > n)
    fail(str("slice: elements [", begin, ", ", end, ") of axis ", axis, " do not lie in shape ", x.shape()));
  Shape start = x.shape(), size = x.shape();
  for (int i = 0; i < start.rank(); ++i) start.set(i, 0);
  start.set(at, from);
  size.set(at, to - from);
  return slice_box(std::move(x), start, size);
}

Tensor pad(Tensor x, std::vector<std::pair<std::int64_t, std::int64_t>> widths, double value) {
  check_defined("pad", {&x, 1});
  if (widths.size() != static_cast<std::size_t>(x.rank()))
    fail(str("pad: shape ", x.shape(), " needs ", x.rank(), " pairs of widths, got ", widths.size()));
  PadAttr attr{{}, {}, value};
  for (const auto& [before, after] : widths) {
    if (before < 0 || after < 0)
      fail(str("pad: widths must not be negative, got (", before, ", ", after, ") for shape ", x.shape(), "; slice() cuts"));
    constexpr std::int64_t most = std::int64_t{1} << 60;  // sums of which are numbers
    if (before > most || after > most) fail(str("pad: widths (", before, ", ", after, ") are too many for shape ", x.shape()));
    attr.before.push_back(before);
    attr.after.push_back(after);
  }
  return pad_box(std::move(x), attr);
}

}  // namespace rewind_lib
