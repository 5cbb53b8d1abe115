// Depthwise convolutions: a filter for each channel, channels last. Where both gradients are wanted one op makes them in
// one pass. All of them are bilinear, so that any order of derivative works.

#include <rewind/autograd/functional.h>
#include <rewind/autograd/ops/check.h>
#include <rewind/autograd/ops/registry.h>
#include <rewind/autograd/ops/sample.h>
#include <rewind/autograd/ops/window.h>
#include <rewind/core/kernels/depthwise.h>

namespace rewind_lib {
namespace {

using kernels::WindowShape;
using ops::check_floats;
using ops::sample;

WindowShape geometry(const Shape& x, const Shape& w, const DepthwiseOptions& o) {
  return {.n = x[0],
          .h = x[1],
          .w = x[2],
          .c = x[3],
          .kh = w[0],
          .kw = w[1],
          .sh = o.stride.h,
          .sw = o.stride.w,
          .ph = o.padding.h,
          .pw = o.padding.w,
          .dh = o.dilation.h,
          .dw = o.dilation.w};
}

/// The shape of y; throws where x, w and the options do not fit.
Shape check_convolution(const char* op, const Shape& x, const Shape& w, const DepthwiseOptions& o) {
  const auto describe = [&] {
    return str("x ", x, ", w ", w, ", stride ", o.stride, ", padding ", o.padding, ", dilation ", o.dilation);
  };
  if (x.rank() != 4) fail(str(op, ": x must be [N, H, W, C]: ", describe()));
  if (w.rank() != 3) fail(str(op, ": w must be [KH, KW, C]: ", describe()));
  if (x[3] < 1 || x[3] != w[2])
    fail(str(op, ": x has ", x[3], " channels and w has ", w[2], ", but each channel needs a filter: ", describe(),
             "; images are [N, H, W, C] and w is [KH, KW, C]"));
  ops::check_window(op, x[1], x[2], w[0], w[1], o.stride, o.padding, o.dilation, describe);
  const WindowShape s = geometry(x, w, o);
  return {s.n, s.out_h(), s.out_w(), s.c};
}

std::int64_t macs_of(const WindowShape& s) { return s.n * s.out_h() * s.out_w() * s.c * s.kh * s.kw; }

/// What the gradient ops know of the forward besides their inputs.
struct BackwardAttr {
  DepthwiseOptions options;
  std::int64_t h, w;  ///< of the image, or of the kernel
};

Tensor backward_input(Tensor g, Tensor w, const BackwardAttr& attr) {
  return apply_one(ops::depthwise_conv2d_backward_input_op, {std::move(g), std::move(w)}, &attr);
}
Tensor backward_weight(Tensor g, Tensor x, const BackwardAttr& attr) {
  return apply_one(ops::depthwise_conv2d_backward_weight_op, {std::move(g), std::move(x)}, &attr);
}

struct Case {
  Shape x, w;
  DepthwiseOptions options = {};
};
/// The paths that kernels have of their own (3x3 and 5x5 at strides 1 and 2), and the others.
const std::vector<Case>& cases() {
  static const std::vector<Case> list{
      {{1, 1, 1, 1}, {1, 1, 1}},
      {{2, 2, 3, 2}, {1, 1, 2}},
      {{1, 4, 4, 2}, {3, 3, 2}},
      {{1, 4, 5, 3}, {3, 3, 3}, {.padding = 1}},
      {{2, 3, 3, 1}, {3, 3, 1}, {.padding = 1}},
      {{1, 5, 5, 2}, {3, 3, 2}, {.stride = 2, .padding = 1}},
      {{1, 6, 4, 2}, {3, 3, 2}, {.stride = 2, .padding = 1}},
      {{1, 3, 3, 17}, {3, 3, 17}, {.padding = 1}},
      {{1, 3, 3, 18}, {3, 3, 18}, {.stride = 2, .padding = 1}},
      {{1, 5, 5, 1}, {5, 5, 1}, {.padding = 2}},
      {{1, 6, 5, 2}, {5, 5, 2}, {.stride = 2, .padding = 2}},
      {{1, 2, 2, 9}, {5, 5, 9}, {.padding = 2}},
      {{1, 5, 6, 1}, {3, 3, 1}, {.padding = 2, .dilation = 2}},
      {{1, 7, 5, 2}, {2, 3, 2}, {.stride = {3, 1}, .dilation = {2, 2}}},
      {{1, 6, 6, 1}, {3, 2, 1}, {.stride = 2, .padding = {3, 1}, .dilation = {2, 3}}},
      {{1, 5, 4, 2}, {2, 3, 2}, {.stride = {1, 2}, .padding = {0, 1}}},
      {{1, 4, 5, 2}, {1, 1, 2}, {.stride = 2}},
      {{1, 3, 3, 2}, {1, 1, 2}, {.padding = 1}},
      {{1, 1, 6, 2}, {1, 4, 2}, {.stride = {1, 3}, .padding = {0, 2}}},
      {{1, 5, 1, 2}, {3, 3, 2}, {.padding = {0, 1}}},
      {{1, 7, 7, 1}, {3, 3, 1}, {.stride = 3}},
      {{2, 2, 2, 1}, {2, 2, 1}, {.stride = 4, .padding = 1}},
      {{0, 3, 3, 2}, {3, 3, 2}},
  };
  return list;
}
Shape out_shape(const Case& c) { return check_convolution("depthwise_conv2d", c.x, c.w, c.options); }

struct Depthwise {
  static constexpr const char* name = "depthwise_conv2d";
  static constexpr const char* input_names = "x, w, bias";
  static constexpr const char* output_names = "y";
  static constexpr Kind kind = Kind::contraction;
  using Attr = DepthwiseOptions;

