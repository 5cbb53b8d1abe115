#pragma once
// ResNet (He et al. 2016) of basic blocks, as torchvision defines it: the same counts and the same names.

#include <rewind/nn/sequential.h>

namespace rewind_lib::nn::models {

struct ResNetOptions {
  int depth = 18;  ///< 18 or 34
  int classes = 1000;
  bool cifar = false;  ///< for 32x32: a 3x3 stem of stride 1 and no pooling before the first stage
};
/// [N, H, W, 3] -> [N, classes]. Throws Error for another depth.
Sequential resnet(ResNetOptions options = {});

}  // namespace rewind_lib::nn::models
