// batch_norm (training and evaluation form) and layer_norm, over kernels that do each direction in the fewest passes.
//
// The statistics are outputs like any other, with gradients of their own, and the gradient ops treat them as inputs. So a
// second derivative needs no special path: what the gradient ops say about mean and variance comes back to the forward ops
// as gradients of these outputs.

#include <rewind/autograd/functional.h>
#include <rewind/autograd/fused.h>
#include <rewind/autograd/grad_mode.h>
#include <rewind/autograd/ops/check.h>
#include <rewind/autograd/ops/internal.h>
#include <rewind/autograd/ops/registry.h>
#include <rewind/autograd/ops/sample.h>
#include <rewind/core/kernels/norm.h>
#include <rewind/core/kernels/pointwise.h>

#include <algorithm>

namespace rewind_lib {
namespace {

using ops::check_channels;
using ops::check_eps;
using ops::check_floats;
using ops::check_matrix;
using ops::rows_of;
using ops::sample;

std::int64_t channels_of(const Shape& x) { return x[-1]; }

bool defined_input(const Vjp& v, int i) { return v.input_shape(i).rank() > 0; }

/// Of x, gamma and beta.
struct Wanted : ops::WantedGradients {
  Specs specs(const Shape& x, DType dtype) const {
    Specs s;
    if (has(0)) s.push_back({x, dtype});
    for (const int which : {1, 2})
      if (has(which)) s.push_back({{channels_of(x)}, dtype});
    return s;
  }
};

struct Gradients {
  Tensor x, gamma, beta;
  /// To the inputs 0, 1 and 2.
  void give(Vjp& v) && {
    if (x.defined()) v.give(0, std::move(x));
    if (gamma.defined()) v.give(1, std::move(gamma));
    if (beta.defined()) v.give(2, std::move(beta));
  }
};

template <std::size_t N>
Gradients apply_gradient(const OpDecl& op, Tensor (&&in)[N], const void* attr, Wanted wanted) {
  Tensor out[3];
  apply(op, in, attr, {out, static_cast<std::size_t>(wanted.count())});
  Gradients g;
  if (wanted.has(0)) g.x = std::move(out[wanted.slot(0)]);
  if (wanted.has(1)) g.gamma = std::move(out[wanted.slot(1)]);
  if (wanted.has(2)) g.beta = std::move(out[wanted.slot(2)]);
  return g;
}

// --- second derivatives, in plain ops ----------------------------------------------------------------------------

/// A sum of terms of which some may be missing.
void add_to(Tensor& total, Tensor term) { total = total.defined() ? add(std::move(total), std::move(term)) : std::move(term); }

/// What a gradient op is made of. With h = (x - mean) rstd and z = gamma dz,
///   dx = rstd (z - E[z] - h E[z h]),   dgamma = sum(dz h),   dbeta = sum(dz),
/// E being the mean over what shares a statistic, and zero where the statistics are constants.
struct Normalised {
  Tensor x, mean, rstd;  ///< mean and rstd in a shape that broadcasts to that of x
  Tensor gamma;          ///< or undefined
  Tensor dz;
  bool batch_statistics;
};
struct NormalisedGradients {
  Tensor x, mean, rstd, gamma, dz;
};

/// The gradients of sum(u dx) + sum(p dgamma) + sum(q dbeta), where each of u, p and q may be undefined.
NormalisedGradients differentiate(const Normalised& n, Tensor u, const Tensor& p, const Tensor& q) {
  const Shape statistic = n.mean.shape();
  const double share = static_cast<double>(statistic.numel()) / static_cast<double>(n.x.numel());
  const auto mean_of = [&](Tensor t) { return affine(sum_to(std::move(t), statistic), share, 0); };
  const Tensor centred = sub(n.x, n.mean), h = mul(centred, n.rstd);
  NormalisedGradients d;
  Tensor dh;
  if (u.defined()) {
    const Tensor z = n.gamma.defined() ? mul(n.dz, n.gamma) : n.dz;
    Tensor dz;
    if (n.batch_statistics) {
      const Tensor mean_z = mean_of(z), mean_zh = mean_of(mul(z, h)), mean_uh = mean_of(mul(u, h));
      dz = mul(sub(sub(u, mean_of(u)), mul(h, mean_uh)), n.rstd);
      d.rstd = sum_to(mul(u, sub(sub(z, mean_z), mul(h, mean_zh))), statistic);
      dh = neg(mul(add(mul(z, mean_uh), mul(u, mean_zh)), n.rstd));
    } else {
      dz = mul(u, n.rstd);
      d.rstd = sum_to(mul(u, z), statistic);
    }
    if (n.gamma.defined()) {
      d.gamma = sum_to(mul(n.dz, dz), n.gamma.shape());
      dz = mul(std::move(dz), n.gamma);
    }
    d.dz = std::move(dz);
  }
  if (p.defined()) {
    add_to(dh, mul(n.dz, p));
    add_to(d.dz, mul(h, p));
  }
  if (q.defined()) add_to(d.dz, broadcast_to(q, n.x.shape()));
  if (dh.defined()) {
    add_to(d.rstd, sum_to(mul(dh, centred), statistic));
    d.x = mul(std::move(dh), n.rstd);
    d.mean = neg(sum_to(d.x, statistic));
  }
  return d;
}

Tensor rstd_of(Tensor var, double eps) {
  Tensor one = ones(var.shape(), var.dtype());
  return div(std::move(one), sqrt(affine(std::move(var), 1, eps)));
}

// --- batch norm --------------------------------------------------------------------------------------------------

struct BatchNormAttr {
  double eps;
  Epilogue epilogue;
};

struct BatchNormGradientAttr {
  double eps;
  Epilogue epilogue;
  bool batch_statistics;  // mean and var are those of x; else constants
  Wanted wanted;
};

/// rstd lies in the workspace, behind `doubles` of scratch.
std::size_t rstd_workspace(std::int64_t doubles, const Shape& x, DType dtype) {
  return static_cast<std::size_t>(doubles) * sizeof(double) + static_cast<std::size_t>(channels_of(x)) * size_of(dtype);
}
template <class T>
T* make_rstd(const Forward& f, std::int64_t doubles, const T* var, std::int64_t channels, double eps) {
  T* rstd = reinterpret_cast<T*>(f.workspace<double>() + doubles);
  kernels::reciprocal_std(var, channels, eps, rstd);
  return rstd;
}

/// No odd number of rows with one channel: the middle sample would sit on the kink of a ReLU.
const Shape norm_shapes[] = {{2, 1},  {4, 1}, {2, 3},    {5, 2},    {4, 3},       {9, 2},
                             {18, 1}, {3, 9}, {2, 2, 3}, {2, 3, 2}, {2, 2, 2, 3}, {1, 3, 2, 2}};

struct BatchNormGradient {
  static constexpr const char* name = "batch_norm_gradient";
  static constexpr const char* input_names = "x, mean, var, gamma, beta, g";
  static constexpr Kind kind = Kind::normalisation;
  using Attr = BatchNormGradientAttr;
  static constexpr std::uint32_t donates = bit(0) | bit(5);

