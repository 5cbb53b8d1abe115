// Pools, channels last. Average pools are linear, and a maximum pool is once its positions are known: each op and its
// gradient are each other's transposes, so any order of derivative works.

#include <rewind/autograd/functional.h>
#include <rewind/autograd/ops/check.h>
#include <rewind/autograd/ops/internal.h>
#include <rewind/autograd/ops/registry.h>
#include <rewind/autograd/ops/sample.h>
#include <rewind/autograd/ops/window.h>
#include <rewind/core/kernels/pool.h>

#include <limits>

namespace rewind_lib {

using kernels::WindowShape;

namespace {

/// What `in` elements lack for a last window that reaches over the edge; 0 where none starts inside.
std::int64_t lacking(std::int64_t in, std::int64_t kernel, std::int64_t stride, std::int64_t padding) {
  const std::int64_t room = in + 2 * padding - kernel, over = (room % stride + stride) % stride;
  return over == 0 || room + stride - over >= in + padding ? 0 : stride - over;
}

}  // namespace

namespace ops {

WindowShape pool_geometry(const Shape& x, const PoolOptions& o) {
  return {.n = x[0],
          .h = x[1],
          .w = x[2],
          .c = x[3],
          .kh = o.kernel.h,
          .kw = o.kernel.w,
          .sh = o.stride.h,
          .sw = o.stride.w,
          .ph = o.padding.h,
          .pw = o.padding.w,
          .eh = o.ceil ? lacking(x[1], o.kernel.h, o.stride.h, o.padding.h) : 0,
          .ew = o.ceil ? lacking(x[2], o.kernel.w, o.stride.w, o.padding.w) : 0};
}

Shape check_pool(const char* op, const Shape& x, const PoolOptions& o) {
  const auto describe = [&] { return str("x ", x, ", kernel ", o.kernel, ", stride ", o.stride, ", padding ", o.padding); };
  if (x.rank() != 4) fail(str(op, ": x must be [N, H, W, C]: ", describe()));
  const bool over = o.ceil && o.stride.h > 0 && o.stride.w > 0;
  const std::int64_t below = over ? lacking(x[1], o.kernel.h, o.stride.h, o.padding.h) : 0;
  const std::int64_t right = over ? lacking(x[2], o.kernel.w, o.stride.w, o.padding.w) : 0;
  ops::check_window(op, x[1] + below, x[2] + right, o.kernel.h, o.kernel.w, o.stride, o.padding, 1, describe);
  if (o.padding.h >= o.kernel.h || o.padding.w >= o.kernel.w)
    fail(str(op, ": padding must be smaller than the kernel, or windows see nothing but padding: ", describe()));
  if (x[1] == 0 || x[2] == 0) fail(str(op, ": the images have no pixels: ", describe()));
  const WindowShape s = pool_geometry(x, o);
  return {s.n, s.out_h(), s.out_w(), s.c};
}

PoolOptions resolve(PoolOptions o) {
  if (o.stride.h == 0) o.stride.h = o.kernel.h;
  if (o.stride.w == 0) o.stride.w = o.kernel.w;
  return o;
}

// As the pool of some x makes them: int32, in the shape of its output.
void check_positions(const char* op, const Tensor& positions, const Shape& y) {
  if (!positions.defined() || positions.dtype() != int32 || !(positions.shape() == y))
    fail(str(op, ": needs positions int32 ", y, ", but got ",
             positions.defined() ? str(positions.dtype(), " ", positions.shape()) : "an undefined tensor"));
}

}  // namespace ops

namespace {

using ops::check_floats;
using ops::check_pool;
using ops::check_positions;
using ops::pool_geometry;
using ops::resolve;
using ops::sample;

/// What the gradient ops know of the forward besides their inputs.
struct BackwardAttr {
  PoolOptions options;
  std::int64_t h, w;  ///< of x
};

/// The shape of x, from g [N, OH, OW, C].
Shape check_backward(const char* op, const Shape& g, const BackwardAttr& a) {
  if (g.rank() != 4) fail(str(op, ": g must be [N, OH, OW, C], but is ", g));
  const Shape x{g[0], a.h, a.w, g[3]}, y = check_pool(op, x, a.options);
  if (!(g == y)) fail(str(op, ": g is ", g, ", but the pool of ", x, " makes ", y));
  return x;
}

struct Case {
  Shape x;
  PoolOptions options = {};
};
const std::vector<Case>& cases() {
  static const std::vector<Case> list{
      {{1, 2, 2, 1}},
      {{1, 4, 4, 2}},
      {{2, 5, 3, 2}},
      {{1, 1, 1, 3}, {.kernel = 1}},
      {{1, 5, 5, 1}, {.kernel = 3}},
      {{1, 5, 5, 2}, {.kernel = 3, .stride = 1}},
      {{1, 5, 5, 2}, {.kernel = 3, .stride = 2, .padding = 1}},
      {{1, 6, 4, 1}, {.kernel = 3, .stride = 2, .padding = 1}},
      {{2, 3, 4, 1}, {.kernel = 2, .stride = 1, .padding = 1}},
      {{1, 6, 6, 1}, {.kernel = 2, .stride = 3}},
      {{1, 7, 5, 1}, {.kernel = {3, 2}, .stride = {1, 2}}},
      {{1, 4, 7, 2}, {.kernel = {2, 3}, .stride = {3, 1}, .padding = {1, 2}}},
      {{1, 1, 8, 2}, {.kernel = {1, 4}, .stride = {1, 2}, .padding = {0, 1}}},
      {{1, 8, 1, 2}, {.kernel = {3, 1}}},
      {{1, 3, 3, 17}, {.kernel = 2, .stride = 1}},
      {{1, 2, 2, 70}},
      {{3, 2, 3, 2}, {.kernel = {2, 3}}},
      {{1, 4, 4, 1}, {.kernel = 4}},
      {{1, 3, 3, 2}, {.kernel = 4, .stride = 2, .padding = 2}},
      {{1, 5, 4, 3}, {.kernel = 2, .stride = {0, 1}}},
      {{1, 6, 5, 2}, {.kernel = 3, .stride = 2, .ceil = true}},
      {{1, 4, 6, 1}, {.kernel = {3, 2}, .stride = {2, 3}, .padding = {1, 0}, .ceil = true}},
      {{1, 2, 3, 1}, {.kernel = 3, .stride = 2, .ceil = true}},
      {{1, 4, 5, 1}, {.kernel = 1, .stride = 3, .ceil = true}},
      {{0, 4, 4, 2}},
  };
  return list;
}
/// What both pools refuse.
void add_errors(Samples<PoolOptions>& s) {
  const Tensor x = sample({1, 5, 5, 2});
  s.error({sample({5, 5, 2})}, resolve({}), "x must be [N, H, W, C]: x [5, 5, 2], kernel 2x2, stride 2x2, padding 0x0");
  s.error({x}, resolve({.kernel = 6}), "the kernel covers 6x6 pixels, but the padded image has 5x5");
  s.error({x}, resolve({.kernel = {0, 2}}), "the kernel must be at least 1x1");
  s.error({x}, resolve({.stride = -1}), "stride must be at least 1");
  s.error({x}, resolve({.padding = {0, -1}}), "padding must not be negative");
  s.error({x}, resolve({.padding = 2}), "padding must be smaller than the kernel");
  s.error({sample({1, 0, 5, 2})}, resolve({.kernel = {2, 2}, .padding = 1}), "the images have no pixels");
  s.error({arange(4, int64)}, resolve({}), "needs float32 or float64");
  s.error({Tensor()}, resolve({}), "input 0 is undefined");
}

/// x -> the maxima, and their positions: row * W + column in the image of x.
struct MaxPool {
  static constexpr const char* name = "max_pool2d";
  static constexpr const char* input_names = "x";
  static constexpr const char* output_names = "y, positions";
  static constexpr Kind kind = Kind::reduction;
  static constexpr std::uint32_t differentiable = bit(0);
  using Attr = PoolOptions;

