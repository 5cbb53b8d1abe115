#pragma once
// The classical schedules, one file each. They look at the number of stages only, and claim what the chain makes of it.
// All are persistent: what they keep stays until its backward. The schedule for a budget is in frontier.h.

#include <rewind/autograd/schedule/action.h>

namespace rewind_lib::schedule {

// Each throws Error when the chain is not sound (Chain::check), and where it says so. n is the number of stages.

/// Every stage saves its tape: the fastest, and the most memory.
Schedule vanilla(const Chain& chain);

/// Keeps the input alone and runs everything before stage l again, for each l: the memory of one stage, n(n-1)/2 forwards
/// (the last stage is taped in the first sweep).
Schedule low_memory(const Chain& chain);

/// Cuts the chain into k segments, equal to within one stage; keeps the activations between them and the tape of the last, and
/// runs each other segment a second time. Throws Error unless 1 <= k <= n. (Chen et al. 2016, "Training deep nets with sublinear
/// memory cost", algorithm 1)
Schedule segments(const Chain& chain, int k);

/// Keeps every k-th activation, a_0, a_k, a_2k, ..: segments of k stages, the last one shorter. Throws Error when k < 1.
Schedule periodic(const Chain& chain, int k);

/// segments with k = the square root of n, rounded: about 2 sqrt(n) activations, one forward more. (Chen et al. 2016, section 4.3)
Schedule sqrt(const Chain& chain);

/// Keeps the activation in the middle, does the second half in the same way, then the first: log2(n) activations,
/// log2(n)/2 forwards more. (Chen et al. 2016, section 4.4, with one activation kept a level)
Schedule recursive(const Chain& chain);

/// The fewest forwards when one stage is taped at a time and at most `slots` activations are kept, the chain's input among them
/// and the input of the taped stage not counted. Throws Error when slots < 1. (Griewank and Walther 2000, "Algorithm 799: revolve")
Schedule revolve(const Chain& chain, int slots);

/// What revolve takes beyond the n forwards that record: r n - C(slots + r, slots + 1), r the least with C(slots + r, slots) >= n.
std::int64_t revolve_extra_forwards(int n, int slots);
/// The number of stages, of n, before the second activation that revolve keeps. 1 <= .. < n; needs n >= 2, slots >= 2.
int revolve_split(int n, int slots);

}  // namespace rewind_lib::schedule
