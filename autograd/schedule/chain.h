#pragma once
// A chain of stages, as a planner sees it: bytes and costs, and nothing else.

#include <rewind/core/namespace.h>

#include <cstdint>
#include <string>
#include <vector>

namespace rewind_lib::schedule {

/// Stage l of a chain: it takes the activation a_{l-1} and makes a_l. The names are those of Beaumont et al., "Optimal
/// checkpointing for heterogeneous chains" (2019). Sizes in bytes; costs in any one unit (seconds, FLOPs) for the whole chain.
struct Stage {
  std::int64_t w_a = 0;     ///< the stage's output a_l; its gradient is taken to be of the same size
  std::int64_t w_tape = 0;  ///< everything that the stage saves for its backward, its own output included
  double u_f = 0;           ///< cost of its forward
  double u_b = 0;           ///< cost of its backward
  std::int64_t o_f = 0;     ///< what it takes while it runs forward, beyond its input and what it leaves behind
  std::int64_t o_b = 0;     ///< what it takes while it runs backward, beyond its tape and its output's gradient: workspace, and
                            ///< the gradient of its input
  std::string name = {};    ///< for messages: the module's path; may be empty
};

/// Stages 1..n; the last one is the loss, or the last stage before the loss. a_0 is the chain's input.
///
/// What is in memory. At any time that is the kept activations (w_a each), the tapes (w_tape each) and, between the backward
/// of stage l+1 and the end of the backward of stage l, the gradient of a_l (w_a[l]). While stage l runs forward, its result
/// (w_a[l], or w_tape[l] if it saves) and o_f[l] come on top of all that was there before; its input goes, if it goes, when
/// the stage is done. While stage l runs backward, o_b[l] comes on top. The gradient of a_n appears when the backward of
/// stage n starts, not before; the gradient of a_0, if anyone wants it, is counted in o_b[1], and is the caller's afterwards.
/// A peak is the largest of these sums; it includes the input a_0, as budgets do, and none of parameters, their gradients and
/// optimizer state.
struct Chain {
  std::int64_t input = 0;  ///< bytes of a_0
  std::vector<Stage> stages = {};

  /// Number of stages.
  int n() const { return static_cast<int>(stages.size()); }
  /// Stage l, counted from 1 as in the papers.
  const Stage& operator[](int l) const { return stages[static_cast<std::size_t>(l - 1)]; }
  /// Bytes of a_l, 0 <= l <= n.
  std::int64_t w_a(int l) const { return l == 0 ? input : (*this)[l].w_a; }

  /// Cost of one forward and one backward of all stages: no schedule takes less.
  double cost() const;
  /// "stage 3 (layer1.0)", or "stage 3" when it has no name.
  std::string name(int l) const;
  /// Throws Error when there is no stage, or a size or a cost is negative or not finite.
  void check() const;
};

}  // namespace rewind_lib::schedule