  static Specs infer(Inputs in, const Attr& a) {
    const DType dtype = check_floats(name, in);
    const Shape &x = in[0].shape(), y = check_pool(name, x, a);
    if (x[1] * x[2] > std::numeric_limits<std::int32_t>::max())
      fail(str(name, ": images of more than 2^31 pixels are not supported, x is ", x));
    return {{y, dtype}, {y, int32}};
  }
  static Cost cost(Inputs, const Specs& out, const Attr& a) {
    return ops::pointwise_cost(out, std::int64_t{a.kernel.h} * a.kernel.w);
  }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      kernels::max_pool2d_forward(pool_geometry(f.in_shape(0), a), f.in<T>(0), f.out<T>(0), f.out<std::int32_t>(1));
    });
  }
  static Saves saves(const Attr&, std::uint32_t) { return {.outputs = bit(1)}; }
  static void vjp(Vjp& v, const Attr& a) { v.give(0, ops::max_pool2d_backward(v.grad(0), v.output(1), a, v.input_shape(0))); }
  static void samples(Samples<Attr> s) {
    for (const Case& c : cases()) s.add({sample(c.x)}, resolve(c.options));
    add_errors(s);
  }
};

/// Positions for samples: those of the maxima of some image.
Tensor sample_positions(const Case& c, int salt) {
  const PoolOptions options = resolve(c.options);
  Tensor in[] = {sample(c.x, -2, 2, salt)}, out[2];
  apply(ops::max_pool2d_op, in, &options, out);
  return out[1];
}

