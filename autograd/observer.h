#pragma once
// Observers see every op at the choke point: the profiler, the NaN guard, the summary and the dry run are observers.

#include <rewind/autograd/op.h>

namespace rewind_lib {

/// Which part of a training step an op belongs to.
enum class Phase : std::uint8_t { forward, backward, recompute, optimizer };
const char* name_of(Phase phase);

/// One op, as it is applied.
struct OpEvent {
  const OpDecl& op;
  const void* attr;
  Inputs in;
  const Specs& specs;
  std::span<const Tensor> out;
  std::size_t workspace_bytes;
  Phase phase;
  const char* module;       ///< module path, "" outside modules
  const char* gradient_of;  ///< in backward, the op whose vjp runs; else "", also for an op that is made again there
  bool recorded;            ///< the op goes on the tape
  Saves saves;              ///< what the tape keeps for its vjp, or would keep if it recorded a checkpointed function

  /// Cost with bytes filled in.
  Cost cost() const;
};

class Observer {
 public:
  virtual ~Observer() = default;
  /// Before shapes are inferred and memory is taken for the outputs and the workspace: what the op costs begins here.
  virtual void entering(const OpDecl&) {}
  /// Before the kernels run. Inputs still hold their values (a donated one is overwritten by the run).
  virtual void before(const OpEvent&) {}
  /// After the kernels ran. May throw Error.
  virtual void after(const OpEvent&) {}
  /// When its result is on the tape, where one is written: what the op costs ends here.
  virtual void left(const OpDecl&) {}
};

/// Attaches an observer to this thread while alive. Observers run in the order they were attached.
class ObserverScope {
 public:
  explicit ObserverScope(Observer& observer);
  ~ObserverScope();
  ObserverScope(const ObserverScope&) = delete;
  ObserverScope& operator=(const ObserverScope&) = delete;

 private:
  Observer& observer_;
};

/// While alive, the first op on this thread that makes a value or a gradient that is not finite throws Error naming the
/// op, its module path, the shape and the element.
class NanGuard : Observer {
 public:
  NanGuard() : scope_(*this) {}

 private:
  void after(const OpEvent& event) override;
  ObserverScope scope_;
};

/// Test hook: while alive, no buffer is donated on this thread.
class NoDonation {
 public:
  NoDonation();
  ~NoDonation();
  NoDonation(const NoDonation&) = delete;
  NoDonation& operator=(const NoDonation&) = delete;

 private:
  bool saved_;
};

/// While alive, ops on this thread work on shapes alone: outputs have no data, memory is counted as if they had.
class ShapesOnly : DryLedger {};

}  // namespace rewind_lib
