#pragma once
// The declarations of the library's ops, by name: add_op, conv2d_op, ...

#include <rewind/autograd/op.h>

namespace rewind_lib::ops {
#define REWIND_OP(name) extern const OpDecl name##_op;
#include <rewind/autograd/ops/list.def>
#undef REWIND_OP
}  // namespace rewind_lib::ops
