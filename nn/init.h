#pragma once
// Initialisation: fills weights in place, from the default generator; random ones throw Error for integer tensors. A dry run leaves
// elements alone, and takes as many random numbers.

#include <rewind/core/tensor.h>

namespace rewind_lib::nn::init {

/// Inputs that one output of a layer reads, and outputs that one input reaches, from the shape of its weight: [out, in];
/// [O, KH, KW, C]; or depthwise [KH, KW, C], where both are KH KW. As in PyTorch, groups do not lower a convolution's
/// fan-out. Throws Error for other ranks.
struct Fans {
  std::int64_t in, out;
};
Fans fans(const Shape& weight);

/// The factor by which a layer's weights must be larger to make up for the non-linearity after it.
enum class Nonlinearity : std::uint8_t { linear, sigmoid, tanh, relu };
double gain(Nonlinearity after);

enum class Mode : std::uint8_t { fan_in, fan_out };

void constant(Tensor w, double value);
void normal(Tensor w, double mean, double stddev);
/// On [low, high). Throws Error when low is above high.
void uniform(Tensor w, double low, double high);

/// Variance gain^2 / fan: keeps the variance of activations (fan_in) or of gradients (fan_out) from layer to layer (He et
/// al. 2015, equations 10 and 14).
void kaiming_normal(Tensor w, Mode mode = Mode::fan_in, Nonlinearity after = Nonlinearity::relu);
void kaiming_uniform(Tensor w, Mode mode = Mode::fan_in, Nonlinearity after = Nonlinearity::relu);
/// Variance 2 gain^2 / (fan_in + fan_out): a compromise between the two (Glorot and Bengio 2010, equation 12).
void xavier_normal(Tensor w, Nonlinearity after = Nonlinearity::linear);
void xavier_uniform(Tensor w, Nonlinearity after = Nonlinearity::linear);

}  // namespace rewind_lib::nn::init
