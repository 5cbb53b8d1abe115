#include <rewind/core/error.h>
#include <rewind/nn/models/width.h>

#include <algorithm>

namespace rewind_lib::nn::models {

int make_divisible(double v, int divisor) {
  if (!(v <= 1e6)) fail(str("models: ", v, " channels are too many; choose a smaller width"));
  const int rounded = std::max(divisor, static_cast<int>(v + divisor / 2.0) / divisor * divisor);
  return rounded < 0.9 * v ? rounded + divisor : rounded;
}

}  // namespace rewind_lib::nn::models
