#include <rewind/nn/blocks.h>
#include <rewind/nn/models/resnet.h>

namespace rewind_lib::nn::models {
namespace {

Residual basic_block(int in, int out, int stride) {
  Sequential main, shortcut;
  main.add("conv1", Conv2d{{.in = in, .out = out, .kernel = 3, .stride = stride, .padding = 1, .bias = false}});
  main.add("bn1", BatchNorm2d{out});
  main.add("relu", ReLU{});
  main.add("conv2", Conv2d{{.in = out, .out = out, .kernel = 3, .padding = 1, .bias = false}});
  main.add("bn2", BatchNorm2d{out});
  if (stride != 1 || in != out) shortcut = conv_norm({.in = in, .out = out, .kernel = 1, .stride = stride}, Activation::none);
  return Residual{std::move(main), std::move(shortcut), Activation::relu};
}

}  // namespace

Sequential resnet(ResNetOptions o) {
  if (o.depth != 18 && o.depth != 34) fail(str("resnet: depth must be 18 or 34, got ", o.depth));
  const int blocks[] = {o.depth == 18 ? 2 : 3, o.depth == 18 ? 2 : 4, o.depth == 18 ? 2 : 6, o.depth == 18 ? 2 : 3};

  Sequential net;
  const Pair kernel = o.cifar ? 3 : 7, stride = o.cifar ? 1 : 2, padding = o.cifar ? 1 : 3;
  net.add("conv1", Conv2d{{.in = 3, .out = 64, .kernel = kernel, .stride = stride, .padding = padding, .bias = false}});
  net.add("bn1", BatchNorm2d{64});
  net.add("relu", ReLU{});
  if (!o.cifar) net.add("maxpool", MaxPool2d{{.kernel = 3, .stride = 2, .padding = 1}});
  int in = 64;
  for (int stage = 0; stage < 4; ++stage) {
    Sequential layer;
    for (int i = 0, out = 64 << stage; i < blocks[stage]; ++i, in = out)
      layer.add(basic_block(in, out, i == 0 && stage > 0 ? 2 : 1));
    net.add(str("layer", stage + 1), std::move(layer));
  }
  net.add("avgpool", GlobalAvgPool{});
  net.add("fc", Linear{in, o.classes});
  return net;
}

}  // namespace rewind_lib::nn::models
