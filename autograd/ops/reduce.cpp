// sum, mean, max and argmax over axes.

#include <rewind/autograd/functional.h>
#include <rewind/autograd/ops/axes.h>
#include <rewind/autograd/ops/check.h>
#include <rewind/autograd/ops/registry.h>
#include <rewind/autograd/ops/sample.h>
#include <rewind/core/kernels/reduce.h>

namespace rewind_lib {
namespace {

using ops::check_floats;
using ops::sample;

struct AxesAttr {
  std::uint32_t axes;  // bit i: axis i is reduced
  bool keep;           // ... and stays with extent 1
};

struct AxesSample {
  Shape shape;
  AxesAttr attr;
};
const AxesSample axes_samples[] = {
    {{}, {0, false}},        {{1}, {1, false}},          {{7}, {1, false}},          {{7}, {1, true}},
    {{2, 3}, {1, false}},    {{2, 3}, {2, false}},       {{2, 3}, {3, false}},       {{2, 3}, {3, true}},
    {{2, 3}, {1, true}},     {{2, 3}, {0, false}},       {{3, 1}, {2, false}},       {{1, 5}, {2, true}},
    {{2, 3, 4}, {1, false}}, {{2, 3, 4}, {2, false}},    {{2, 3, 4}, {4, true}},     {{2, 3, 4}, {3, false}},
    {{2, 3, 4}, {5, false}}, {{2, 3, 4}, {6, true}},     {{2, 3, 4}, {7, false}},    {{17, 3}, {1, false}},
    {{3, 17}, {2, false}},   {{2, 2, 3, 2}, {5, false}}, {{2, 2, 3, 2}, {10, true}}, {{2, 1, 3, 1, 2}, {9, false}},
    {{0, 3}, {2, false}}};

void error_samples(Samples<AxesAttr>& s) {
  s.error({sample({2, 3})}, {4, false}, "axis 2 does not exist in shape [2, 3]");
  s.error({sample({})}, {1, false}, "the shape [] has no axes");
  s.error({arange(3, int32)}, {1, false}, "needs float32 or float64");
  s.error({Tensor()}, {0, false}, "input 0 is undefined");
}

template <bool Mean>
struct SumOp {
  static constexpr const char* name = Mean ? "mean" : "sum";
  static constexpr const char* input_names = "x";
  static constexpr const char* output_names = "y";
  static constexpr Kind kind = Kind::reduction;
  using Attr = AxesAttr;

  static Specs infer(Inputs in, const Attr& a) {
    const DType dtype = check_floats(name, in);
    const Shape& x = in[0].shape();
    ops::check_mask(name, x, a.axes);
    if (Mean && ops::reduced_count(x, a.axes) == 0) fail(str(name, ": there is no mean of no elements, in shape ", x));
    return {{ops::reduced_shape(x, a.axes, a.keep), dtype}};
  }
  static Cost cost(Inputs in, const Specs&, const Attr&) { return {.flops = in[0].numel()}; }
  static std::size_t workspace(Inputs in, const Specs&, const Attr& a) {
    const Shape& x = in[0].shape();
    return static_cast<std::size_t>(kernels::sum_scratch(x.begin(), x.rank(), a.axes)) * sizeof(double);
  }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      const Shape& x = f.in_shape(0);
      const T scale = Mean ? static_cast<T>(share(x, a)) : T{1};
      kernels::sum(f.in<T>(0), x.begin(), x.rank(), a.axes, scale, f.out<T>(0), f.workspace<double>());
    });
  }
  static Saves saves(const Attr&, std::uint32_t) { return {}; }
  static void vjp(Vjp& v, const Attr& a) {
    const Shape& x = v.input_shape(0);
    Tensor g = v.grad(0);
    if (Mean) g = affine(std::move(g), share(x, a), 0);
    v.give(0, broadcast_to(reshape(std::move(g), ops::reduced_shape(x, a.axes, true)), x));
  }
  static void samples(Samples<Attr> s) {
    for (const AxesSample& c : axes_samples) s.add({sample(c.shape)}, c.attr);
    error_samples(s);
    if (Mean) s.error({sample({0, 3})}, {1, false}, "no mean of no elements, in shape [0, 3]");
  }

 private:
  static double share(const Shape& x, const Attr& a) { return 1 / static_cast<double>(ops::reduced_count(x, a.axes)); }
};

/// Elements at flat positions, and their way back: all positions differ.
struct PositionAttr {
  Shape shape;  // of the tensor that the positions point into
};

Tensor take_at(Tensor x, Tensor position) {
  const PositionAttr attr{x.shape()};
  return apply_one(ops::take_at_op, {std::move(x), std::move(position)}, &attr);
}
Tensor put_at(Tensor g, Tensor position, const Shape& shape) {
  const PositionAttr attr{shape};
  return apply_one(ops::put_at_op, {std::move(g), std::move(position)}, &attr);
}