  static Specs infer(Inputs in, const Attr& attr) {
    const DType dtype = check_floats(name, in, bit(2));
    const Shape y = check_convolution(name, in[0].shape(), in[1].shape(), attr);
    ops::check_channels(name, "bias", in[2], in[0].shape());
    return {{y, dtype}};
  }
  static Cost cost(Inputs in, const Specs& out, const Attr& attr) {
    const std::int64_t macs = macs_of(geometry(in[0].shape(), in[1].shape(), attr));
    return {.flops = 2 * macs + (in[2].defined() ? out[0].shape.numel() : 0), .macs = macs};
  }
  static void forward(const Forward& f, const Attr& attr) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      kernels::depthwise_forward(geometry(f.in_shape(0), f.in_shape(1), attr), f.in<T>(0), f.in<T>(1), f.in<T>(2),
                                 kernels::Activation::none, f.out<T>(0));
    });
  }
  static Saves saves(const Attr&, std::uint32_t needs) { return {.inputs = ops::other_factors(needs)}; }
  static void vjp(Vjp& v, const Attr& attr) {
    Tensor g = v.grad(0);
    const Shape &x = v.input_shape(0), &w = v.input_shape(1);
    if (v.needs(2)) v.give(2, sum_to(g, v.input_shape(2)));
    if (v.needs(0) && v.needs(1)) {
      Tensor in[] = {std::move(g), v.input(0), v.input(1)}, out[2];
      apply(ops::depthwise_conv2d_backward_op, in, &attr, out);
      for (Tensor& t : in) t = Tensor();
      v.give(1, std::move(out[1]));
      v.give(0, std::move(out[0]));
    } else if (v.needs(1)) {
      v.give(1, backward_weight(std::move(g), v.input(0), {attr, w[0], w[1]}));
    } else if (v.needs(0)) {
      v.give(0, backward_input(std::move(g), v.input(1), {attr, x[1], x[2]}));
    }
  }
  static void samples(Samples<Attr> s) {
    int number = 0;
    for (const Case& c : cases())
      s.add({sample(c.x), sample(c.w, -1, 2, 1), number++ % 2 == 0 ? sample({c.w[2]}, -1, 1, 2) : Tensor()}, c.options);
    const Tensor x = sample({1, 5, 5, 4}), w = sample({3, 3, 4});
    s.error({sample({5, 5, 4}), w, Tensor()}, {}, "x must be [N, H, W, C]: x [5, 5, 4], w [3, 3, 4]");
    s.error({x, sample({4, 3, 3, 1}), Tensor()}, {}, "w must be [KH, KW, C]");
    s.error({x, sample({3, 3, 2}), Tensor()}, {}, "x has 4 channels and w has 2");
    s.error({x, w, sample({3})}, {}, "bias must have shape [4]");
    s.error({x, w, Tensor()}, {.stride = -1}, "stride must be at least 1");
    s.error({x, w, Tensor()}, {.padding = {0, -2}}, "padding must not be negative");
    s.error({x, w, Tensor()}, {.dilation = {0, 1}}, "dilation must be at least 1");
    s.error({x, sample({6, 3, 4}), Tensor()}, {}, "the kernel covers 6x3 pixels, but the padded image has 5x5");
    s.error({x, w.to(float32), Tensor()}, {}, "inputs must have one dtype");
    s.error({x, Tensor(), Tensor()}, {}, "input 1 is undefined");
  }
};

