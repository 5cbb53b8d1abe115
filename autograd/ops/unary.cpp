// Functions of one element: the value, the derivative times a gradient, and the second derivative times a gradient, as
// ops over the table of functions in core/kernels/pointwise. The derivative is expressed in what is cheapest to
// keep: the output where that works (so that the input's buffer is free for it), else the input.

#include <rewind/autograd/functional.h>
#include <rewind/autograd/ops/check.h>
#include <rewind/autograd/ops/internal.h>
#include <rewind/autograd/ops/registry.h>
#include <rewind/autograd/ops/sample.h>
#include <rewind/core/kernels/pointwise.h>

#include <cmath>
#include <numbers>

namespace rewind_lib {
namespace {

using kernels::Unary;
using ops::check_floats;

struct UnaryAttr {
  Unary function;
};

/// g d(s), d being the derivative expressed in the saved tensor s.
Tensor unary_first(Unary u, Tensor s, Tensor g) {
  const UnaryAttr attr{u};
  return apply_one(ops::unary_gradient_op, {std::move(s), std::move(g)}, &attr);
}
/// g d'(s).
Tensor unary_second(Unary u, Tensor s, Tensor g) {
  const UnaryAttr attr{u};
  return apply_one(ops::unary_second_gradient_op, {std::move(s), std::move(g)}, &attr);
}

/// Inputs inside the domain and away from kinks.
Tensor sample_for(Unary u, const Shape& shape, int salt) {
  switch (u) {
    case Unary::log:
    case Unary::sqrt: return ops::sample(shape, 0.3, 4, salt);
    case Unary::relu:
    case Unary::abs: return ops::sample_avoiding(shape, {0}, -2, 2, salt);
    case Unary::relu6: return ops::sample_avoiding(shape, {0, 6}, -3, 9, salt);
    case Unary::hardswish:
    case Unary::hardsigmoid: return ops::sample_avoiding(shape, {-3, 3}, -5, 5, salt);
    default: return ops::sample(shape, -2, 2, salt);
  }
}
constexpr Unary function(int i) { return static_cast<Unary>(i); }
constexpr const char* names[] = {"neg",   "exp",  "log",       "sqrt",        "tanh", "sigmoid", "relu",
                                 "relu6", "silu", "hardswish", "hardsigmoid", "gelu", "square",  "abs"};
static_assert(std::size(names) == kernels::unary_count);

const Shape sample_shapes[] = {{},
                               {1},
                               {2},
                               {3},
                               {4},
                               {5},
                               {7},
                               {8},
                               {9},
                               {15},
                               {17},
                               {1, 1},
                               {2, 3},
                               {3, 2},
                               {1, 5},
                               {2, 2, 2},
                               {1, 3, 2},
                               {2, 1, 1, 2},
                               {2, 1, 2, 1, 2},
                               {0, 3}};

template <Unary U>
struct UnaryOp {
  static constexpr const char* name = names[static_cast<int>(U)];
  static constexpr const char* input_names = "x";
  static constexpr const char* output_names = "y";
  static constexpr Kind kind = Kind::elementwise;
  struct Attr {};
  static constexpr std::uint32_t donates = bit(0);

  static Specs infer(Inputs in, const Attr&) {
    const DType dtype = check_floats(name, in);
    return {{in[0].shape(), dtype}};
  }
  static Cost cost(Inputs, const Specs& out, const Attr&) { return ops::pointwise_cost(out, 1); }
  static void forward(const Forward& f, const Attr&) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      kernels::unary(U, f.in<T>(0), f.out<T>(0), f.out_shape(0).numel());
    });
  }
  static Saves saves(const Attr&, std::uint32_t) {
    if (kernels::saves_nothing(U)) return {};
    return kernels::saves_output(U) ? Saves{.outputs = bit(0)} : Saves{.inputs = bit(0)};
  }
  static void vjp(Vjp& v, const Attr&) {
    if (kernels::saves_nothing(U)) return v.give(0, neg(v.grad(0)));
    Tensor s = kernels::saves_output(U) ? v.output(0) : v.input(0);
    v.give(0, unary_first(U, std::move(s), v.grad(0)));
  }
  static void samples(Samples<Attr> s) {
    int salt = 0;
    for (const Shape& shape : sample_shapes) s.add({sample_for(U, shape, ++salt)});
    s.error({arange(3, int32)}, {}, "needs float32 or float64");
    s.error({arange(3, int64)}, {}, "int64 [3]");
    s.error({Tensor()}, {}, "input 0 is undefined");
  }
};

/// What a derivative op reads: outputs where the function saves its output (but not at the kinks, where relu puts them).
Tensor saved_for(Unary u, const Shape& shape, int salt) {
  Tensor x = sample_for(u, shape, salt);
  if (!kernels::saves_output(u) || u == Unary::relu || u == Unary::relu6) return x;
  auto v = x.mutate<double>();
  kernels::unary(u, v.data(), v.data(), x.numel());
  return x;
}

