#include <rewind/nn/layers.h>
#include <rewind/nn/models/lenet5.h>

namespace rewind_lib::nn::models {

Sequential lenet5(LeNet5Options o) {
  if (o.size < 16 || o.size > 40000) fail(str("lenet5: size must be 16 to 40000, got ", o.size));
  const int side = ((o.size - 4) / 2 - 4) / 2;  // two 5x5 convolutions, each halved after
  Sequential net;
  net.add("features", Sequential{Conv2d{{.in = o.channels, .out = 6, .kernel = 5}}, ReLU{}, MaxPool2d{2},
                                 Conv2d{{.in = 6, .out = 16, .kernel = 5}}, ReLU{}, MaxPool2d{2}, Flatten{}});
  net.add("classifier", Sequential{Linear{16 * side * side, 120}, ReLU{}, Linear{120, 84}, ReLU{}, Linear{84, o.classes}});
  return net;
}

}  // namespace rewind_lib::nn::models
