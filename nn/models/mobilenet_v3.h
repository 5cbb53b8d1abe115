#pragma once
// MobileNetV3 (Howard et al. 2019, tables 1 and 2), as torchvision defines it: the same counts and the same names.

#include <rewind/nn/sequential.h>

namespace rewind_lib::nn::models {

struct MobileNetV3Options {
  bool small = false;  ///< MobileNetV3-Small instead of -Large
  double width = 1;    ///< multiplies channels, rounded to multiples of 8
  int classes = 1000;
  double dropout = 0.2;  ///< before the last Linear
};
/// [N, H, W, 3] -> [N, classes].
Sequential mobilenet_v3(MobileNetV3Options options = {});

}  // namespace rewind_lib::nn::models
