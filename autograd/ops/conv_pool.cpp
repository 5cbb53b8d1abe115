// A convolution, its activation and the maximum pool behind it, in one pass. Maxima that the activation cuts off are marked as
// such among the positions, so that backward needs neither the convolution's result nor the pool's.

#include <rewind/autograd/functional.h>
#include <rewind/autograd/grad_mode.h>
#include <rewind/autograd/ops/check.h>
#include <rewind/autograd/ops/internal.h>
#include <rewind/autograd/ops/registry.h>
#include <rewind/autograd/ops/sample.h>
#include <rewind/core/kernels/conv_pool.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace rewind_lib {
namespace {

using kernels::ConvPoolShape;
using ops::check_floats;
using ops::sample;

struct ConvPoolAttr {
  ConvOptions conv;
  PoolOptions pool;  // resolved
};

/// What the backward knows besides its inputs.
struct BackwardAttr {
  ConvPoolAttr forward;
  std::int64_t o, kh, kw;  ///< of w
};

ConvPoolShape geometry(const char* op, const Shape& x, const Shape& w, const ConvPoolAttr& a) {
  const kernels::ConvShape conv = ops::conv_geometry(x, w, a.conv);
  const Shape made = ops::check_convolution(op, x, w, a.conv);
  return {conv, ops::pool_geometry(made, a.pool), ops::activation_of(a.conv.epilogue)};
}

bool backward_covers(const ConvPoolShape& s, DType dtype) {
  return visit_float(dtype, [&](auto zero) { return kernels::conv_pool_backward_covers<decltype(zero)>(s); });
}

struct Case {
  Shape x, w;
  ConvOptions conv = {};
  PoolOptions pool = {};
};
/// Those with a backward of their own (3 or 5 rows, few channels), and others.
const std::vector<Case>& cases() {
  static const std::vector<Case> list{
      {{1, 4, 4, 1}, {1, 3, 3, 1}},
      {{5, 6, 6, 1}, {3, 3, 3, 1}, {.epilogue = Epilogue::relu}},
      {{1, 8, 8, 1}, {6, 5, 5, 1}, {.epilogue = Epilogue::relu}},
      {{2, 6, 6, 3}, {4, 5, 5, 3}, {.padding = 2, .epilogue = Epilogue::relu6}},
      {{2, 5, 4, 6}, {5, 3, 3, 6}, {.padding = 1}, {.kernel = 3, .stride = 2, .padding = 1}},
      {{1, 5, 5, 4}, {2, 3, 5, 4}, {.padding = {1, 2}, .epilogue = Epilogue::relu}, {.kernel = 2, .stride = 1}},
      {{1, 4, 4, 7}, {3, 3, 3, 7}, {}, {.kernel = {1, 2}}},
      {{1, 5, 5, 2}, {3, 2, 2, 2}, {.epilogue = Epilogue::relu}},
      {{1, 7, 7, 2}, {3, 3, 3, 2}, {.stride = 2, .padding = 1, .epilogue = Epilogue::relu}},
      {{1, 5, 5, 4}, {4, 3, 3, 2}, {.groups = 2, .epilogue = Epilogue::relu6}, {.kernel = 3}},
      {{1, 5, 6, 2}, {2, 3, 3, 2}, {.padding = 1}, {.kernel = 2, .ceil = true}},
      {{0, 4, 4, 1}, {2, 3, 3, 1}},
      {{1, 4, 4, 1}, {1, 3, 3, 1}, {.padding = 1, .epilogue = Epilogue::relu6}},
      {{6, 4, 4, 2}, {2, 3, 3, 2}, {.padding = 1, .epilogue = Epilogue::relu}},
      {{1, 6, 4, 5}, {2, 5, 3, 5}, {.padding = {2, 1}}, {.kernel = 2, .stride = {1, 2}}},
      {{1, 4, 3, 9}, {2, 3, 3, 9}, {.padding = 1, .epilogue = Epilogue::relu}},
      {{1, 3, 3, 2}, {9, 3, 3, 2}, {.padding = 1}},
      {{1, 3, 3, 1}, {17, 3, 3, 1}, {.padding = 1, .epilogue = Epilogue::relu}},
      {{2, 2, 2, 3}, {2, 1, 1, 3}, {.epilogue = Epilogue::relu}},
      {{1, 5, 5, 1}, {2, 3, 3, 1}, {.padding = 2, .dilation = 2}},
      {{1, 4, 5, 2}, {2, 3, 1, 2}, {}, {.kernel = {2, 3}, .padding = {1, 1}}},
      {{2, 10, 12, 1}, {2, 3, 3, 1}, {.epilogue = Epilogue::relu}},
      {{1, 9, 11, 2}, {1, 5, 5, 2}, {.padding = 2, .epilogue = Epilogue::relu6}},
  };
  return list;
}
ConvPoolAttr attr_of(const Case& c) { return {c.conv, ops::resolve(c.pool)}; }

/// Whether the convolution's results stay away from the activation's kinks, and from each other: a maximum is to stay where it is.
bool is_clear(const Case& c, std::vector<Tensor> in) {
  if (DryLedger::active()) return true;
  constexpr double margin = 1e-3;
  ConvOptions linear = c.conv;
  linear.epilogue = Epilogue::none;
  const Tensor made = conv2d(in[0], in[1], in[2], linear);
  const auto v = made.values<double>();
  const auto channels = static_cast<std::size_t>(made.size(3)),
             image = static_cast<std::size_t>(made.size(1) * made.size(2)) * channels;
  for (std::size_t i = 0; i < v.size(); ++i) {
    if (c.conv.epilogue != Epilogue::none && std::min(std::abs(v[i]), std::abs(v[i] - 6)) < margin) return false;
    for (std::size_t j = i % channels + i / image * image; j < i; j += channels)
      if (std::abs(v[i] - v[j]) < margin) return false;
  }
  return true;
}

/// x, w, bias -> the maxima, and their positions in the images of the convolution's result; -1 where no gradient passes.
struct ConvPool {
  static constexpr const char* name = "conv2d_max_pool";
  static constexpr const char* input_names = "x, w, bias";
  static constexpr const char* output_names = "y, positions";
  static constexpr Kind kind = Kind::contraction;
  static constexpr std::uint32_t differentiable = bit(0);
  using Attr = ConvPoolAttr;

