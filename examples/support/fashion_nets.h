#pragma once
// The networks of train_fashion_mnist, for 28x28 images, 10 classes.

#include <rewind/nn/blocks.h>

namespace support {

inline rewind::nn::Sequential fashion_mlp() {
  using namespace rewind::nn;
  return Sequential{Flatten{}, Linear{784, 128}, ReLU{}, Linear{128, 10}};
}

/// Under 100,000 parameters: inverted bottlenecks at 14x14 and 7x7.
inline rewind::nn::Sequential fashion_cnn() {
  using namespace rewind::nn;
  return Sequential{Conv2d{{.in = 1, .out = 24, .kernel = 3, .stride = 2, .padding = 1, .bias = false}},
                    BatchNorm2d{24},
                    ReLU6{},
                    InvertedBottleneck{{.in = 24, .out = 32, .expand = 4}},
                    InvertedBottleneck{{.in = 32, .out = 32, .expand = 4}},
                    InvertedBottleneck{{.in = 32, .out = 56, .expand = 4, .stride = 2}},
                    InvertedBottleneck{{.in = 56, .out = 56, .expand = 4}},
                    InvertedBottleneck{{.in = 56, .out = 56, .expand = 4}},
                    GlobalAvgPool{},
                    Dropout{0.2},
                    Linear{56, 10}};
}

}  // namespace support
