#include <rewind/nn/blocks.h>
#include <rewind/nn/models/preresnet.h>

namespace rewind_lib::nn::models {
namespace {

/// h = relu(bn1(x)); conv3(relu(bn3(conv2(relu(bn2(conv1(h))))))) + shortcut, which is x itself, or a 1x1 convolution of h
/// where the shape changes.
class PreActivationBottleneck final : public Module, public Normalising {
 public:
  PreActivationBottleneck(int in, int width, int stride)
      : bn1_(in),
        bn2_(width),
        bn3_(width),
        conv1_({.in = in, .out = width, .kernel = 1, .bias = false}),
        conv2_({.in = width, .out = width, .kernel = 3, .stride = stride, .padding = 1, .bias = false}),
        conv3_({.in = width, .out = 4 * width, .kernel = 1, .bias = false}) {
    if (stride != 1 || in != 4 * width)
      shortcut_.add("conv", Conv2d{{.in = in, .out = 4 * width, .kernel = 1, .stride = stride, .bias = false}});
  }
  Tensor forward(Tensor x) override { return pass({std::move(x)}, false).x; }

  bool passes() const override { return fusing(); }
  bool wants_statistics() const override { return bn1_.training(); }
  schedule::Activation pass(schedule::Activation x, bool statistics) override {
    const bool same_shape = shortcut_.size() == 0;
    Tensor kept = same_shape ? x.x : Tensor();
    Pending h = bn1_.pass(std::move(x), Epilogue::relu);
    if (!same_shape) kept = static_cast<Conv2d&>(shortcut_[0]).pass(h, false).x;
    schedule::Activation y = conv1_.pass(std::move(h), bn2_.training());
    y = conv2_.pass(bn2_.pass(std::move(y), Epilogue::relu), bn3_.training());
    return conv3_.pass(bn3_.pass(std::move(y), Epilogue::relu), statistics, std::move(kept));
  }

  void describe(Fields& f) override {
    f.child("bn1", bn1_);
    f.child("conv1", conv1_);
    f.child("bn2", bn2_);
    f.child("conv2", conv2_);
    f.child("bn3", bn3_);
    f.child("conv3", conv3_);
    if (shortcut_.size() > 0) f.child("downsample", shortcut_[0]);
  }

 private:
  BatchNorm2d bn1_, bn2_, bn3_;
  Conv2d conv1_, conv2_, conv3_;
  Sequential shortcut_;
};

}  // namespace

Sequential preresnet(PreResNetOptions o) {
  const int n = (o.depth - 2) / 9;
  if (n < 1 || 9 * n + 2 != o.depth) fail(str("preresnet: depth must be 9 n + 2 (11, 20, ..., 164, ..., 1001), got ", o.depth));

  Sequential net;
  net.add("conv", Conv2d{{.in = 3, .out = 16, .kernel = 3, .padding = 1, .bias = false}});
  int in = 16;
  for (int stage = 0; stage < 3; ++stage) {
    Sequential layer;
    for (int i = 0; i < n; ++i) {
      const int width = 16 << stage;
      layer.add(PreActivationBottleneck{in, width, i == 0 && stage > 0 ? 2 : 1});
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
