#pragma once
// The pre-activation ResNet of bottleneck blocks for 32x32 images (He et al. 2016, "Identity mappings in deep residual
// networks"): batch normalisation and ReLU come before each convolution.

#include <rewind/nn/sequential.h>

namespace rewind_lib::nn::models {

struct PreResNetOptions {
  int depth = 164;  ///< 9 n + 2: 164 and 1001 in the paper
  int classes = 10;
};
/// [N, H, W, 3] -> [N, classes]. Throws Error for a depth that is not 9 n + 2.
Sequential preresnet(PreResNetOptions options = {});

}  // namespace rewind_lib::nn::models
