// Dense and grouped convolutions, channels last. A convolution is bilinear, so the gradients of its two gradient ops are
// convolutions and each other again: any order of derivative works.

#include <rewind/autograd/functional.h>
#include <rewind/autograd/ops/check.h>
#include <rewind/autograd/ops/internal.h>
#include <rewind/autograd/ops/registry.h>
#include <rewind/autograd/ops/sample.h>
#include <rewind/autograd/ops/window.h>
#include <rewind/core/kernels/conv.h>

namespace rewind_lib {

using kernels::ConvShape;

namespace ops {

ConvShape conv_geometry(const Shape& x, const Shape& w, const ConvOptions& o) {
  return {.n = x[0],
          .h = x[1],
          .w = x[2],
          .c = x[3],
          .o = w[0],
          .kh = w[1],
          .kw = w[2],
          .sh = o.stride.h,
          .sw = o.stride.w,
          .ph = o.padding.h,
          .pw = o.padding.w,
          .dh = o.dilation.h,
          .dw = o.dilation.w,
          .groups = o.groups};
}

Shape check_convolution(const char* op, const Shape& x, const Shape& w, const ConvOptions& o) {
  const auto describe = [&] {
    return str("x ", x, ", w ", w, ", stride ", o.stride, ", padding ", o.padding, ", dilation ", o.dilation, ", groups ",
               o.groups);
  };
  if (x.rank() != 4) fail(str(op, ": x must be [N, H, W, C]: ", describe()));
  if (w.rank() != 4) fail(str(op, ": w must be [out, KH, KW, in / groups]: ", describe()));
  if (o.groups < 1) fail(str(op, ": groups must be at least 1: ", describe()));
  ops::check_epilogue(op, o.epilogue, x);
  if (x[3] < 1 || x[3] % o.groups != 0 || w[0] % o.groups != 0)
    fail(str(op, ": groups must divide the ", x[3], " channels of x and the ", w[0], " filters of w: ", describe()));
  if (w[3] * o.groups != x[3])
    fail(str(op, ": x has ", x[3], " channels, so the last axis of w must be ", x[3] / o.groups, ", not ", w[3], ": ", describe(),
             "; images are [N, H, W, C] and w is [out, KH, KW, in / groups]"));
  ops::check_window(op, x[1], x[2], w[1], w[2], o.stride, o.padding, o.dilation, describe);
  const ConvShape s = conv_geometry(x, w, o);
  return {s.n, s.out_h(), s.out_w(), s.o};
}

void check_bias(const char* op, const Tensor& bias, const Shape& x, const Shape& w) {
  if (bias.defined() && !(bias.shape() == Shape{w[0]}))
    fail(str(op, ": bias must be [", w[0], "], one for each filter of w ", w, ", but is ", bias.shape(), " (x is ", x, ")"));
}

}  // namespace ops

namespace {

using ops::check_convolution;
using ops::check_floats;
using ops::conv2d_backward_input;
using ops::conv2d_backward_weight;
using ops::conv_geometry;
using ops::macs_of;
using ops::sample;

/// What the gradient ops know of the forward besides their inputs.
struct BackwardAttr {
  ConvOptions options;
  std::int64_t h, w;  ///< of the image, or of the kernel
};

struct Case {
  Shape x, w;
  ConvOptions options = {};
};
/// Shapes, strides, padding, dilation, groups; windows that leave pixels over and windows that jump over some.
const std::vector<Case>& cases() {
  static const std::vector<Case> list{
      {{1, 1, 1, 1}, {1, 1, 1, 1}},
      {{2, 3, 3, 2}, {3, 1, 1, 2}},
      {{1, 4, 4, 2}, {2, 3, 3, 2}},
      {{2, 4, 3, 1}, {2, 3, 3, 1}, {.padding = 1}},
      {{1, 5, 5, 2}, {2, 3, 3, 2}, {.stride = 2, .padding = 1}},
      {{1, 6, 4, 2}, {1, 3, 3, 2}, {.stride = 2, .padding = 1}},
      {{1, 5, 4, 1}, {2, 2, 3, 1}, {.stride = {1, 2}, .padding = {0, 1}}},
      {{1, 4, 5, 2}, {2, 1, 1, 2}, {.stride = 2}},
      {{1, 3, 3, 2}, {2, 1, 1, 2}, {.padding = 1}},
      {{1, 5, 6, 1}, {1, 3, 3, 1}, {.padding = 2, .dilation = 2}},
      {{1, 7, 5, 2}, {1, 2, 3, 2}, {.stride = {3, 1}, .dilation = {2, 2}}},
      {{1, 6, 6, 1}, {2, 3, 2, 1}, {.stride = 2, .padding = {3, 1}, .dilation = {2, 3}}},
      {{1, 4, 4, 4}, {2, 3, 3, 2}, {.padding = 1, .groups = 2}},
      {{2, 3, 3, 3}, {6, 2, 2, 1}, {.groups = 3}},
      {{1, 5, 5, 4}, {4, 3, 3, 1}, {.stride = 2, .padding = 1, .groups = 4}},
      {{1, 3, 4, 4}, {6, 1, 1, 2}, {.groups = 2}},
      {{1, 5, 1, 2}, {2, 5, 1, 2}, {.padding = {2, 0}}},
      {{1, 1, 6, 1}, {2, 1, 4, 1}, {.stride = {1, 3}, .padding = {0, 2}}},
      {{1, 3, 3, 1}, {17, 3, 3, 1}},
      {{1, 2, 2, 17}, {2, 2, 2, 17}, {.padding = 1}},
      {{2, 2, 2, 1}, {1, 2, 2, 1}, {.stride = 4, .padding = 1}},
      {{1, 7, 7, 1}, {1, 3, 3, 1}, {.stride = 3}},
      {{0, 3, 3, 2}, {2, 3, 3, 2}},
  };
  return list;
}
Shape out_shape(const Case& c) { return check_convolution("conv2d", c.x, c.w, c.options); }

struct Conv2d {
  static constexpr const char* name = "conv2d";
  static constexpr const char* input_names = "x, w, bias";
  static constexpr const char* output_names = "y";
  static constexpr Kind kind = Kind::contraction;
  using Attr = ConvOptions;

