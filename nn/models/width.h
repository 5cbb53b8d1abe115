#pragma once
// Channels of nets that come in several widths.

#include <rewind/core/namespace.h>

namespace rewind_lib::nn::models {

/// The multiple of `divisor` nearest to v, but not below 90 % of it. Throws Error above a million.
int make_divisible(double v, int divisor = 8);

}  // namespace rewind_lib::nn::models
