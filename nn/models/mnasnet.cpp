#include <rewind/nn/blocks.h>
#include <rewind/nn/models/mnasnet.h>
#include <rewind/nn/models/width.h>

namespace rewind_lib::nn::models {

Sequential mnasnet(MNASNetOptions o) {
  if (!(o.width > 0)) fail(str("mnasnet: width must be positive, got ", o.width));
  const struct {
    int kernel, expand, channels, blocks, stride;
  } stages[] = {{3, 3, 24, 3, 2}, {5, 3, 40, 3, 2}, {5, 6, 80, 3, 2}, {3, 6, 96, 2, 1}, {5, 6, 192, 4, 2}, {3, 6, 320, 1, 1}};
  const NormOptions norm{.momentum = 1 - 0.9997};
  const int stem = make_divisible(32 * o.width);
  int in = make_divisible(16 * o.width);

  Sequential layers = conv_norm({.in = 3, .out = stem, .kernel = 3, .stride = 2, .padding = 1}, Activation::relu, norm);
  layers.extend(depthwise_norm(stem, 3, 1, Activation::relu, norm));
  layers.extend(conv_norm({.in = stem, .out = in, .kernel = 1}, Activation::none, norm));
  for (const auto& stage : stages) {
    const int out = make_divisible(stage.channels * o.width);
    Sequential stack;
    for (int i = 0; i < stage.blocks; ++i, in = out)
      stack.add(InvertedBottleneck{{.in = in,
                                    .out = out,
                                    .expand = stage.expand,
                                    .kernel = stage.kernel,
                                    .stride = i == 0 ? stage.stride : 1,
                                    .activation = Activation::relu,
                                    .norm = norm,
                                    .names = BlockNames::mnasnet}});
    layers.add(std::move(stack));
  }
  layers.extend(conv_norm({.in = in, .out = 1280, .kernel = 1}, Activation::relu, norm));

  Sequential net;
  net.add("layers", std::move(layers));
  net.add("avgpool", GlobalAvgPool{});
  net.add("classifier", Sequential{Dropout{o.dropout}, Linear{1280, o.classes}});
  return net;
}

}  // namespace rewind_lib::nn::models
