#pragma once
// ResNet (He et al. 2016, table 1), as torchvision defines it: the same counts and the same names. In its bottlenecks the 3x3
// convolution has the stride, not the first 1x1 as in the paper.

#include <rewind/nn/sequential.h>

namespace rewind_lib::nn::models {

struct ResNetOptions {
  int depth = 18;  ///< 18, 34, 50, 101 or 152
  int classes = 1000;
  bool cifar = false;  ///< for 32x32: a 3x3 stem of stride 1 and no pooling before the first stage
};
/// [N, H, W, 3] -> [N, classes]. Throws Error for another depth.
Sequential resnet(ResNetOptions options = {});

}  // namespace rewind_lib::nn::models
