#pragma once
// ShuffleNet V1 (Zhang et al. 2018, table 1): 1x1 convolutions in groups, and a shuffle of channels between them.

#include <rewind/nn/sequential.h>

namespace rewind_lib::nn::models {

struct ShuffleNetV1Options {
  int groups = 3;    ///< 1, 2, 3, 4 or 8: the columns of the table
  double width = 1;  ///< multiplies channels, rounded to what the groups divide
  int classes = 1000;
};
/// [N, H, W, 3] -> [N, classes]. Throws Error for another number of groups.
Sequential shufflenet_v1(ShuffleNetV1Options options = {});

}  // namespace rewind_lib::nn::models
