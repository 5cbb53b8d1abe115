#pragma once
// What modules hand out and optimizers take: a leaf with a name.

#include <rewind/core/tensor.h>

#include <string>

namespace rewind_lib {

/// `name` is the module path and the member's name, as in PyTorch's files: "features.0.weight". `value` is a handle on the
/// module's own tensor: writing to its elements changes the module.
struct Parameter {
  std::string name;
  Tensor value;
};

}  // namespace rewind_lib
