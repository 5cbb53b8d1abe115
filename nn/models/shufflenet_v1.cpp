#include <rewind/nn/blocks.h>
#include <rewind/nn/models/shufflenet_v1.h>
#include <rewind/nn/models/width.h>

namespace rewind_lib::nn::models {
namespace {

/// 1x1 convolution in groups, shuffle, depthwise convolution, 1x1 convolution in groups (figure 2).
Sequential unit(int in, int out, int hidden, int stride, int groups_in, int groups) {
  Sequential chain;
  chain.add("reduce", conv_norm({.in = in, .out = hidden, .kernel = 1, .groups = groups_in}));
  chain.add("shuffle", ChannelShuffle{groups});
  chain.add("depthwise", depthwise_norm(hidden, 3, stride, Activation::none));
  chain.add("expand", conv_norm({.in = hidden, .out = out, .kernel = 1, .groups = groups}, Activation::none));
  return chain;
}

}  // namespace

Sequential shufflenet_v1(ShuffleNetV1Options o) {
  if (!(o.width > 0)) fail(str("shufflenet_v1: width must be positive, got ", o.width));
  int first_stage = 0;  // its channels; each further stage has twice as many
  for (const auto& [groups, channels] : {std::pair{1, 144}, {2, 200}, {3, 240}, {4, 272}, {8, 384}})
    if (groups == o.groups) first_stage = make_divisible(channels * o.width, 4 * groups);
  if (first_stage == 0) fail(str("shufflenet_v1: groups must be 1, 2, 3, 4 or 8, got ", o.groups));

  Sequential net;
  int in = make_divisible(24 * o.width, o.groups);
  net.add("conv1", conv_norm({.in = 3, .out = in, .kernel = 3, .stride = 2, .padding = 1}));
  net.add("maxpool", MaxPool2d{{.kernel = 3, .stride = 2, .padding = 1}});
  const int units[] = {4, 8, 4};
  for (int stage = 0; stage < 3; ++stage) {
    const int out = first_stage << stage;
    Sequential chain;
    // The very first 1x1 convolution has too few channels to be grouped (section 3.2).
    chain.add(Concat{Sequential{AvgPool2d{{.kernel = 3, .stride = 2, .padding = 1}}},
                     unit(in, out - in, out / 4, 2, stage == 0 ? 1 : o.groups, o.groups)});
    chain.add(ReLU{});
    for (int i = 1; i < units[stage]; ++i)
      chain.add(Residual{unit(out, out, out / 4, 1, o.groups, o.groups), Sequential(), Activation::relu});
    net.add(str("stage", stage + 2), std::move(chain));
    in = out;
  }
  net.add("avgpool", GlobalAvgPool{});
  net.add("fc", Linear{in, o.classes});
  return net;
}

}  // namespace rewind_lib::nn::models
