#include <rewind/autograd/schedule/simulate.h>
#include <rewind/core/error.h>

#include <cmath>
#include <utility>

namespace rewind_lib::schedule {

namespace {

class Simulation {
 public:
  explicit Simulation(const Chain& chain)
      : chain_(chain), kept_(chain.stages.size() + 1), taped_(chain.stages.size() + 1), next_(chain.n()), held_(chain.input) {
    kept_[0] = true;
  }

  // What is wrong with this action now; empty when nothing is.
  std::string fault(Action action) const {
    const int l = action.stage;
    if (l < 1 || l > chain_.n()) return str("the chain has stages 1 to ", chain_.n());
    if (action.kind == Kind::B) {
      if (next_ == 0) return "every backward has been done";
      if (l != next_) return str("the next backward in order is B", next_);
      if (!taped_[at(l)]) return str("there is no tape of stage ", l);
    } else {
      if (l > next_) return str("stage ", l, " has gone backward already");
      if (kept_[at(l)]) return str("a_", l, " is there already, kept");
      if (taped_[at(l)]) return str("a_", l, " is there already, on the tape of stage ", l);
    }
    if (!kept_[at(l - 1)] && !taped_[at(l - 1)]) return str("a_", l - 1, " is not there");
    return {};
  }

  // Bytes {while the action runs, after it}.
  std::pair<std::int64_t, std::int64_t> run(Action action) {
    const int l = action.stage;
    const Stage& stage = chain_[l];
    std::int64_t during = 0;
    if (action.kind == Kind::B) {
      if (l == chain_.n()) held_ += stage.w_a;
      during = held_ + stage.o_b;
      taped_[at(l)] = false;
      held_ -= stage.w_tape + stage.w_a;
      if (l > 1) held_ += chain_.w_a(l - 1);
      next_ = l - 1;
    } else {
      held_ += action.kind == Kind::Fall ? stage.w_tape : stage.w_a;
      during = held_ + stage.o_f;
      (action.kind == Kind::Fall ? taped_ : kept_)[at(l)] = true;
    }
    const bool lets_go = action.kind == Kind::Fnone || action.kind == Kind::B;
    if (lets_go && kept_[at(l - 1)]) {
      kept_[at(l - 1)] = false;
      held_ -= chain_.w_a(l - 1);
    }
    return {during, held_};
  }

  // What is wrong if the list ends here.
  std::string left_over() const {
    if (next_ != 0) return str("B", next_, " is missing");
    for (int l = 0; l <= chain_.n(); ++l)
      if (kept_[at(l)]) return str("a_", l, " is left over");
    return {};
  }

 private:
  static std::size_t at(int l) { return static_cast<std::size_t>(l); }

  const Chain& chain_;
  std::vector<bool> kept_;   // by activation
  std::vector<bool> taped_;  // by stage
  int next_;                 // the stage that goes backward next; 0 when all have
  std::int64_t held_;        // bytes between actions
};

}  // namespace

Trace simulate(const Chain& chain, const std::vector<Action>& actions) {
  chain.check();
  Trace trace;
  trace.steps.reserve(actions.size());
  Simulation simulation(chain);
  std::vector<bool> ran(chain.stages.size() + 1);
  for (const Action& action : actions) {
    if (std::string fault = simulation.fault(action); !fault.empty()) {
      trace.fault = str("action ", static_cast<long>(trace.steps.size()) + 1, ", ", to_string(action), ": ", fault);
      return trace;
    }
    const Stage& stage = chain[action.stage];
    const double cost = action.kind == Kind::B ? stage.u_b : stage.u_f;
    const auto [during, after] = simulation.run(action);
    if (during > trace.peak || trace.peak_step < 0) {
      trace.peak = during;
      trace.peak_step = static_cast<int>(trace.steps.size());
    }
    trace.steps.push_back({action, trace.cost, trace.cost + cost, during, after});
    trace.cost += cost;
    if (action.kind != Kind::B) {
      if (ran[static_cast<std::size_t>(action.stage)]) trace.recomputed += cost;
      ran[static_cast<std::size_t>(action.stage)] = true;
    }
  }
  if (std::string fault = simulation.left_over(); !fault.empty()) trace.fault = str("at the end of the list: ", fault);
  return trace;
}

Trace validate(const Chain& chain, const Schedule& schedule) {
  Trace trace = simulate(chain, schedule.actions);
  if (!trace.ok()) return trace;
  if (trace.peak != schedule.peak) {
    const Step& step = trace.steps[static_cast<std::size_t>(trace.peak_step)];
    trace.fault = str("the peak is ", trace.peak, " bytes, at action ", trace.peak_step + 1, ", ", to_string(step.action), ", not ",
                      schedule.peak, " as claimed");
  } else if (!(std::abs(trace.cost - schedule.cost) <= 1e-9 * trace.cost)) {
    trace.fault = str("the cost is ", trace.cost, ", not ", schedule.cost, " as claimed");
  }
  return trace;
}

Schedule with_claims(const Chain& chain, std::string strategy, std::vector<Action> actions) {
  const Trace trace = simulate(chain, actions);
  if (!trace.ok()) throw InternalError(str("This is a bug in Rewind, not in your program: strategy ", strategy, ", ", trace.fault));
  return {std::move(strategy), std::move(actions), trace.peak, trace.cost};
}

}  // namespace rewind_lib::schedule