void check_positions(std::string_view op, const Tensor& position) {
  if (!position.defined()) fail(str(op, ": input 1, the positions, is undefined"));
  if (position.dtype() != int64) fail(str(op, ": positions must be int64, not ", position.dtype(), " ", position.shape()));
}

struct TakeAt {
  static constexpr const char* name = "take_at";
  static constexpr const char* input_names = "x, positions";
  static constexpr const char* output_names = "y";
  static constexpr Kind kind = Kind::movement;
  using Attr = PositionAttr;

  static Specs infer(Inputs in, const Attr& a) {
    const DType dtype = check_floats(name, in.first(1));
    check_positions(name, in[1]);
    if (!(in[0].shape() == a.shape)) fail(str(name, ": x has shape ", in[0].shape(), ", but the positions point into ", a.shape));
    return {{in[1].shape(), dtype}};
  }
  static Cost cost(Inputs in, const Specs&, const Attr&) {
    return {.bytes_read =
                static_cast<std::int64_t>(in[1].bytes()) + in[1].numel() * static_cast<std::int64_t>(size_of(in[0].dtype()))};
  }
  static void forward(const Forward& f, const Attr&) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      kernels::gather(f.in<T>(0), f.in<std::int64_t>(1), f.out_shape(0).numel(), f.out<T>(0));
    });
  }
  static Saves saves(const Attr&, std::uint32_t) { return {.inputs = bit(1)}; }
  static void vjp(Vjp& v, const Attr& a) { v.give(0, put_at(v.grad(0), v.input(1), a.shape)); }
  static void samples(Samples<Attr> s);
};

struct PutAt {
  static constexpr const char* name = "put_at";
  static constexpr const char* input_names = "x, positions";
  static constexpr const char* output_names = "y";
  static constexpr Kind kind = Kind::movement;
  using Attr = PositionAttr;

  static Specs infer(Inputs in, const Attr& a) {
    const DType dtype = check_floats(name, in.first(1));
    check_positions(name, in[1]);
    if (!(in[0].shape() == in[1].shape()))
      fail(str(name, ": ", in[0].shape(), " elements need as many positions, not ", in[1].shape()));
    return {{a.shape, dtype}};
  }
  static Cost cost(Inputs, const Specs&, const Attr&) { return {}; }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      kernels::scatter(f.in<T>(0), f.in<std::int64_t>(1), f.in_shape(0).numel(), f.out<T>(0), a.shape.numel());
    });
  }
  static Saves saves(const Attr&, std::uint32_t) { return {.inputs = bit(1)}; }
  static void vjp(Vjp& v, const Attr&) { v.give(0, take_at(v.grad(0), v.input(1))); }
  static void samples(Samples<Attr> s);
};

/// (shape pointed into, shape of the positions)
const Shape position_samples[][2] = {
    {{1}, {1}},       {{5}, {5}},       {{5}, {2}},   {{5}, {}},        {{2, 3}, {2}},       {{2, 3}, {3}},
    {{2, 3}, {2, 3}}, {{2, 3}, {6}},    {{2, 3}, {}}, {{2, 3, 4}, {4}}, {{2, 3, 4}, {2, 3}}, {{2, 3, 4}, {6, 4}},
    {{7, 1}, {3}},    {{1, 7}, {1, 3}}, {{17}, {9}},  {{3, 17}, {17}},  {{3, 17}, {3, 1}},   {{2, 2, 2, 2}, {2, 2}},
    {{9}, {3, 3}},    {{4, 4}, {0}},    {{31}, {15}}};

/// Different positions in `shape`.
Tensor sample_positions(const Shape& shape, const Shape& of, int salt) {
  return view_as(view_rows(ops::sample_labels(shape.numel(), shape.numel(), int64, salt), 0, of.numel()), of);
}

void TakeAt::samples(Samples<Attr> s) {
  for (const auto& p : position_samples) s.add({sample(p[0]), sample_positions(p[0], p[1], 2)}, {p[0]});
  s.error({sample({3}), sample({2})}, {Shape{3}}, "positions must be int64, not float64 [2]");
  s.error({sample({3}), Tensor()}, {Shape{3}}, "input 1, the positions, is undefined");
  s.error({sample({3}), arange(2, int64)}, {Shape{4}}, "x has shape [3], but the positions point into [4]");
}

void PutAt::samples(Samples<Attr> s) {
  for (const auto& p : position_samples) s.add({sample(p[1]), sample_positions(p[0], p[1], 2)}, {p[0]});
  s.error({sample({2}), arange(2, int32)}, {Shape{3}}, "positions must be int64, not int32 [2]");
  s.error({sample({2}), Tensor()}, {Shape{3}}, "input 1, the positions, is undefined");
  s.error({sample({2}), arange(3, int64)}, {Shape{3}}, "[2] elements need as many positions, not [3]");
}

struct MaxOp {
  static constexpr const char* name = "max";
  static constexpr const char* input_names = "x";
  static constexpr const char* output_names = "y, positions";
  static constexpr Kind kind = Kind::reduction;
  using Attr = AxesAttr;