  /// x, mean, var, gamma, beta, g.
  static Specs infer(Inputs in, const Attr& a) {
    const DType dtype = check_floats(name, in, bit(3) | bit(4));
    const Shape& x = in[0].shape();
    check_matrix(name, x, a.batch_statistics);
    ops::check_epilogue(name, a.epilogue, x);
    check_channels(name, "mean", in[1], x);
    check_channels(name, "var", in[2], x);
    check_channels(name, "gamma", in[3], x);
    check_channels(name, "beta", in[4], x);
    if (!(in[5].shape() == x)) fail(str(name, ": the gradient has shape ", in[5].shape(), ", x ", x));
    return a.wanted.specs(x, dtype);
  }
  static Cost cost(Inputs in, const Specs&, const Attr&) { return {.flops = 9 * in[0].numel()}; }
  static std::size_t workspace(Inputs in, const Specs&, const Attr& a) {
    return rstd_workspace(scratch(in[0].shape(), a), in[0].shape(), in[0].dtype());
  }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.in_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      const Shape& x = f.in_shape(0);
      const T* rstd = make_rstd(f, scratch(x, a), f.in<T>(2), channels_of(x), a.eps);
      kernels::batch_norm_backward(f.in<T>(0), rows_of(x), channels_of(x), f.in<T>(1), rstd, f.in<T>(3), f.in<T>(4),
                                   ops::activation_of(a.epilogue), a.batch_statistics, f.in<T>(5), a.wanted.out<T>(f, 0),
                                   a.wanted.out<T>(f, 1), a.wanted.out<T>(f, 2), f.workspace<double>());
    });
  }
  static Saves saves(const Attr& a, std::uint32_t) {
    return {.inputs = bit(0) | bit(1) | bit(2) | bit(3) | bit(5) | (a.epilogue == Epilogue::none ? 0 : bit(4))};
  }
  static void vjp(Vjp& v, const Attr& a) {
    const auto grad_of = [&](int which) {
      return a.wanted.has(which) && v.has_grad(a.wanted.slot(which)) ? v.grad(a.wanted.slot(which)) : Tensor();
    };
    Tensor u = grad_of(0), p = grad_of(1), q = grad_of(2);
    const Tensor var = v.input(2);
    Normalised n{v.input(0), v.input(1),        rstd_of(var, a.eps), defined_input(v, 3) ? v.input(3) : Tensor(),
                 v.input(5), a.batch_statistics};
    Tensor y;  // of the epilogue
    if (a.epilogue != Epilogue::none) {
      const NoGrad no_grad;
      Tensor beta = defined_input(v, 4) ? v.input(4) : Tensor();
      Tensor z = mul(sub(n.x, n.mean), n.rstd);
      if (n.gamma.defined()) z = mul(std::move(z), n.gamma);
      if (beta.defined()) z = add(std::move(z), std::move(beta));
      y = a.epilogue == Epilogue::relu ? relu(std::move(z)) : relu6(std::move(z));
    }
    if (y.defined()) n.dz = ops::epilogue_gradient(a.epilogue, y, std::move(n.dz));
    NormalisedGradients d = differentiate(n, std::move(u), p, q);
    if (d.x.defined()) v.give(0, std::move(d.x));
    if (d.mean.defined()) v.give(1, std::move(d.mean));
    if (d.rstd.defined()) v.give(2, affine(mul(mul(n.rstd, square(n.rstd)), std::move(d.rstd)), -0.5, 0));
    if (d.gamma.defined()) v.give(3, std::move(d.gamma));
    if (d.dz.defined())
      v.give(5, y.defined() ? ops::epilogue_gradient(a.epilogue, std::move(y), std::move(d.dz)) : std::move(d.dz));
  }
  static void samples(Samples<Attr> s) {
    int salt = 0;
    for (const Shape& shape : norm_shapes)
      for (const bool batch : {true, false}) {
        const Epilogue e = static_cast<Epilogue>(++salt % 3);
        const Shape c{channels_of(shape)};
        const Wanted wanted{salt % 5 == 0 ? bit(1) | bit(2) : salt % 7 == 0 ? bit(0) : bit(0) | bit(1) | bit(2)};
        std::vector<Tensor> in{sample(shape, -2, 2, salt),     sample(c, -0.3, 0.4), sample(c, 0.6, 1.7), Tensor(), Tensor(),
                               sample(shape, -1, 1, salt + 60)};
        if (salt % 4 != 0) in[3] = sample(c, 1.1, 3.3, 1);
        if (salt % 4 != 1) in[4] = sample(c, -0.77, 1.3, 2);
        s.add(std::move(in), {1e-3, e, batch, wanted});
      }
    const Attr all{1e-5, Epilogue::none, true, {7}};
    s.error({sample({2, 3}), sample({3}), sample({2}), Tensor(), Tensor(), sample({2, 3})}, all, "var must have shape [3]");
    s.error({sample({2, 3}), sample({3}), sample({3}), Tensor(), Tensor(), sample({3, 2})}, all,
            "the gradient has shape [3, 2], x [2, 3]");
    s.error({sample({2, 3}), sample({3}), sample({3}), sample({2}), Tensor(), sample({2, 3})}, all, "gamma must have shape [3]");
    s.error({sample({2, 3}), sample({3}), sample({3}), Tensor(), Tensor(), Tensor()}, all, "input 5 is undefined");
  }

 private:
  static std::int64_t scratch(const Shape& x, const Attr& a) {
    return a.batch_statistics || a.wanted.has(1) || a.wanted.has(2) ? kernels::batch_norm_scratch(rows_of(x), channels_of(x)) : 0;
  }
};

