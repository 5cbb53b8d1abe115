#pragma once
// Gradient clipping.

#include <rewind/autograd/parameter.h>

#include <vector>

namespace rewind_lib::optim {

/// Scales all gradients in place by min(1, max_norm / (norm + 1e-6)), norm being the Euclidean norm of all of them laid end to
/// end, and returns that norm as it was before: PyTorch's clip_grad_norm_. Parameters without a gradient count as zeros. The
/// result does not depend on the number of threads. A norm that is not finite is returned as it is and makes the gradients so
/// (infinite: 0 or nan); max_norm infinite only measures. In a dry run there is no norm to return: nan.
/// Throws Error when max_norm is negative or nan.
double clip_grad_norm(const std::vector<Parameter>& parameters, double max_norm);
double clip_grad_norm(const std::vector<Tensor>& tensors, double max_norm);

}  // namespace rewind_lib::optim
