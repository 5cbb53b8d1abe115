#include <rewind/nn/layers.h>
#include <rewind/nn/models/squeezenet.h>

namespace rewind_lib::nn::models {
namespace {

/// A 1x1 convolution to few channels, and from these a 1x1 and a 3x3 convolution side by side (section 3.2).
class Fire final : public Module {
 public:
  Fire(int in, int squeezed, int expanded) {
    squeeze_.add("squeeze", Conv2d{{.in = in, .out = squeezed, .kernel = 1}});
    squeeze_.add("squeeze_activation", ReLU{});
    expand1x1_.add("expand1x1", Conv2d{{.in = squeezed, .out = expanded, .kernel = 1}});
    expand1x1_.add("expand1x1_activation", ReLU{});
    expand3x3_.add("expand3x3", Conv2d{{.in = squeezed, .out = expanded, .kernel = 3, .padding = 1}});
    expand3x3_.add("expand3x3_activation", ReLU{});
  }
  Tensor forward(Tensor x) override {
    x = squeeze_.forward(std::move(x));
    Tensor a = expand1x1_.forward(x);
    Tensor b = expand3x3_.forward(std::move(x));
    return concat(std::move(a), std::move(b), -1);
  }
  void describe(Fields& f) override {
    squeeze_.describe(f);
    expand1x1_.describe(f);
    expand3x3_.describe(f);
  }

 private:
  Sequential squeeze_, expand1x1_, expand3x3_;
};

}  // namespace

Sequential squeezenet(SqueezeNetOptions o) {
  const PoolOptions halve{.kernel = 3, .stride = 2, .ceil = true};
  Sequential net;
  net.add("features", Sequential{Conv2d{{.in = 3, .out = 64, .kernel = 3, .stride = 2}}, ReLU{}, MaxPool2d{halve},  //
                                 Fire{64, 16, 64}, Fire{128, 16, 64}, MaxPool2d{halve},                             //
                                 Fire{128, 32, 128}, Fire{256, 32, 128}, MaxPool2d{halve},                          //
                                 Fire{256, 48, 192}, Fire{384, 48, 192}, Fire{384, 64, 256}, Fire{512, 64, 256}});
  net.add("classifier",
          Sequential{Dropout{o.dropout}, Conv2d{{.in = 512, .out = o.classes, .kernel = 1}}, ReLU{}, GlobalAvgPool{}});
  return net;
}

}  // namespace rewind_lib::nn::models
