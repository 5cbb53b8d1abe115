#include <rewind/nn/blocks.h>
#include <rewind/nn/models/preresnet.h>

namespace rewind_lib::nn::models {

Sequential preresnet(PreResNetOptions o) {
  const int n = (o.depth - 2) / 9;
  if (n < 1 || 9 * n + 2 != o.depth || o.depth > 10001)
    fail(str("preresnet: depth must be 9 n + 2 (11, 20, ..., 164, ..., 1001), 10001 at most, got ", o.depth));

  Sequential net;
  net.add("conv", Conv2d{{.in = 3, .out = 16, .kernel = 3, .padding = 1, .bias = false}});
  int in = 16;
  for (int stage = 0; stage < 3; ++stage) {
    Sequential layer;
    for (int i = 0; i < n; ++i) {
      const int width = 16 << stage;
      layer.add(PreActivationBottleneck{{.in = in, .width = width, .stride = i == 0 && stage > 0 ? 2 : 1}});
      in = 4 * width;
    }
    net.add(str("layer", stage + 1), std::move(layer));
  }
  net.add("bn", BatchNorm2d{in});
  net.add("relu", ReLU{});
  net.add("avgpool", GlobalAvgPool{});
  net.add("fc", Linear{in, o.classes});
  return net;
}

}  // namespace rewind_lib::nn::models
