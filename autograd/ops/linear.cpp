// Fully connected layers: x w^T + bias, and the gradient of their weight.

#include <rewind/autograd/functional.h>
#include <rewind/autograd/ops/check.h>
#include <rewind/autograd/ops/internal.h>
#include <rewind/autograd/ops/registry.h>
#include <rewind/autograd/ops/sample.h>
#include <rewind/core/kernels/gemm.h>

namespace rewind_lib {
namespace {

using ops::check_floats;
using ops::rows_of;
using ops::sample;

Shape with_last(Shape shape, std::int64_t extent) {
  shape.set(-1, extent);
  return shape;
}

struct Linear {
  static constexpr const char* name = "linear";
  static constexpr const char* input_names = "x, w, bias";
  static constexpr const char* output_names = "y";
  static constexpr Kind kind = Kind::contraction;
  struct Attr {
    Epilogue epilogue = Epilogue::none;
  };

  static Specs infer(Inputs in, const Attr& attr) {
    const DType dtype = check_floats(name, in, bit(2));
    const Shape &x = in[0].shape(), &w = in[1].shape();
    ops::check_epilogue(name, attr.epilogue, x);
    if (w.rank() != 2) fail(str(name, ": w must be [out, in], but is ", w, " (x is ", x, ")"));
    if (x.rank() < 1 || x[-1] != w[1])
      fail(
          str(name, ": the last axis of x must be the ", w[1], " columns of w, but x is ", x, " and w is ", w, "; w is [out, in]"));
    if (in[2].defined() && !(in[2].shape() == Shape{w[0]}))
      fail(str(name, ": bias must be [", w[0], "], one for each row of w ", w, ", but is ", in[2].shape(), " (x is ", x, ")"));
    return {{with_last(x, w[0]), dtype}};
  }
  static kernels::GemmShape gemm(const Shape& x, const Shape& w) {
    return {.m = rows_of(x), .n = w[0], .k = w[1], .transpose_b = true};
  }
  static Cost cost(Inputs in, const Specs& out, const Attr& attr) {
    const std::int64_t macs = out[0].shape.numel() * in[1].size(1);
    const int extras = (in[2].defined() ? 1 : 0) + (attr.epilogue != Epilogue::none ? 1 : 0);
    return {.flops = 2 * macs + extras * out[0].shape.numel(), .macs = macs};
  }
  static std::size_t workspace(Inputs in, const Specs& out, const Attr&) {
    return static_cast<std::size_t>(kernels::gemm_workspace(gemm(in[0].shape(), in[1].shape()))) * size_of(out[0].dtype);
  }
  static void forward(const Forward& f, const Attr& attr) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      kernels::gemm<T>(gemm(f.in_shape(0), f.in_shape(1)), f.in<T>(0), f.in<T>(1), f.out<T>(0), f.workspace<T>(),
                       {.bias = f.in<T>(2), .activation = ops::activation_of(attr.epilogue)});
    });
  }
  static Saves saves(const Attr& attr, std::uint32_t needs) {
    return {.inputs = ops::other_factors(needs), .outputs = attr.epilogue != Epilogue::none ? bit(0) : 0};
  }
  static void vjp(Vjp& v, const Attr& attr) {
    Tensor g = v.grad(0);
    if (attr.epilogue != Epilogue::none) g = ops::epilogue_gradient(attr.epilogue, v.output(0), std::move(g));
    if (v.needs(1)) v.give(1, ops::linear_backward_weight(g, v.input(0)));
    if (v.needs(2)) v.give(2, sum_to(g, v.input_shape(2)));
    if (v.needs(0)) v.give(0, matmul(std::move(g), v.input(1)));
  }
  static void samples(Samples<Attr> s) {
    struct Case {
      Shape x;
      std::int64_t out;
    };
    const Case cases[] = {{{3, 4}, 2}, {{1, 1}, 1}, {{2, 3, 2}, 3}, {{5}, 3}, {{2, 1, 2, 3}, 2}, {{7, 3}, 17}, {{0, 3}, 2}};
    for (const Case& c : cases)
      for (const bool has_bias : {false, true})
        for (const Epilogue epilogue : {Epilogue::none, Epilogue::relu, Epilogue::relu6}) {
          const auto inputs = [&](int salt) -> std::vector<Tensor> {
            return {sample(c.x, -3, 4, salt), sample({c.out, c.x[-1]}, -2, 3, salt + 1),
                    has_bias ? sample({c.out}, -1, 2, salt + 2) : Tensor()};
          };
          const int salt = ops::salt_avoiding_kinks(epilogue, [&](int at) {
            std::vector<Tensor> in = inputs(at);
            return linear(in[0], in[1], in[2]);
          });
          s.add(inputs(salt), {epilogue});
        }
    s.error({sample({2, 3}), sample({4, 2}), Tensor()}, {},
            "the last axis of x must be the 2 columns of w, but x is [2, 3] and w is [4, 2]");
    s.error({sample({2, 3}), sample({3}), Tensor()}, {}, "w must be [out, in], but is [3]");
    s.error({sample({2, 3}), sample({4, 3}), sample({3})}, {}, "bias must be [4]");
    s.error({sample({}), sample({4, 3}), Tensor()}, {}, "x is []");
    s.error({sample({2, 3}), sample({4, 3}), sample({4}).to(float32)}, {}, "inputs must have one dtype");
    s.error({sample({2, 3}), Tensor(), Tensor()}, {}, "input 1 is undefined");
    s.error({sample({2, 3}), sample({4, 3}), Tensor()}, {Epilogue::hardswish}, "call hardswish() on the result (x is [2, 3])");
  }
};

