// Convolutions with the normalisation of their input on load and the statistics of their output in the epilogue, and the
// op that ends a chain of them. See autograd/fused.h and core/kernels/fused.h.

#include <rewind/autograd/fused.h>
#include <rewind/autograd/grad_mode.h>
#include <rewind/autograd/ops/check.h>
#include <rewind/autograd/ops/internal.h>
#include <rewind/autograd/ops/registry.h>
#include <rewind/autograd/ops/sample.h>
#include <rewind/autograd/ops/window.h>
#include <rewind/core/kernels/fused.h>

namespace rewind_lib {

namespace {

using kernels::FusedShape;
using ops::check_floats;
using ops::sample;

struct FusedAttr {
  Pair stride = 1, padding = 0;
  double eps = 1e-5;
  Epilogue epilogue = Epilogue::none;
  bool statistics = true;
};

FusedShape geometry(const Shape& x, const Shape& w, const FusedAttr& a, bool pending) {
  FusedShape s;
  s.depthwise = w.rank() == 3;
  s.pending = pending;
  s.statistics = a.statistics;
  s.conv = {.n = x[0],
            .h = x[1],
            .w = x[2],
            .c = x[3],
            .o = s.depthwise ? x[3] : w[0],
            .kh = s.depthwise ? w[0] : w[1],
            .kw = s.depthwise ? w[1] : w[2],
            .sh = a.stride.h,
            .sw = a.stride.w,
            .ph = a.padding.h,
            .pw = a.padding.w,
            .groups = s.depthwise ? x[3] : 1};
  return s;
}

void check_pending(std::string_view op, const Tensor& x, const Tensor& mean, const Tensor& var, const Tensor& gamma,
                   const Tensor& beta, double eps) {
  if (mean.defined() != var.defined()) fail(str(op, ": give both of mean and var, or neither (x ", x.shape(), ")"));
  if (!mean.defined() && (gamma.defined() || beta.defined()))
    fail(str(op, ": gamma and beta need mean and var to go with (x ", x.shape(), ")"));
  ops::check_channels(op, "mean", mean, x.shape());
  ops::check_channels(op, "var", var, x.shape());
  ops::check_channels(op, "gamma", gamma, x.shape());
  ops::check_channels(op, "beta", beta, x.shape());
  ops::check_eps(op, eps, x.shape());
}

/// The shape of y.
Shape check_convolution(const char* op, const Shape& x, const Shape& w, const FusedAttr& a, bool pending) {
  const auto describe = [&] { return str("x ", x, ", w ", w, ", stride ", a.stride, ", padding ", a.padding); };
  if (x.rank() != 4 || (w.rank() != 4 && w.rank() != 3))
    fail(str(op, ": x must be [N, H, W, C] and w [O, KH, KW, C] or, depthwise, [KH, KW, C]: ", describe()));
  if (x[3] < 1 || x[3] != w[-1]) fail(str(op, ": x has ", x[3], " channels and w has ", w[-1], ": ", describe()));
  const FusedShape s = geometry(x, w, a, pending);
  ops::check_window(op, s.conv.h, s.conv.w, s.conv.kh, s.conv.kw, a.stride, a.padding, 1, describe);
  if (!kernels::fused_covers(s))
    fail(str(op, ": depthwise filters must be 3x3 or 5x5 at stride 1 or 2: ", describe(), "; use depthwise_conv2d() for others"));
  if (s.conv.o == 0 || (a.statistics && s.rows() == 0)) fail(str(op, ": y would have no elements: ", describe()));
  return {s.conv.n, s.conv.out_h(), s.conv.out_w(), s.conv.o};
}

template <class T>
kernels::FusedInput<T> pending_of(const Forward& f, int x, const FusedAttr& a) {
  const bool pending = f.has_input(x + 1);
  return {f.in<T>(x),
          f.in<T>(x + 1),
          f.in<T>(x + 2),
          f.in<T>(x + 3),
          f.in<T>(x + 4),
          a.eps,
          pending ? ops::activation_of(a.epilogue) : kernels::Activation::none};
}

struct Case {
  Shape x, w;
  Pair stride = 1, padding = 0;
};
const std::vector<Case>& cases() {
  static const std::vector<Case> list{
      {{2, 1, 1, 1}, {1, 1, 1, 1}},
      {{1, 2, 3, 2}, {3, 1, 1, 2}},
      {{2, 3, 2, 5}, {2, 1, 1, 5}},
      {{1, 3, 3, 3}, {17, 1, 1, 3}},
      {{1, 2, 2, 19}, {2, 1, 1, 19}},
      {{1, 4, 4, 2}, {3, 3, 2}, 1, 1},
      {{2, 3, 4, 3}, {3, 3, 3}, 1, 0},
      {{1, 3, 3, 9}, {3, 3, 9}, 1, 1},
      {{1, 5, 4, 2}, {3, 3, 2}, 2, 1},
      {{2, 6, 5, 1}, {3, 3, 1}, 2, 1},
      {{1, 4, 6, 2}, {3, 3, 2}, 2, 0},
      {{1, 4, 3, 2}, {5, 5, 2}, 1, 2},
      {{1, 5, 6, 1}, {5, 5, 1}, 2, 2},
      {{1, 6, 7, 2}, {5, 5, 2}, 2, {1, 2}},
      {{2, 3, 3, 2}, {2, 3, 3, 2}, 1, 1},
      {{1, 5, 4, 3}, {2, 3, 3, 3}, 2, 1},
      {{3, 2, 2, 1}, {3, 2, 2, 1}},
      {{1, 4, 3, 2}, {2, 1, 1, 2}, 2},
      {{1, 3, 5, 1}, {17, 2, 3, 1}, {1, 3}, {0, 2}},
      {{1, 4, 4, 1}, {2, 3, 3, 1}, 3, 2},
      {{1, 2, 2, 1}, {2, 1, 1, 1}, 2, 1},
      {{2, 4, 7, 2}, {3, 3, 3, 2}, 1, 1},
      {{1, 5, 8, 1}, {2, 3, 3, 1}, 1, 0},
      {{1, 3, 6, 3}, {2, 2, 5, 3}, 1, {1, 2}},
      {{0, 3, 3, 2}, {3, 1, 1, 2}},
      {{0, 4, 3, 2}, {3, 3, 2}, 2, 1},
      {{0, 3, 4, 2}, {17, 3, 3, 2}, 1, 1},
  };
  return list;
}

/// x, mean, var, gamma, beta, w, residual of a case, away from the kinks of its activation.
std::vector<Tensor> inputs_of(const Case& k, const FusedAttr& a, int number) {
  const Shape c{k.x[3]};
  const bool pending = number % 4 != 3;
  std::vector<Tensor> in(7);
  if (pending) {
    in[1] = sample(c, -0.3, 0.4, 1);
    in[2] = sample(c, 0.6, 1.7, 2);
    if (number % 8 != 4) in[3] = sample(c, 1.1, 4.3, 3);
    if (number % 7 != 6) in[4] = sample(c, -0.77, 3.3, 4);
  }
  const int salt = !pending ? 0 : ops::salt_avoiding_kinks(a.epilogue, [&](int s) {
    return batch_norm_inference(sample(k.x, -2, 2, number + s), in[3], in[4], in[1], in[2], {.eps = a.eps});
  });
  in[0] = sample(k.x, -2, 2, number + salt);
  in[5] = sample(k.w, -1, 1, number + 1);
  if (number % 3 == 2) in[6] = sample(check_convolution("sample", k.x, k.w, a, pending), -1, 1, number + 2);
  return in;
}
FusedAttr attr_of(const Case& k, int number) {
  return {k.stride, k.padding, number % 2 == 0 ? 1e-3 : 0.1, static_cast<Epilogue>(number % 5), number % 6 != 5 && k.x[0] > 0};
}

// --- the gradient ------------------------------------------------------------------------------------------------

constexpr const char* no_second_derivative =
    "the gradients of fused convolutions are single kernels; for second derivatives use conv2d() and batch_norm(), or turn "
    "fusion off: net.fuse(false)";

struct Wanted : ops::WantedGradients {
  static constexpr int x = 0, mean = 1, var = 2, gamma = 3, beta = 4, w = 5, residual = 6;
  static constexpr std::uint32_t norm = bit(mean) | bit(var) | bit(gamma) | bit(beta);
  void add_norm(Specs& specs, std::int64_t channels, DType dtype) const {
    for (const int i : {mean, var, gamma, beta})
      if (has(i)) specs.push_back({Shape{channels}, dtype});
  }
  template <class T>
  kernels::NormGradient<T> norm_out(const Forward& f) const {
    return {out<T>(f, gamma), out<T>(f, beta), out<T>(f, mean), out<T>(f, var)};
  }
  /// Hands those of a normalisation over to the inputs from number `first` (x) on.
  void give_norm(Vjp& v, int first, std::span<Tensor> out) const {
    for (const int i : {mean, var, gamma, beta})
      if (has(i)) v.give(first + i, std::move(out[static_cast<std::size_t>(slot(i))]));
  }
};

struct FusedConvBackward {
  static constexpr const char* name = "fused_conv2d_backward";
  static constexpr const char* input_names = "g, g of mean, g of var, y, mean of y, x, mean, var, gamma, beta, w, sum so far";
  static constexpr Kind kind = Kind::contraction;
  static constexpr const char* no_gradient = no_second_derivative;
  struct Attr {
    FusedAttr forward;
    Wanted wanted;
  };

