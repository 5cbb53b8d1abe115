#include <rewind/nn/blocks.h>
#include <rewind/nn/models/mobilenet_v1.h>
#include <rewind/nn/models/width.h>

namespace rewind_lib::nn::models {

Sequential mobilenet_v1(MobileNetV1Options o) {
  if (!(o.width > 0)) fail(str("mobilenet_v1: width must be positive, got ", o.width));
  const struct { int channels, blocks, stride; } stages[] = {{64, 1, 1}, {128, 2, 2}, {256, 2, 2}, {512, 6, 2}, {1024, 2, 2}};

  Sequential features;
  int in = make_divisible(32 * o.width);
  features.add(conv_norm({.in = 3, .out = in, .kernel = 3, .stride = 2, .padding = 1}));
  for (const auto& stage : stages) {
    const int out = make_divisible(stage.channels * o.width);
    for (int i = 0; i < stage.blocks; ++i) {
      features.add(DepthwiseSeparable{{.in = in, .out = out, .stride = i == 0 ? stage.stride : 1}});
      in = out;
    }
  }
  Sequential net;
  net.add("features", std::move(features));
  net.add("pool", GlobalAvgPool{});
  net.add("classifier", Linear{in, o.classes});
  return net;
}

}  // namespace rewind_lib::nn::models
