#pragma once
// MobileNetV2 (Sandler et al. 2018), as torchvision defines it: the same counts and the same names.

#include <rewind/nn/sequential.h>

namespace rewind_lib::nn::models {

struct MobileNetV2Options {
  double width = 1;  ///< multiplies channels, rounded to multiples of 8
  int classes = 1000;
  bool cifar = false;    ///< for 32x32: the stem and the second stage keep height and width
  double dropout = 0.2;  ///< before the classifier
};
/// [N, H, W, 3] -> [N, classes].
Sequential mobilenet_v2(MobileNetV2Options options = {});

}  // namespace rewind_lib::nn::models
