// softmax and log_softmax along the last axis; along others by way of permute.

#include <rewind/autograd/functional.h>
#include <rewind/autograd/ops/axes.h>
#include <rewind/autograd/ops/check.h>
#include <rewind/autograd/ops/registry.h>
#include <rewind/autograd/ops/sample.h>
#include <rewind/core/kernels/loss.h>

#include <numeric>

namespace rewind_lib {
namespace {

using ops::check_floats;
using ops::sample;

/// Length of the last axis, and how many there are: none where all are empty.
std::int64_t classes_of(const Shape& shape) { return shape[-1]; }
std::int64_t rows_of(const Shape& shape) { return shape[-1] == 0 ? 0 : ops::rows_of(shape); }

const Shape sample_shapes[] = {{1},       {2},       {5},       {9},          {17},         {1, 1},  {1, 4},
                               {2, 3},    {3, 2},    {3, 1},    {4, 7},       {2, 8},       {3, 16}, {2, 33},
                               {2, 3, 4}, {2, 1, 3}, {1, 2, 5}, {2, 2, 2, 3}, {1, 1, 1, 6}, {0, 3}};

/// y = exp(x) / sum(exp(x)), or its logarithm.
template <bool Log>
struct SoftmaxOp {
  static constexpr const char* name = Log ? "log_softmax" : "softmax";
  static constexpr const char* input_names = "x";
  static constexpr const char* output_names = "y";
  static constexpr Kind kind = Kind::elementwise;
  struct Attr {};
  static constexpr std::uint32_t donates = bit(0);

  static Specs infer(Inputs in, const Attr&) {
    const DType dtype = check_floats(name, in);
    if (in[0].rank() == 0) fail(str(name, ": a tensor of shape [] has no axis to normalise along"));
    return {{in[0].shape(), dtype}};
  }
  static Cost cost(Inputs, const Specs& out, const Attr&) { return ops::pointwise_cost(out, 5); }
  static void forward(const Forward& f, const Attr&) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      const auto kernel = Log ? kernels::log_softmax<T> : kernels::softmax<T>;
      kernel(f.in<T>(0), rows_of(f.in_shape(0)), classes_of(f.in_shape(0)), f.out<T>(0));
    });
  }
  static Saves saves(const Attr&, std::uint32_t) { return {.outputs = bit(0)}; }
  static void vjp(Vjp& v, const Attr&) {
    v.give(0, apply_one(Log ? ops::log_softmax_gradient_op : ops::softmax_gradient_op, {v.output(0), v.grad(0)}, nullptr));
  }
  static void samples(Samples<Attr> s) {
    int salt = 0;
    for (const Shape& shape : sample_shapes) s.add({sample(shape, -3, 3, ++salt)});
    s.error({sample({})}, {}, "shape [] has no axis");
    s.error({arange(3, int32)}, {}, "needs float32 or float64");
    s.error({Tensor()}, {}, "input 0 is undefined");
  }
};

/// From the output y and the gradient g: y (g - sum(g y)) for softmax, g - exp(y) sum(g) for log_softmax.
template <bool Log>
struct SoftmaxGradient {
  static constexpr const char* name = Log ? "log_softmax_gradient" : "softmax_gradient";
  static constexpr const char* input_names = "y, g";
  static constexpr const char* output_names = "dx";
  static constexpr Kind kind = Kind::elementwise;
  struct Attr {};
  static constexpr std::uint32_t donates = bit(0) | bit(1);

  static Specs infer(Inputs in, const Attr&) {
    const DType dtype = check_floats(name, in);
    if (in[0].rank() == 0 || !(in[0].shape() == in[1].shape()))
      fail(str(name, ": needs an output and a gradient of one shape with an axis, got ", in[0].shape(), " and ", in[1].shape()));
    return {{in[0].shape(), dtype}};
  }
  static Cost cost(Inputs, const Specs& out, const Attr&) { return ops::pointwise_cost(out, 4); }
  static void forward(const Forward& f, const Attr&) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      const auto kernel = Log ? kernels::log_softmax_backward<T> : kernels::softmax_backward<T>;
      kernel(f.in<T>(0), f.in<T>(1), rows_of(f.in_shape(0)), classes_of(f.in_shape(0)), f.out<T>(0));
    });
  }
  static Saves saves(const Attr&, std::uint32_t needs) { return {.inputs = bit(0) | ((needs & bit(0)) != 0 ? bit(1) : 0)}; }
  static void vjp(Vjp& v, const Attr&) {
    Tensor u = v.grad(0), y = v.input(0);
    Shape row = v.input_shape(0);  // what a sum along the last axis leaves
    row.set(-1, 1);
    if constexpr (Log) {
      const Tensor ep = mul(u, exp(std::move(y)));
      if (v.needs(0)) v.give(0, neg(mul(ep, sum_to(v.input(1), row))));
      if (v.needs(1)) v.give(1, sub(std::move(u), sum_to(ep, row)));
    } else {
      if (v.needs(0)) {
        Tensor g = v.input(1), with_y = sub(g, sum_to(mul(g, y), row));
        v.give(0, sub(mul(u, std::move(with_y)), mul(std::move(g), sum_to(mul(u, y), row))));
      }
      if (v.needs(1)) v.give(1, apply_one(ops::softmax_gradient_op, {std::move(y), std::move(u)}, nullptr));
    }
  }
  static void samples(Samples<Attr> s) {
    int salt = 0;
    for (const Shape& shape : sample_shapes) {
      ++salt;
      s.add({Log ? sample(shape, -3, -0.1, salt) : sample(shape, 0.01, 1, salt), sample(shape, -1, 1, salt + 40)});
    }
    s.error({sample({3}), sample({4})}, {}, "[3] and [4]");
    s.error({sample({}), sample({})}, {}, "one shape with an axis");
    s.error({sample({3}), sample({3}).to(float32)}, {}, "inputs must have one dtype");
    s.error({sample({3}), Tensor()}, {}, "input 1 is undefined");
  }
};

Tensor along(const OpDecl& op, Tensor x, int axis) {
  ops::check_defined(op.name, {&x, 1});
  const int rank = x.rank(), at = ops::check_axis(op.name, x.shape(), axis);
  if (at == rank - 1) return apply_one(op, {std::move(x)}, nullptr);
  std::vector<int> swap(static_cast<std::size_t>(rank));
  std::iota(swap.begin(), swap.end(), 0);
  std::swap(swap[static_cast<std::size_t>(at)], swap.back());
  return permute(apply_one(op, {permute(std::move(x), swap)}, nullptr), swap);
}

}  // namespace

namespace ops {
constinit const OpDecl softmax_op = declare<SoftmaxOp<false>>();
constinit const OpDecl log_softmax_op = declare<SoftmaxOp<true>>();
constinit const OpDecl softmax_gradient_op = declare<SoftmaxGradient<false>>();
constinit const OpDecl log_softmax_gradient_op = declare<SoftmaxGradient<true>>();
}  // namespace ops

Tensor softmax(Tensor x, int axis) { return along(ops::softmax_op, std::move(x), axis); }
Tensor log_softmax(Tensor x, int axis) { return along(ops::log_softmax_op, std::move(x), axis); }

}  // namespace rewind_lib