/// d''(s), in ops, so that it has derivatives of every order; undefined where it is zero. (A loss with a second derivative in it,
/// of a differential equation's residual, goes back through the third.)
Tensor unary_third(Unary function, Tensor s) {
  switch (function) {
    case Unary::tanh:
    case Unary::sigmoid: return full(s.shape(), -2, s.dtype());
    case Unary::log:
    case Unary::sqrt: {  // of -1 / s^2, and of half of it
      Tensor cube = mul(square(s), s);
      Tensor numerator = full(cube.shape(), function == Unary::log ? 2 : 1, cube.dtype());
      return div(std::move(numerator), std::move(cube));
    }
    case Unary::gelu: {  // n(s) (s^3 - 4 s), n being the normal density
      Tensor density = affine(exp(affine(square(s), -0.5, 0)), 1 / std::sqrt(2 * std::numbers::pi), 0);
      return mul(std::move(density), mul(affine(square(s), 1, -4), s));
    }
    case Unary::silu: {  // f' ((1 - 2 f) (3 + s (1 - 2 f)) - 2 s f'), f being the sigmoid
      const Tensor f = sigmoid(s), odd = affine(f, -2, 1), slope = mul(f, affine(f, -1, 1));
      Tensor inner = sub(mul(odd, affine(mul(s, odd), 1, 3)), affine(mul(s, slope), 2, 0));
      return mul(slope, std::move(inner));
    }
    default: return {};
  }
}

template <bool Second>
struct UnaryDerivative {
  static constexpr const char* name = Second ? "unary_second_gradient" : "unary_gradient";
  static constexpr const char* input_names = "x or y, g";
  static constexpr const char* output_names = "dx";
  static constexpr Kind kind = Kind::elementwise;
  using Attr = UnaryAttr;
  static constexpr std::uint32_t donates = bit(1) | bit(0);

  static Specs infer(Inputs in, const Attr&) {
    const DType dtype = check_floats(name, in);
    if (!(in[0].shape() == in[1].shape())) fail(str(name, ": shapes differ: ", in[0].shape(), " and ", in[1].shape()));
    return {{in[0].shape(), dtype}};
  }
  static Cost cost(Inputs, const Specs& out, const Attr&) { return ops::pointwise_cost(out, 2); }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      const auto kernel = Second ? kernels::unary_second<T> : kernels::unary_first<T>;
      kernel(a.function, f.in<T>(0), f.in<T>(1), f.out<T>(0), f.out_shape(0).numel());
    });
  }
  static Saves saves(const Attr&, std::uint32_t needs) { return {.inputs = bit(0) | ((needs & bit(0)) != 0 ? bit(1) : 0)}; }
  static void vjp(Vjp& v, const Attr& a) {
    Tensor s = v.input(0), g = v.grad(0);
    if (v.needs(1)) v.give(1, (Second ? unary_second : unary_first)(a.function, s, g));
    if (!v.needs(0)) return;
    g = mul(std::move(g), v.input(1));
    if constexpr (!Second) {
      v.give(0, unary_second(a.function, std::move(s), std::move(g)));
    } else if (Tensor third = unary_third(a.function, std::move(s)); third.defined()) {
      v.give(0, mul(std::move(g), std::move(third)));
    }
  }
  static void samples(Samples<Attr> s) {
    for (int i = 0; i < kernels::unary_count; ++i)
      for (const Shape& shape : {Shape{}, Shape{7}, Shape{2, 3, 5}}) {
        Tensor saved = saved_for(function(i), shape, i), g = ops::sample(shape, -1, 1, i + 50);
        saved.set_requires_grad(!kernels::saves_nothing(function(i)));
        g.set_requires_grad();
        s.add({std::move(saved), std::move(g)}, {function(i)});
      }
    s.error({ops::sample({3}), ops::sample({4})}, {Unary::relu}, "[3] and [4]");
    s.error({ops::sample({3}), ops::sample({3}).to(float32)}, {Unary::relu}, "inputs must have one dtype");
    s.error({ops::sample({3}), Tensor()}, {Unary::relu}, "input 1 is undefined");
  }
};

struct Affine {
  static constexpr const char* name = "affine";
  static constexpr const char* input_names = "x";
  static constexpr const char* output_names = "y";
  static constexpr Kind kind = Kind::elementwise;
  struct Attr {
    double scale, shift;
  };
  static constexpr std::uint32_t donates = bit(0);

