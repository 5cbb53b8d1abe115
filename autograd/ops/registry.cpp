#include <rewind/autograd/ops/registry.h>

namespace rewind_lib {

std::span<const OpDecl* const> all_ops() {
#define REWIND_OP(name) &ops::name##_op,
  static constexpr const OpDecl* list[] = {
#include <rewind/autograd/ops/list.def>
  };
#undef REWIND_OP
  return list;
}

}  // namespace rewind_lib