  /// g, g_mean, g_var, y, mean of y, x, mean, var, gamma, beta, w, what is added to the gradient of x. Inputs 1 to 4 go
  /// together: without them, no gradient has reached the statistics, and that of a residual is g.
  static Specs infer(Inputs in, const Attr& a) {
    const DType dtype = check_floats(name, in, ~(bit(0) | bit(5) | bit(10)));
    const Shape &g = in[0].shape(), &x = in[5].shape(), &w = in[10].shape();
    check_pending(name, in[5], in[6], in[7], in[8], in[9], a.forward.eps);
    const Shape y = check_convolution(name, x, w, a.forward, in[6].defined());
    if (!(g == y)) fail(str(name, ": g is ", g, ", but the convolution of ", x, " with ", w, " makes ", y));
    if (in[1].defined()) {
      for (const int i : {1, 2, 4})
        if (!in[static_cast<std::size_t>(i)].defined() || !(in[static_cast<std::size_t>(i)].shape() == Shape{y[3]}))
          fail(str(name, ": input ", i, " must be [", y[3], "], one element a channel of g ", g));
      if (!in[3].defined() || !(in[3].shape() == y)) fail(str(name, ": y must have the shape of g ", g));
    }
    if ((a.wanted.bits & Wanted::norm) != 0 && !(in[6].defined() && a.wanted.has(Wanted::x)))
      fail(str(name, ": gradients of a normalisation need one, and that of x ", x));
    if (a.wanted.has(Wanted::residual) && !in[1].defined())
      fail(str(name, ": the gradient of a residual needs those of the statistics; without them it is g ", g));
    if (in[11].defined() && !(a.wanted.has(Wanted::x) && in[11].shape() == x && adds(x, w, a.forward)))
      fail(str(name, ": ", in[11].shape(), " can only be added to the gradient of a pointwise convolution's x, here ", x));
    Specs specs;
    if (a.wanted.has(Wanted::x)) specs.push_back({.shape = x, .dtype = dtype, .takes = bit(11)});
    a.wanted.add_norm(specs, x[3], dtype);
    if (a.wanted.has(Wanted::w)) specs.push_back({w, dtype});
    if (a.wanted.has(Wanted::residual)) specs.push_back({.shape = g, .dtype = dtype, .takes = bit(0)});
    return specs;
  }
  /// Whether something can be added to the gradient of x on the way.
  static bool adds(const Shape& x, const Shape& w, const FusedAttr& a) { return kernels::is_pointwise(geometry(x, w, a, false)); }
  static FusedShape shape_of(const Shape& x, const Shape& w, const Attr& a, bool pending, bool statistics, bool add) {
    FusedShape s = geometry(x, w, a.forward, pending);
    s.statistics = statistics;
    s.dx = a.wanted.has(Wanted::x);
    s.dw = a.wanted.has(Wanted::w);
    s.residual = a.wanted.has(Wanted::residual);
    s.add = add;
    return s;
  }
  static Cost cost(Inputs in, const Specs&, const Attr& a) {
    const std::int64_t macs = ops::macs_of(geometry(in[5].shape(), in[10].shape(), a.forward, false).conv) *
                              ((a.wanted.has(Wanted::x) ? 1 : 0) + (a.wanted.has(Wanted::w) ? 1 : 0));
    return {.flops = 2 * macs + (in[1].defined() ? 4 * in[0].numel() : 0) + (in[6].defined() ? 8 * in[5].numel() : 0),
            .macs = macs};
  }
  static std::size_t workspace(Inputs in, const Specs& out, const Attr& a) {
    const FusedShape s = shape_of(in[5].shape(), in[10].shape(), a, in[6].defined(), in[1].defined(), in[11].defined());
    return out.size() > 0 && out[0].dtype == float32 ? kernels::fused_backward_workspace<float>(s)
                                                     : kernels::fused_backward_workspace<double>(s);
  }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.in_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      const FusedShape s = shape_of(f.in_shape(5), f.in_shape(10), a, f.has_input(6), f.has_input(1), f.has_input(11));
      const kernels::FusedGradient<T> g{f.in<T>(0), f.in<T>(3), f.in<T>(4), f.in<T>(1), f.in<T>(2)};
      const kernels::FusedResult<T> out{a.wanted.out<T>(f, Wanted::x), a.wanted.out<T>(f, Wanted::w), a.wanted.norm_out<T>(f),
                                        a.wanted.out<T>(f, Wanted::residual), f.in<T>(11)};
      kernels::fused_backward(s, pending_of<T>(f, 5, a.forward), f.in<T>(10), g, out, f.workspace<std::byte>());
    });
  }
  static void samples(Samples<Attr> s) {
    int number = 0;
    for (int round = 0; round < 5; ++round)
      for (const Case& k : cases()) {
        const FusedAttr a = attr_of(k, ++number);
        std::vector<Tensor> in = inputs_of(k, a, number);
        const Shape y = check_convolution(name, k.x, k.w, a, in[1].defined()), o{y[3]};
        const int some = number / 5 % 5;
        std::uint32_t bits = some == 1 ? bit(Wanted::x) : some == 2 ? bit(Wanted::w) : bit(Wanted::x) | bit(Wanted::w);
        if (in[1].defined() && (bits & bit(Wanted::x)) != 0)
          bits |= number % 7 == 3 ? bit(Wanted::gamma) | bit(Wanted::var) : Wanted::norm;
        std::vector<Tensor> all{sample(y, -1, 1, 5), {}, {}, {}, {}, in[0], in[1], in[2], in[3], in[4], in[5], {}};
        if ((bits & bit(Wanted::x)) != 0 && number % 3 != 0 && adds(k.x, k.w, a)) all[11] = sample(k.x, -1, 1, 10);
        if (number % 4 != 2 && k.x[0] > 0) {
          if (number % 3 == 0) bits |= bit(Wanted::residual);
          all[1] = sample(o, -1, 1, 6);
          all[2] = sample(o, -1, 1, 7);
          all[3] = sample(y, -1, 1, 8);
          all[4] = sample(o, -1, 1, 9);
        }
        s.add(std::move(all), {a, {bits}});
      }
    const Tensor g = sample({1, 2, 2, 3}), x = sample({1, 2, 2, 2}), w = sample({3, 1, 1, 2});
    s.error({sample({1, 2, 3, 3}), {}, {}, {}, {}, x, {}, {}, {}, {}, w, {}}, {{}, {bit(Wanted::x)}}, "makes [1, 2, 2, 3]");
    s.error({g, sample({2}), sample({3}), g, sample({3}), x, {}, {}, {}, {}, w, {}}, {{}, {bit(Wanted::x)}}, "input 1 must be [3]");
    s.error({g, {}, {}, {}, {}, x, {}, {}, {}, {}, w, {}}, {{}, {bit(Wanted::gamma)}}, "gradients of a normalisation need one");
    s.error({g, {}, {}, {}, {}, x, {}, {}, {}, {}, w, {}}, {{}, {bit(Wanted::x) | bit(Wanted::residual)}},
            "without them it is g [1, 2, 2, 3]");
    s.error({g, {}, {}, {}, {}, x, {}, {}, {}, {}, w, g}, {{}, {bit(Wanted::x)}},
            "can only be added to the gradient of a pointwise");
    s.error({g, {}, {}, {}, {}, {}, {}, {}, {}, {}, w, {}}, {{}, {bit(Wanted::x)}}, "input 5 is undefined");
  }
};

