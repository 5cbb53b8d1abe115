#pragma once
// The executor: runs any schedule on a chain of stages.

#include <rewind/autograd/schedule/action.h>
#include <rewind/core/tensor.h>

namespace rewind_lib::schedule {

/// What goes from stage to stage: a tensor, and its mean and variance a channel where the next stage normalises it with them
/// (docs/decisions/0009-fusion-by-statistics.md); undefined otherwise.
struct Value {
  Tensor x, mean = {}, var = {};

  std::size_t bytes() const { return x.bytes() + (mean.defined() ? mean.bytes() + var.bytes() : 0); }
  bool requires_grad() const { return x.requires_grad() || (mean.defined() && (mean.requires_grad() || var.requires_grad())); }
  /// The same values without a history.
  Value detach() const {
    if (!mean.defined()) return {x.detach()};
    return {x.detach(), mean.detach(), var.detach()};
  }
};

/// The stages of a chain, as something that can run.
class Stages {
 public:
  virtual ~Stages() = default;
  /// Runs stage l, 1 <= l <= n, on a_{l-1}.
  virtual Value run(int l, Value a) = 0;
};

/// Runs the actions before the first B now, and has backward run the others. Takes over `stages`, which must stay able to
/// run until backward is done. Where nothing is recorded (NoGrad, a first run inside a checkpoint) the stages just run.
///
/// In the actions before the first B each stage 1..n must run once, in order; after it, what comes between B(l) and B(s)
/// must run none of the stages below s when s..l-1 ran unrecorded. All planners of this folder emit such lists. Throws
/// Error otherwise.
Value execute(Stages* stages, const std::vector<Action>& actions, Value input);

}  // namespace rewind_lib::schedule
