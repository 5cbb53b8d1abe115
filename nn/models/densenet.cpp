#include <rewind/nn/blocks.h>
#include <rewind/nn/models/densenet.h>
#include <rewind/nn/models/width.h>

namespace rewind_lib::nn::models {
namespace {

/// x, and beside it `growth` channels made from it through a 1x1 convolution to four times as many.
Concat dense_layer(int in, int growth) {
  Sequential grown;
  grown.add("norm1", BatchNorm2d{in});
  grown.add("relu1", ReLU{});
  grown.add("conv1", Conv2d{{.in = in, .out = 4 * growth, .kernel = 1, .bias = false}});
  grown.add("norm2", BatchNorm2d{4 * growth});
  grown.add("relu2", ReLU{});
  grown.add("conv2", Conv2d{{.in = 4 * growth, .out = growth, .kernel = 3, .padding = 1, .bias = false}});
  return Concat{Sequential(), std::move(grown)};
}

/// Half the channels, height and width.
Sequential transition(int in) {
  Sequential chain;
  chain.add("norm", BatchNorm2d{in});
  chain.add("relu", ReLU{});
  chain.add("conv", Conv2d{{.in = in, .out = in / 2, .kernel = 1, .bias = false}});
  chain.add("pool", AvgPool2d{2});
  return chain;
}

}  // namespace

Sequential densenet(DenseNetOptions o) {
  if (o.depth != 121 && o.depth != 169 && o.depth != 201) fail(str("densenet: depth must be 121, 169 or 201, got ", o.depth));
  if (!(o.width > 0)) fail(str("densenet: width must be positive, got ", o.width));
  const int growth = make_divisible(32 * o.width, 4);
  const int layers[] = {6, 12, o.depth == 121 ? 24 : o.depth == 169 ? 32 : 48, o.depth == 121 ? 16 : 32};

  Sequential features;
  int channels = 2 * growth;
  features.add("conv0", Conv2d{{.in = 3, .out = channels, .kernel = 7, .stride = 2, .padding = 3, .bias = false}});
  features.add("norm0", BatchNorm2d{channels});
  features.add("relu0", ReLU{});
  features.add("pool0", MaxPool2d{{.kernel = 3, .stride = 2, .padding = 1}});
  for (int i = 0; i < 4; ++i) {
    Sequential block;
    for (int layer = 1; layer <= layers[i]; ++layer, channels += growth)
      block.add(str("denselayer", layer), dense_layer(channels, growth));
    features.add(str("denseblock", i + 1), std::move(block));
    if (i == 3) continue;
    features.add(str("transition", i + 1), transition(channels));
    channels /= 2;
  }
  features.add("norm5", BatchNorm2d{channels});

  Sequential net;
  net.add("features", std::move(features));
  net.add("relu", ReLU{});
  net.add("avgpool", GlobalAvgPool{});
  net.add("classifier", Linear{channels, o.classes});
  return net;
}

}  // namespace rewind_lib::nn::models
