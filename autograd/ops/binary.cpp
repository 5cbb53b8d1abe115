// add, sub, mul, div with broadcasting, and the two ops that undo and redo a broadcast.

#include <rewind/autograd/functional.h>
#include <rewind/autograd/ops/check.h>
#include <rewind/autograd/ops/registry.h>
#include <rewind/autograd/ops/sample.h>
#include <rewind/core/kernels/pointwise.h>
#include <rewind/core/kernels/reduce.h>

namespace rewind_lib {
namespace {

using kernels::Binary;
using ops::check_floats;
using ops::sample;

struct NoAttr {};

template <Binary B>
struct BinaryOp {
  static constexpr const char* name = B == Binary::add ? "add" : B == Binary::sub ? "sub" : B == Binary::mul ? "mul" : "div";
  static constexpr const char* input_names = "a, b";
  static constexpr const char* output_names = "y";
  static constexpr Kind kind = Kind::elementwise;
  using Attr = NoAttr;
  static constexpr std::uint32_t donates = bit(0) | bit(1);

  static Specs infer(Inputs in, const Attr&) {
    const DType dtype = check_floats(name, in);
    return {{in[0].shape() == in[1].shape() ? in[0].shape() : broadcast(in[0].shape(), in[1].shape(), name), dtype}};
  }
  static Cost cost(Inputs, const Specs& out, const Attr&) { return ops::pointwise_cost(out, 1); }
  static void forward(const Forward& f, const Attr&) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      const Shape &a = f.in_shape(0), &b = f.in_shape(1);
      if (a == b)
        kernels::binary(B, f.in<T>(0), f.in<T>(1), f.out<T>(0), a.numel());
      else
        kernels::binary(B, f.in<T>(0), a.begin(), a.rank(), f.in<T>(1), b.begin(), b.rank(), f.out<T>(0));
    });
  }
  static Saves saves(const Attr&, std::uint32_t needs) {
    if (B == Binary::mul) return {.inputs = ops::other_factors(needs)};
    if (B == Binary::div) return {.inputs = bit(1) | (needs & bit(1)) >> 1};
    return {};
  }
  static void vjp(Vjp& v, const Attr&) {
    Tensor g = v.grad(0);
    if constexpr (B == Binary::add || B == Binary::sub) {
      if (v.needs(0)) v.give(0, sum_to(g, v.input_shape(0)));
      if (v.needs(1)) v.give(1, sum_to(B == Binary::sub ? neg(std::move(g)) : std::move(g), v.input_shape(1)));
    } else if constexpr (B == Binary::mul) {
      if (v.needs(0)) v.give(0, sum_to(mul(g, v.input(1)), v.input_shape(0)));
      if (v.needs(1)) v.give(1, sum_to(mul(std::move(g), v.input(0)), v.input_shape(1)));
    } else {  // a / b: g / b, and -g (a / b) / b, which is finite where g / b is not
      Tensor b = v.input(1);
      if (v.needs(0)) v.give(0, sum_to(div(g, b), v.input_shape(0)));
      if (v.needs(1)) {
        Tensor slope = div(v.input(0), b);
        slope = neg(div(std::move(slope), std::move(b)));
        v.give(1, sum_to(mul(std::move(g), std::move(slope)), v.input_shape(1)));
      }
    }
  }
  static void samples(Samples<Attr> s) {
    constexpr double low = B == Binary::div ? 0.5 : -2;  // a divisor stays away from zero
    const Shape pairs[][2] = {{{}, {}},           {{1}, {1}},       {{5}, {5}},
                              {{2, 3}, {2, 3}},   {{2, 3}, {3}},    {{3}, {2, 3}},
                              {{2, 3}, {}},       {{}, {2, 3}},     {{2, 3}, {2, 1}},
                              {{2, 1}, {2, 3}},   {{2, 1}, {1, 3}}, {{2, 3, 4}, {3, 1}},
                              {{2, 3, 4}, {4}},   {{4}, {2, 3, 4}}, {{2, 1, 4}, {3, 1}},
                              {{1, 1}, {2, 2}},   {{7, 1}, {1, 7}}, {{2, 2, 2}, {1, 2}},
                              {{3, 17}, {3, 17}}, {{3, 17}, {17}},  {{2, 1, 3, 1}, {4, 1, 2}},
                              {{0, 3}, {3}}};
    for (const auto& p : pairs) s.add({sample(p[0]), sample(p[1], low, 3, 1)});
    s.error({sample({2, 3}), sample({2, 4})}, {}, "[2, 3] and [2, 4] do not broadcast");
    s.error({sample({2}), sample({2}).to(float32)}, {}, "inputs must have one dtype");
    s.error({sample({2}), arange(2, int64)}, {}, "needs float32 or float64");
    s.error({sample({2}), Tensor()}, {}, "input 1 is undefined");
  }
};

