#include <rewind/nn/layers.h>
#include <rewind/nn/models/alexnet.h>
#include <rewind/nn/models/width.h>

namespace rewind_lib::nn::models {

Sequential alexnet(AlexNetOptions o) {
  if (!(o.width > 0)) fail(str("alexnet: width must be positive, got ", o.width));
  const auto scaled = [&](int channels) { return make_divisible(channels * o.width); };
  const int c1 = scaled(64), c2 = scaled(192), c3 = scaled(384), c4 = scaled(256), hidden = scaled(4096);
  const PoolOptions pool{.kernel = 3, .stride = 2};

  Sequential net;
  net.add("features", Sequential{Conv2d{{.in = 3, .out = c1, .kernel = 11, .stride = 4, .padding = 2}}, ReLU{}, MaxPool2d{pool},
                                 Conv2d{{.in = c1, .out = c2, .kernel = 5, .padding = 2}}, ReLU{}, MaxPool2d{pool},
                                 Conv2d{{.in = c2, .out = c3, .kernel = 3, .padding = 1}}, ReLU{},
                                 Conv2d{{.in = c3, .out = c4, .kernel = 3, .padding = 1}}, ReLU{},
                                 Conv2d{{.in = c4, .out = c4, .kernel = 3, .padding = 1}}, ReLU{}, MaxPool2d{pool}});
  net.add("avgpool", AdaptiveAvgPool2d{6});
  net.add("flatten", Flatten{});
  net.add("classifier", Sequential{Dropout{o.dropout}, Linear{6 * 6 * c4, hidden}, ReLU{}, Dropout{o.dropout},
                                   Linear{hidden, hidden}, ReLU{}, Linear{hidden, o.classes}});
  return net;
}

}  // namespace rewind_lib::nn::models