// --- the convolution ---------------------------------------------------------------------------------------------

struct FusedConv {
  static constexpr const char* name = "fused_conv2d";
  static constexpr const char* input_names = "x, mean, var, gamma, beta, w, residual";
  static constexpr const char* output_names = "y, mean of y, var of y";
  static constexpr Kind kind = Kind::contraction;
  using Attr = FusedAttr;

  /// x, mean, var, gamma, beta, w, residual -> y, and with statistics its mean and biased variance.
  static Specs infer(Inputs in, const Attr& a) {
    const DType dtype = check_floats(name, in, ~(bit(0) | bit(5)));
    const Shape y = check_convolution(name, in[0].shape(), in[5].shape(), a, in[1].defined());
    check_pending(name, in[0], in[1], in[2], in[3], in[4], a.eps);
    if (in[6].defined() && !(in[6].shape() == y))
      fail(str(name, ": the residual is ", in[6].shape(), ", but the convolution of ", in[0].shape(), " with ", in[5].shape(),
               " makes ", y));
    if (!a.statistics) return {{y, dtype}};
    return {{y, dtype}, {{y[3]}, dtype}, {{y[3]}, dtype}};
  }
  static Cost cost(Inputs in, const Specs& out, const Attr& a) {
    const std::int64_t macs = ops::macs_of(geometry(in[0].shape(), in[5].shape(), a, false).conv), y = out[0].shape.numel();
    return {.flops = 2 * macs + (in[1].defined() ? 4 * in[0].numel() : 0) + (a.statistics ? 4 * y : 0) + (in[6].defined() ? y : 0),
            .macs = macs};
  }
  static std::size_t workspace(Inputs in, const Specs& out, const Attr& a) {
    const FusedShape s = geometry(in[0].shape(), in[5].shape(), a, in[1].defined());
    return out[0].dtype == float32 ? kernels::fused_forward_workspace<float>(s) : kernels::fused_forward_workspace<double>(s);
  }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      kernels::fused_forward(geometry(f.in_shape(0), f.in_shape(5), a, f.has_input(1)), pending_of<T>(f, 0, a), f.in<T>(5),
                             f.in<T>(6), f.out<T>(0), a.statistics ? f.out<T>(1) : nullptr, a.statistics ? f.out<T>(2) : nullptr,
                             f.workspace<std::byte>());
    });
  }
  /// Raw tensors only: x, and y, which the next convolution of a chain saves as its x.
  static Saves saves(const Attr& a, std::uint32_t needs) {
    const bool residual_only = (needs & 0x3f) == 0;  // whose gradient is the one that arrives, but for the statistics
    return {.inputs = residual_only && !a.statistics ? 0 : std::uint32_t{0x3f}, .outputs = a.statistics ? bit(0) | bit(1) : 0};
  }
  static void vjp(Vjp& v, const Attr& a) {
    std::uint32_t wanted = v.needs() & 0x3f;  // inputs 0 to 5 have the numbers of their gradients
    if ((wanted & Wanted::norm) != 0) wanted |= bit(Wanted::x);
    Tensor in[12];
    const bool statistics = a.statistics && (v.has_grad(1) || v.has_grad(2));
    in[0] = v.grad(0);
    if (statistics) {
      in[1] = v.grad(1);
      in[2] = v.grad(2);
      in[3] = v.output(0);
      in[4] = v.output(1);
    }
    if (v.needs(6) && statistics)
      wanted |= bit(Wanted::residual);
    else if (v.needs(6))
      v.give(6, in[0]);
    if (wanted == 0) return;
    for (int i = 0; i < 6; ++i)
      if (v.input_shape(i).rank() > 0) in[5 + i] = v.input(i);
    if (v.needs(0) && FusedConvBackward::adds(v.input_shape(0), v.input_shape(5), a)) in[11] = v.take_given(0);
    const FusedConvBackward::Attr attr{a, {wanted}};
    const Wanted w = attr.wanted;
    Tensor out[Specs::max_outputs];
    apply(ops::fused_conv2d_backward_op, in, &attr, {out, static_cast<std::size_t>(w.count())});
    for (Tensor& t : in) t = Tensor();
    if (w.has(Wanted::residual)) v.give(6, std::move(out[w.slot(Wanted::residual)]));
    if (w.has(Wanted::w)) v.give(5, std::move(out[w.slot(Wanted::w)]));
    w.give_norm(v, 0, out);
    if (v.needs(0)) v.give(0, std::move(out[0]));
  }
  static void samples(Samples<Attr> s) {
    int number = 0;
    for (int round = 0; round < 5; ++round)
      for (const Case& k : cases()) {
        const FusedAttr a = attr_of(k, ++number);
        std::vector<Tensor> in = inputs_of(k, a, number);
        const int some = number / 5 % 5;  // only some gradients wanted
        if (some == 0) in[5].set_requires_grad();
        if (some == 1) in[0].set_requires_grad();
        if (some == 2 && in[6].defined()) in[6].set_requires_grad();
        if (some == 3 && in[4].defined()) in[4].set_requires_grad();
        s.add(std::move(in), a);
      }
    const Tensor x = sample({1, 3, 3, 2}), w = sample({3, 1, 1, 2}), none;
    s.error({x, none, none, none, none, sample({3, 1, 1, 4}), none}, {}, "x has 2 channels and w has 4");
    s.error({sample({3, 2}), none, none, none, none, w, none}, {}, "x must be [N, H, W, C]");
    s.error({x, sample({2}), none, none, none, w, none}, {}, "give both of mean and var");
    s.error({x, sample({3}), sample({2}), none, none, w, none}, {}, "mean must have shape [2]");
    s.error({x, none, none, sample({2}), none, w, none}, {}, "gamma and beta need mean and var");
    s.error({x, none, none, none, none, w, sample({1, 3, 3, 2})}, {}, "the residual is [1, 3, 3, 2], but");
    s.error({x, none, none, none, none, sample({2, 2, 2}), none}, {}, "depthwise filters must be 3x3 or 5x5");
    s.error({x, none, none, none, none, sample({3, 3, 2}), none}, {.stride = 3}, "at stride 1 or 2");
    s.error({x, none, none, none, none, sample({5, 5, 2}), none}, {}, "the kernel covers 5x5 pixels");
    s.error({sample({0, 3, 3, 2}), none, none, none, none, w, none}, {}, "y would have no elements");
    s.error({x, none, none, none, none, none, none}, {}, "input 5 is undefined");
  }
};

