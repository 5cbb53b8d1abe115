#pragma once
// The optimizers' ops, and what their declarations share. An update is an op without outputs that mutates the parameter and
// its state, so it is profiled, dry-run and checked like any other. Each is declared in the file of its optimizer.

#include <rewind/autograd/op.h>

namespace rewind_lib {

namespace ops {
#define REWIND_OP(name) extern const OpDecl name##_op;
#include <rewind/optim/list.def>
#undef REWIND_OP
}  // namespace ops

namespace optim {

/// Every op of this layer, from optim/list.def; rewind::all_ops() lists autograd's.
std::span<const OpDecl* const> all_ops();

inline constexpr const char* update_has_no_gradient = "an update changes a parameter in place, after backward";

/// Inputs {parameter, gradient, states...} are defined floats of one shape and dtype; no outputs. Throws Error naming the op
/// and both shapes.
Specs infer_update(const char* op, Inputs in);
/// Reads every input and writes those that it mutates, once.
Cost update_cost(Inputs in, std::uint32_t mutates, std::int64_t flops_per_element);

/// Runs an op that changes its inputs in place.
inline void run_in_place(const OpDecl& op, std::span<Tensor> in, const void* attr) { apply(op, in, attr, {}); }

}  // namespace optim
}  // namespace rewind_lib
