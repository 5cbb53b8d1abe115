#pragma once
// dry_run: what a step will take, before it runs.
//
//   const rw::DryRun plan = rw::dry_run([&] { step(); });
//   if (plan.peak.total > budget) ...
//
// The step runs unchanged on tensors that have a shape, a dtype and a category but no bytes: the same ops, the same
// accounting, the same tape, saves, donations and frees, so the peak is that of the real step to the byte. Only the kernels
// are left out, at the choke point. Nothing outlives it: gradients, optimizer state, running statistics, step counts and
// the random numbers are as before.

#include <rewind/autograd/observer.h>

namespace rewind_lib {

/// The ops of one name in one phase, summed.
struct OpTotal {
  const char* op;
  Kind kind;
  Phase phase;
  std::int64_t count = 0;
  std::int64_t flops = 0;
  std::int64_t macs = 0;
  std::int64_t bytes_moved = 0;  ///< read and written, each once
};

struct DryRun {
  memory::Usage before;     ///< live when the step began
  memory::Usage peak;       ///< each category's own peak, and the peak of the total
  memory::Usage at_peak;    ///< what that total was made of
  memory::Usage after;      ///< live when the step ended
  std::string peak_op;      ///< the op that ran at the peak, "" outside ops
  std::string peak_module;  ///< the module path then, "" outside modules
  std::int64_t flops = 0;
  std::int64_t macs = 0;
  std::int64_t bytes_moved = 0;
  std::vector<OpTotal> ops;             ///< in the order in which they first ran
  std::vector<memory::Event> timeline;  ///< every change of the live total

  /// FLOPs of one phase.
  std::int64_t flops_in(Phase phase) const;
  /// A table to print.
  std::string report() const;
};

namespace detail {
DryRun dry_run(void (*call)(void*), void* f);
}

/// Runs f on shapes alone. Reading what was made inside (item(), values()) throws Error, as does a dry run inside a dry run. What
/// was there before can be read, and written by mutate(), which a step has no reason to do. f must not go back through a tape that
/// was recorded before.
template <class F>
DryRun dry_run(F&& f) {
  return detail::dry_run([](void* g) { (*static_cast<std::remove_reference_t<F>*>(g))(); },
                         const_cast<void*>(static_cast<const void*>(&f)));
}

}  // namespace rewind_lib
