#include <rewind/autograd/grad_mode.h>
#include <rewind/autograd/replay.h>
#include <rewind/autograd/schedule/simulate.h>
#include <rewind/autograd/schedule/strategies.h>
#include <rewind/nn/describe_chain.h>
#include <rewind/nn/plan.h>

#include <algorithm>
#include <array>
#include <typeinfo>

namespace rewind_lib::nn {
namespace {

/// Planning is not part of what anyone observes.
struct Unobserved {
  detail::ContextScope<&detail::Context::observers> ops{{}};
  detail::ContextScope<&detail::Context::watches> runs{{}};
  ModuleObserver::Suspend modules;
};

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

thread_local bool BudgetPlanner::resting_ = false;

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

/// Finds one plan. The model of a chain leaves out what is beside it, and counts a little too much here and there: a dry run of
/// forward and backward has the last word on what fits.
class BudgetPlanner::Search {
 public:
  Search(Module& root, Sequential& chain, const Tensor& x, const Budget& budget)
      : root_(root), chain_(chain), x_(x.detach()), budget_(budget) {  // what x was computed from is none of our business
    if (x.requires_grad()) x_.set_requires_grad();
  }
  /// known: an earlier plan for the same chain and input, to take sizes and costs from; may be nullptr.
  BudgetPlan run(const BudgetPlan* known) &&;

 private:
  Tensor input_of_chain();
  void describe(const Tensor& input);
  std::size_t peak_of(const std::vector<schedule::Action>& actions);
  bool fits(schedule::Schedule s);
  bool first_points_fit(const schedule::Frontier& frontier, std::size_t& i);
  bool fits_by_rule();
  void find_fastest();
  [[noreturn]] void refuse() const;