struct BatchNorm {
  static constexpr const char* name = "batch_norm";
  static constexpr const char* input_names = "x, gamma, beta";
  static constexpr const char* output_names = "y, mean, var";
  static constexpr Kind kind = Kind::normalisation;
  using Attr = BatchNormAttr;
  static constexpr std::uint32_t donates = bit(0);

  /// x, gamma, beta -> y, mean, biased variance.
  static Specs infer(Inputs in, const Attr& a) {
    const DType dtype = check_floats(name, in, bit(1) | bit(2));
    const Shape& x = in[0].shape();
    check_matrix(name, x, true);
    ops::check_epilogue(name, a.epilogue, x);
    check_channels(name, "gamma", in[1], x);
    check_channels(name, "beta", in[2], x);
    check_eps(name, a.eps, x);
    return {{x, dtype}, {{channels_of(x)}, dtype}, {{channels_of(x)}, dtype}};
  }
  static Cost cost(Inputs in, const Specs&, const Attr&) { return {.flops = 7 * in[0].numel()}; }
  static std::size_t workspace(Inputs in, const Specs&, const Attr&) {
    const Shape& x = in[0].shape();
    return rstd_workspace(kernels::batch_norm_scratch(rows_of(x), channels_of(x)), x, in[0].dtype());
  }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      const Shape& x = f.in_shape(0);
      const std::int64_t rows = rows_of(x), channels = channels_of(x);
      kernels::batch_norm_statistics(f.in<T>(0), rows, channels, f.out<T>(1), f.out<T>(2), f.workspace<double>());
      const T* rstd = make_rstd(f, kernels::batch_norm_scratch(rows, channels), f.out<T>(2), channels, a.eps);
      kernels::batch_norm_forward(f.in<T>(0), rows, channels, f.out<T>(1), rstd, f.in<T>(1), f.in<T>(2),
                                  ops::activation_of(a.epilogue), f.out<T>(0));
    });
  }
  static Saves saves(const Attr& a, std::uint32_t needs) {
    if (needs == bit(2) && a.epilogue == Epilogue::none) return {};
    std::uint32_t inputs = bit(0);
    if ((needs & bit(0)) != 0 || a.epilogue != Epilogue::none) inputs |= bit(1);
    if (a.epilogue != Epilogue::none) inputs |= bit(2);
    return {.inputs = inputs, .outputs = bit(1) | bit(2)};
  }
  static void vjp(Vjp& v, const Attr& a) {
    if (!v.needs(0) && !v.needs(1) && a.epilogue == Epilogue::none) {
      if (v.has_grad(0)) v.give(2, sum_to(v.grad(0), v.input_shape(2)));
      return;
    }
    const double share = 1 / static_cast<double>(rows_of(v.input_shape(0)));
    Tensor x = v.input(0), mean = v.output(1), var = v.output(2);
    if (v.needs(0) && v.has_grad(1)) v.give(0, broadcast_to(affine(v.grad(1), share, 0), x.shape()));
    if (v.needs(0) && v.has_grad(2)) v.give(0, mul(sub(x, mean), affine(v.grad(2), 2 * share, 0)));
    if (!v.has_grad(0)) return;
    const Wanted wanted{v.needs()};
    Tensor gamma, beta;
    if (defined_input(v, 1) && (v.needs(0) || a.epilogue != Epilogue::none)) gamma = v.input(1);
    if (defined_input(v, 2) && a.epilogue != Epilogue::none) beta = v.input(2);
    const BatchNormGradientAttr attr{a.eps, a.epilogue, true, wanted};
    Gradients g = apply_gradient(ops::batch_norm_gradient_op,
                                 {std::move(x), std::move(mean), std::move(var), std::move(gamma), std::move(beta), v.grad(0)},
                                 &attr, wanted);
    std::move(g).give(v);
  }
  static void samples(Samples<Attr> s) {
    int salt = 0;
    for (const Shape& shape : norm_shapes)
      for (const Epilogue e : {Epilogue::none, Epilogue::relu, Epilogue::relu6}) {
        const Shape c{channels_of(shape)};
        Tensor gamma = ++salt % 4 == 0 ? Tensor() : sample(c, 1.1, 4.3, 1),
               beta = salt % 4 == 1 ? Tensor() : sample(c, -0.77, 3.3, 2);
        Tensor x = sample(shape, -2, 2, salt);
        if (salt % 5 == 0) {  // only some gradients wanted: less is saved
          if (beta.defined())
            beta.set_requires_grad();
          else
            gamma.set_requires_grad();
        }
        s.add({std::move(x), std::move(gamma), std::move(beta)}, {salt % 2 == 0 ? 1e-3 : 0.1, e});
      }
    s.error({sample({4}), Tensor(), Tensor()}, {1e-5, Epilogue::none}, "at least two axes and one element, not [4]");
    s.error({sample({0, 4}), Tensor(), Tensor()}, {1e-5, Epilogue::none}, "not [0, 4]");
    s.error({sample({2, 3}), sample({2}), Tensor()}, {1e-5, Epilogue::none},
            "gamma must have shape [3], one element a channel of x [2, 3], not [2]");
    s.error({sample({2, 3}), sample({3}), sample({1})}, {1e-5, Epilogue::none}, "beta must have shape [3]");
    s.error({sample({2, 3}), sample({3}).to(float32), Tensor()}, {1e-5, Epilogue::none}, "inputs must have one dtype");
    s.error({sample({2, 3}), Tensor(), Tensor()}, {-1, Epilogue::none}, "eps must not be negative");
    s.error({sample({2, 3}), Tensor(), Tensor()}, {1e-5, Epilogue::silu}, "call silu() on the result (x is [2, 3])");
  }
};