struct DepthwiseBackwardInput {
  static constexpr const char* name = "depthwise_conv2d_backward_input";
  static constexpr const char* input_names = "g, w";
  static constexpr const char* output_names = "dx";
  static constexpr Kind kind = Kind::contraction;
  using Attr = BackwardAttr;  // h, w: of x

  static Shape image(const Shape& g, const Attr& a) { return {g[0], a.h, a.w, g[3]}; }

  static Specs infer(Inputs in, const Attr& a) {
    const DType dtype = check_floats(name, in);
    const Shape &g = in[0].shape(), &w = in[1].shape();
    if (g.rank() != 4 || w.rank() != 3)
      fail(str(name, ": needs g [N, OH, OW, C] and w [KH, KW, C], but g is ", g, " and w is ", w));
    const Shape x = image(g, a), y = check_convolution(name, x, w, a.options);
    if (!(g == y)) fail(str(name, ": g is ", g, ", but the convolution of ", x, " with ", w, " makes ", y));
    return {{x, dtype}};
  }
  static Cost cost(Inputs in, const Specs& out, const Attr& a) {
    const std::int64_t macs = macs_of(geometry(out[0].shape, in[1].shape(), a.options));
    return {.flops = 2 * macs, .macs = macs};
  }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      kernels::depthwise_backward_input(geometry(f.out_shape(0), f.in_shape(1), a.options), f.in<T>(0), f.in<T>(1), f.out<T>(0));
    });
  }
  static Saves saves(const Attr&, std::uint32_t needs) { return {.inputs = ops::other_factors(needs)}; }
  static void vjp(Vjp& v, const Attr& a) {
    Tensor d = v.grad(0);  // an image
    const Shape& w = v.input_shape(1);
    if (v.needs(1)) v.give(1, backward_weight(v.input(0), d, {a.options, w[0], w[1]}));
    if (v.needs(0)) v.give(0, depthwise_conv2d(std::move(d), v.input(1), {}, a.options));
  }
  static void samples(Samples<Attr> s) {
    for (const Case& c : cases()) s.add({sample(out_shape(c)), sample(c.w, -1, 2, 1)}, {c.options, c.x[1], c.x[2]});
    const Tensor g = sample({1, 3, 3, 2}), w = sample({3, 3, 2});
    s.error({g, w}, {{}, 6, 5}, "g is [1, 3, 3, 2], but the convolution of [1, 6, 5, 2] with [3, 3, 2] makes [1, 4, 3, 2]");
    s.error({sample({3, 3, 2}), w}, {{}, 5, 5}, "g is [3, 3, 2] and w is [3, 3, 2]");
    s.error({g, w}, {{}, 2, 5}, "the kernel covers 3x3 pixels, but the padded image has 2x5");
    s.error({g, w.to(float32)}, {{}, 5, 5}, "inputs must have one dtype");
  }
};