/// g, positions -> the gradient of x.
struct MaxPoolBackward {
  static constexpr const char* name = "max_pool2d_backward";
  static constexpr const char* input_names = "g, positions";
  static constexpr const char* output_names = "dx";
  static constexpr Kind kind = Kind::movement;
  using Attr = BackwardAttr;

  static Specs infer(Inputs in, const Attr& a) {
    const DType dtype = check_floats(name, in.first(1));
    const Shape x = check_backward(name, in[0].shape(), a);
    check_positions(name, in[1], in[0].shape());
    return {{x, dtype}};
  }
  static Cost cost(Inputs in, const Specs&, const Attr&) { return {.flops = in[0].numel()}; }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      kernels::max_pool2d_backward(pool_geometry(f.out_shape(0), a.options), f.in<T>(0), f.in<std::int32_t>(1), f.out<T>(0));
    });
  }
  static Saves saves(const Attr&, std::uint32_t) { return {.inputs = bit(1)}; }
  static void vjp(Vjp& v, const Attr& a) { v.give(0, apply_one(ops::max_pool2d_gather_op, {v.grad(0), v.input(1)}, &a.options)); }
  static void samples(Samples<Attr> s) {
    for (const Case& c : cases()) {
      const PoolOptions options = resolve(c.options);
      s.add({sample(check_pool(name, c.x, options)), sample_positions(c, 1)}, {options, c.x[1], c.x[2]});
    }
    const Tensor g = sample({1, 2, 2, 1}), positions = zeros({1, 2, 2, 1}, int32);
    s.error({g, positions}, {{.stride = 2}, 6, 5}, "g is [1, 2, 2, 1], but the pool of [1, 6, 5, 1] makes [1, 3, 2, 1]");
    s.error({sample({2, 2, 1}), positions}, {{.stride = 2}, 5, 5}, "g must be [N, OH, OW, C], but is [2, 2, 1]");
    s.error({g, g}, {{.stride = 2}, 5, 5}, "needs positions int32 [1, 2, 2, 1], but got float64 [1, 2, 2, 1]");
    s.error({g, Tensor()}, {{.stride = 2}, 5, 5}, "but got an undefined tensor");
  }
};

/// x, positions -> the elements of x at the positions.
struct MaxPoolGather {
  static constexpr const char* name = "max_pool2d_gather";
  static constexpr const char* input_names = "x, positions";
  static constexpr const char* output_names = "y";
  static constexpr Kind kind = Kind::movement;
  using Attr = PoolOptions;

  static Specs infer(Inputs in, const Attr& a) {
    const DType dtype = check_floats(name, in.first(1));
    const Shape y = check_pool(name, in[0].shape(), a);
    check_positions(name, in[1], y);
    return {{y, dtype}};
  }
  static Cost cost(Inputs, const Specs& out, const Attr&) {
    const std::int64_t n = out[0].shape.numel(), element = static_cast<std::int64_t>(size_of(out[0].dtype));
    return {.bytes_read = n * (element + 4), .bytes_written = n * element};
  }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      kernels::max_pool2d_gather(pool_geometry(f.in_shape(0), a), f.in<T>(0), f.in<std::int32_t>(1), f.out<T>(0));
    });
  }
  static Saves saves(const Attr&, std::uint32_t) { return {.inputs = bit(1)}; }
  static void vjp(Vjp& v, const Attr& a) {
    const Shape& x = v.input_shape(0);
    const BackwardAttr attr{a, x[1], x[2]};
    v.give(0, apply_one(ops::max_pool2d_backward_op, {v.grad(0), v.input(1)}, &attr));
  }
  static void samples(Samples<Attr> s) {
    for (const Case& c : cases()) s.add({sample(c.x), sample_positions(c, 1)}, resolve(c.options));
    const Tensor x = sample({1, 4, 4, 1}), positions = zeros({1, 2, 2, 1}, int32);
    s.error({sample({4, 4, 1}), positions}, {.stride = 2}, "x must be [N, H, W, C]: x [4, 4, 1]");
    s.error({x, positions}, {.stride = 1}, "needs positions int32 [1, 3, 3, 1], but got int32 [1, 2, 2, 1]");
    s.error({x, zeros({1, 2, 2, 1}, int64)}, {.stride = 2}, "but got int64 [1, 2, 2, 1]");
    s.error({x, Tensor()}, {.stride = 2}, "but got an undefined tensor");
  }
};