/// Moves running statistics in place.
struct BatchNormUpdate {
  static constexpr const char* name = "batch_norm_update";
  static constexpr const char* input_names = "mean, var, running_mean, running_var";
  static constexpr Kind kind = Kind::normalisation;
  static constexpr const char* no_gradient = "it only moves running statistics";
  static constexpr std::uint32_t differentiable = 0;
  static constexpr std::uint32_t mutates = bit(2) | bit(3);
  struct Attr {
    std::int64_t rows;
    double momentum;
  };

  /// mean, var, running_mean, running_var -> nothing.
  static Specs infer(Inputs in, const Attr& a) {
    check_floats(name, in);
    constexpr const char* what[] = {"mean", "var", "running_mean", "running_var"};
    for (std::size_t i = 1; i < in.size(); ++i)
      if (!(in[i].shape() == in[0].shape()))
        fail(str(name, ": ", what[i], " must have shape ", in[0].shape(), " as the batch's mean, not ", in[i].shape()));
    if (a.rows < 2)
      fail(str(name, ": a batch of ", a.rows, " row for ", in[0].shape(),
               " channels has no unbiased variance to move running statistics with"));
    if (!(a.momentum >= 0 && a.momentum <= 1))
      fail(str(name, ": momentum must be between 0 and 1, got ", a.momentum, " (", in[0].shape(), " channels)"));
    return {};
  }
  static Cost cost(Inputs in, const Specs&, const Attr&) {
    const std::int64_t bytes = 2 * static_cast<std::int64_t>(in[0].bytes());
    return {.flops = 6 * in[0].numel(), .bytes_read = 2 * bytes, .bytes_written = bytes};
  }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.in_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      kernels::update_running(f.in<T>(0), f.in<T>(1), a.rows, f.in_shape(0).numel(), a.momentum, f.mutable_in<T>(2),
                              f.mutable_in<T>(3));
    });
  }
  static void samples(Samples<Attr> s) {
    for (const std::int64_t c : {1, 3, 8, 17, 33})
      for (const double momentum : {0.0, 0.1, 0.5, 1.0})
        s.add({sample({c}), sample({c}, 0.1, 2), sample({c}, -1, 1, 1), sample({c}, 0.1, 2, 1)}, {c + 1, momentum});
    s.error({sample({3}), sample({3}), sample({2}), sample({3})}, {4, 0.1}, "running_mean must have shape [3]");
    s.error({sample({3}), sample({3}), sample({3}), Tensor()}, {4, 0.1}, "input 3 is undefined");
    s.error({sample({3}), sample({3}), sample({3}), sample({3}).to(float32)}, {4, 0.1}, "inputs must have one dtype");
    s.error({sample({3}), sample({3}), sample({3}), sample({3})}, {1, 0.1}, "a batch of 1 row");
    s.error({sample({3}), sample({3}), sample({3}), sample({3})}, {4, 5}, "momentum must be between 0 and 1, got 5");
    s.error({sample({3}), sample({3}), sample({3}), sample({3})}, {4, std::nan("")}, "momentum must be between 0 and 1");
  }
};

