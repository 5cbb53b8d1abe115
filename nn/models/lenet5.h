#pragma once
// LeNet-5 (LeCun et al. 1998) in its present-day form: ReLU and max pooling.

#include <rewind/nn/sequential.h>

namespace rewind_lib::nn::models {

struct LeNet5Options {
  int channels = 1;
  int size = 28;  ///< height and width of the images, at least 16
  int classes = 10;
};
/// [N, size, size, channels] -> [N, classes].
Sequential lenet5(LeNet5Options options = {});

}  // namespace rewind_lib::nn::models