// --- the end of a chain ------------------------------------------------------------------------------------------

struct SettleAttr {
  double eps = 1e-5;
  Epilogue epilogue = Epilogue::none;
  bool shortcut = false;
  double shortcut_eps = 1e-5;
  Epilogue shortcut_epilogue = Epilogue::none;
  bool shortcut_pending = false;
  /// Whether backward goes by the mask of what the forward made.
  bool masks() const { return shortcut && epilogue != Epilogue::none; }
};

template <class T>
kernels::FusedInput<T> settle_input(const Forward& f, int x, double eps, Epilogue epilogue) {
  return {f.in<T>(x), f.in<T>(x + 1), f.in<T>(x + 2), f.in<T>(x + 3), f.in<T>(x + 4), eps, ops::activation_of(epilogue)};
}

void check_settle(const char* op, Inputs in, const SettleAttr& a) {
  const Shape& x = in[0].shape();
  ops::check_matrix(op, x, false);
  for (const std::size_t i : {1, 2})
    if (!in[i].defined()) fail(str(op, ": needs a mean and a variance for x ", x));
  check_pending(op, in[0], in[1], in[2], in[3], in[4], a.eps);
  if (a.shortcut) ops::check_epilogue(op, a.epilogue, x, " with a shortcut");
}

struct SettleGradient {
  static constexpr const char* name = "settle_gradient";
  static constexpr const char* input_names = "x, mean, var, gamma, beta, y, g";
  static constexpr Kind kind = Kind::normalisation;
  static constexpr const char* no_gradient = no_second_derivative;
  static constexpr std::uint32_t donates = bit(6);
  struct Attr {
    SettleAttr forward;
    Wanted wanted;  ///< x always; residual: the gradient of the shortcut
  };