/// The evaluation form. Without an epilogue, gradients of x, beta and mean need no x.
struct BatchNormInference {
  static constexpr const char* name = "batch_norm_inference";
  static constexpr const char* input_names = "x, gamma, beta, mean, var";
  static constexpr const char* output_names = "y";
  static constexpr Kind kind = Kind::normalisation;
  using Attr = BatchNormAttr;
  static constexpr std::uint32_t donates = bit(0);

  /// x, gamma, beta, mean, var.
  static Specs infer(Inputs in, const Attr& a) {
    const DType dtype = check_floats(name, in, bit(1) | bit(2));
    const Shape& x = in[0].shape();
    check_matrix(name, x, false);
    ops::check_epilogue(name, a.epilogue, x);
    check_channels(name, "gamma", in[1], x);
    check_channels(name, "beta", in[2], x);
    check_channels(name, "mean", in[3], x);
    check_channels(name, "var", in[4], x);
    check_eps(name, a.eps, x);
    return {{x, dtype}};
  }
  static Cost cost(Inputs, const Specs& out, const Attr&) { return ops::pointwise_cost(out, 3); }
  static std::size_t workspace(Inputs in, const Specs&, const Attr&) { return rstd_workspace(0, in[0].shape(), in[0].dtype()); }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      const Shape& x = f.in_shape(0);
      const T* rstd = make_rstd(f, 0, f.in<T>(4), channels_of(x), a.eps);
      kernels::batch_norm_forward(f.in<T>(0), rows_of(x), channels_of(x), f.in<T>(3), rstd, f.in<T>(1), f.in<T>(2),
                                  ops::activation_of(a.epilogue), f.out<T>(0));
    });
  }
  static Saves saves(const Attr& a, std::uint32_t needs) {
    const bool act = a.epilogue != Epilogue::none;
    std::uint32_t inputs = 0;
    if (reads_x(a, needs)) inputs |= bit(0) | bit(3) | bit(4);
    if ((needs & (bit(0) | bit(3) | bit(4))) != 0) inputs |= bit(1) | bit(4);
    if (act) inputs |= bit(1) | bit(2);
    return {.inputs = inputs};
  }
  static void vjp(Vjp& v, const Attr& a) {
    const bool act = a.epilogue != Epilogue::none;
    const std::uint32_t needs = v.needs();
    const bool scaled = (needs & (bit(0) | bit(3) | bit(4))) != 0;
    const Tensor gamma = defined_input(v, 1) && (scaled || act) ? v.input(1) : Tensor();
    const Tensor var = scaled || reads_x(a, needs) ? v.input(4) : Tensor();
    Tensor rstd, scale;
    if (scaled) {
      rstd = rstd_of(var, a.eps);
      scale = gamma.defined() ? mul(gamma, rstd) : rstd;
    }
    Gradients g;
    const bool sums = v.needs(2) || v.needs(3);
    if (reads_x(a, needs)) {
      const Wanted wanted{(v.needs(0) ? bit(0) : 0) | (v.needs(1) || v.needs(4) ? bit(1) : 0) | (sums ? bit(2) : 0)};
      const BatchNormGradientAttr attr{a.eps, a.epilogue, false, wanted};
      Tensor beta = defined_input(v, 2) && act ? v.input(2) : Tensor();
      g = apply_gradient(ops::batch_norm_gradient_op, {v.input(0), v.input(3), var, gamma, std::move(beta), v.grad(0)}, &attr,
                         wanted);
    } else {
      Tensor dz = v.grad(0);
      if (sums) g.beta = sum_to(dz, Shape{channels_of(v.input_shape(0))});
      if (v.needs(0)) g.x = mul(std::move(dz), scale);
    }
    if (v.needs(3)) v.give(3, neg(mul(scale, g.beta)));
    if (v.needs(4)) v.give(4, affine(mul(mul(scale, rstd), g.gamma), -0.5, 0));
    if (v.needs(0)) v.give(0, std::move(g.x));
    if (v.needs(1)) v.give(1, std::move(g.gamma));
    if (v.needs(2)) v.give(2, std::move(g.beta));
  }
  static void samples(Samples<Attr> s) {
    int salt = 0;
    for (const Shape& shape : norm_shapes)
      for (const Epilogue e : {Epilogue::none, Epilogue::relu, Epilogue::relu6}) {
        const Shape c{channels_of(shape)};
        std::vector<Tensor> in{sample(shape, -2, 2, ++salt), sample(c, 1.1, 4.3, 1), sample(c, -0.77, 3.3, 2),
                               sample(c, -0.3, 0.4, 3), sample(c, 0.6, 1.7, 4)};
        if (salt % 4 == 0) in[1] = Tensor();
        if (salt % 4 == 1) in[2] = Tensor();
        if (salt % 3 == 1)  // only some gradients wanted: less is saved
          for (const std::size_t i : {std::size_t{0}, std::size_t{2 + static_cast<std::size_t>(salt) / 3 % 2}})
            if (in[i].defined()) in[i].set_requires_grad();
        s.add(std::move(in), {salt % 2 == 0 ? 1e-3 : 0.1, e});
      }
    for (const Epilogue e : {Epilogue::none, Epilogue::relu})
      s.add({sample({0, 3}), sample({3}, 1.1, 4.3, 1), sample({3}, -0.77, 3.3, 2), sample({3}, -0.3, 0.4, 3),
             sample({3}, 0.6, 1.7, 4)},
            {1e-3, e});
    const Attr a{1e-5, Epilogue::none};
    s.error({sample({4}), Tensor(), Tensor(), sample({4}), sample({4})}, a, "at least two axes, not [4]");
    s.error({sample({2, 3}), Tensor(), Tensor(), sample({3}), sample({2})}, a,
            "var must have shape [3], one element a channel of x [2, 3], not [2]");
    s.error({sample({2, 3}), Tensor(), Tensor(), Tensor(), sample({3})}, a, "input 3 is undefined");
    s.error({sample({2, 3}), sample({4}), Tensor(), sample({3}), sample({3})}, a, "gamma must have shape [3]");
    s.error({sample({2, 3}), Tensor(), Tensor(), sample({3}), sample({3})}, {1e-5, Epilogue::hardswish}, "call hardswish()");
  }

 private:
  static bool reads_x(const Attr& a, std::uint32_t needs) {
    return a.epilogue != Epilogue::none || (needs & (bit(1) | bit(4))) != 0;
  }
};

