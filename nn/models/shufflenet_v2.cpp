#include <rewind/nn/blocks.h>
#include <rewind/nn/models/shufflenet_v2.h>

namespace rewind_lib::nn::models {
namespace {

/// Two branches side by side, shuffled (figure 3c and d). At stride 1 each gets half of x, and the first keeps it as it is.
class Unit final : public Module {
 public:
  Unit(int in, int out, int stride) : split_(stride == 1), shuffle_(2) {
    const int half = out / 2;
    if (!split_) {
      branch1_ = depthwise_norm(in, 3, stride, Activation::none);
      branch1_.extend(conv_norm({.in = in, .out = half, .kernel = 1}));
    }
    branch2_ = conv_norm({.in = split_ ? half : in, .out = half, .kernel = 1});
    branch2_.extend(depthwise_norm(half, 3, stride, Activation::none));
    branch2_.extend(conv_norm({.in = half, .out = half, .kernel = 1}));
  }
  Tensor forward(Tensor x) override {
    const std::int64_t channels = x.size(-1);
    Tensor a = split_ ? slice(x, -1, 0, channels / 2) : branch1_(x);
    Tensor b = branch2_(split_ ? slice(std::move(x), -1, channels / 2, channels) : std::move(x));
    return shuffle_(concat(std::move(a), std::move(b), -1));
  }
  void describe(Fields& f) override {
    if (!split_) f.child("branch1", branch1_);
    f.child("branch2", branch2_);
    f.child("shuffle", shuffle_);
  }

 private:
  Sequential branch1_, branch2_;
  bool split_;
  ChannelShuffle shuffle_;
};

}  // namespace

Sequential shufflenet_v2(ShuffleNetV2Options o) {
  int first_stage = 0;  // its channels; each further stage has twice as many
  for (const auto& [width, channels] : {std::pair{0.5, 48}, {1.0, 116}, {1.5, 176}, {2.0, 244}})
    if (width == o.width) first_stage = channels;
  if (first_stage == 0) fail(str("shufflenet_v2: width must be 0.5, 1, 1.5 or 2, got ", o.width));

  Sequential net;
  int in = 24;
  net.add("conv1", conv_norm({.in = 3, .out = in, .kernel = 3, .stride = 2, .padding = 1}));
  net.add("maxpool", MaxPool2d{{.kernel = 3, .stride = 2, .padding = 1}});
  const int units[] = {4, 8, 4};
  for (int stage = 0; stage < 3; ++stage) {
    const int out = first_stage << stage;
    Sequential chain;
    for (int i = 0; i < units[stage]; ++i, in = out) chain.add(Unit{in, out, i == 0 ? 2 : 1});
    net.add(str("stage", stage + 2), std::move(chain));
  }
  const int last = o.width == 2 ? 2048 : 1024;
  net.add("conv5", conv_norm({.in = in, .out = last, .kernel = 1}));
  net.add("avgpool", GlobalAvgPool{});
  net.add("fc", Linear{last, o.classes});
  return net;
}

}  // namespace rewind_lib::nn::models