  /// x, mean, var, gamma, beta, what the forward made (with shortcut and epilogue only), g -> the gradients of x, of its
  /// normalisation, then of the shortcut.
  static Specs infer(Inputs in, const Attr& a) {
    const DType dtype = check_floats(name, in, ~(bit(0) | bit(6)));
    check_settle(name, in, a.forward);
    const Shape& x = in[0].shape();
    for (const std::size_t i : {5, 6})
      if (in[i].defined() && !(in[i].shape() == x))
        fail(str(name, ": input ", i, " must have the shape of x ", x, ", not ", in[i].shape()));
    Specs specs{{x, dtype}};
    a.wanted.add_norm(specs, x[-1], dtype);
    if (a.wanted.has(Wanted::residual)) specs.push_back({x, dtype});
    return specs;
  }
  static Cost cost(Inputs in, const Specs&, const Attr&) { return {.flops = 8 * in[0].numel()}; }
  static std::size_t workspace(Inputs in, const Specs&, const Attr&) {
    const Shape& x = in[0].shape();
    return in[0].dtype() == float32 ? kernels::settle_backward_workspace<float>(ops::rows_of(x), x[-1])
                                    : kernels::settle_backward_workspace<double>(ops::rows_of(x), x[-1]);
  }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.in_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      const Shape& x = f.in_shape(0);
      kernels::settle_backward(ops::rows_of(x), x[-1], settle_input<T>(f, 0, a.forward.eps, a.forward.epilogue), f.in<T>(5),
                               f.in<T>(6), f.out<T>(0), a.wanted.out<T>(f, Wanted::residual), a.wanted.norm_out<T>(f),
                               f.workspace<std::byte>());
    });
  }
  static void samples(Samples<Attr> s) {
    int number = 0;
    for (const Shape& shape : shapes())
      for (const bool shortcut : {true, false}) {
        const Shape c{shape[-1]};
        std::vector<Tensor> in{
            sample(shape, -2, 2, ++number), sample(c, -0.3, 0.4), sample(c, 0.6, 1.7), {}, {}, {}, sample(shape)};
        if (number % 3 != 0) in[3] = sample(c, 1.1, 4.3, 3);
        if (number % 5 != 0) in[4] = sample(c, -0.77, 3.3, 4);
        const Epilogue e = static_cast<Epilogue>(number % (shortcut ? 3 : 5));
        if (shortcut && e != Epilogue::none) in[5] = sample(shape, 0, 6, 5);
        const std::uint32_t norm = number % 4 == 0 ? 0 : number % 4 == 1 ? bit(Wanted::var) | bit(Wanted::beta) : Wanted::norm;
        s.add(std::move(in), {{1e-3, e, shortcut}, {bit(Wanted::x) | norm | (shortcut ? bit(Wanted::residual) : 0)}});
      }
    const Tensor x = sample({2, 3}), c = sample({3}), none;
    s.error({x, c, c, none, none, none, sample({3, 2})}, {{}, {bit(Wanted::x)}}, "input 6 must have the shape of x [2, 3]");
    s.error({x, c, none, none, none, none, x}, {{}, {bit(Wanted::x)}}, "needs a mean and a variance");
    s.error({x, c, c, sample({2}), none, none, x}, {{}, {bit(Wanted::x)}}, "gamma must have shape [3]");
    s.error({x, c, c, none, none, none, none}, {{}, {bit(Wanted::x)}}, "input 6 is undefined");
  }
  static const std::vector<Shape>& shapes() {
    static const std::vector<Shape> list{{1, 1}, {2, 3},    {40, 1}, {5, 17},      {33, 8},       {3, 24},
                                         {0, 5}, {2, 3, 2}, {70, 2}, {1, 2, 2, 3}, {2, 2, 1, 16}, {1, 1, 1, 2}};
    return list;
  }
};

