#include <rewind/autograd/grad_mode.h>
#include <rewind/autograd/observer.h>
#include <rewind/autograd/profiler.h>
#include <rewind/autograd/replay.h>
#include <rewind/nn/describe_chain.h>

#include <algorithm>
#include <utility>

namespace rewind_lib::nn {
namespace {

std::int64_t excess(std::size_t peak, std::size_t base) { return peak > base ? bytes_of(peak - base) : 0; }

/// Seconds that ops would take on a nominal machine. Only ratios matter to a planner.
class CountedCost final : public Observer {
 public:
  CountedCost() : scope_(*this) {}
  double take() { return std::exchange(seconds_, 0.0); }

 private:
  void after(const OpEvent& event) override {
    const Cost cost = event.cost();
    seconds_ +=
        std::max(static_cast<double>(cost.flops) / 100e9, static_cast<double>(cost.bytes_read + cost.bytes_written) / 20e9) + 1e-6;
  }
  double seconds_ = 0;
  ObserverScope scope_;
};

/// Parameters have gradients already, so that what a backward adds to them is not taken for something that it leaves.
void give_dry_gradients(Module& module) {
  const memory::CategoryScope category(Category::gradient);
  for (const Parameter& p : module.parameters())
    if (!p.value.grad().defined()) p.value.set_grad(empty(p.value.shape(), p.value.dtype()));
}

/// What a stage is given when it is asked by itself.
schedule::Value leaf(const schedule::Value& a, bool differentiable) {
  schedule::Value from = a.detach();
  for (Tensor* t : {&from.x, &from.mean, &from.var})
    if (t->defined()) t->set_requires_grad(differentiable);
  return from;
}

/// A stage's result as backward takes it: the parts with a history, and tensors for their gradients.
struct Seeds {
  std::vector<Tensor> outputs, gradients;
  explicit Seeds(schedule::Value y) {
    for (Tensor* t : {&y.x, &y.mean, &y.var}) {
      if (!t->defined() || !t->requires_grad()) continue;
      gradients.push_back(empty(t->shape(), t->dtype()));
      outputs.push_back(std::move(*t));
    }
  }
};

void measure_sizes(Sequential& net, const Tensor& input, schedule::Chain& chain) {
  const DryLedger dry;
  const random::GeneratorScope generator;
  const detail::TrialTape tape;
  give_dry_gradients(net);
  CountedCost counted;
  schedule::Value a{empty(input.shape(), input.dtype())};
  bool differentiable = input.requires_grad();
  for (const Stage& stage : net.stages()) {
    schedule::Stage s{.name = stage.path()};
    const std::size_t base = memory::live().total;
    schedule::Value next;
    {
      const memory::Scope scope;
      const NoGrad no_grad;
      next = stage(a);
      s.w_a = bytes_of(next.bytes());
      s.o_f = excess(scope.peak().total, base + next.bytes());
    }
    s.u_f = counted.take();
    {
      schedule::Value from = leaf(a, differentiable), y;
      {
        const memory::Scope scope;
        const std::size_t before = memory::live().total;
        y = stage(from);
        s.w_tape = std::max(excess(memory::live().total, before), s.w_a);
        s.o_f = std::max(s.o_f, excess(scope.peak().total, memory::live().total));
      }
      counted.take();
      differentiable = y.requires_grad();
      if (differentiable) {
        Seeds seeds(std::move(y));
        const memory::Scope scope;
        const std::size_t before = memory::live().total;
        tape.backward(seeds.outputs, seeds.gradients, true);
        s.o_b = excess(scope.peak().total, before);
      }
      s.u_b = counted.take();
    }
    chain.stages.push_back(std::move(s));
    a = next.detach();
  }
}

}  // namespace

void measure_costs(Sequential& net, const Tensor& input, schedule::Chain& chain) {
  const random::GeneratorScope generator;
  const ReplayEra no_side_effects;
  const detail::TrialTape tape;
  schedule::Value a{is_float(input.dtype()) ? uniform(input.shape(), -1, 1, input.dtype()) : zeros(input.shape(), input.dtype())};
  bool differentiable = input.requires_grad();
  std::size_t l = 0;
  for (const Stage& stage : net.stages()) {
    schedule::Stage& s = chain.stages[l++];
    s.u_f = s.u_b = 1e9;
    schedule::Value next;
    bool recorded = false;
    for (int run = 0; run < 3; ++run) {  // the first warms up
      schedule::Value from = leaf(a, differentiable);
      const double begin = detail::now();
      schedule::Value y = stage(std::move(from));
      const double middle = detail::now();
      next = y.detach();
      recorded = y.requires_grad();
      if (run > 0) s.u_f = std::min(s.u_f, middle - begin);
      if (!recorded) {
        s.u_b = 0;
        continue;
      }
      Seeds seeds(std::move(y));
      for (Tensor& t : seeds.gradients) t.fill(1);
      const double start = detail::now();
      tape.backward(seeds.outputs, seeds.gradients, false);
      if (run > 0) s.u_b = std::min(s.u_b, detail::now() - start);
    }
    differentiable = recorded;
    a = std::move(next);
  }
}

std::size_t bytes_to_time(const schedule::Chain& chain) {
  std::int64_t most = 0;
  for (int l = 1; l <= chain.n(); ++l) {
    const schedule::Stage& s = chain[l];
    // Its input, its tape, its result, which is held for the next one, and that one's gradient.
    most = std::max(most, chain.w_a(l - 1) + s.w_tape + 2 * s.w_a + std::max(s.o_f, s.o_b));
  }
  return static_cast<std::size_t>(most);
}

schedule::Chain describe_chain(Sequential& net, const Tensor& input, Costs costs) {
  const GradModeScope record(GradMode::record);  // also where the caller records nothing
  schedule::Chain chain{.input = bytes_of(input.bytes())};
  measure_sizes(net, input, chain);
  if (costs == Costs::measured && !DryLedger::active()) measure_costs(net, input, chain);
  return chain;
}

}  // namespace rewind_lib::nn
