// Two ops share the sum of squares through a tensor, so that nothing is read between them and a dry run goes through.

#include <rewind/autograd/grad_mode.h>
#include <rewind/autograd/ops/sample.h>
#include <rewind/core/kernels/update.h>
#include <rewind/optim/clip.h>
#include <rewind/optim/ops.h>

#include <cmath>
#include <limits>

namespace rewind_lib {
namespace {

using ops::sample;

Specs infer_clip(const char* op, const Tensor& gradient, const Tensor& total) {
  for (const Tensor* t : {&gradient, &total}) {
    const char* what = t == &total ? "the sum of squares" : "the gradient";
    if (!t->defined()) fail(str(op, ": ", what, " is undefined"));
    if (!is_float(t->dtype())) fail(str(op, ": needs float32 or float64, but ", what, " is ", t->dtype(), " ", t->shape()));
  }
  if (total.dtype() != float64 || total.rank() != 0)
    fail(str(op, ": the sum of squares must be float64 [], got ", total.dtype(), " ", total.shape(), " for a gradient ",
             gradient.shape()));
  return {};
}

/// total += sum of gradient^2.
struct SquareNorm {
  static constexpr const char* name = "square_norm";
  static constexpr const char* input_names = "gradient, total";
  static constexpr Kind kind = Kind::optimizer;
  struct Attr {};
  static constexpr std::uint32_t mutates = bit(1);
  static constexpr const char* no_gradient = "it measures gradients, after backward";

  static Specs infer(Inputs in, const Attr&) { return infer_clip(name, in[0], in[1]); }
  static Cost cost(Inputs in, const Specs&, const Attr&) { return optim::update_cost(in, mutates, 2); }
  static void forward(const Forward& f, const Attr&) {
    visit_float(f.in_dtype(0), [&](auto zero) {
      *f.mutable_in<double>(1) += kernels::sum_of_squares(f.in<decltype(zero)>(0), f.in_shape(0).numel());
    });
  }
  static void samples(Samples<Attr> s) {
    for (const Shape& shape : {Shape{}, Shape{1}, Shape{7}, Shape{3, 17}}) s.add({sample(shape), zeros({}, float64)});
    s.error({arange(3, int32), zeros({}, float64)}, {}, "the gradient is int32 [3]");
    s.error({sample({3}), zeros({1}, float64)}, {}, "must be float64 [], got float64 [1]");
    s.error({sample({3}), Tensor()}, {}, "the sum of squares is undefined");
  }
};

/// gradient *= min(1, max_norm / (sqrt(total) + 1e-6)).
struct ClipGradient {
  static constexpr const char* name = "clip_gradient";
  static constexpr const char* input_names = "gradient, total";
  static constexpr Kind kind = Kind::optimizer;
  struct Attr {
    double max_norm;
  };
  static constexpr std::uint32_t mutates = bit(0);
  static constexpr const char* no_gradient = "it changes a gradient in place, after backward";

  static Specs infer(Inputs in, const Attr&) { return infer_clip(name, in[0], in[1]); }
  static Cost cost(Inputs in, const Specs&, const Attr&) { return optim::update_cost(in, mutates, 1); }
  static void forward(const Forward& f, const Attr& a) {
    const double factor = a.max_norm / (std::sqrt(*f.in<double>(1)) + 1e-6);
    if (factor >= 1 || std::isinf(a.max_norm)) return;  // not for nan, which reaches the gradients
    visit_float(f.in_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      kernels::scale(f.mutable_in<T>(0), static_cast<T>(factor), f.in_shape(0).numel());
    });
  }
  static void samples(Samples<Attr> s) {
    for (const double max_norm : {0.0, 0.5, 100.0, std::numeric_limits<double>::infinity()})
      for (const Shape& shape : {Shape{}, Shape{7}, Shape{3, 17}}) s.add({sample(shape), full({}, 4, float64)}, {max_norm});
    s.error({arange(3, int32), zeros({}, float64)}, {1}, "the gradient is int32 [3]");
    s.error({sample({3}), zeros({}, float32)}, {1}, "must be float64 [], got float32 [] for a gradient [3]");
    s.error({Tensor(), zeros({}, float64)}, {1}, "the gradient is undefined");
  }
};

}  // namespace

namespace ops {
constinit const OpDecl square_norm_op = declare<SquareNorm>();
constinit const OpDecl clip_gradient_op = declare<ClipGradient>();
}  // namespace ops

namespace optim {
namespace {

template <class List, class TensorOf>
double clip(const List& list, double max_norm, TensorOf tensor_of) {
  if (!(max_norm >= 0)) fail(str("clip_grad_norm: max_norm must not be negative, got ", max_norm));
  const NoGrad no_grad;
  const memory::CategoryScope category(Category::workspace);
  const Tensor total = zeros({}, float64);
  const ClipGradient::Attr attr{max_norm};
  const auto for_each_gradient = [&](const OpDecl& op) {
    for (const auto& item : list) {
      Tensor in[] = {tensor_of(item).grad(), total};
      if (in[0].defined()) run_in_place(op, in, &attr);
    }
  };
  for_each_gradient(ops::square_norm_op);
  for_each_gradient(ops::clip_gradient_op);
  return DryLedger::active() ? std::numeric_limits<double>::quiet_NaN() : std::sqrt(total.item());
}

}  // namespace

double clip_grad_norm(const std::vector<Parameter>& parameters, double max_norm) {
  return clip(parameters, max_norm, [](const Parameter& p) -> const Tensor& { return p.value; });
}
double clip_grad_norm(const std::vector<Tensor>& tensors, double max_norm) {
  return clip(tensors, max_norm, [](const Tensor& t) -> const Tensor& { return t; });
}

}  // namespace optim
}  // namespace rewind_lib
