#pragma once
// Runs a list of actions on a chain in the mind: is it sound, and what does it take? The judge of every schedule.

#include <rewind/autograd/schedule/action.h>

namespace rewind_lib::schedule {

/// One action, with its place in time and memory.
struct Step {
  Action action;
  double start = 0;         ///< cost of everything before it
  double end = 0;           ///< and with it
  std::int64_t during = 0;  ///< bytes while it runs
  std::int64_t after = 0;   ///< bytes that remain: kept activations, tapes, the gradient on its way
};

struct Trace {
  std::string fault = {};        ///< the first fault, in words; empty when there is none
  std::vector<Step> steps = {};  ///< up to the first fault
  std::int64_t peak = 0;         ///< the largest `during`, bytes
  int peak_step = -1;            ///< where it is: an index into steps (the first, if several); -1 before any step
  double cost = 0;               ///< of all steps
  double recomputed = 0;         ///< cost of all forwards beyond one of each stage
  bool ok() const { return fault.empty(); }
};

/// The rules are those of action.h. Faults: a stage outside the chain; an input that is not there; an output that is there
/// already; a forward after the same stage's backward; a backward out of order, or without its tape; a backward that
/// never comes; an activation left over.
Trace simulate(const Chain& chain, const std::vector<Action>& actions);

/// simulate, and the schedule's claims: the peak to the byte, the cost to 1e-9 of itself.
Trace validate(const Chain& chain, const Schedule& schedule);

/// The schedule made of these actions, claiming what simulate finds. Its fault, if there is one, is ours: InternalError.
Schedule with_claims(const Chain& chain, std::string strategy, std::vector<Action> actions);

}  // namespace rewind_lib::schedule