// --- layer norm --------------------------------------------------------------------------------------------------

struct LayerNormGradient {
  static constexpr const char* name = "layer_norm_gradient";
  static constexpr const char* input_names = "x, mean, rstd, gamma, g";
  static constexpr Kind kind = Kind::normalisation;
  struct Attr {
    Wanted wanted;
  };
  static constexpr std::uint32_t donates = bit(0) | bit(4);

  /// x, mean, rstd, gamma, g.
  static Specs infer(Inputs in, const Attr& a) {
    const DType dtype = check_floats(name, in, bit(3));
    const Shape& x = in[0].shape();
    if (x.rank() < 1 || x[-1] == 0) fail(str(name, ": the last axis of x must not be empty, shape ", x));
    const Shape rows(std::span(x.begin(), static_cast<std::size_t>(x.rank() - 1)));
    if (!(in[1].shape() == rows) || !(in[2].shape() == rows) || !(in[4].shape() == x))
      fail(str(name, ": x ", x, " needs statistics ", rows, " and a gradient ", x, ", not ", in[1].shape(), ", ", in[2].shape(),
               " and ", in[4].shape()));
    check_channels(name, "gamma", in[3], x);
    return a.wanted.specs(x, dtype);
  }
  static Cost cost(Inputs in, const Specs&, const Attr&) { return {.flops = 10 * in[0].numel()}; }
  static std::size_t workspace(Inputs in, const Specs&, const Attr&) {
    const Shape& x = in[0].shape();
    return static_cast<std::size_t>(kernels::layer_norm_scratch(rows_of(x), channels_of(x))) * sizeof(double);
  }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.in_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      const Shape& x = f.in_shape(0);
      kernels::layer_norm_backward(f.in<T>(0), rows_of(x), channels_of(x), f.in<T>(1), f.in<T>(2), f.in<T>(3), f.in<T>(4),
                                   a.wanted.out<T>(f, 0), a.wanted.out<T>(f, 1), a.wanted.out<T>(f, 2), f.workspace<double>());
    });
  }
  static Saves saves(const Attr&, std::uint32_t) { return {.inputs = bit(0) | bit(1) | bit(2) | bit(3) | bit(4)}; }
  static void vjp(Vjp& v, const Attr& a) {
    const auto grad_of = [&](int which) {
      return a.wanted.has(which) && v.has_grad(a.wanted.slot(which)) ? v.grad(a.wanted.slot(which)) : Tensor();
    };
    Tensor u = grad_of(0), p = grad_of(1), q = grad_of(2);
    Shape column = v.input_shape(0);
    column.set(-1, 1);
    const Normalised n{v.input(0),
                       reshape(v.input(1), column),
                       reshape(v.input(2), column),
                       defined_input(v, 3) ? v.input(3) : Tensor(),
                       v.input(4),
                       true};
    NormalisedGradients d = differentiate(n, std::move(u), p, q);
    if (d.x.defined()) v.give(0, std::move(d.x));
    if (d.mean.defined()) v.give(1, reshape(std::move(d.mean), v.input_shape(1)));
    if (d.rstd.defined()) v.give(2, reshape(std::move(d.rstd), v.input_shape(2)));
    if (d.gamma.defined()) v.give(3, std::move(d.gamma));
    if (d.dz.defined()) v.give(4, std::move(d.dz));
  }
  static void samples(Samples<Attr> s) {
    int salt = 0;
    for (const Shape& shape : shapes())
      for (const bool scaled : {true, false}) {
        const Shape rows(std::span(shape.begin(), static_cast<std::size_t>(shape.rank() - 1))), c{channels_of(shape)};
        const Wanted wanted{++salt % 5 == 0 ? bit(1) | bit(2) : salt % 7 == 0 ? bit(0) : bit(0) | bit(1) | bit(2)};
        s.add({sample(shape, -2, 2, salt), sample(rows, -0.3, 0.4), sample(rows, 0.6, 1.7),
               scaled ? sample(c, 0.5, 2, 1) : Tensor(), sample(shape, -1, 1, salt + 60)},
              {wanted});
      }
    s.error({sample({2, 3}), sample({2}), sample({3}), Tensor(), sample({2, 3})}, {{7}}, "x [2, 3] needs statistics [2]");
    s.error({sample({2, 3}), sample({2}), sample({2}), sample({2}), sample({2, 3})}, {{7}}, "gamma must have shape [3]");
    s.error({sample({2, 0}), sample({2}), sample({2}), Tensor(), sample({2, 0})}, {{7}}, "must not be empty, shape [2, 0]");
    s.error({sample({2, 3}), sample({2}), sample({2}), Tensor(), Tensor()}, {{7}}, "input 4 is undefined");
  }
  static std::initializer_list<Shape> shapes() {
    static const std::initializer_list<Shape> list = {{3},     {5},     {1, 3},    {2, 3},    {4, 2},       {3, 9},
                                                      {1, 17}, {2, 20}, {2, 2, 3}, {3, 1, 4}, {2, 1, 2, 3}, {7, 3}};
    return list;
  }
};

