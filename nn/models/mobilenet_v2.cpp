#include <rewind/nn/blocks.h>
#include <rewind/nn/models/mobilenet_v2.h>
#include <rewind/nn/models/width.h>

#include <algorithm>

namespace rewind_lib::nn::models {

Sequential mobilenet_v2(MobileNetV2Options o) {
  if (!(o.width > 0)) fail(str("mobilenet_v2: width must be positive, got ", o.width));
  const struct {
    int expand, channels, blocks, stride;
  } stages[] = {{1, 16, 1, 1}, {6, 24, 2, o.cifar ? 1 : 2}, {6, 32, 3, 2}, {6, 64, 4, 2}, {6, 96, 3, 1}, {6, 160, 3, 2},
                {6, 320, 1, 1}};

  Sequential features;
  int in = make_divisible(32 * o.width);
  features.add(conv_norm({.in = 3, .out = in, .kernel = 3, .stride = o.cifar ? 1 : 2, .padding = 1}, Activation::relu6));
  for (const auto& stage : stages) {
    const int out = make_divisible(stage.channels * o.width);
    for (int i = 0; i < stage.blocks; ++i) {
      features.add(InvertedBottleneck{{.in = in, .out = out, .expand = stage.expand, .stride = i == 0 ? stage.stride : 1}});
      in = out;
    }
  }
  const int last = make_divisible(1280 * std::max(1.0, o.width));
  features.add(conv_norm({.in = in, .out = last, .kernel = 1}, Activation::relu6));

  Sequential net;
  net.add("features", std::move(features));
  net.add("pool", GlobalAvgPool{});
  net.add("classifier", Sequential{Dropout{o.dropout}, Linear{last, o.classes}});
  return net;
}

}  // namespace rewind_lib::nn::models