  static Specs infer(Inputs in, const Attr&) {
    const DType dtype = check_floats(name, in);
    return {{in[0].shape(), dtype}};
  }
  static Cost cost(Inputs, const Specs& out, const Attr&) { return ops::pointwise_cost(out, 2); }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      kernels::affine(static_cast<T>(a.scale), f.in<T>(0), static_cast<T>(a.shift), f.out<T>(0), f.out_shape(0).numel());
    });
  }
  static Saves saves(const Attr&, std::uint32_t) { return {}; }
  static void vjp(Vjp& v, const Attr& a) { v.give(0, a.scale == 1 ? v.grad(0) : affine(v.grad(0), a.scale, 0)); }
  static void samples(Samples<Attr> s) {
    for (const double scale : {-1.5, 0.0, 1.0, 2.0})
      for (const Shape& shape : {Shape{}, Shape{1}, Shape{5}, Shape{2, 3}, Shape{3, 17}})
        s.add({ops::sample(shape)}, {scale, scale + 0.25});
    s.error({arange(3, int32)}, {2, 0}, "needs float32 or float64");
    s.error({arange(3, int64)}, {2, 0}, "int64 [3]");
    s.error({Tensor()}, {2, 0}, "input 0 is undefined");
  }
};

}  // namespace

namespace ops {
constinit const OpDecl neg_op = declare<UnaryOp<Unary::neg>>();
constinit const OpDecl exp_op = declare<UnaryOp<Unary::exp>>();
constinit const OpDecl log_op = declare<UnaryOp<Unary::log>>();
constinit const OpDecl sqrt_op = declare<UnaryOp<Unary::sqrt>>();
constinit const OpDecl tanh_op = declare<UnaryOp<Unary::tanh>>();
constinit const OpDecl sigmoid_op = declare<UnaryOp<Unary::sigmoid>>();
constinit const OpDecl relu_op = declare<UnaryOp<Unary::relu>>();
constinit const OpDecl relu6_op = declare<UnaryOp<Unary::relu6>>();
constinit const OpDecl silu_op = declare<UnaryOp<Unary::silu>>();
constinit const OpDecl hardswish_op = declare<UnaryOp<Unary::hardswish>>();
constinit const OpDecl hardsigmoid_op = declare<UnaryOp<Unary::hardsigmoid>>();
constinit const OpDecl gelu_op = declare<UnaryOp<Unary::gelu>>();
constinit const OpDecl square_op = declare<UnaryOp<Unary::square>>();
constinit const OpDecl abs_op = declare<UnaryOp<Unary::abs>>();
constinit const OpDecl unary_gradient_op = declare<UnaryDerivative<false>>();
constinit const OpDecl unary_second_gradient_op = declare<UnaryDerivative<true>>();
constinit const OpDecl affine_op = declare<Affine>();
}  // namespace ops

Tensor neg(Tensor x) { return apply_one(ops::neg_op, {std::move(x)}, nullptr); }
Tensor exp(Tensor x) { return apply_one(ops::exp_op, {std::move(x)}, nullptr); }
Tensor log(Tensor x) { return apply_one(ops::log_op, {std::move(x)}, nullptr); }
Tensor sqrt(Tensor x) { return apply_one(ops::sqrt_op, {std::move(x)}, nullptr); }
Tensor square(Tensor x) { return apply_one(ops::square_op, {std::move(x)}, nullptr); }
Tensor abs(Tensor x) { return apply_one(ops::abs_op, {std::move(x)}, nullptr); }
Tensor tanh(Tensor x) { return apply_one(ops::tanh_op, {std::move(x)}, nullptr); }
Tensor sigmoid(Tensor x) { return apply_one(ops::sigmoid_op, {std::move(x)}, nullptr); }
Tensor relu(Tensor x) { return apply_one(ops::relu_op, {std::move(x)}, nullptr); }
Tensor relu6(Tensor x) { return apply_one(ops::relu6_op, {std::move(x)}, nullptr); }
Tensor silu(Tensor x) { return apply_one(ops::silu_op, {std::move(x)}, nullptr); }
Tensor hardswish(Tensor x) { return apply_one(ops::hardswish_op, {std::move(x)}, nullptr); }
Tensor hardsigmoid(Tensor x) { return apply_one(ops::hardsigmoid_op, {std::move(x)}, nullptr); }
Tensor gelu(Tensor x) { return apply_one(ops::gelu_op, {std::move(x)}, nullptr); }

Tensor ops::epilogue_gradient(Epilogue epilogue, Tensor y, Tensor g) {
  if (epilogue == Epilogue::none) return g;
  y = y.detach();  // these derivatives are steps: nothing flows back through them
  return unary_first(epilogue == Epilogue::relu ? Unary::relu : Unary::relu6, std::move(y), std::move(g));
}

Tensor affine(Tensor x, double scale, double shift) {
  const Affine::Attr attr{scale, shift};
  return apply_one(ops::affine_op, {std::move(x)}, &attr);
}

}  // namespace rewind_lib