struct LayerNorm {
  static constexpr const char* name = "layer_norm";
  static constexpr const char* input_names = "x, gamma, beta";
  static constexpr const char* output_names = "y, mean, rstd";
  static constexpr Kind kind = Kind::normalisation;
  struct Attr {
    double eps;
  };
  static constexpr std::uint32_t donates = bit(0);

  /// x, gamma, beta -> y, mean and rstd of every row.
  static Specs infer(Inputs in, const Attr& a) {
    const DType dtype = check_floats(name, in, bit(1) | bit(2));
    const Shape& x = in[0].shape();
    if (x.rank() < 1 || x[-1] == 0) fail(str(name, ": the last axis of x must not be empty, shape ", x));
    check_channels(name, "gamma", in[1], x);
    check_channels(name, "beta", in[2], x);
    check_eps(name, a.eps, x);
    const Shape rows(std::span(x.begin(), static_cast<std::size_t>(x.rank() - 1)));
    return {{x, dtype}, {rows, dtype}, {rows, dtype}};
  }
  static Cost cost(Inputs in, const Specs&, const Attr&) { return {.flops = 8 * in[0].numel()}; }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      const Shape& x = f.in_shape(0);
      kernels::layer_norm_forward(f.in<T>(0), rows_of(x), channels_of(x), f.in<T>(1), f.in<T>(2), a.eps, f.out<T>(0), f.out<T>(1),
                                  f.out<T>(2));
    });
  }
  static Saves saves(const Attr&, std::uint32_t needs) {
    if (needs == bit(2)) return {};
    return {.inputs = bit(0) | ((needs & bit(0)) != 0 ? bit(1) : 0), .outputs = bit(1) | bit(2)};
  }
  static void vjp(Vjp& v, const Attr&) {
    if (!v.needs(0) && !v.needs(1)) {
      if (v.has_grad(0)) v.give(2, sum_to(v.grad(0), v.input_shape(2)));
      return;
    }
    Tensor x = v.input(0), mean = v.output(1), rstd = v.output(2);
    if (v.needs(0) && (v.has_grad(1) || v.has_grad(2))) {
      const double share = 1 / static_cast<double>(channels_of(x.shape()));
      Shape column = x.shape();
      column.set(-1, 1);
      if (v.has_grad(1)) v.give(0, broadcast_to(affine(reshape(v.grad(1), column), share, 0), x.shape()));
      if (v.has_grad(2)) {  // rstd = (E[(x - mean)^2] + eps)^-1/2
        Tensor slope = affine(mul(v.grad(2), mul(rstd, square(rstd))), -share, 0);
        v.give(0, mul(sub(x, reshape(mean, column)), reshape(std::move(slope), column)));
      }
    }
    if (!v.has_grad(0)) return;
    const Wanted wanted{v.needs()};
    const LayerNormGradient::Attr attr{wanted};
    Tensor gamma = v.needs(0) && defined_input(v, 1) ? v.input(1) : Tensor();
    Gradients g = apply_gradient(ops::layer_norm_gradient_op,
                                 {std::move(x), std::move(mean), std::move(rstd), std::move(gamma), v.grad(0)}, &attr, wanted);
    std::move(g).give(v);
  }
  static void samples(Samples<Attr> s) {
    int salt = 0;
    for (const Shape& shape : LayerNormGradient::shapes())
      for (const double eps : {1e-3, 0.1}) {
        const Shape c{channels_of(shape)};
        Tensor gamma = ++salt % 4 == 0 ? Tensor() : sample(c, 0.5, 2, 1), beta = salt % 4 == 1 ? Tensor() : sample(c, -1, 1, 2);
        if (salt % 5 == 0) (beta.defined() ? beta : gamma).set_requires_grad();
        s.add({sample(shape, -2, 2, salt), std::move(gamma), std::move(beta)}, {eps});
      }
    s.error({sample({}), Tensor(), Tensor()}, {1e-5}, "must not be empty, shape []");
    s.error({sample({2, 3}), sample({2}), Tensor()}, {1e-5},
            "gamma must have shape [3], one element a channel of x [2, 3], not [2]");
    s.error({sample({2, 3}), Tensor(), sample({2, 3})}, {1e-5}, "beta must have shape [3]");
    s.error({sample({2, 3}), Tensor(), Tensor()}, {-1}, "eps must not be negative");
    s.error({Tensor(), Tensor(), Tensor()}, {1e-5}, "input 0 is undefined");
  }
};

}  // namespace

