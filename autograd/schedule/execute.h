#pragma once
// The executor: runs any schedule on a chain of stages.

#include <rewind/autograd/schedule/action.h>
#include <rewind/core/tensor.h>

namespace rewind_lib::schedule {

/// The stages of a chain, as something that can run.
class Stages {
 public:
  virtual ~Stages() = default;
  /// Runs stage l, 1 <= l <= n, on the activation a_{l-1}.
  virtual Tensor run(int l, Tensor a) = 0;
};

/// Runs the actions before the first B now, and has backward run the others. Takes over `stages`, which must stay able to
/// run until backward is done. Where nothing is recorded (NoGrad, a first run inside a checkpoint) the stages just run.
///
/// In the actions before the first B each stage 1..n must run once, in order; after it, what comes between B(l) and B(s)
/// must run none of the stages below s when s..l-1 ran unrecorded. All planners of this folder emit such lists. Throws
/// Error otherwise.
Tensor execute(Stages* stages, const std::vector<Action>& actions, Tensor input);

}  // namespace rewind_lib::schedule
