#pragma once
// MNASNet (Tan et al. 2019; the variant B1, without squeeze and excitation), as torchvision defines it: the same counts
// and the same names.

#include <rewind/nn/sequential.h>

namespace rewind_lib::nn::models {

struct MNASNetOptions {
  double width = 1;  ///< multiplies channels, rounded to multiples of 8; torchvision has 0.5, 0.75, 1 and 1.3
  int classes = 1000;
  double dropout = 0.2;  ///< before the classifier
};
/// [N, H, W, 3] -> [N, classes].
Sequential mnasnet(MNASNetOptions options = {});

}  // namespace rewind_lib::nn::models