struct DepthwiseBackwardWeight {
  static constexpr const char* name = "depthwise_conv2d_backward_weight";
  static constexpr const char* input_names = "g, x";
  static constexpr const char* output_names = "dw";
  static constexpr Kind kind = Kind::contraction;
  using Attr = BackwardAttr;  // h, w: of the kernel

  static Specs infer(Inputs in, const Attr& a) {
    const DType dtype = check_floats(name, in);
    const Shape &g = in[0].shape(), &x = in[1].shape();
    if (g.rank() != 4 || x.rank() != 4)
      fail(str(name, ": needs g [N, OH, OW, C] and x [N, H, W, C], but g is ", g, " and x is ", x));
    const Shape w{a.h, a.w, g[3]}, y = check_convolution(name, x, w, a.options);
    if (!(g == y)) fail(str(name, ": g is ", g, ", but the convolution of ", x, " with ", w, " makes ", y));
    return {{w, dtype}};
  }
  static Cost cost(Inputs in, const Specs& out, const Attr& a) {
    const std::int64_t macs = macs_of(geometry(in[1].shape(), out[0].shape, a.options));
    return {.flops = 2 * macs, .macs = macs};
  }
  static std::size_t workspace(Inputs in, const Specs& out, const Attr& a) {
    const WindowShape s = geometry(in[1].shape(), out[0].shape, a.options);
    return static_cast<std::size_t>(kernels::depthwise_backward_weight_workspace(s)) * size_of(out[0].dtype);
  }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      kernels::depthwise_backward_weight(geometry(f.in_shape(1), f.out_shape(0), a.options), f.in<T>(1), f.in<T>(0), f.out<T>(0),
                                         f.workspace<T>());
    });
  }
  static Saves saves(const Attr&, std::uint32_t needs) { return {.inputs = ops::other_factors(needs)}; }
  static void vjp(Vjp& v, const Attr& a) {
    Tensor d = v.grad(0);  // a weight
    const Shape& x = v.input_shape(1);
    if (v.needs(1)) v.give(1, backward_input(v.input(0), d, {a.options, x[1], x[2]}));
    if (v.needs(0)) v.give(0, depthwise_conv2d(v.input(1), std::move(d), {}, a.options));
  }
  static void samples(Samples<Attr> s) {
    for (const Case& c : cases()) s.add({sample(out_shape(c)), sample(c.x, -1, 2, 1)}, {c.options, c.w[0], c.w[1]});
    const Tensor g = sample({1, 3, 3, 2}), x = sample({1, 5, 5, 2});
    s.error({g, x}, {{}, 2, 3}, "g is [1, 3, 3, 2], but the convolution of [1, 5, 5, 2] with [2, 3, 2] makes [1, 4, 3, 2]");
    s.error({g, sample({5, 5, 2})}, {{}, 3, 3}, "g is [1, 3, 3, 2] and x is [5, 5, 2]");
    s.error({g, sample({1, 5, 5, 4})}, {{}, 3, 3}, "x has 4 channels and w has 2");
    s.error({g, x.to(float32)}, {{}, 3, 3}, "inputs must have one dtype");
  }
};

/// Both gradients: g, x, w -> the gradients of x and of w.
struct DepthwiseBackward {
  static constexpr const char* name = "depthwise_conv2d_backward";
  static constexpr const char* input_names = "g, x, w";
  static constexpr const char* output_names = "dx, dw";
  static constexpr Kind kind = Kind::contraction;
  using Attr = DepthwiseOptions;

