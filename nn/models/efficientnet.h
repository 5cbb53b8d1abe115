#pragma once
// EfficientNet (Tan and Le 2019, table 1), as torchvision defines it: the same counts and the same names.

#include <rewind/nn/sequential.h>

namespace rewind_lib::nn::models {

struct EfficientNetOptions {
  int variant = 0;   ///< 0 or 1: B1 has more blocks a stage and is meant for images of 240 instead of 224
  double width = 1;  ///< multiplies channels, rounded to multiples of 8
  int classes = 1000;
  double dropout = 0.2;           ///< before the classifier
  double stochastic_depth = 0.2;  ///< probability to skip a block in training: 0 for the first, growing evenly towards this one
};
/// [N, H, W, 3] -> [N, classes]. Throws Error for another variant.
Sequential efficientnet(EfficientNetOptions options = {});

}  // namespace rewind_lib::nn::models