namespace ops {
constinit const OpDecl batch_norm_op = declare<BatchNorm>();
constinit const OpDecl batch_norm_gradient_op = declare<BatchNormGradient>();
constinit const OpDecl batch_norm_update_op = declare<BatchNormUpdate>();
constinit const OpDecl batch_norm_inference_op = declare<BatchNormInference>();
constinit const OpDecl layer_norm_op = declare<LayerNorm>();
constinit const OpDecl layer_norm_gradient_op = declare<LayerNormGradient>();
}  // namespace ops

Tensor batch_norm(Tensor x, Tensor gamma, Tensor beta, Tensor running_mean, Tensor running_var, BatchNormOptions options) {
  const bool moves = running_mean.defined();
  if (moves != running_var.defined()) fail("batch_norm: give both of running_mean and running_var, or neither");
  const std::int64_t rows = x.defined() && x.rank() > 0 ? rows_of(x.shape()) : 0;
  if (moves && rows == 1)
    fail(str("batch_norm: x ", x.shape(),
             " has one value a channel, and no unbiased variance to move running_var with; train with larger batches"));
  const BatchNormAttr attr{options.eps, options.epilogue};
  Tensor in[] = {std::move(x), std::move(gamma), std::move(beta)}, out[3];
  apply(ops::batch_norm_op, in, &attr, out);
  if (moves)
    move_running_statistics(std::move(out[1]), std::move(out[2]), std::move(running_mean), std::move(running_var), rows,
                            options.momentum);
  return std::move(out[0]);
}

void move_running_statistics(Tensor mean, Tensor var, Tensor running_mean, Tensor running_var, std::int64_t rows, double momentum) {
  const NoGrad no_grad;
  const BatchNormUpdate::Attr update{rows, momentum};
  Tensor statistics[] = {std::move(mean), std::move(var), std::move(running_mean), std::move(running_var)};
  apply(ops::batch_norm_update_op, statistics, &update, {});
}

Tensor batch_norm_inference(Tensor x, Tensor gamma, Tensor beta, Tensor mean, Tensor var, BatchNormOptions options) {
  const BatchNormAttr attr{options.eps, options.epilogue};
  return apply_one(ops::batch_norm_inference_op, {std::move(x), std::move(gamma), std::move(beta), std::move(mean), std::move(var)},
                   &attr);
}

Tensor layer_norm(Tensor x, Tensor gamma, Tensor beta, double eps) {
  const LayerNorm::Attr attr{eps};
  Tensor in[] = {std::move(x), std::move(gamma), std::move(beta)}, out[3];
  apply(ops::layer_norm_op, in, &attr, out);
  return std::move(out[0]);
}

}  // namespace rewind_lib
