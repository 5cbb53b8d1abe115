#pragma once
// ShuffleNet V2 (Ma et al. 2018, table 5), as torchvision defines it: the same counts and the same names.

#include <rewind/nn/sequential.h>

namespace rewind_lib::nn::models {

struct ShuffleNetV2Options {
  double width = 1;  ///< 0.5, 1, 1.5 or 2: the columns of the table
  int classes = 1000;
};
/// [N, H, W, 3] -> [N, classes]. Throws Error for another width.
Sequential shufflenet_v2(ShuffleNetV2Options options = {});

}  // namespace rewind_lib::nn::models
