#pragma once
// Fully connected layers with ReLU between them.

#include <rewind/nn/sequential.h>

namespace rewind_lib::nn::models {

/// Widths of input, hidden layers and output: {784, 512, 256, 10}. [N, ...] -> [N, last]; images are flattened. Throws Error
/// for fewer than two.
Sequential mlp(const std::vector<int>& widths);

}  // namespace rewind_lib::nn::models