  static Specs infer(Inputs in, const Attr& a) {
    const DType dtype = check_floats(name, in, bit(2));
    const Shape made = ops::check_convolution(name, in[0].shape(), in[1].shape(), a.conv);
    ops::check_bias(name, in[2], in[0].shape(), in[1].shape());
    const Shape y = ops::check_pool(name, made, a.pool);
    if (made[1] * made[2] > std::numeric_limits<std::int32_t>::max())
      fail(str(name, ": images of more than 2^31 pixels are not supported, the convolution of ", in[0].shape(), " makes ", made));
    return {{y, dtype}, {y, int32}};
  }
  static Cost cost(Inputs in, const Specs&, const Attr& a) {
    const ConvPoolShape s = geometry(name, in[0].shape(), in[1].shape(), a);
    const std::int64_t macs = ops::macs_of(s.conv), made = s.conv.n * s.conv.out_h() * s.conv.out_w() * s.conv.o;
    const std::int64_t maxima = s.pool.n * s.pool.out_h() * s.pool.out_w() * s.pool.c;
    return {.flops = 2 * macs + (in[2].defined() ? made : 0) +
                     maxima * (s.pool.kh * s.pool.kw + (s.activation != kernels::Activation::none)),
            .macs = macs};
  }
  static std::size_t workspace(Inputs in, const Specs& out, const Attr& a) {
    const ConvPoolShape s = geometry(name, in[0].shape(), in[1].shape(), a);
    return visit_float(out[0].dtype, [&](auto zero) { return kernels::conv_pool_forward_workspace<decltype(zero)>(s); });
  }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      kernels::conv_pool_forward(geometry(name, f.in_shape(0), f.in_shape(1), a), f.in<T>(0), f.in<T>(1), f.in<T>(2), f.out<T>(0),
                                 f.out<std::int32_t>(1), f.workspace<void>());
    });
  }
  // The gradients of w and x need x and w; one kernel makes them together.
  static Saves saves(const Attr&, std::uint32_t needs) {
    std::uint32_t inputs = 0;
    if ((needs & bit(1)) != 0) inputs |= bit(0);
    if ((needs & bit(0)) != 0) inputs |= bit(1);
    return {.inputs = inputs, .outputs = bit(1)};
  }
  static void vjp(Vjp& v, const Attr& a) {
    const Shape &x = v.input_shape(0), &w = v.input_shape(1);
    const ConvPoolShape s = geometry(name, x, w, a);
    Tensor g = v.grad(0), positions = v.output(1).detach();
    if (v.needs(1) && grad_mode() != GradMode::record && backward_covers(s, g.dtype())) {
      Tensor in[] = {std::move(g), std::move(positions), v.input(0), v.needs(0) ? v.input(1) : Tensor()}, out[3];
      const bool dx = v.needs(0);
      const BackwardAttr attr{a, w[0], w[1], w[2]};
      apply(ops::conv2d_max_pool_backward_op, in, &attr, std::span(out, dx ? 3 : 2));
      for (Tensor& t : in) t = Tensor();
      v.give(1, std::move(out[0]));
      if (v.needs(2)) v.give(2, std::move(out[1]));
      if (dx) v.give(0, std::move(out[2]));
      return;
    }
    ConvOptions linear = a.conv;
    linear.epilogue = Epilogue::none;
    const Shape made{s.conv.n, s.conv.out_h(), s.conv.out_w(), s.conv.o};
    g = ops::max_pool2d_backward(std::move(g), std::move(positions), a.pool, made);
    if (v.needs(1)) v.give(1, ops::conv2d_backward_weight(g, v.input(0), linear, w));
    if (v.needs(2)) v.give(2, sum_to(g, v.input_shape(2)));
    if (v.needs(0)) v.give(0, ops::conv2d_backward_input(std::move(g), v.input(1), linear, x));
  }
  static void samples(Samples<Attr> s) {
    int number = 0;
    for (const Case& c : cases()) {
      const bool has_bias = number++ % 2 == 0;
      const auto inputs = [&](int salt) -> std::vector<Tensor> {
        return {sample(c.x, -2, 3, salt), sample(c.w, -2, 3, salt + 1), has_bias ? sample({c.w[0]}, -1, 2, salt + 2) : Tensor()};
      };
      int salt = 0;
      while (!is_clear(c, inputs(salt))) salt += 10;
      s.add(inputs(salt), attr_of(c));
    }
    const Tensor x = sample({1, 5, 5, 4}), w = sample({2, 3, 3, 4});
    const PoolOptions two = ops::resolve({});
    s.error({sample({5, 5, 4}), w, Tensor()}, {{}, two}, "x must be [N, H, W, C]: x [5, 5, 4], w [2, 3, 3, 4]");
    s.error({x, sample({2, 3, 3, 3}), Tensor()}, {{}, two}, "x has 4 channels, so the last axis of w must be 4, not 3");
    s.error({x, w, sample({4})}, {{}, two}, "bias must be [2]");
    s.error({x, w, Tensor()}, {{}, ops::resolve({.kernel = 4})}, "the kernel covers 4x4 pixels, but the padded image has 3x3");
    s.error({x, w, Tensor()}, {{}, ops::resolve({.padding = 2})}, "padding must be smaller than the kernel");
    s.error({x, w.to(float32), Tensor()}, {{}, two}, "inputs must have one dtype");
    s.error({x, Tensor(), Tensor()}, {{}, two}, "input 1 is undefined");
  }
};

