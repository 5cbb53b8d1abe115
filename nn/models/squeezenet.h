#pragma once
// SqueezeNet 1.1 (Iandola et al. 2016, and its repository for the version), as torchvision defines it: the same counts and the
// same names.

#include <rewind/nn/sequential.h>

namespace rewind_lib::nn::models {

struct SqueezeNetOptions {
  int classes = 1000;
  double dropout = 0.5;
};
/// [N, H, W, 3] -> [N, classes], H and W at least 17.
Sequential squeezenet(SqueezeNetOptions options = {});

}  // namespace rewind_lib::nn::models