  static Specs infer(Inputs in, const Attr& a) {
    const DType dtype = check_floats(name, in);
    const Shape &g = in[0].shape(), &x = in[1].shape(), &w = in[2].shape(), y = check_convolution(name, x, w, a);
    if (!(g == y)) fail(str(name, ": g is ", g, ", but the convolution of ", x, " with ", w, " makes ", y));
    return {{x, dtype}, {w, dtype}};
  }
  static Cost cost(Inputs in, const Specs&, const Attr& a) {
    const std::int64_t macs = 2 * macs_of(geometry(in[1].shape(), in[2].shape(), a));
    return {.flops = 2 * macs, .macs = macs};
  }
  static std::size_t workspace(Inputs in, const Specs& out, const Attr& a) {
    const WindowShape s = geometry(in[1].shape(), in[2].shape(), a);
    return static_cast<std::size_t>(kernels::depthwise_backward_weight_workspace(s)) * size_of(out[0].dtype);
  }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      kernels::depthwise_backward(geometry(f.in_shape(1), f.in_shape(2), a), f.in<T>(1), f.in<T>(0), f.in<T>(2), f.out<T>(0),
                                  f.out<T>(1), f.workspace<T>());
    });
  }
  static Saves saves(const Attr&, std::uint32_t needs) {
    Saves s;
    if ((needs & bit(0)) != 0) s.inputs |= bit(1) | bit(2);
    if ((needs & (bit(1) | bit(2))) != 0) s.inputs |= bit(0);
    return s;
  }
  // dx = backward_input(g, w) and dw = backward_weight(g, x); a gradient may have reached either or both.
  static void vjp(Vjp& v, const Attr& a) {
    const Shape &x = v.input_shape(1), &w = v.input_shape(2);
    Tensor ddx = v.has_grad(0) ? v.grad(0) : Tensor(), ddw = v.has_grad(1) ? v.grad(1) : Tensor();
    if (v.needs(1) || v.needs(2)) {
      Tensor g = v.input(0);
      if (v.needs(1) && ddw.defined()) v.give(1, backward_input(g, ddw, {a, x[1], x[2]}));
      if (v.needs(2) && ddx.defined()) v.give(2, backward_weight(std::move(g), ddx, {a, w[0], w[1]}));
    }
    if (v.needs(0)) {
      Tensor sum = ddw.defined() ? depthwise_conv2d(v.input(1), std::move(ddw), {}, a) : Tensor();
      Tensor part = ddx.defined() ? depthwise_conv2d(std::move(ddx), v.input(2), {}, a) : Tensor();
      if (sum.defined() && part.defined())
        v.give(0, add(std::move(sum), std::move(part)));
      else
        v.give(0, sum.defined() ? std::move(sum) : std::move(part));
    }
  }
  static void samples(Samples<Attr> s) {
    for (const Case& c : cases()) s.add({sample(out_shape(c)), sample(c.x, -1, 2, 1), sample(c.w, -2, 1, 2)}, c.options);
    const Tensor g = sample({1, 3, 3, 2}), x = sample({1, 5, 5, 2}), w = sample({3, 3, 2});
    s.error({g, sample({1, 6, 5, 2}), w}, {},
            "g is [1, 3, 3, 2], but the convolution of [1, 6, 5, 2] with [3, 3, 2] makes [1, 4, 3, 2]");
    s.error({g, x, sample({3, 3, 4})}, {}, "x has 2 channels and w has 4");
    s.error({sample({3, 3, 2}), x, w}, {}, "g is [3, 3, 2]");
    s.error({g, x, w.to(float32)}, {}, "inputs must have one dtype");
  }
};

}  // namespace

namespace ops {
constinit const OpDecl depthwise_conv2d_op = declare<Depthwise>();
constinit const OpDecl depthwise_conv2d_backward_op = declare<DepthwiseBackward>();
constinit const OpDecl depthwise_conv2d_backward_input_op = declare<DepthwiseBackwardInput>();
constinit const OpDecl depthwise_conv2d_backward_weight_op = declare<DepthwiseBackwardWeight>();
}  // namespace ops

Tensor depthwise_conv2d(Tensor x, Tensor w, Tensor bias, DepthwiseOptions options) {
  return apply_one(ops::depthwise_conv2d_op, {std::move(x), std::move(w), std::move(bias)}, &options);
}

}  // namespace rewind_lib