/// g, positions, x, w or nothing -> the gradients of w, of bias, and, with w, of x.
struct ConvPoolBackward {
  static constexpr const char* name = "conv2d_max_pool_backward";
  static constexpr const char* input_names = "g, positions, x, w";
  static constexpr Kind kind = Kind::contraction;
  using Attr = BackwardAttr;
  static constexpr const char* no_gradient =
      "it is a gradient in one pass; turn fusion off (net.fuse(false)) to differentiate twice";

  static Shape weight(const Shape& x, const Attr& a) { return {a.o, a.kh, a.kw, x[3]}; }

  static Specs infer(Inputs in, const Attr& a) {
    const DType dtype = check_floats(name, in.first(1));
    check_floats(name, in.subspan(2), bit(1));
    const Shape &g = in[0].shape(), &x = in[2].shape();
    if (x.rank() != 4) fail(str(name, ": x must be [N, H, W, C], but is ", x));
    if (in[2].dtype() != dtype) fail(str(name, ": g is ", dtype, ", but x is ", in[2].dtype(), "; inputs must have one dtype"));
    const Shape w = weight(x, a);
    if (in[3].defined() && !(in[3].shape() == w)) fail(str(name, ": w must be ", w, ", but is ", in[3].shape()));
    const Shape y = ops::check_pool(name, ops::check_convolution(name, x, w, a.forward.conv), a.forward.pool);
    if (!(g == y)) fail(str(name, ": g is ", g, ", but the pool behind the convolution of ", x, " with ", w, " makes ", y));
    ops::check_positions(name, in[1], y);
    if (!backward_covers(geometry(name, x, w, a.forward), dtype))
      fail(str(name, ": has kernels for 3 or 5 rows at stride 1 over few channels, not for x ", x, " and w ", w));
    Specs out{{w, dtype}, {{w[0]}, dtype}};
    if (in[3].defined()) out.push_back({x, dtype});
    return out;
  }
  // As of the gradients of any convolution, though only the maxima are visited.
  static Cost cost(Inputs in, const Specs&, const Attr& a) {
    const std::int64_t macs =
        ops::macs_of(geometry(name, in[2].shape(), weight(in[2].shape(), a), a.forward).conv) * (in[3].defined() ? 2 : 1);
    return {.flops = 2 * macs + in[0].numel(), .macs = macs};
  }
  static std::size_t workspace(Inputs in, const Specs& out, const Attr& a) {
    const ConvPoolShape s = geometry(name, in[2].shape(), weight(in[2].shape(), a), a.forward);
    return visit_float(out[0].dtype,
                       [&](auto zero) { return kernels::conv_pool_backward_workspace<decltype(zero)>(s, in[3].defined()); });
  }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      const bool dx = f.has_input(3);
      kernels::conv_pool_backward(geometry(name, f.in_shape(2), f.out_shape(0), a.forward), f.in<T>(0), f.in<std::int32_t>(1),
                                  f.in<T>(2), f.in<T>(3), dx ? f.out<T>(2) : nullptr, f.out<T>(0), f.out<T>(1),
                                  f.workspace<void>());
    });
  }
  static void samples(Samples<Attr> s) {
    for (const Case& c : cases()) {
      const ConvPoolAttr attr = attr_of(c);
      if (!backward_covers(geometry(name, c.x, c.w, attr), float64)) continue;
      Tensor in[] = {sample(c.x), sample(c.w, -2, 2, 1), Tensor()}, out[2];
      apply(ops::conv2d_max_pool_op, in, &attr, out);
      for (const bool dx : {false, true})
        s.add({sample(out[0].shape(), -1, 2, 2), out[1], sample(c.x), dx ? sample(c.w, -2, 2, 1) : Tensor()},
              {attr, c.w[0], c.w[1], c.w[2]});
    }
    const Attr attr{{{}, ops::resolve({})}, 2, 3, 3};
    const Tensor g = sample({1, 1, 1, 2}), positions = zeros({1, 1, 1, 2}, int32), x = sample({1, 5, 5, 1});
    s.error({g, positions, sample({1, 6, 6, 1}), Tensor()}, attr, "makes [1, 2, 2, 2]");
    s.error({g, g, x, Tensor()}, attr, "needs positions int32 [1, 1, 1, 2], but got float64 [1, 1, 1, 2]");
    s.error({g, positions, x, sample({2, 3, 3, 2})}, attr, "w must be [2, 3, 3, 1], but is [2, 3, 3, 2]");
    s.error({g, positions, x.to(float32), Tensor()}, attr, "inputs must have one dtype");
    s.error({g, positions, x, Tensor()}, {{{.padding = 1, .dilation = 2}, ops::resolve({})}, 2, 3, 3},
            "has kernels for 3 or 5 rows");
  }
};

}  // namespace

namespace ops {
constinit const OpDecl conv2d_max_pool_op = declare<ConvPool>();
constinit const OpDecl conv2d_max_pool_backward_op = declare<ConvPoolBackward>();
}  // namespace ops

Tensor conv2d_max_pool(Tensor x, Tensor w, Tensor bias, ConvOptions conv, PoolOptions pool) {
  const ConvPoolAttr attr{conv, ops::resolve(pool)};
  Tensor in[] = {std::move(x), std::move(w), std::move(bias)}, out[2];
  apply(ops::conv2d_max_pool_op, in, &attr, out);
  return std::move(out[0]);
}

}  // namespace rewind_lib