struct LinearBackwardWeight {
  static constexpr const char* name = "linear_backward_weight";
  static constexpr const char* input_names = "g, x";
  static constexpr const char* output_names = "dw";
  static constexpr Kind kind = Kind::contraction;
  struct Attr {};

  static Specs infer(Inputs in, const Attr&) {
    const DType dtype = check_floats(name, in);
    const Shape &g = in[0].shape(), &x = in[1].shape();
    if (g.rank() < 1 || x.rank() < 1 || !(with_last(g, 1) == with_last(x, 1)))
      fail(str(name, ": needs g [..., out] and x [..., in] with the same leading axes, but g is ", g, " and x is ", x));
    return {{{g[-1], x[-1]}, dtype}};
  }
  static kernels::GemmShape gemm(const Shape& g, const Shape& x) {
    return {.m = g[-1], .n = x[-1], .k = rows_of(x), .transpose_a = true};
  }
  static Cost cost(Inputs in, const Specs& out, const Attr&) {
    const std::int64_t macs = out[0].shape.numel() * rows_of(in[1].shape());
    return {.flops = 2 * macs, .macs = macs};
  }
  static std::size_t workspace(Inputs in, const Specs& out, const Attr&) {
    return static_cast<std::size_t>(kernels::gemm_workspace(gemm(in[0].shape(), in[1].shape()))) * size_of(out[0].dtype);
  }
  static void forward(const Forward& f, const Attr&) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      kernels::gemm(gemm(f.in_shape(0), f.in_shape(1)), f.in<T>(0), f.in<T>(1), f.out<T>(0), f.workspace<T>());
    });
  }
  static Saves saves(const Attr&, std::uint32_t needs) { return {.inputs = ops::other_factors(needs)}; }
  static void vjp(Vjp& v, const Attr&) {
    Tensor g = v.grad(0);  // [out, in], a weight
    if (v.needs(0)) v.give(0, linear(v.input(1), g));
    if (v.needs(1)) v.give(1, matmul(v.input(0), std::move(g)));
  }
  static void samples(Samples<Attr> s) {
    const Shape leading[] = {{}, {1}, {2}, {5}, {2, 3}, {3, 1, 2}, {0}};
    for (const Shape& lead : leading)
      for (const std::int64_t out : {1, 2, 5}) {
        Shape g = lead, x = lead;
        g.push_back(out);
        x.push_back(6 / (out + 1) + 1);
        s.add({sample(g), sample(x, -1, 2, 1)});
      }
    s.error({sample({2, 3}), sample({3, 3})}, {}, "g is [2, 3] and x is [3, 3]");
    s.error({sample({}), sample({3})}, {}, "g is [] and x is [3]");
    s.error({sample({2, 3}), sample({2, 2, 3})}, {}, "the same leading axes");
    s.error({sample({2, 3}), sample({2, 3}).to(float32)}, {}, "inputs must have one dtype");
  }
};

}  // namespace

namespace ops {
constinit const OpDecl linear_op = declare<Linear>();
constinit const OpDecl linear_backward_weight_op = declare<LinearBackwardWeight>();
}  // namespace ops

Tensor ops::linear_backward_weight(Tensor g, Tensor x) {
  return apply_one(linear_backward_weight_op, {std::move(g), std::move(x)}, nullptr);
}

Tensor linear(Tensor x, Tensor w, Tensor bias, Epilogue epilogue) {
  const Linear::Attr attr{epilogue};
  return apply_one(ops::linear_op, {std::move(x), std::move(w), std::move(bias)}, &attr);
}

}  // namespace rewind_lib
