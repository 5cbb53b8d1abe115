#pragma once
// What modules hand out and optimizers take: a leaf with a name.

#include <rewind/core/tensor.h>

#include <string>
#include <vector>

namespace rewind_lib {

/// `name` is the module path and the member's name, as in PyTorch's files: "features.0.weight". `value` is a handle on the
/// module's own tensor: writing to its elements changes the module.
struct Parameter {
  std::string name;
  Tensor value;
};

/// Elements of all of them together: "the number of parameters".
inline std::int64_t count_elements(const std::vector<Parameter>& parameters) {
  std::int64_t n = 0;
  for (const Parameter& p : parameters) n += p.value.numel();
  return n;
}

}  // namespace rewind_lib
