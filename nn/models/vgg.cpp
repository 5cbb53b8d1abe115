#include <rewind/nn/layers.h>
#include <rewind/nn/models/vgg.h>
#include <rewind/nn/models/width.h>

namespace rewind_lib::nn::models {

Sequential vgg(VGGOptions o) {
  if (!(o.width > 0)) fail(str("vgg: width must be positive, got ", o.width));
  if (o.depth != 11 && o.depth != 13 && o.depth != 16 && o.depth != 19)
    fail(str("vgg: depth must be 11, 13, 16 or 19, got ", o.depth));
  const int early = o.depth == 11 ? 1 : 2, late = o.depth <= 13 ? 2 : o.depth == 16 ? 3 : 4;
  const struct { int channels, convolutions; } stages[] = {{64, early}, {128, early}, {256, late}, {512, late}, {512, late}};

  Sequential features;
  int in = 3;
  for (const auto& stage : stages) {
    const int out = make_divisible(stage.channels * o.width);
    for (int i = 0; i < stage.convolutions; ++i, in = out) {
      features.add(Conv2d{{.in = in, .out = out, .kernel = 3, .padding = 1}});
      features.add(ReLU{});
    }
    features.add(MaxPool2d{2});
  }
  const int hidden = make_divisible(4096 * o.width);
  Sequential net;
  net.add("features", std::move(features));
  net.add("avgpool", AdaptiveAvgPool2d{7});
  net.add("flatten", Flatten{});
  net.add("classifier", Sequential{Linear{7 * 7 * in, hidden}, ReLU{}, Dropout{o.dropout}, Linear{hidden, hidden}, ReLU{},
                                   Dropout{o.dropout}, Linear{hidden, o.classes}});
  return net;
}

}  // namespace rewind_lib::nn::models