  static Specs infer(Inputs in, const Attr& attr) {
    const DType dtype = check_floats(name, in, bit(2));
    const Shape y = check_convolution(name, in[0].shape(), in[1].shape(), attr);
    ops::check_bias(name, in[2], in[0].shape(), in[1].shape());
    return {{y, dtype}};
  }
  static Cost cost(Inputs in, const Specs& out, const Attr& attr) {
    const std::int64_t macs = macs_of(conv_geometry(in[0].shape(), in[1].shape(), attr));
    const int extras = (in[2].defined() ? 1 : 0) + (attr.epilogue != Epilogue::none ? 1 : 0);
    return {.flops = 2 * macs + extras * out[0].shape.numel(), .macs = macs};
  }
  static std::size_t workspace(Inputs in, const Specs& out, const Attr& attr) {
    return static_cast<std::size_t>(kernels::conv2d_forward_workspace(conv_geometry(in[0].shape(), in[1].shape(), attr))) *
           size_of(out[0].dtype);
  }
  static void forward(const Forward& f, const Attr& attr) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      kernels::conv2d_forward(conv_geometry(f.in_shape(0), f.in_shape(1), attr), f.in<T>(0), f.in<T>(1), f.in<T>(2),
                              ops::activation_of(attr.epilogue), f.out<T>(0), f.workspace<T>());
    });
  }
  static Saves saves(const Attr& attr, std::uint32_t needs) {
    return {.inputs = ops::other_factors(needs), .outputs = attr.epilogue != Epilogue::none ? bit(0) : 0};
  }
  static void vjp(Vjp& v, const Attr& attr) {
    Tensor g = v.grad(0);
    ConvOptions linear = attr;
    linear.epilogue = Epilogue::none;
    if (attr.epilogue != Epilogue::none) g = ops::epilogue_gradient(attr.epilogue, v.output(0), std::move(g));
    const Shape &x = v.input_shape(0), &w = v.input_shape(1);
    if (v.needs(1)) v.give(1, conv2d_backward_weight(g, v.input(0), linear, w));
    if (v.needs(2)) v.give(2, sum_to(g, v.input_shape(2)));
    if (v.needs(0)) v.give(0, conv2d_backward_input(std::move(g), v.input(1), linear, x));
  }
  static void samples(Samples<Attr> s) {
    int number = 0;
    for (const Case& c : cases()) {
      Attr attr = c.options;
      attr.epilogue = static_cast<Epilogue>(number % 3);
      const bool has_bias = number++ % 2 == 0;
      const auto inputs = [&](int salt) -> std::vector<Tensor> {
        return {sample(c.x, -2, 3, salt), sample(c.w, -2, 3, salt + 1), has_bias ? sample({c.w[0]}, -1, 2, salt + 2) : Tensor()};
      };
      const int salt = ops::salt_avoiding_kinks(attr.epilogue, [&](int at) {
        std::vector<Tensor> in = inputs(at);
        return conv2d(in[0], in[1], in[2], c.options);
      });
      s.add(inputs(salt), attr);
    }
    const Tensor x = sample({1, 5, 5, 4}), w = sample({2, 3, 3, 4});
    s.error({sample({5, 5, 4}), w, Tensor()}, {}, "x must be [N, H, W, C]: x [5, 5, 4], w [2, 3, 3, 4]");
    s.error({x, sample({2, 3, 4}), Tensor()}, {}, "w must be [out, KH, KW, in / groups]");
    s.error({x, sample({2, 3, 3, 3}), Tensor()}, {}, "x has 4 channels, so the last axis of w must be 4, not 3");
    s.error({x, sample({2, 3, 3, 4}), Tensor()}, {.groups = 2}, "so the last axis of w must be 2, not 4");
    s.error({x, w, Tensor()}, {.groups = 3}, "groups must divide the 4 channels of x and the 2 filters of w");
    s.error({x, w, Tensor()}, {.groups = 0}, "groups must be at least 1");
    s.error({x, w, sample({4})}, {}, "bias must be [2]");
    s.error({x, w, Tensor()}, {.stride = {1, 0}}, "stride must be at least 1");
    s.error({x, w, Tensor()}, {.padding = -1}, "padding must not be negative");
    s.error({x, w, Tensor()}, {.dilation = 0}, "dilation must be at least 1");
    s.error({x, w, Tensor()}, {.dilation = 3}, "the kernel covers 7x7 pixels, but the padded image has 5x5");
    s.error({x, w.to(float32), Tensor()}, {}, "inputs must have one dtype");
    s.error({x, Tensor(), Tensor()}, {}, "input 1 is undefined");
    s.error({x, w, Tensor()}, {.epilogue = Epilogue::silu}, "call silu() on the result (x is [1, 5, 5, 4])");
  }
};

