#pragma once
// The profiler: what every op of a step costs and takes, and what the tape keeps. rewind::profile (profile/profile.h) adds
// the net, the optimizer and the machine; this part knows ops alone, and works on any piece of code.
//
//   const rw::OpProfile p = rw::profile_ops([&] { step(); });
//   for (const rw::OpRecord& op : p.ops) std::cout << op.op << " in " << op.module << ": " << op.median() << " s\n";

#include <rewind/autograd/observer.h>

#include <string>
#include <vector>

namespace rewind_lib {

/// The value below which a share `p` of the values lies (nearest rank); NaN when there are none. 0 <= p <= 1.
double percentile(std::vector<double> values, double p);

/// When an op ran, in seconds since its step began.
struct Span {
  double begin = 0, end = 0;
  double seconds() const { return end - begin; }
};

/// One op of a step.
struct OpRecord {
  const char* op;
  Kind kind;
  Phase phase;
  const char* module;           ///< module path, "" outside modules
  const char* gradient_of;      ///< in backward, the op whose vjp it is part of; else ""
  Cost cost;                    ///< with bytes filled in
  Shape in, out;                ///< of the first input and the first output; rank 0 where there is none
  std::int64_t parameters = 0;  ///< elements of the parameters that train and that no op of the phase has read before
  std::size_t workspace_bytes = 0;
  std::size_t saved_bytes = 0;    ///< activations that the tape keeps from here on and did not keep before
  const void* changes = nullptr;  ///< names the tensor (&tensor.impl()) that an op with kind optimizer moves
  std::vector<Span> runs = {};    ///< one for each timed step

  /// Seconds over the timed steps.
  double median() const;
  double p95() const;
};

/// A step, op by op.
struct OpProfile {
  std::vector<OpRecord> ops;          ///< in the order in which they ran
  std::vector<double> step_seconds;   ///< of each timed step, wall clock, less what reading it for every op takes
  std::vector<double> plain_seconds;  ///< of steps in between that nobody watched

  /// The share of a timed step that ops ran: their shapes, memory, kernels and entries on the tape, as in other frameworks'
  /// profiles. The rest is the framework: modules, going back through the tape, references and the program itself.
  double coverage(std::size_t step) const;
  double median_coverage() const;
  /// What is not in ops, by their number; without what reading the clock takes. Nanoseconds.
  double overhead_ns_per_op() const;
};

namespace detail {
/// Seconds on a clock that only goes forward.
double now();
OpProfile profile_ops(void (*call)(void*), void* f, int steps, int warmup);
}

/// Runs f warmup + 1 + 2 * steps times: the timed steps in turns with steps that nobody watches. Throws Error when steps < 1 or
/// warmup < 0, in a dry run, when f runs no op on this thread, and when it does not run the same ops every time (a layer skipped at
/// random, say).
template <class F>
OpProfile profile_ops(F&& f, int steps = 10, int warmup = 2) {
  return detail::profile_ops([](void* g) { (*static_cast<std::remove_reference_t<F>*>(g))(); },
                             const_cast<void*>(static_cast<const void*>(&f)), steps, warmup);
}

/// A tensor that the tape keeps for a vjp.
struct SavedTensor {
  const char* op;      ///< whose vjp will need it
  const char* module;  ///< its module path, "" outside modules
  std::string why;     ///< "x, for the gradient of w (a parameter)"
  Shape shape;
  DType dtype;
  Category category;  ///< parameters and inputs are held by somebody else as well
  std::size_t bytes;  ///< of its storage; 0 when one that is listed before shares that
};

/// What this thread's tape keeps now, oldest first.
std::vector<SavedTensor> saved_tensors();

/// Who holds what at the moment of a step when its ops hold most.
struct PeakHolders {
  const char* op = "";      ///< that is about to run
  const char* module = "";  ///< its module path
  Phase phase = Phase::forward;
  memory::Usage live;              ///< then; other allocations than those of ops can take a little more
  std::vector<SavedTensor> saved;  ///< what the tape keeps then
  std::size_t saved_bytes = 0;     ///< of activations
  std::size_t running_bytes = 0;   ///< activations that this op reads or writes and the tape does not keep
  std::size_t other_bytes = 0;  ///< all other activations: gradients in flight, and what only the program or a recomputation holds
};

namespace detail {
PeakHolders peak_holders(void (*call)(void*), void* f);
}

/// Finds them in two dry runs of f.
template <class F>
PeakHolders peak_holders(F&& f) {
  return detail::peak_holders([](void* g) { (*static_cast<std::remove_reference_t<F>*>(g))(); },
                              const_cast<void*>(static_cast<const void*>(&f)));
}

}  // namespace rewind_lib