  Module& root_;
  Sequential& chain_;
  Tensor x_;
  const Budget& budget_;
  BudgetPlan plan_;
  memory::Usage at_peak_;                // of the last dry run
  std::size_t least_ = ~std::size_t{0};  // of all that was tried
  memory::Usage least_at_;               // and what is live then
  std::vector<schedule::Action> least_actions_;
};

BudgetPlan BudgetPlanner::Search::run(const BudgetPlan* known) && {
  const Unobserved unobserved;
  const GradModeScope record(GradMode::record);  // the first run of a checkpointed function only tracks
  Tensor input = input_of_chain();
  plan_.costs = DryLedger::active() ? Costs::counted : budget_.costs;
  if (known != nullptr && (known->costs == budget_.costs || plan_.costs == Costs::counted)) {
    plan_.chain = known->chain;
    plan_.costs = known->costs;
  } else {
    describe(input);
  }
  input = Tensor();
  find_fastest();
  return std::move(plan_);
}

/// Runs the net once, dry.
Tensor BudgetPlanner::Search::input_of_chain() {
  const DryLedger dry;
  const random::GeneratorScope generator;
  chain_.choose(Recompute::vanilla());
  Tensor input;
  struct Probe {
    Tensor*& slot;
    ~Probe() { slot = nullptr; }
  } const probe{chain_.probe_};
  chain_.probe_ = &input;
  const Tensor y = root_.forward(x_);
  if (!input.defined()) fail("recompute: the module's forward does not run the chain that the budget is for");
  plan_.reserve = 2 * y.bytes() + 65536;
  Tensor from = input.detach();
  if (input.requires_grad()) from.set_requires_grad();
  return from;
}

void BudgetPlanner::Search::describe(const Tensor& input) {
  plan_.chain = describe_chain(chain_, input, Costs::counted);
  if (plan_.costs != Costs::measured) return;
  plan_.costs = Costs::counted;
  schedule::Chain timed = plan_.chain;
  if (memory::live().total + bytes_to_time(timed) > budget_.bytes) return;
  try {
    measure_costs(chain_, input, timed);
    plan_.chain = std::move(timed);
    plan_.costs = Costs::measured;
  } catch (const OutOfMemory&) {
    // The limit leaves no room to time stages beside what is live: counted costs have to do.
  }
}

std::size_t BudgetPlanner::Search::peak_of(const std::vector<schedule::Action>& actions) {
  const DryLedger dry;
  const random::GeneratorScope generator;
  const detail::TrialTape tape;
  chain_.choose(Recompute::actions(actions));
  Tensor y = root_.forward(x_);
  if (y.requires_grad()) {
    std::array outputs{std::move(y)}, gradients{empty(outputs[0].shape(), outputs[0].dtype())};
    tape.backward(outputs, gradients, true);
  }
  at_peak_ = memory::at_peak();
  return memory::peak().total + plan_.reserve;
}

bool BudgetPlanner::Search::fits(schedule::Schedule s) {
  const std::size_t peak = peak_of(s.actions);
  if (peak < least_) {
    least_ = peak;
    least_at_ = at_peak_;
    least_actions_ = s.actions;
  }
  if (peak > budget_.bytes) return false;
  plan_.schedule = std::move(s);
  return true;
}

/// The points of a frontier are sorted by bytes, and so, but for trifles, are their peaks. What a stage makes over its input in
/// place is no trifle in a net of few stages: there, what comes first in the model need not be the least. Where all of these
/// fail, it is taken for certain that the others do.
bool BudgetPlanner::Search::first_points_fit(const schedule::Frontier& frontier, std::size_t& i) {
  constexpr std::size_t first_points = 8;
  const std::size_t n = std::min(first_points, frontier.points().size());
  for (i = 0; i < n; ++i)
    if (fits(frontier.schedule(frontier.points()[i].bytes))) return true;
  return false;
}

/// Strategies from the literature, the ones that keep least first, until one fits: where the model's least does not, one of them
/// may.
bool BudgetPlanner::Search::fits_by_rule() {
  const schedule::Chain& chain = plan_.chain;
  const int n = chain.n(), most = n > 100 ? 4 : 16;
  if (fits(schedule::low_memory(chain)) || fits(schedule::recursive(chain)) || fits(schedule::sqrt(chain))) return true;
  for (int k = 2; k <= std::min(n, most); ++k)
    if (fits(schedule::revolve(chain, k)) || fits(schedule::periodic(chain, k)) || fits(schedule::segments(chain, k))) return true;
  return false;
}

void BudgetPlanner::Search::find_fastest() {
  if (fits(schedule::vanilla(plan_.chain))) return;  // nothing is faster
  const auto solve = [&](std::size_t bytes) {
    return schedule::solve(plan_.chain, {.budget = 2 * bytes_of(bytes), .loss = plan_.chain.n() > 200 ? 0.05 : 0});
  };
  const schedule::Frontier frontier = solve(budget_.bytes);
  std::size_t good = 0, bad = frontier.points().size();
  if (!first_points_fit(frontier, good)) {
    // Of a budget that is too small: what is needed may be more than was solved for.
    if (fits_by_rule() || first_points_fit(solve(least_), good)) return;
    refuse();
  }
  const auto fits_at = [&](std::size_t i) { return fits(frontier.schedule(frontier.points()[i].bytes)); };
  while (bad - good > 1) {
    const std::size_t middle = good + (bad - good) / 2;
    (fits_at(middle) ? good : bad) = middle;
  }
  for (std::size_t i = good + 1; i < std::min(good + 4, frontier.points().size()); ++i)
    if (fits_at(i)) break;
}

void BudgetPlanner::Search::refuse() const {
  const schedule::Trace trace = schedule::simulate(plan_.chain, least_actions_);
  std::string parts;
  for (int c = 0; c < category_count; ++c)
    parts += str(name_of(static_cast<Category>(c)), " ", memory::human(least_at_.bytes[c]), ", ");
  fail(str("recompute: a budget of ", budget_.bytes, " bytes is too small; this step needs at least ", least_, " bytes (",
           memory::human(least_), "): ", parts, "and ", memory::human(plan_.reserve), " kept for a loss. Of the chain, ",
           plan_.chain.name(trace.steps[static_cast<std::size_t>(trace.peak_step)].action.stage),
           " takes most; the shape of the input is ", x_.shape(), ". Use a smaller batch or a larger budget."));
}

void BudgetPlanner::prepare(Module& root, const Tensor& x) {
  if (planning_) return;
  Sequential* chain = largest_chain(root);
  if (chain == nullptr) fail("recompute: the chain that the budget was for is gone");
  if (chain != chain_) let_go(root);
  if (chain->told_ > root.told_) return;
  chain_ = chain;
  if (resting_) return chain->choose(Recompute::vanilla());
  const std::size_t live = memory::live().total, stages = chain->stages().size();
  const std::uint64_t settings = Settings::of(root);
  // A plan for this input serves while what is live beside it stays, near enough: more would break the budget, and with much
  // less a faster schedule may fit. Of several the tightest, so that steps come out as they did in a dry run of them.
  auto at = plans_.end();
  const BudgetPlan* known = nullptr;  // for the same chain, with something else beside it
  for (auto e = plans_.begin(); e != plans_.end(); ++e) {
    if (!e->is_for(x, settings, stages)) continue;
    if (known == nullptr || e->plan.costs == Costs::measured) known = &e->plan;
    if (live <= e->live && e->live - live <= budget_.bytes / 16 && (at == plans_.end() || e->live < at->live)) at = e;
  }
  if (at == plans_.end()) {
    planning_ = true;
    try {
      BudgetPlan plan = Search(root, *chain, x, budget_).run(known);
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

void BudgetPlanner::recall(Module& root, const Tensor& x) {
  Sequential* chain = largest_chain(root);
  if (planning_ || resting_ || chain == nullptr || chain != chain_ || chain->told_ > root.told_) return;
  const std::uint64_t settings = Settings::of(root);
  for (auto e = plans_.rbegin(); e != plans_.rend(); ++e)
    if (e->is_for(x, settings, chain->stages().size())) return chain->choose(Recompute::actions(e->plan.schedule.actions));
}

}  // namespace rewind_lib::nn
