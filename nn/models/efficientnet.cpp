#include <rewind/nn/blocks.h>
#include <rewind/nn/models/efficientnet.h>
#include <rewind/nn/models/width.h>

#include <algorithm>

namespace rewind_lib::nn::models {

Sequential efficientnet(EfficientNetOptions o) {
  if (o.variant != 0 && o.variant != 1) fail(str("efficientnet: variant must be 0 or 1, got ", o.variant));
  if (!(o.width > 0)) fail(str("efficientnet: width must be positive, got ", o.width));
  const struct {
    int expand, kernel, stride, channels, blocks;
  } stages[] = {{1, 3, 1, 16, 1},  {6, 3, 2, 24, 2},  {6, 5, 2, 40, 2}, {6, 3, 2, 80, 3},
                {6, 5, 1, 112, 3}, {6, 5, 2, 192, 4}, {6, 3, 1, 320, 1}};

  Sequential features;
  int in = make_divisible(32 * o.width), block = 0, all_blocks = 0;
  for (const auto& stage : stages) all_blocks += stage.blocks + o.variant;
  features.add(conv_norm({.in = 3, .out = in, .kernel = 3, .stride = 2, .padding = 1}, Activation::silu));
  for (const auto& stage : stages) {
    const int out = make_divisible(stage.channels * o.width);
    const int blocks = stage.blocks + o.variant;  // the depth factor 1.1 of B1, rounded up, adds one to each
    Sequential chain;
    for (int i = 0; i < blocks; ++i, ++block, in = out)
      chain.add(InvertedBottleneck{{.in = in,
                                    .out = out,
                                    .expand = stage.expand,
                                    .kernel = stage.kernel,
                                    .stride = i == 0 ? stage.stride : 1,
                                    .squeeze_excite = std::max(1, in / 4),
                                    .activation = Activation::silu,
                                    .squeeze_activation = Activation::silu,
                                    .stochastic_depth = o.stochastic_depth * block / all_blocks,
                                    .names = BlockNames::mobilenet_v3}});
    features.add(std::move(chain));
  }
  features.add(conv_norm({.in = in, .out = 4 * in, .kernel = 1}, Activation::silu));

  Sequential net;
  net.add("features", std::move(features));
  net.add("avgpool", GlobalAvgPool{});
  net.add("classifier", Sequential{Dropout{o.dropout}, Linear{4 * in, o.classes}});
  return net;
}

}  // namespace rewind_lib::nn::models
