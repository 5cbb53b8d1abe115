#pragma once
// AlexNet (Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks"), as torchvision defines it: the
// same counts and the same names.

#include <rewind/nn/sequential.h>

namespace rewind_lib::nn::models {

struct AlexNetOptions {
  double width = 1;  ///< multiplies channels, rounded to multiples of 8
  int classes = 1000;
  double dropout = 0.5;
};
/// [N, H, W, 3] -> [N, classes], H and W at least 63. The first Linear takes its inputs in the order [H, W, C]; PyTorch's
/// takes them as [C, H, W].
Sequential alexnet(AlexNetOptions options = {});

}  // namespace rewind_lib::nn::models
