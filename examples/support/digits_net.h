#pragma once
// The network of train_digits and of the default comparison: inverted bottlenecks for 8x8 images, 10 classes.

#include <rewind/nn/blocks.h>

namespace support {

inline rewind::nn::Sequential digits_net() {
  using namespace rewind::nn;
  return Sequential{Conv2d{{.in = 1, .out = 16, .kernel = 3, .padding = 1, .bias = false}},
                    BatchNorm2d{16},
                    ReLU6{},
                    InvertedBottleneck{{.in = 16, .out = 16, .expand = 4}},
                    InvertedBottleneck{{.in = 16, .out = 32, .expand = 4, .stride = 2}},
                    InvertedBottleneck{{.in = 32, .out = 32, .expand = 4}},
                    GlobalAvgPool{},
                    Linear{32, 10}};
}

}  // namespace support
