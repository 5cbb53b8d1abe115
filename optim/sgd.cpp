#include <rewind/autograd/ops/sample.h>
#include <rewind/core/kernels/update.h>
#include <rewind/optim/ops.h>
#include <rewind/optim/sgd.h>

#include <cmath>

namespace rewind_lib {
namespace {

using kernels::MomentumOptions;
using ops::sample;

struct SgdUpdate {
  static constexpr const char* name = "sgd_update";
  static constexpr const char* input_names = "parameter, gradient";
  static constexpr Kind kind = Kind::optimizer;
  struct Attr {
    double lr, weight_decay;
  };
  static constexpr std::uint32_t mutates = bit(0);
  static constexpr const char* no_gradient = optim::update_has_no_gradient;

  static Specs infer(Inputs in, const Attr&) { return optim::infer_update(name, in); }
  static Cost cost(Inputs in, const Specs&, const Attr&) { return optim::update_cost(in, mutates, 4); }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.in_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      kernels::sgd(f.mutable_in<T>(0), f.in<T>(1), f.in_shape(0).numel(), a.lr, a.weight_decay);
    });
  }
  static void samples(Samples<Attr> s) {
    for (const double weight_decay : {0.0, 0.1})
      for (const Shape& shape : {Shape{}, Shape{1}, Shape{7}, Shape{3, 17}})
        s.add({sample(shape), sample(shape)}, {0.1, weight_decay});
    s.error({sample({2, 3}), sample({3})}, {0.1, 0}, "the parameter is float64 [2, 3], but the gradient is float64 [3]");
    s.error({sample({2}), sample({2}).to(float32)}, {0.1, 0}, "the gradient is float32 [2]");
    s.error({arange(2, int64), sample({2})}, {0.1, 0}, "the parameter is int64 [2]");
    s.error({sample({2}), Tensor()}, {0.1, 0}, "the gradient is undefined");
  }
};

struct MomentumUpdate {
  static constexpr const char* name = "momentum_update";
  static constexpr const char* input_names = "parameter, gradient, momentum";
  static constexpr Kind kind = Kind::optimizer;
  struct Attr {
    MomentumOptions options;
    std::int64_t step;
  };
  static constexpr std::uint32_t mutates = bit(0) | bit(2);
  static constexpr const char* no_gradient = optim::update_has_no_gradient;

  static Specs infer(Inputs in, const Attr&) { return optim::infer_update(name, in); }
  static Cost cost(Inputs in, const Specs&, const Attr& a) { return optim::update_cost(in, mutates, a.options.nesterov ? 9 : 7); }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.in_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      kernels::momentum(f.mutable_in<T>(0), f.in<T>(1), f.mutable_in<T>(2), f.in_shape(0).numel(), a.options, a.step);
    });
  }
  static void samples(Samples<Attr> s) {
    const MomentumOptions plain{.lr = 0.1, .momentum = 0.9},
        dampened{.lr = 0.1, .momentum = 0.9, .dampening = 0.5, .weight_decay = 0.1},
        nesterov{.lr = 0.1, .momentum = 0.9, .weight_decay = 0.1, .nesterov = true};
    for (const MomentumOptions& options : {plain, dampened, nesterov})
      for (const std::int64_t step : {1, 2})
        for (const Shape& shape : {Shape{}, Shape{7}, Shape{3, 17}})
          s.add({sample(shape), sample(shape), sample(shape)}, {options, step});
    s.error({sample({2, 3}), sample({3}), sample({2, 3})}, {plain, 1},
            "the parameter is float64 [2, 3], but the gradient is float64 [3]");
    s.error({sample({2}), sample({2}), sample({4})}, {plain, 1}, "state 0 is float64 [4]");
    s.error({sample({2}), arange(2, int32), sample({2})}, {plain, 1}, "the gradient is int32 [2]");
    s.error({sample({2}), sample({2}), Tensor()}, {plain, 1}, "state 0 is undefined");
  }
};

}  // namespace

namespace ops {
constinit const OpDecl sgd_update_op = declare<SgdUpdate>();
constinit const OpDecl momentum_update_op = declare<MomentumUpdate>();
}  // namespace ops

namespace optim {

void SGDOptions::check() const {
  if (!(momentum >= 0) || std::isinf(momentum)) fail(str("SGD: momentum must be finite and not negative, got ", momentum));
  if (!std::isfinite(dampening)) fail(str("SGD: dampening must be finite, got ", dampening));
  if (!(weight_decay >= 0) || std::isinf(weight_decay))
    fail(str("SGD: weight_decay must be finite and not negative, got ", weight_decay));
  if (momentum == 0 && (nesterov || dampening != 0))
    fail("SGD: nesterov and dampening act on the momentum, which is 0; set momentum, or leave them out");
  if (nesterov && dampening != 0) fail(str("SGD: nesterov needs dampening 0, got ", dampening));
}

SGD::SGD(std::vector<Parameter> parameters, const SGDOptions& options) : OptimizerOf("SGD") {
  add_group(std::move(parameters), options);
}
SGD::SGD(std::vector<Tensor> tensors, const SGDOptions& options) : OptimizerOf("SGD") { add_group(std::move(tensors), options); }

std::span<const char* const> SGD::slots(int group) const {
  static constexpr const char* names[] = {"momentum"};
  return {names, options(group).momentum > 0 ? 1U : 0U};
}

void SGD::update(const Update& u) {
  const SGDOptions& o = options(u.group);
  if (o.momentum > 0) {
    const MomentumUpdate::Attr attr{{u.lr, o.momentum, o.dampening, o.weight_decay, o.nesterov}, u.step};
    run_in_place(ops::momentum_update_op, u.in, &attr);
  } else {
    const SgdUpdate::Attr attr{u.lr, o.weight_decay};
    run_in_place(ops::sgd_update_op, u.in, &attr);
  }
}

}  // namespace optim
}  // namespace rewind_lib
