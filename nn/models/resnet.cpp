#include <rewind/nn/blocks.h>
#include <rewind/nn/models/resnet.h>

#include <algorithm>
#include <iterator>

namespace rewind_lib::nn::models {
namespace {

/// The i-th convolution of a block and its norm.
void add_conv(Sequential& main, int i, Conv2dOptions conv) {
  conv.padding = conv.kernel.h / 2;
  conv.bias = false;
  main.add(str("conv", i), Conv2d{conv});
  main.add(str("bn", i), BatchNorm2d{conv.out});
}

/// relu(main + shortcut). main is two 3x3 convolutions, or, deep, a bottleneck: 1x1, 3x3 and 1x1, the last to four times the width.
/// The shortcut is a 1x1 convolution where the shape changes.
Residual block(int in, int width, int stride, bool deep) {
  const int out = deep ? 4 * width : width;
  Sequential main, shortcut;
  add_conv(main, 1, {.in = in, .out = width, .kernel = deep ? 1 : 3, .stride = deep ? 1 : stride});
  main.add(deep ? "relu1" : "relu", ReLU{});
  add_conv(main, 2, {.in = width, .out = width, .kernel = 3, .stride = deep ? stride : 1});
  if (deep) {
    main.add("relu2", ReLU{});
    add_conv(main, 3, {.in = width, .out = out, .kernel = 1});
  }
  if (stride != 1 || in != out) shortcut = conv_norm({.in = in, .out = out, .kernel = 1, .stride = stride}, Activation::none);
  return Residual{std::move(main), std::move(shortcut), Activation::relu};
}

/// Depth, and the blocks of each stage (table 1).
constexpr struct Depth {
  int depth, blocks[4];
} depths[] = {{18, {2, 2, 2, 2}}, {34, {3, 4, 6, 3}}, {50, {3, 4, 6, 3}}, {101, {3, 4, 23, 3}}, {152, {3, 8, 36, 3}}};

}  // namespace

Sequential resnet(ResNetOptions o) {
  const Depth* const d = std::ranges::find(depths, o.depth, &Depth::depth);
  if (d == std::end(depths)) fail(str("resnet: depth must be 18, 34, 50, 101 or 152, got ", o.depth));
  const bool deep = o.depth >= 50;

  Sequential net;
  add_conv(net, 1, {.in = 3, .out = 64, .kernel = o.cifar ? 3 : 7, .stride = o.cifar ? 1 : 2});
  net.add("relu", ReLU{});
  if (!o.cifar) net.add("maxpool", MaxPool2d{{.kernel = 3, .stride = 2, .padding = 1}});
  int in = 64;
  for (int stage = 0; stage < 4; ++stage) {
    Sequential layer;
    for (int i = 0, width = 64 << stage; i < d->blocks[stage]; ++i, in = deep ? 4 * width : width)
      layer.add(block(in, width, i == 0 && stage > 0 ? 2 : 1, deep));
    net.add(str("layer", stage + 1), std::move(layer));
  }
  net.add("avgpool", GlobalAvgPool{});
  net.add("fc", Linear{in, o.classes});
  return net;
}

}  // namespace rewind_lib::nn::models
