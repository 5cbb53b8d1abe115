#include <rewind/autograd/backward.h>
#include <rewind/autograd/grad_mode.h>
#include <rewind/autograd/observer.h>
#include <rewind/autograd/replay.h>
#include <rewind/autograd/schedule/simulate.h>
#include <rewind/autograd/schedule/strategies.h>
#include <rewind/nn/plan.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <typeinfo>

namespace rewind_lib::nn {
namespace {

std::int64_t bytes_of(std::size_t n) { return static_cast<std::int64_t>(n); }
std::int64_t excess(std::size_t peak, std::size_t base) { return peak > base ? bytes_of(peak - base) : 0; }

/// Planning is not part of what anyone observes.
struct Unobserved {
  detail::ContextScope<&detail::Context::observers> ops{{}};
  detail::ContextScope<&detail::Context::watches> runs{{}};
  ModuleObserver::Suspend modules;
};

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
schedule::Activation leaf(const schedule::Activation& a, bool differentiable) {
  schedule::Activation from = a.detach();
  for (Tensor* t : {&from.x, &from.mean, &from.var})
    if (t->defined()) t->set_requires_grad(differentiable);
  return from;
}

/// A stage's result as backward takes it: the parts with a history, and tensors for their gradients.
struct Seeds {
  std::vector<Tensor> outputs, gradients;
  explicit Seeds(schedule::Activation y) {
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
  schedule::Activation a{empty(input.shape(), input.dtype())};
  bool differentiable = input.requires_grad();
  for (const Stage& stage : net.stages()) {
    schedule::Stage s{.name = stage.path()};
    const std::size_t base = memory::live().total;
    schedule::Activation next;
    {
      const memory::Scope scope;
      const NoGrad no_grad;
      next = stage(a);
      s.w_a = bytes_of(next.bytes());
      s.o_f = excess(scope.peak().total, base + next.bytes());
    }
    s.u_f = counted.take();
    {
      schedule::Activation from = leaf(a, differentiable), y;
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

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

void measure_costs(Sequential& net, const Tensor& input, schedule::Chain& chain) {
  const random::GeneratorScope generator;
  const detail::ContextScope<&detail::Context::replaying> no_side_effects(true);
  const detail::TrialTape tape;
  schedule::Activation a{is_float(input.dtype()) ? uniform(input.shape(), -1, 1, input.dtype())
                                                 : zeros(input.shape(), input.dtype())};
  bool differentiable = input.requires_grad();
  std::size_t l = 0;
  for (const Stage& stage : net.stages()) {
    schedule::Stage& s = chain.stages[l++];
    s.u_f = s.u_b = 1e9;
    schedule::Activation next;
    bool recorded = false;
    for (int run = 0; run < 3; ++run) {  // the first warms up
      schedule::Activation from = leaf(a, differentiable);
      const double begin = seconds();
      schedule::Activation y = stage(std::move(from));
      const double middle = seconds();
      next = y.detach();
      recorded = y.requires_grad();
      if (run > 0) s.u_f = std::min(s.u_f, middle - begin);
      if (!recorded) {
        s.u_b = 0;
        continue;
      }
      Seeds seeds(std::move(y));
      for (Tensor& t : seeds.gradients) t.fill(1);
      const double start = seconds();
      tape.backward(seeds.outputs, seeds.gradients, false);
      if (run > 0) s.u_b = std::min(s.u_b, seconds() - start);
    }
    differentiable = recorded;
    a = std::move(next);
  }
}

/// The most that timing the stages one by one takes beside what is live.
std::size_t bytes_to_time(const schedule::Chain& chain) {
  std::int64_t most = 0;
  for (int l = 1; l <= chain.n(); ++l) {
    const schedule::Stage& s = chain[l];
    // Its input, its tape, its result, which is held for the next one, and that one's gradient.
    most = std::max(most, chain.w_a(l - 1) + s.w_tape + 2 * s.w_a + std::max(s.o_f, s.o_b));
  }
  return static_cast<std::size_t>(most);
}

class CountModules final : public ModuleVisitor {
 public:
  int count = 0;
  void visit(const std::string&, Module&) override { ++count; }
};

class FindChain final : public ModuleVisitor {
 public:
  Sequential* best = nullptr;
  int most = 0;
  void visit(const std::string&, Module& module) override {
    auto* chain = dynamic_cast<Sequential*>(&module);
    if (chain == nullptr || chain->stages().size() < 2) return;
    CountModules below;
    for_each_module(module, below);
    if (below.count > most) {
      most = below.count;
      best = chain;
    }
  }
};

/// Plans for one module that are kept: for batch sizes, training and evaluation, and what was live beside them.
constexpr std::size_t most_plans = 16;

}  // namespace

Sequential* largest_chain(Module& module) {
  if (auto* chain = dynamic_cast<Sequential*>(&module)) return chain;
  FindChain find;
  for_each_module(module, find);
  return find.best;
}

schedule::Chain describe_chain(Sequential& net, const Tensor& input, Costs costs) {
  schedule::Chain chain{.input = bytes_of(input.bytes())};
  measure_sizes(net, input, chain);
  if (costs == Costs::measured && !DryLedger::active()) measure_costs(net, input, chain);
  return chain;
}

PlannerSlot::~PlannerSlot() { delete planner_; }

void PlannerSlot::reset(BudgetPlanner* planner) { delete std::exchange(planner_, planner); }

void Module::recompute(Recompute how) {
  Sequential* chain = largest_chain(*this);
  if (chain == nullptr)
    fail(str("recompute: ", type(), " contains no Sequential of two stages or more; put its stages in one, or use checkpoint()"));
  if (planner_.get() != nullptr) planner_.get()->let_go(*this);
  if (how.budget() != nullptr) {
    planner_.reset(new BudgetPlanner(*how.budget()));
    chain->choose(Recompute::vanilla());
  } else {
    planner_.reset(nullptr);
    chain->choose(std::move(how));
  }
  if (chain != this) chain->planner_.reset(nullptr);
  chain->told_ = told_ = next_version();
  change_structure();
}

/// Digests what a plan depends on and the shape of the input does not tell: the modules, which of them train, which parameters, and
/// what was said of recompute inside. Called at every forward, so it makes no strings of paths.
class BudgetPlanner::Settings final : public Fields {
 public:
  static std::uint64_t of(Module& root) {
    Settings s;
    s.child("", root);
    return s.digest_;
  }
  void parameter(std::string_view, Tensor& value) override {
    if (value.defined()) add(2 * static_cast<std::uint64_t>(value.numel()) + (value.requires_grad() ? 1 : 0));
  }
  void buffer(std::string_view, Tensor&) override {}
  void child(std::string_view, Module& module) override {
    add(typeid(module).hash_code());
    add((module.training() ? 1 : 0) + (module.fusing() ? 2 : 0));
    add(module.version_);
    add(module.told_);
    module.describe(*this);
  }

 private:
  void add(std::uint64_t value) { digest_ = (digest_ ^ value) * 0x9e3779b97f4a7c15 + 1; }
  std::uint64_t digest_ = 0;
};

class BudgetPlanner::LetGo final : public ModuleVisitor {
 public:
  LetGo(const Module& root, const Sequential* chain) : root_(root), chain_(chain) {}
  void visit(const std::string&, Module& module) override {
    auto* chain = dynamic_cast<Sequential*>(&module);
    if (chain != nullptr && chain == chain_ && chain->told_ <= root_.told_) chain->choose(Recompute::vanilla());
  }

 private:
  const Module& root_;
  const Sequential* chain_;
};

void BudgetPlanner::let_go(Module& root) {
  if (chain_ == nullptr) return;
  LetGo visitor(root, std::exchange(chain_, nullptr));
  for_each_module(root, visitor);
}

void BudgetPlanner::prepare(Module& root, const Tensor& x) {
  if (planning_) return;
  Sequential* chain = largest_chain(root);
  if (chain == nullptr) fail("recompute: the chain that the budget was for is gone");
  if (chain != chain_) let_go(root);
  if (chain->told_ > root.told_) return;
  chain_ = chain;
  const std::size_t live = memory::live().total, stages = chain->stages().size();
  const std::uint64_t settings = Settings::of(root);
  // A plan for this input serves while what is live beside it stays, near enough: more would break the budget, and with much
  // less a faster schedule may fit. Of several the tightest, so that steps come out as they did in a dry run of them.
  auto at = plans_.end();
  const BudgetPlan* known = nullptr;  // for the same chain, with something else beside it
  for (auto e = plans_.begin(); e != plans_.end(); ++e) {
    if (e->shape != x.shape() || e->dtype != x.dtype() || e->settings != settings || e->requires_grad != x.requires_grad() ||
        e->plan.chain.stages.size() != stages)
      continue;
    if (known == nullptr || e->plan.costs == Costs::measured) known = &e->plan;
    if (live <= e->live && e->live - live <= budget_.bytes / 16 && (at == plans_.end() || e->live < at->live)) at = e;
  }
  if (at == plans_.end()) {
    planning_ = true;
    try {
      BudgetPlan plan = make(root, *chain, x, known);
      if (plans_.size() == most_plans) plans_.erase(plans_.begin());
      plans_.push_back({x.shape(), x.dtype(), settings, x.requires_grad(), live, std::move(plan)});
    } catch (...) {
      planning_ = false;
      throw;
    }
    planning_ = false;
  } else {
    std::rotate(at, at + 1, plans_.end());
  }
  chain->choose(Recompute::actions(plans_.back().plan.schedule.actions));
}

/// Strategies from the literature, the ones that keep least first, until one fits: where the model's least does not, one of them
/// may.
template <class Fits>
static bool fits_by_rule(const schedule::Chain& chain, Fits&& fits) {
  const int n = chain.n(), most = n > 100 ? 4 : 16;
  if (fits(schedule::low_memory(chain)) || fits(schedule::recursive(chain)) || fits(schedule::sqrt(chain))) return true;
  for (int k = 2; k <= std::min(n, most); ++k)
    if (fits(schedule::revolve(chain, k)) || fits(schedule::periodic(chain, k)) || fits(schedule::segments(chain, k))) return true;
  return false;
}

BudgetPlan BudgetPlanner::make(Module& root, Sequential& chain, const Tensor& given, const BudgetPlan* known) const {
  const Unobserved unobserved;
  const GradModeScope record(GradMode::record);  // the first run of a checkpointed function only tracks
  Tensor x = given.detach();                     // what it was computed from is none of our business
  if (given.requires_grad()) x.set_requires_grad();
  BudgetPlan plan;
  Tensor input;
  bool input_requires_grad = false;
  {
    const DryLedger dry;
    const random::GeneratorScope generator;
    chain.choose(Recompute::vanilla());
    struct Probe {
      Tensor*& slot;
      ~Probe() { slot = nullptr; }
    } const probe{chain.probe_};
    chain.probe_ = &input;
    const Tensor y = root.forward(x);
    if (!input.defined()) fail("recompute: the module's forward does not run the chain that the budget is for");
    plan.reserve = 2 * y.bytes() + 65536;
    input_requires_grad = input.requires_grad();
    input = input.detach();
    if (input_requires_grad) input.set_requires_grad();
  }
  plan.costs = DryLedger::active() ? Costs::counted : budget_.costs;
  if (known != nullptr && (known->costs == budget_.costs || plan.costs == Costs::counted)) {
    plan.chain = known->chain;
    plan.costs = known->costs;
  } else {
    plan.chain = describe_chain(chain, input, Costs::counted);
    if (plan.costs == Costs::measured) {
      schedule::Chain timed = plan.chain;
      plan.costs = Costs::counted;
      if (memory::live().total + bytes_to_time(timed) <= budget_.bytes) {
        try {
          measure_costs(chain, input, timed);
          plan.chain = std::move(timed);
          plan.costs = Costs::measured;
        } catch (const OutOfMemory&) {
          // The limit leaves no room to time stages beside what is live: counted costs have to do.
        }
      }
    }
  }
  input = Tensor();

  // The model of a chain leaves out what is beside it, and counts a little too much here and there. A dry run of forward
  // and backward has the last word.
  const auto peak_of = [&](const std::vector<schedule::Action>& actions) {
    const DryLedger dry;
    const random::GeneratorScope generator;
    const detail::TrialTape tape;
    chain.choose(Recompute::actions(actions));
    Tensor y = root.forward(x);
    if (y.requires_grad()) {
      std::array outputs{std::move(y)}, gradients{empty(outputs[0].shape(), outputs[0].dtype())};
      tape.backward(outputs, gradients, true);
    }
    return memory::peak().total + plan.reserve;
  };
  std::size_t least = ~std::size_t{0};  // of all that was tried
  std::vector<schedule::Action> least_actions;
  const auto fits = [&](schedule::Schedule s) {
    const std::size_t peak = peak_of(s.actions);
    if (peak < least) {
      least = peak;
      least_actions = s.actions;
    }
    if (peak > budget_.bytes) return false;
    plan.schedule = std::move(s);
    plan.predicted_peak = peak;
    return true;
  };
  if (fits(schedule::vanilla(plan.chain))) return plan;  // nothing is faster
  const schedule::Frontier frontier =
      schedule::solve(plan.chain, {.budget = 2 * bytes_of(budget_.bytes), .loss = plan.chain.n() > 200 ? 0.05 : 0});
  plan.planner_bytes = frontier.planner_bytes();
  const std::vector<schedule::Point>& points = frontier.points();
  const auto fits_at = [&](std::size_t i) { return fits(frontier.schedule(points[i].bytes)); };
  // The points are sorted by bytes, and so, but for trifles, are their peaks. What a stage makes over its input in place is no
  // trifle in a net of few stages: there, what comes first in the model need not be the least. Where all of these fail, it is taken
  // for certain that the others do.
  constexpr std::size_t first_points = 8;
  std::size_t good = 0, bad = points.size();
  while (good < std::min(first_points, points.size()) && !fits_at(good)) ++good;
  if (good == std::min(first_points, points.size())) {
    if (fits_by_rule(plan.chain, fits)) return plan;
    // What is needed may be more than was solved for.
    const schedule::Frontier all =
        schedule::solve(plan.chain, {.budget = 2 * bytes_of(least), .loss = plan.chain.n() > 200 ? 0.05 : 0});
    for (std::size_t i = 0; i < std::min(first_points, all.points().size()); ++i)
      if (fits(all.schedule(all.points()[i].bytes))) return plan;
    const schedule::Trace trace = schedule::simulate(plan.chain, least_actions);
    std::size_t gradients = 0;
    for (const Parameter& p : root.parameters()) gradients += p.value.bytes();
    const memory::Usage live = memory::live();
    fail(str("recompute: a budget of ", budget_.bytes, " bytes is too small; this step needs at least ", least, " bytes (",
             memory::human(least), "): parameters ", memory::human(live[Category::parameter]), ", their gradients ",
             memory::human(gradients), ", optimizer state ", memory::human(live[Category::optimizer_state]), ", inputs ",
             memory::human(live[Category::input]), ", and activations up to ", memory::human(static_cast<std::size_t>(trace.peak)),
             " forced by ", plan.chain.name(trace.steps[static_cast<std::size_t>(trace.peak_step)].action.stage),
             ", shape of the input ", x.shape(), ". Use a smaller batch or a larger budget."));
  }
  while (bad - good > 1) {
    const std::size_t middle = good + (bad - good) / 2;
    (fits_at(middle) ? good : bad) = middle;
  }
  for (std::size_t i = good + 1; i < std::min(good + 4, points.size()); ++i)
    if (fits_at(i)) break;
  return plan;
}

}  // namespace rewind_lib::nn