struct AvgPool {
  static constexpr const char* name = "avg_pool2d";
  static constexpr const char* input_names = "x";
  static constexpr const char* output_names = "y";
  static constexpr Kind kind = Kind::reduction;
  using Attr = PoolOptions;

  static Specs infer(Inputs in, const Attr& a) {
    const DType dtype = check_floats(name, in);
    return {{check_pool(name, in[0].shape(), a), dtype}};
  }
  static Cost cost(Inputs, const Specs& out, const Attr& a) {
    return ops::pointwise_cost(out, std::int64_t{a.kernel.h} * a.kernel.w);
  }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      kernels::avg_pool2d_forward(pool_geometry(f.in_shape(0), a), f.in<T>(0), f.out<T>(0));
    });
  }
  static Saves saves(const Attr&, std::uint32_t) { return {}; }
  static void vjp(Vjp& v, const Attr& a) {
    const Shape& x = v.input_shape(0);
    const BackwardAttr attr{a, x[1], x[2]};
    v.give(0, apply_one(ops::avg_pool2d_backward_op, {v.grad(0)}, &attr));
  }
  static void samples(Samples<Attr> s) {
    for (const Case& c : cases()) s.add({sample(c.x)}, resolve(c.options));
    add_errors(s);
  }
};

struct AvgPoolBackward {
  static constexpr const char* name = "avg_pool2d_backward";
  static constexpr const char* input_names = "g";
  static constexpr const char* output_names = "dx";
  static constexpr Kind kind = Kind::movement;
  using Attr = BackwardAttr;

  static Specs infer(Inputs in, const Attr& a) {
    const DType dtype = check_floats(name, in);
    return {{check_backward(name, in[0].shape(), a), dtype}};
  }
  static Cost cost(Inputs in, const Specs&, const Attr& a) {
    return {.flops = in[0].numel() * a.options.kernel.h * a.options.kernel.w};
  }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      kernels::avg_pool2d_backward(pool_geometry(f.out_shape(0), a.options), f.in<T>(0), f.out<T>(0));
    });
  }
  static Saves saves(const Attr&, std::uint32_t) { return {}; }
  static void vjp(Vjp& v, const Attr& a) { v.give(0, avg_pool2d(v.grad(0), a.options)); }
  static void samples(Samples<Attr> s) {
    for (const Case& c : cases()) {
      const PoolOptions options = resolve(c.options);
      s.add({sample(check_pool(name, c.x, options))}, {options, c.x[1], c.x[2]});
    }
    s.error({sample({1, 2, 2, 1})}, {{.stride = 2}, 6, 5}, "g is [1, 2, 2, 1], but the pool of [1, 6, 5, 1] makes [1, 3, 2, 1]");
    s.error({sample({2, 2, 1})}, {{.stride = 2}, 5, 5}, "g must be [N, OH, OW, C], but is [2, 2, 1]");
    s.error({sample({1, 2, 2, 1})}, {{.stride = 2}, 1, 5}, "the kernel covers 2x2 pixels, but the padded image has 1x5");
    s.error({zeros({1, 2, 2, 1}, int32)}, {{.stride = 2}, 5, 5}, "needs float32 or float64");
  }
};

struct GlobalAvgPool {
  static constexpr const char* name = "global_avg_pool";
  static constexpr const char* input_names = "x";
  static constexpr const char* output_names = "y";
  static constexpr Kind kind = Kind::reduction;
  struct Attr {};

  static Specs infer(Inputs in, const Attr&) {
    const DType dtype = check_floats(name, in);
    const Shape& x = in[0].shape();
    if (x.rank() != 4) fail(str(name, ": x must be [N, H, W, C], but is ", x));
    if (x[1] * x[2] == 0) fail(str(name, ": images without pixels have no mean, x is ", x));
    return {{{x[0], x[3]}, dtype}};
  }
  static Cost cost(Inputs in, const Specs&, const Attr&) { return {.flops = in[0].numel()}; }
  static void forward(const Forward& f, const Attr&) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      const Shape& x = f.in_shape(0);
      kernels::global_avg_pool_forward(x[0], x[1] * x[2], x[3], f.in<T>(0), f.out<T>(0));
    });
  }
  static Saves saves(const Attr&, std::uint32_t) { return {}; }
  static void vjp(Vjp& v, const Attr&);
  static void samples(Samples<Attr> s) {
    for (const std::int64_t n : {1, 3})
      for (const std::int64_t h : {1, 2, 5})
        for (const std::int64_t w : {1, 3})
          for (const std::int64_t c : {1, 4}) s.add({sample({n, h, w, c})});
    s.add({sample({1, 2, 2, 33})});
    s.add({sample({0, 2, 2, 3})});
    s.error({sample({2, 3, 4})}, {}, "x must be [N, H, W, C], but is [2, 3, 4]");
    s.error({sample({2, 0, 3, 4})}, {}, "images without pixels have no mean, x is [2, 0, 3, 4]");
    s.error({zeros({1, 2, 2, 1}, int32)}, {}, "needs float32 or float64");
    s.error({Tensor()}, {}, "input 0 is undefined");
  }
};

