#include <rewind/autograd/ops/sample.h>
#include <rewind/core/kernels/update.h>
#include <rewind/optim/adam.h>
#include <rewind/optim/ops.h>

#include <cmath>

namespace rewind_lib {
namespace {

using ops::sample;

enum class Rule { algorithm1, efficient_order, decoupled_decay };

struct AdamAttr {
  kernels::AdamOptions options;
  std::int64_t step;
};

template <Rule R>
struct AdamUpdate {
  static constexpr const char* name = R == Rule::algorithm1        ? "adam_update"
                                      : R == Rule::efficient_order ? "adam_efficient_update"
                                                                   : "adamw_update";
  static constexpr const char* input_names = "parameter, gradient, m, v";
  static constexpr Kind kind = Kind::optimizer;
  using Attr = AdamAttr;
  static constexpr std::uint32_t mutates = bit(0) | bit(2) | bit(3);
  static constexpr const char* no_gradient = optim::update_has_no_gradient;

  static Specs infer(Inputs in, const Attr&) { return optim::infer_update(name, in); }
  static Cost cost(Inputs in, const Specs&, const Attr&) { return optim::update_cost(in, mutates, 15); }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.in_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      constexpr auto kernel = R == Rule::algorithm1        ? kernels::adam<T>
                              : R == Rule::efficient_order ? kernels::adam_efficient<T>
                                                           : kernels::adamw<T>;
      kernel(f.mutable_in<T>(0), f.in<T>(1), f.mutable_in<T>(2), f.mutable_in<T>(3), f.in_shape(0).numel(), a.options, a.step);
    });
  }
  static void samples(Samples<Attr> s) {
    const kernels::AdamOptions plain{.lr = 0.1}, decayed{.lr = 0.1, .beta1 = 0.5, .beta2 = 0, .eps = 1e-3, .weight_decay = 0.1};
    for (const auto& options : {plain, decayed})
      for (const std::int64_t step : {1, 2, 1000})
        for (const Shape& shape : {Shape{}, Shape{7}, Shape{3, 17}})
          s.add({sample(shape), sample(shape), sample(shape), sample(shape, 0, 1)}, {options, step});
    s.error({sample({2, 3}), sample({3}), sample({2, 3}), sample({2, 3})}, {plain, 1},
            "the parameter is float64 [2, 3], but the gradient is");
    s.error({sample({2}), sample({2}), sample({2}), sample({4})}, {plain, 1}, "state 1 is float64 [4]");
    s.error({sample({2}), sample({2}).to(float32), sample({2}), sample({2})}, {plain, 1}, "the gradient is float32 [2]");
    s.error({sample({2}), sample({2}), Tensor(), sample({2})}, {plain, 1}, "state 0 is undefined");
  }
};

}  // namespace

namespace ops {
constinit const OpDecl adam_update_op = declare<AdamUpdate<Rule::algorithm1>>();
constinit const OpDecl adam_efficient_update_op = declare<AdamUpdate<Rule::efficient_order>>();
constinit const OpDecl adamw_update_op = declare<AdamUpdate<Rule::decoupled_decay>>();
}  // namespace ops

namespace optim {
namespace {

constexpr const char* moments[] = {"m", "v"};

template <class Options>
void check_adam(const char* name, const Options& o) {
  if (!(o.beta1 >= 0 && o.beta1 < 1)) fail(str(name, ": beta1 must lie in [0, 1), got ", o.beta1));
  if (!(o.beta2 >= 0 && o.beta2 < 1)) fail(str(name, ": beta2 must lie in [0, 1), got ", o.beta2));
  if (!(o.eps >= 0) || std::isinf(o.eps)) fail(str(name, ": eps must be finite and not negative, got ", o.eps));
  if (!(o.weight_decay >= 0) || std::isinf(o.weight_decay))
    fail(str(name, ": weight_decay must be finite and not negative, got ", o.weight_decay));
}

template <class Options>
AdamAttr attr_for(const Options& o, const Update& u) {
  return {{u.lr, o.beta1, o.beta2, o.eps, o.weight_decay}, u.step};
}

}  // namespace

void AdamOptions::check() const { check_adam("Adam", *this); }
void AdamWOptions::check() const { check_adam("AdamW", *this); }

Adam::Adam(std::vector<Parameter> parameters, const AdamOptions& options) : OptimizerOf("Adam") {
  add_group(std::move(parameters), options);
}
Adam::Adam(std::vector<Tensor> tensors, const AdamOptions& options) : OptimizerOf("Adam") {
  add_group(std::move(tensors), options);
}
std::span<const char* const> Adam::slots(int) const { return moments; }
void Adam::update(const Update& u) {
  const AdamAttr attr = attr_for(options(u.group), u);
  run_in_place(options(u.group).efficient_order ? ops::adam_efficient_update_op : ops::adam_update_op, u.in, &attr);
}

AdamW::AdamW(std::vector<Parameter> parameters, const AdamWOptions& options) : OptimizerOf("AdamW") {
  add_group(std::move(parameters), options);
}
AdamW::AdamW(std::vector<Tensor> tensors, const AdamWOptions& options) : OptimizerOf("AdamW") {
  add_group(std::move(tensors), options);
}
std::span<const char* const> AdamW::slots(int) const { return moments; }
void AdamW::update(const Update& u) {
  const AdamAttr attr = attr_for(options(u.group), u);
  run_in_place(ops::adamw_update_op, u.in, &attr);
}

}  // namespace optim
}  // namespace rewind_lib
