#include <rewind/nn/blocks.h>
#include <rewind/nn/models/resnet.h>

#include <algorithm>
#include <iterator>

namespace rewind_lib::nn::models {
namespace {

/// relu(main + shortcut), where the shortcut is a 1x1 convolution if the shape changes.
Residual block(Sequential main, int in, int out, int stride) {
  Sequential shortcut;
  if (stride != 1 || in != out) shortcut = conv_norm({.in = in, .out = out, .kernel = 1, .stride = stride}, Activation::none);
  return Residual{std::move(main), std::move(shortcut), Activation::relu};
}

/// Two 3x3 convolutions.
Residual basic_block(int in, int out, int stride) {
  Sequential main;
  main.add("conv1", Conv2d{{.in = in, .out = out, .kernel = 3, .stride = stride, .padding = 1, .bias = false}});
  main.add("bn1", BatchNorm2d{out});
  main.add("relu", ReLU{});
  main.add("conv2", Conv2d{{.in = out, .out = out, .kernel = 3, .padding = 1, .bias = false}});
  main.add("bn2", BatchNorm2d{out});
  return block(std::move(main), in, out, stride);
}

/// 1x1, 3x3 and 1x1 convolutions, the last to four times the width.
Residual bottleneck(int in, int width, int stride) {
  Sequential main;
  main.add("conv1", Conv2d{{.in = in, .out = width, .kernel = 1, .bias = false}});
  main.add("bn1", BatchNorm2d{width});
  main.add("relu1", ReLU{});
  main.add("conv2", Conv2d{{.in = width, .out = width, .kernel = 3, .stride = stride, .padding = 1, .bias = false}});
  main.add("bn2", BatchNorm2d{width});
  main.add("relu2", ReLU{});
  main.add("conv3", Conv2d{{.in = width, .out = 4 * width, .kernel = 1, .bias = false}});
  main.add("bn3", BatchNorm2d{4 * width});
  return block(std::move(main), in, 4 * width, stride);
}

/// Blocks of each stage (table 1).
struct Depth {
  int depth;
  bool deep;  ///< of bottlenecks instead of basic blocks
  int blocks[4];
};
constexpr Depth depths[] = {{18, false, {2, 2, 2, 2}},
                            {34, false, {3, 4, 6, 3}},
                            {50, true, {3, 4, 6, 3}},
                            {101, true, {3, 4, 23, 3}},
                            {152, true, {3, 8, 36, 3}}};

}  // namespace

Sequential resnet(ResNetOptions o) {
  const Depth* const d = std::ranges::find(depths, o.depth, &Depth::depth);
  if (d == std::end(depths)) fail(str("resnet: depth must be 18, 34, 50, 101 or 152, got ", o.depth));

  Sequential net;
  const Pair kernel = o.cifar ? 3 : 7, stride = o.cifar ? 1 : 2, padding = o.cifar ? 1 : 3;
  net.add("conv1", Conv2d{{.in = 3, .out = 64, .kernel = kernel, .stride = stride, .padding = padding, .bias = false}});
  net.add("bn1", BatchNorm2d{64});
  net.add("relu", ReLU{});
  if (!o.cifar) net.add("maxpool", MaxPool2d{{.kernel = 3, .stride = 2, .padding = 1}});
  int in = 64;
  for (int stage = 0; stage < 4; ++stage) {
    Sequential layer;
    for (int i = 0, width = 64 << stage; i < d->blocks[stage]; ++i) {
      const int step = i == 0 && stage > 0 ? 2 : 1;
      layer.add(d->deep ? bottleneck(in, width, step) : basic_block(in, width, step));
      in = d->deep ? 4 * width : width;
    }
    net.add(str("layer", stage + 1), std::move(layer));
  }
  net.add("avgpool", GlobalAvgPool{});
  net.add("fc", Linear{in, o.classes});
  return net;
}

}  // namespace rewind_lib::nn::models