  /// The values, and their flat positions in x.
  static Specs infer(Inputs in, const Attr& a) {
    const DType dtype = check_floats(name, in);
    const Shape& x = in[0].shape();
    ops::check_mask(name, x, a.axes);
    if (ops::reduced_count(x, a.axes) == 0) fail(str(name, ": there is no maximum of no elements, in shape ", x));
    const Shape y = ops::reduced_shape(x, a.axes, a.keep);
    return {{y, dtype}, {y, int64}};
  }
  static Cost cost(Inputs in, const Specs&, const Attr&) { return {.flops = in[0].numel()}; }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      const Shape& x = f.in_shape(0);
      kernels::max(f.in<T>(0), x.begin(), x.rank(), a.axes, f.out<T>(0), f.out<std::int64_t>(1));
    });
  }
  static Saves saves(const Attr&, std::uint32_t) { return {.outputs = bit(1)}; }
  static void vjp(Vjp& v, const Attr&) { v.give(0, put_at(v.grad(0), v.output(1), v.input_shape(0))); }
  static void samples(Samples<Attr> s) {
    for (const AxesSample& c : axes_samples) s.add({sample(c.shape)}, c.attr);
    error_samples(s);
    s.error({sample({0, 3})}, {1, false}, "no maximum of no elements, in shape [0, 3]");
  }
};

struct ArgmaxOp {
  static constexpr const char* name = "argmax";
  static constexpr const char* input_names = "x";
  static constexpr Kind kind = Kind::reduction;
  static constexpr const char* no_gradient = "its result is a position";
  static constexpr std::uint32_t differentiable = 0;
  struct Attr {
    int axis;
  };

  static Specs infer(Inputs in, const Attr& a) {
    check_floats(name, in);
    const Shape& x = in[0].shape();
    const int axis = ops::check_axis(name, x, a.axis);
    if (x[axis] == 0) fail(str(name, ": axis ", a.axis, " of shape ", x, " is empty"));
    return {{ops::reduced_shape(x, bit(axis), false), int64}};
  }
  static Cost cost(Inputs in, const Specs&, const Attr&) { return {.flops = in[0].numel()}; }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.in_dtype(0), [&](auto zero) {
      const Shape& x = f.in_shape(0);
      const int axis = x.normalize_axis(a.axis);
      const std::uint32_t before = ops::all_axes(axis), after = ops::all_axes(x.rank()) & ~ops::all_axes(axis + 1);
      kernels::argmax(f.in<decltype(zero)>(0), ops::reduced_count(x, before), x[axis], ops::reduced_count(x, after),
                      f.out<std::int64_t>(0));
    });
  }
  static void samples(Samples<Attr> s) {
    for (const Shape& shape :
         {Shape{1}, Shape{9}, Shape{2, 3}, Shape{3, 1}, Shape{2, 3, 4}, Shape{17, 3}, Shape{3, 17}, Shape{1, 2, 1, 3}})
      for (int axis = -1; axis < shape.rank(); ++axis) s.add({sample(shape)}, {axis});
    s.error({sample({2, 3})}, {2}, "axis 2 does not exist in shape [2, 3]");
    s.error({sample({})}, {-1}, "the shape [] has no axes");
    s.error({sample({3, 0})}, {1}, "axis 1 of shape [3, 0] is empty");
    s.error({arange(3, int64)}, {0}, "needs float32 or float64");
  }
};

Tensor reduce(const OpDecl& op, Tensor x, const std::vector<int>& axes, bool keep) {
  ops::check_defined(op.name, {&x, 1});
  const AxesAttr attr{ops::axis_mask(op.name, x.shape(), axes), keep};
  return apply_one(op, {std::move(x)}, &attr);
}

}  // namespace

namespace ops {
constinit const OpDecl sum_op = declare<SumOp<false>>();
constinit const OpDecl mean_op = declare<SumOp<true>>();
constinit const OpDecl max_op = declare<MaxOp>();
constinit const OpDecl argmax_op = declare<ArgmaxOp>();
constinit const OpDecl take_at_op = declare<TakeAt>();
constinit const OpDecl put_at_op = declare<PutAt>();
}  // namespace ops

Tensor sum(Tensor x, std::vector<int> axes, bool keep_axes) { return reduce(ops::sum_op, std::move(x), axes, keep_axes); }
Tensor mean(Tensor x, std::vector<int> axes, bool keep_axes) { return reduce(ops::mean_op, std::move(x), axes, keep_axes); }

Tensor max(Tensor x, std::vector<int> axes, bool keep_axes) {
  ops::check_defined("max", {&x, 1});
  const AxesAttr attr{ops::axis_mask("max", x.shape(), axes), keep_axes};
  Tensor in[] = {std::move(x)}, out[2];
  apply(ops::max_op, in, &attr, out);
  return std::move(out[0]);
}

Tensor argmax(Tensor x, int axis) {
  const ArgmaxOp::Attr attr{axis};
  return apply_one(ops::argmax_op, {std::move(x)}, &attr);
}

}  // namespace rewind_lib
