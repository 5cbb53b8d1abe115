#pragma once
// MobileNetV1 (Howard et al. 2017, table 1).

#include <rewind/nn/sequential.h>

namespace rewind_lib::nn::models {

struct MobileNetV1Options {
  double width = 1;  ///< multiplies channels, rounded to multiples of 8
  int classes = 1000;
};
/// [N, H, W, 3] -> [N, classes].
Sequential mobilenet_v1(MobileNetV1Options options = {});

}  // namespace rewind_lib::nn::models