/// Bit i set: axis i of `full` is summed to reach `part` (aligned right).
std::uint32_t summed_axes(const Shape& full, const Shape& part) {
  std::uint32_t axes = 0;
  const int lead = full.rank() - part.rank();
  for (int i = 0; i < full.rank(); ++i)
    if (i < lead || (part[i - lead] == 1 && full[i] != 1)) axes |= bit(i);
  return axes;
}

void check_reaches(const char* op, const Shape& part, const Shape& full) {
  if (part.rank() > full.rank() || !(broadcast(part, full, op) == full))
    fail(str(op, ": shape ", part, " does not broadcast to ", full));
}

struct SumTo {
  static constexpr const char* name = "sum_to";
  static constexpr const char* input_names = "x";
  static constexpr const char* output_names = "y";
  static constexpr Kind kind = Kind::reduction;
  struct Attr {
    Shape shape;
  };

  static Specs infer(Inputs in, const Attr& a) {
    const DType dtype = check_floats(name, in);
    check_reaches(name, a.shape, in[0].shape());
    return {{a.shape, dtype}};
  }
  static Cost cost(Inputs in, const Specs&, const Attr&) { return {.flops = in[0].numel()}; }
  static std::size_t workspace(Inputs in, const Specs&, const Attr& a) {
    const Shape& x = in[0].shape();
    return static_cast<std::size_t>(kernels::sum_scratch(x.begin(), x.rank(), summed_axes(x, a.shape))) * sizeof(double);
  }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      const Shape& x = f.in_shape(0);
      kernels::sum(f.in<T>(0), x.begin(), x.rank(), summed_axes(x, a.shape), T{1}, f.out<T>(0), f.workspace<double>());
    });
  }
  static Saves saves(const Attr&, std::uint32_t) { return {}; }
  static void vjp(Vjp& v, const Attr&) { v.give(0, broadcast_to(v.grad(0), v.input_shape(0))); }
  static void samples(Samples<Attr> s) {
    const Shape pairs[][2] = {{{3}, {}},
                              {{3}, {1}},
                              {{2, 3}, {3}},
                              {{2, 3}, {2, 1}},
                              {{2, 3}, {1, 3}},
                              {{2, 3}, {1, 1}},
                              {{2, 3}, {}},
                              {{2, 3, 4}, {4}},
                              {{2, 3, 4}, {3, 1}},
                              {{2, 3, 4}, {3, 4}},
                              {{2, 3, 4}, {1, 3, 1}},
                              {{2, 3, 4}, {2, 1, 4}},
                              {{2, 3, 4}, {2, 3, 1}},
                              {{5, 1}, {1}},
                              {{1, 5}, {5}},
                              {{40, 3}, {3}},
                              {{3, 40}, {3, 1}},
                              {{2, 2, 2, 2}, {2, 1, 2}},
                              {{7}, {1}},
                              {{2, 9, 2}, {9, 1}},
                              {{4, 4}, {4}}};
    for (const auto& p : pairs) s.add({sample(p[0])}, {p[1]});
    s.error({sample({2, 3})}, {Shape{2}}, "[2, 3]");
    s.error({sample({3})}, {Shape{2, 3}}, "does not broadcast to [3]");
    s.error({arange(3, int32)}, {Shape{}}, "needs float32 or float64");
  }
};

struct BroadcastTo {
  static constexpr const char* name = "broadcast_to";
  static constexpr const char* input_names = "x";
  static constexpr const char* output_names = "y";
  static constexpr Kind kind = Kind::movement;
  struct Attr {
    Shape shape;
  };

