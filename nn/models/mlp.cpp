#include <rewind/nn/layers.h>
#include <rewind/nn/models/mlp.h>

namespace rewind_lib::nn::models {

Sequential mlp(const std::vector<int>& widths) {
  if (widths.size() < 2) fail(str("mlp: needs the widths of input and output at least, got ", widths.size()));
  Sequential net{Flatten{}};
  for (std::size_t i = 1; i < widths.size(); ++i) {
    if (i > 1) net.add(ReLU{});
    net.add(Linear{widths[i - 1], widths[i]});
  }
  return net;
}

}  // namespace rewind_lib::nn::models
