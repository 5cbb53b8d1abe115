#pragma once
// DenseNet (Huang et al. 2017), as torchvision defines it: the same counts and the same names.

#include <rewind/nn/sequential.h>

namespace rewind_lib::nn::models {

struct DenseNetOptions {
  int depth = 121;   ///< 121, 169 or 201
  double width = 1;  ///< multiplies the growth rate of 32, rounded to multiples of 4, and all channels with it
  int classes = 1000;
};
/// [N, H, W, 3] -> [N, classes]. Throws Error for another depth.
Sequential densenet(DenseNetOptions options = {});

}  // namespace rewind_lib::nn::models