struct GlobalAvgPoolBackward {
  static constexpr const char* name = "global_avg_pool_backward";
  static constexpr const char* input_names = "g";
  static constexpr const char* output_names = "dx";
  static constexpr Kind kind = Kind::movement;
  struct Attr {
    std::int64_t h, w;  ///< of x
  };

  static Specs infer(Inputs in, const Attr& a) {
    const DType dtype = check_floats(name, in);
    const Shape& g = in[0].shape();
    if (g.rank() != 2) fail(str(name, ": g must be [N, C], but is ", g));
    if (a.h < 1 || a.w < 1) fail(str(name, ": images have at least one pixel, not ", a.h, "x", a.w, " (g is ", g, ")"));
    return {{{g[0], a.h, a.w, g[1]}, dtype}};
  }
  static Cost cost(Inputs in, const Specs&, const Attr&) { return {.flops = in[0].numel()}; }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      const Shape& g = f.in_shape(0);
      kernels::global_avg_pool_backward(g[0], a.h * a.w, g[1], f.in<T>(0), f.out<T>(0));
    });
  }
  static Saves saves(const Attr&, std::uint32_t) { return {}; }
  static void vjp(Vjp& v, const Attr&) { v.give(0, global_avg_pool(v.grad(0))); }
  static void samples(Samples<Attr> s) {
    for (const std::int64_t n : {1, 3})
      for (const std::int64_t h : {1, 2, 5})
        for (const std::int64_t w : {1, 3})
          for (const std::int64_t c : {1, 4}) s.add({sample({n, c})}, {h, w});
    s.error({sample({2, 3, 4})}, {2, 2}, "g must be [N, C], but is [2, 3, 4]");
    s.error({sample({2, 3})}, {0, 2}, "not 0x2 (g is [2, 3])");
    s.error({zeros({1, 2}, int32)}, {2, 2}, "needs float32 or float64");
  }
};

void GlobalAvgPool::vjp(Vjp& v, const Attr&) {
  const Shape& x = v.input_shape(0);
  const GlobalAvgPoolBackward::Attr attr{x[1], x[2]};
  v.give(0, apply_one(ops::global_avg_pool_backward_op, {v.grad(0)}, &attr));
}

}  // namespace

namespace ops {
constinit const OpDecl max_pool2d_op = declare<MaxPool>();
constinit const OpDecl max_pool2d_backward_op = declare<MaxPoolBackward>();
Tensor max_pool2d_backward(Tensor g, Tensor positions, const PoolOptions& options, const Shape& x) {
  const BackwardAttr attr{options, x[1], x[2]};
  // Positions carry no gradient, though recording a backward would give saved outputs their history back.
  return apply_one(max_pool2d_backward_op, {std::move(g), positions.detach()}, &attr);
}
constinit const OpDecl max_pool2d_gather_op = declare<MaxPoolGather>();
constinit const OpDecl avg_pool2d_op = declare<AvgPool>();
constinit const OpDecl avg_pool2d_backward_op = declare<AvgPoolBackward>();
constinit const OpDecl global_avg_pool_op = declare<GlobalAvgPool>();
constinit const OpDecl global_avg_pool_backward_op = declare<GlobalAvgPoolBackward>();
}  // namespace ops

Shape max_pool2d_shape(const Shape& x, const PoolOptions& options) { return check_pool("max_pool2d", x, resolve(options)); }

Tensor max_pool2d(Tensor x, PoolOptions options) {
  options = ops::resolve(options);
  Tensor in[] = {std::move(x)}, out[2];
  apply(ops::max_pool2d_op, in, &options, out);
  return std::move(out[0]);
}

Tensor avg_pool2d(Tensor x, PoolOptions options) {
  options = ops::resolve(options);
  return apply_one(ops::avg_pool2d_op, {std::move(x)}, &options);
}

Tensor global_avg_pool(Tensor x) { return apply_one(ops::global_avg_pool_op, {std::move(x)}, nullptr); }

}  // namespace rewind_lib