struct Conv2dBackwardInput {
  static constexpr const char* name = "conv2d_backward_input";
  static constexpr const char* input_names = "g, w";
  static constexpr const char* output_names = "dx";
  static constexpr Kind kind = Kind::contraction;
  using Attr = BackwardAttr;  // h, w: of x

  static Shape image(const Shape& g, const Shape& w, const Attr& a) { return {g[0], a.h, a.w, w[3] * a.options.groups}; }
  static ConvShape shape_of(const Shape& g, const Shape& w, const Attr& a) { return conv_geometry(image(g, w, a), w, a.options); }

  static Specs infer(Inputs in, const Attr& a) {
    const DType dtype = check_floats(name, in);
    const Shape &g = in[0].shape(), &w = in[1].shape();
    if (g.rank() != 4 || w.rank() != 4)
      fail(str(name, ": needs g [N, OH, OW, out] and w [out, KH, KW, in / groups], but g is ", g, " and w is ", w));
    const Shape x = image(g, w, a), y = check_convolution(name, x, w, a.options);
    if (!(g == y)) fail(str(name, ": g is ", g, ", but the convolution of ", x, " with ", w, " makes ", y));
    return {{x, dtype}};
  }
  static Cost cost(Inputs in, const Specs&, const Attr& a) {
    const std::int64_t macs = macs_of(shape_of(in[0].shape(), in[1].shape(), a));
    return {.flops = 2 * macs, .macs = macs};
  }
  static std::size_t workspace(Inputs in, const Specs& out, const Attr& a) {
    return static_cast<std::size_t>(kernels::conv2d_backward_input_workspace(shape_of(in[0].shape(), in[1].shape(), a))) *
           size_of(out[0].dtype);
  }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      kernels::conv2d_backward_input(shape_of(f.in_shape(0), f.in_shape(1), a), f.in<T>(0), f.in<T>(1), f.out<T>(0),
                                     f.workspace<T>());
    });
  }
  static Saves saves(const Attr&, std::uint32_t needs) { return {.inputs = ops::other_factors(needs)}; }
  static void vjp(Vjp& v, const Attr& a) {
    Tensor d = v.grad(0);  // an image
    const Shape& w = v.input_shape(1);
    if (v.needs(1)) v.give(1, conv2d_backward_weight(v.input(0), d, a.options, w));
    if (v.needs(0)) v.give(0, conv2d(std::move(d), v.input(1), {}, a.options));
  }
  static void samples(Samples<Attr> s) {
    for (const Case& c : cases()) s.add({sample(out_shape(c)), sample(c.w, -1, 2, 1)}, {c.options, c.x[1], c.x[2]});
    const Tensor g = sample({1, 3, 3, 2}), w = sample({2, 3, 3, 4});
    s.error({g, w}, {{}, 6, 5}, "g is [1, 3, 3, 2], but the convolution of [1, 6, 5, 4] with [2, 3, 3, 4] makes [1, 4, 3, 2]");
    s.error({sample({3, 3, 2}), w}, {{}, 5, 5}, "g is [3, 3, 2] and w is [2, 3, 3, 4]");
    s.error({g, w}, {{}, 2, 5}, "the kernel covers 3x3 pixels, but the padded image has 2x5");
    s.error({g, sample({3, 3, 3, 4})}, {{}, 5, 5}, "makes [1, 3, 3, 3]");
    s.error({g, w.to(float32)}, {{}, 5, 5}, "inputs must have one dtype");
  }
};