struct Settle {
  static constexpr const char* name = "settle";
  static constexpr const char* input_names = "x, mean, var, gamma, beta, shortcut, its mean, its var, its gamma, its beta";
  static constexpr const char* output_names = "y";
  static constexpr Kind kind = Kind::normalisation;
  using Attr = SettleAttr;
  static constexpr std::uint32_t donates = bit(0) | bit(5);
  static constexpr bool remakes = true;  // one pass, from what the convolutions around it save in any case

  /// x, mean, var, gamma, beta; the shortcut, and its mean, var, gamma, beta where it is pending too.
  static Specs infer(Inputs in, const Attr& a) {
    const DType dtype = check_floats(name, in, ~bit(0));
    check_settle(name, in, a);
    const Shape& x = in[0].shape();
    if (in[5].defined() && !(in[5].shape() == x)) fail(str(name, ": the shortcut is ", in[5].shape(), ", but x is ", x));
    if (a.shortcut) check_pending(name, in[5], in[6], in[7], in[8], in[9], a.shortcut_eps);
    if (in[5].defined() != a.shortcut || in[6].defined() != a.shortcut_pending)
      fail(str(name, ": the attribute and the inputs differ about a shortcut (x ", x, ")"));
    return {{x, dtype}};
  }
  static Cost cost(Inputs in, const Specs& out, const Attr&) {
    return ops::pointwise_cost(out, 4 + (in[5].defined() ? 1 : 0) + (in[6].defined() ? 4 : 0));
  }
  static std::size_t workspace(Inputs in, const Specs&, const Attr&) {
    const std::int64_t channels = in[0].shape()[-1];
    return in[0].dtype() == float32 ? kernels::settle_forward_workspace<float>(channels)
                                    : kernels::settle_forward_workspace<double>(channels);
  }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      const Shape& x = f.in_shape(0);
      kernels::settle_forward(ops::rows_of(x), x[-1], settle_input<T>(f, 0, a.eps, a.epilogue),
                              settle_input<T>(f, 5, a.shortcut_eps, a.shortcut_epilogue), f.out<T>(0), f.workspace<std::byte>());
    });
  }
  // With a shortcut, the mask of the activation is that of the output; without one it is made again from x.
  static Saves saves(const Attr& a, std::uint32_t needs) {
    const bool norm = (needs & 0x1f) != 0, masks = a.masks();
    std::uint32_t inputs = norm || masks ? std::uint32_t{0x1f} : 0;
    if (a.shortcut_pending && (needs & 0x3e0) != 0) inputs |= 0x3e0;
    return {.inputs = inputs, .outputs = masks ? bit(0) : 0};
  }
  static void vjp(Vjp& v, const Attr& a) {
    const std::uint32_t needs = v.needs();
    const bool norm = (needs & 0x1f) != 0, shortcut = (needs & 0x3e0) != 0;
    Tensor g = v.grad(0), z;  // z: the gradient of the sum, before the activation
    Tensor out[Specs::max_outputs];
    if (norm || a.masks()) {
      Tensor in[7];
      if (a.masks()) in[5] = v.output(0);  // made again from the inputs, so before they are moved out
      for (int i = 0; i < 5; ++i)
        if (v.input_shape(i).rank() > 0) in[i] = v.input(i);
      if (shortcut && !a.masks()) z = g;
      in[6] = std::move(g);
      const bool makes_z = shortcut && a.masks();
      const Wanted wanted{bit(Wanted::x) | (needs & Wanted::norm) | (makes_z ? bit(Wanted::residual) : 0)};
      const SettleGradient::Attr attr{a, wanted};
      apply(ops::settle_gradient_op, in, &attr, {out, static_cast<std::size_t>(wanted.count())});
      if (makes_z) z = std::move(out[wanted.slot(Wanted::residual)]);
      wanted.give_norm(v, 0, out);
    } else {
      z = std::move(g);
    }
    if (shortcut) give_shortcut(v, a, needs, std::move(z));
    if (v.needs(0)) v.give(0, std::move(out[0]));
  }
  static void give_shortcut(Vjp& v, const Attr& a, std::uint32_t needs, Tensor z) {
    if (!a.shortcut_pending) return v.give(5, std::move(z));
    Tensor in[7], out[Specs::max_outputs];
    for (int i = 0; i < 5; ++i)
      if (v.input_shape(5 + i).rank() > 0) in[i] = v.input(5 + i);
    in[6] = std::move(z);
    const Wanted wanted{bit(Wanted::x) | (needs >> 5 & Wanted::norm)};
    const SettleGradient::Attr attr{{a.shortcut_eps, a.shortcut_epilogue}, wanted};
    apply(ops::settle_gradient_op, in, &attr, {out, static_cast<std::size_t>(wanted.count())});
    wanted.give_norm(v, 5, out);
    if (v.needs(5)) v.give(5, std::move(out[0]));
  }
  static void samples(Samples<Attr> s) {
    int number = 0;
    for (const Shape& shape : SettleGradient::shapes())
      for (const bool shortcut : {true, false}) {
        const Shape c{shape[-1]};
        const Epilogue e = static_cast<Epilogue>(++number % (shortcut ? 3 : 5));
        std::vector<Tensor> in(10);
        in[1] = sample(c, -0.3, 0.4);
        in[2] = sample(c, 0.6, 1.7);
        if (number % 4 != 0) in[3] = sample(c, 1.1, 4.3, 3);
        if (number % 5 != 0) in[4] = sample(c, -0.77, 3.3, 4);
        if (shortcut) in[5] = sample(shape, -1, 1, 7);
        const bool both = shortcut && number % 4 != 1;  // the shortcut is pending, too
        if (both) {
          in[6] = sample(c, -0.2, 0.5, 8);
          in[7] = sample(c, 0.7, 1.4, 9);
          if (number % 3 != 0) in[8] = sample(c, 0.9, 2.3, 10);
          if (number % 5 != 2) in[9] = sample(c, -0.4, 1.3, 11);
        }
        const Epilogue e2 = both ? static_cast<Epilogue>(number / 2 % 5) : Epilogue::none;
        if (both) {
          const int salt2 = ops::salt_avoiding_kinks(e2, [&](int k) {
            return batch_norm_inference(sample(shape, -2, 2, 70 + number + k), in[8], in[9], in[6], in[7], {.eps = 1e-2});
          });
          in[5] = sample(shape, -2, 2, 70 + number + salt2);
        }
        const int salt = ops::salt_avoiding_kinks(e, [&](int k) {
          Tensor z = batch_norm_inference(sample(shape, -2, 2, number + k), in[3], in[4], in[1], in[2], {.eps = 1e-3});
          if (!shortcut) return z;
          return add(std::move(z), both ? settle(Pending{in[5], in[6], in[7], in[8], in[9], 1e-2, e2}) : in[5]);
        });
        in[0] = sample(shape, -2, 2, number + salt);
        if (number % 7 == 1) in[0].set_requires_grad();
        if (number % 7 == 2 && shortcut) in[5].set_requires_grad();
        s.add(std::move(in), {1e-3, e, shortcut, 1e-2, e2, both});
      }
    const Tensor x = sample({2, 3}), c = sample({3}), none;
    s.error({x, c, c, none, none, sample({1, 3}), none, none, none, none}, {.shortcut = true},
            "the shortcut is [1, 3], but x is [2, 3]");
    s.error({x, c, c, none, none, x, c, none, none, none}, {.shortcut = true, .shortcut_pending = true},
            "give both of mean and var");
    s.error({x, none, none, none, none, x, none, none, none, none}, {}, "needs a mean and a variance");
    s.error({sample({3}), c, c, none, none, none, none, none, none, none}, {}, "at least two axes");
    s.error({x, c, c, none, none, none, none, none, none, none}, {-1}, "eps must not be negative");
    s.error({x, c, c, none, none, x, none, none, none, none}, {.epilogue = Epilogue::silu, .shortcut = true},
            "settle with a shortcut: silu cannot be its epilogue");
  }
};

}  // namespace