  static Specs infer(Inputs in, const Attr& a) {
    const DType dtype = check_floats(name, in);
    check_reaches(name, in[0].shape(), a.shape);
    return {{a.shape, dtype}};
  }
  static Cost cost(Inputs, const Specs&, const Attr&) { return {}; }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      kernels::expand(f.in<T>(0), a.shape.begin(), a.shape.rank(), summed_axes(a.shape, f.in_shape(0)), T{1}, f.out<T>(0));
    });
  }
  static Saves saves(const Attr&, std::uint32_t) { return {}; }
  static void vjp(Vjp& v, const Attr&) { v.give(0, sum_to(v.grad(0), v.input_shape(0))); }
  static void samples(Samples<Attr> s) {
    const Shape pairs[][2] = {{{}, {3}},
                              {{1}, {3}},
                              {{3}, {2, 3}},
                              {{2, 1}, {2, 3}},
                              {{1, 3}, {2, 3}},
                              {{1, 1}, {2, 3}},
                              {{}, {2, 3}},
                              {{4}, {2, 3, 4}},
                              {{3, 1}, {2, 3, 4}},
                              {{3, 4}, {2, 3, 4}},
                              {{1, 3, 1}, {2, 3, 4}},
                              {{2, 1, 4}, {2, 3, 4}},
                              {{2, 3, 1}, {2, 3, 4}},
                              {{1}, {5, 1}},
                              {{5}, {1, 5}},
                              {{3}, {40, 3}},
                              {{3, 1}, {3, 40}},
                              {{2, 1, 2}, {2, 2, 2, 2}},
                              {{1}, {7}},
                              {{9, 1}, {2, 9, 2}},
                              {{4}, {4, 4}}};
    for (const auto& p : pairs) s.add({sample(p[0])}, {p[1]});
    s.error({sample({2})}, {Shape{2, 3}}, "[2, 3]");
    s.error({sample({2, 3})}, {Shape{3}}, "does not broadcast to [3]");
    s.error({arange(3, int32)}, {Shape{2, 3}}, "needs float32 or float64");
  }
};

}  // namespace

namespace ops {
constinit const OpDecl add_op = declare<BinaryOp<Binary::add>>();
constinit const OpDecl sub_op = declare<BinaryOp<Binary::sub>>();
constinit const OpDecl mul_op = declare<BinaryOp<Binary::mul>>();
constinit const OpDecl div_op = declare<BinaryOp<Binary::div>>();
constinit const OpDecl sum_to_op = declare<SumTo>();
constinit const OpDecl broadcast_to_op = declare<BroadcastTo>();
}  // namespace ops

Tensor add(Tensor a, Tensor b) { return apply_one(ops::add_op, {std::move(a), std::move(b)}, nullptr); }
Tensor sub(Tensor a, Tensor b) { return apply_one(ops::sub_op, {std::move(a), std::move(b)}, nullptr); }
Tensor mul(Tensor a, Tensor b) { return apply_one(ops::mul_op, {std::move(a), std::move(b)}, nullptr); }
Tensor div(Tensor a, Tensor b) { return apply_one(ops::div_op, {std::move(a), std::move(b)}, nullptr); }

Tensor operator/(Tensor x, double b) {
  Tensor divisor = full({}, b, x.dtype());
  return div(std::move(x), std::move(divisor));
}
Tensor operator/(double a, Tensor x) {
  Tensor numerator = full({}, a, x.dtype());
  return div(std::move(numerator), std::move(x));
}

Tensor sum_to(Tensor x, Shape shape) {
  if (x.shape() == shape) return ops::as_it_is(std::move(x));
  const SumTo::Attr attr{shape};
  return apply_one(ops::sum_to_op, {std::move(x)}, &attr);
}

Tensor broadcast_to(Tensor x, Shape shape) {
  if (x.shape() == shape) return ops::as_it_is(std::move(x));
  const BroadcastTo::Attr attr{shape};
  return apply_one(ops::broadcast_to_op, {std::move(x)}, &attr);
}

}  // namespace rewind_lib
