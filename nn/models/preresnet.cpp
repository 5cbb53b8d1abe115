#include <rewind/nn/blocks.h>
#include <rewind/nn/models/preresnet.h>

namespace rewind_lib::nn::models {
namespace {

/// h = relu(bn1(x)); convs(h) + shortcut, which is x itself, or a 1x1 convolution of h where the shape changes.
class PreActivationBottleneck final : public Module {
 public:
  PreActivationBottleneck(int in, int width, int stride) {
    const int out = 4 * width;
    entry_.add("bn1", BatchNorm2d{in});
    entry_.add("relu1", ReLU{});
    main_.add("conv1", Conv2d{{.in = in, .out = width, .kernel = 1, .bias = false}});
    main_.add("bn2", BatchNorm2d{width});
    main_.add("relu2", ReLU{});
    main_.add("conv2", Conv2d{{.in = width, .out = width, .kernel = 3, .stride = stride, .padding = 1, .bias = false}});
    main_.add("bn3", BatchNorm2d{width});
    main_.add("relu3", ReLU{});
    main_.add("conv3", Conv2d{{.in = width, .out = out, .kernel = 1, .bias = false}});
    if (stride != 1 || in != out)
      shortcut_.add("conv", Conv2d{{.in = in, .out = out, .kernel = 1, .stride = stride, .bias = false}});
  }
  Tensor forward(Tensor x) override {
    const bool same_shape = shortcut_.size() == 0;
    Tensor kept = same_shape ? x : Tensor();
    Tensor h = entry_.forward(std::move(x));
    if (!same_shape) kept = shortcut_.forward(h);
    h = main_.forward(std::move(h));
    return add(std::move(h), std::move(kept));
  }
  void describe(Fields& f) override {
    entry_.describe(f);
    main_.describe(f);
    if (shortcut_.size() > 0) f.child("downsample", shortcut_[0]);
  }

 private:
  Sequential entry_, main_, shortcut_;
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