struct Conv2dBackwardWeight {
  static constexpr const char* name = "conv2d_backward_weight";
  static constexpr const char* input_names = "g, x";
  static constexpr const char* output_names = "dw";
  static constexpr Kind kind = Kind::contraction;
  using Attr = BackwardAttr;  // h, w: of the kernel

  static Shape weight(const Shape& g, const Shape& x, const Attr& a) {
    return {g[3], a.h, a.w, a.options.groups < 1 ? 0 : x[3] / a.options.groups};
  }
  static ConvShape shape_of(const Shape& g, const Shape& x, const Attr& a) { return conv_geometry(x, weight(g, x, a), a.options); }

  static Specs infer(Inputs in, const Attr& a) {
    const DType dtype = check_floats(name, in);
    const Shape &g = in[0].shape(), &x = in[1].shape();
    if (g.rank() != 4 || x.rank() != 4)
      fail(str(name, ": needs g [N, OH, OW, out] and x [N, H, W, in], but g is ", g, " and x is ", x));
    const Shape w = weight(g, x, a), y = check_convolution(name, x, w, a.options);
    if (!(g == y)) fail(str(name, ": g is ", g, ", but the convolution of ", x, " with ", w, " makes ", y));
    return {{w, dtype}};
  }
  static Cost cost(Inputs in, const Specs&, const Attr& a) {
    const std::int64_t macs = macs_of(shape_of(in[0].shape(), in[1].shape(), a));
    return {.flops = 2 * macs, .macs = macs};
  }
  static std::size_t workspace(Inputs in, const Specs& out, const Attr& a) {
    return static_cast<std::size_t>(kernels::conv2d_backward_weight_workspace(shape_of(in[0].shape(), in[1].shape(), a))) *
           size_of(out[0].dtype);
  }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      kernels::conv2d_backward_weight(shape_of(f.in_shape(0), f.in_shape(1), a), f.in<T>(1), f.in<T>(0), f.out<T>(0),
                                      f.workspace<T>());
    });
  }
  static Saves saves(const Attr&, std::uint32_t needs) { return {.inputs = ops::other_factors(needs)}; }
  static void vjp(Vjp& v, const Attr& a) {
    Tensor d = v.grad(0);  // a weight
    const Shape& x = v.input_shape(1);
    if (v.needs(1)) v.give(1, conv2d_backward_input(v.input(0), d, a.options, x));
    if (v.needs(0)) v.give(0, conv2d(v.input(1), std::move(d), {}, a.options));
  }
  static void samples(Samples<Attr> s) {
    for (const Case& c : cases()) s.add({sample(out_shape(c)), sample(c.x, -1, 2, 1)}, {c.options, c.w[1], c.w[2]});
    const Tensor g = sample({1, 3, 3, 2}), x = sample({1, 5, 5, 4});
    s.error({g, x}, {{}, 2, 3}, "g is [1, 3, 3, 2], but the convolution of [1, 5, 5, 4] with [2, 2, 3, 4] makes [1, 4, 3, 2]");
    s.error({g, sample({5, 5, 4})}, {{}, 3, 3}, "g is [1, 3, 3, 2] and x is [5, 5, 4]");
    s.error({g, x}, {{.groups = 4}, 3, 3}, "groups must divide the 4 channels of x and the 2 filters of w");
    s.error({g, x}, {{}, 6, 3}, "the kernel covers 6x3 pixels, but the padded image has 5x5");
    s.error({g, x.to(float32)}, {{}, 3, 3}, "inputs must have one dtype");
  }
};

}  // namespace

namespace ops {
constinit const OpDecl conv2d_op = declare<Conv2d>();
constinit const OpDecl conv2d_backward_input_op = declare<Conv2dBackwardInput>();
constinit const OpDecl conv2d_backward_weight_op = declare<Conv2dBackwardWeight>();

Tensor conv2d_backward_input(Tensor g, Tensor w, const ConvOptions& options, const Shape& x) {
  const BackwardAttr attr{options, x[1], x[2]};
  return apply_one(conv2d_backward_input_op, {std::move(g), std::move(w)}, &attr);
}
Tensor conv2d_backward_weight(Tensor g, Tensor x, const ConvOptions& options, const Shape& w) {
  const BackwardAttr attr{options, w[1], w[2]};
  return apply_one(conv2d_backward_weight_op, {std::move(g), std::move(x)}, &attr);
}
}  // namespace ops

Shape conv2d_shape(const Shape& x, const Shape& w, const ConvOptions& options) {
  return check_convolution("conv2d", x, w, options);
}

Tensor conv2d(Tensor x, Tensor w, Tensor bias, ConvOptions options) {
  return apply_one(ops::conv2d_op, {std::move(x), std::move(w), std::move(bias)}, &options);
}

}  // namespace rewind_lib