namespace ops {
constinit const OpDecl fused_conv2d_op = declare<FusedConv>();
constinit const OpDecl fused_conv2d_backward_op = declare<FusedConvBackward>();
constinit const OpDecl settle_op = declare<Settle>();
constinit const OpDecl settle_gradient_op = declare<SettleGradient>();
}  // namespace ops

FusedConvResult fused_conv2d(Pending p, Tensor w, FusedConvOptions options, Tensor residual) {
  if (!p.any() && p.epilogue != Epilogue::none) fail("fused_conv2d: nothing is pending; apply the activation by itself");
  const FusedAttr attr{options.stride, options.padding, p.eps, p.epilogue, options.statistics};
  Tensor in[] = {std::move(p.x),    std::move(p.mean), std::move(p.var),   std::move(p.gamma),
                 std::move(p.beta), std::move(w),      std::move(residual)};
  Tensor out[3];
  apply(ops::fused_conv2d_op, in, &attr, {out, options.statistics ? std::size_t{3} : std::size_t{1}});
  return {std::move(out[0]), std::move(out[1]), std::move(out[2])};
}

Tensor settle(Pending p) {
  if (!p.any()) {
    if (p.epilogue != Epilogue::none) fail("settle: nothing is pending; apply the activation by itself");
    return std::move(p.x);
  }
  return settle(std::move(p), Pending{});
}

Tensor settle(Pending p, Pending shortcut) {
  if (!p.any()) fail("settle: nothing is pending; use add() and the activation by itself");
  const SettleAttr attr{p.eps, p.epilogue, shortcut.x.defined(), shortcut.eps, shortcut.epilogue, shortcut.any()};
  return apply_one(
      ops::settle_op,
      {std::move(p.x), std::move(p.mean), std::move(p.var), std::move(p.gamma), std::move(p.beta), std::move(shortcut.x),
       std::move(shortcut.mean), std::move(shortcut.var), std::move(shortcut.gamma), std::move(shortcut.beta)},
      &attr);
}

bool fused_conv2d_covers(const Shape& w, const FusedConvOptions& options) {
  if (w.rank() != 3 && w.rank() != 4) return false;
  return kernels::fused_covers(geometry({1, 1, 1, w[-1]}, w, {options.stride, options.padding}, false));
}

}  // namespace rewind_lib
