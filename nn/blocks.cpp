#include <rewind/nn/blocks.h>

namespace rewind_lib::nn {

Tensor activate(Tensor x, Activation activation) {
  switch (activation) {
    case Activation::relu: return relu(std::move(x));
    case Activation::relu6: return relu6(std::move(x));
    case Activation::silu: return silu(std::move(x));
    case Activation::hardswish: return hardswish(std::move(x));
    case Activation::hardsigmoid: return hardsigmoid(std::move(x));
    case Activation::sigmoid: return sigmoid(std::move(x));
    case Activation::tanh: return tanh(std::move(x));
    case Activation::gelu: return gelu(std::move(x));
    case Activation::none: break;
  }
  return x;
}

void add_activation(Sequential& chain, Activation activation) {
  switch (activation) {
    case Activation::relu: chain.add(ReLU{}); break;
    case Activation::relu6: chain.add(ReLU6{}); break;
    case Activation::silu: chain.add(SiLU{}); break;
    case Activation::hardswish: chain.add(Hardswish{}); break;
    case Activation::hardsigmoid: chain.add(Hardsigmoid{}); break;
    case Activation::sigmoid: chain.add(Sigmoid{}); break;
    case Activation::tanh: chain.add(Tanh{}); break;
    case Activation::gelu: chain.add(GELU{}); break;
    case Activation::none: break;
  }
}

Sequential conv_norm(Conv2dOptions conv, Activation activation, NormOptions norm) {
  conv.bias = false;
  Sequential chain{Conv2d{conv}, BatchNorm2d{{.channels = conv.out, .eps = norm.eps, .momentum = norm.momentum}}};
  add_activation(chain, activation);
  return chain;
}

Sequential depthwise_norm(int channels, Pair kernel, Pair stride, Activation activation, NormOptions norm) {
  const Pair padding{kernel.h / 2, kernel.w / 2};
  Sequential chain{DepthwiseConv2d{{.channels = channels, .kernel = kernel, .stride = stride, .padding = padding, .bias = false}},
                   BatchNorm2d{{.channels = channels, .eps = norm.eps, .momentum = norm.momentum}}};
  add_activation(chain, activation);
  return chain;
}

Tensor add_shortcut(Pending p, Pending shortcut, Activation activation) {
  const bool at_once = activation == Activation::none || activation == Activation::relu || activation == Activation::relu6;
  if (p.any() && p.epilogue == Epilogue::none && at_once && p.x.shape() == shortcut.x.shape()) {
    if (activation != Activation::none) p.epilogue = activation == Activation::relu ? Epilogue::relu : Epilogue::relu6;
    return settle(std::move(p), std::move(shortcut));
  }
  return activate(add(settle(std::move(p)), settle(std::move(shortcut))), activation);
}

Residual::Residual(Sequential main, Sequential shortcut, Activation activation)
    : main_(std::move(main)), shortcut_(std::move(shortcut)), activation_(activation) {}

bool Residual::can_fuse() const { return main_.takes_pending() && (shortcut_.size() == 0 || shortcut_.takes_pending()); }

Tensor Residual::load(Pending p) {
  Pending kept = shortcut_.size() > 0 ? shortcut_.forward_pending(p) : p;
  return add_shortcut(main_.forward_pending(std::move(p)), std::move(kept), activation_);
}

void Residual::describe(Fields& f) {
  main_.describe(f);
  if (shortcut_.size() > 0) f.child("downsample", shortcut_);
}

Concat::Concat(Sequential first, Sequential second) : first_(std::move(first)), second_(std::move(second)) {}

Tensor Concat::forward(Tensor x) {
  Tensor a = first_.forward(x);
  Tensor b = second_.forward(std::move(x));
  return concat(std::move(a), std::move(b), -1);
}

void Concat::describe(Fields& f) {
  first_.describe(f);
  second_.describe(f);
}

DepthwiseSeparable::DepthwiseSeparable(DepthwiseSeparableOptions o)
    : depthwise_(depthwise_norm(o.in, o.kernel, o.stride, o.activation)),
      pointwise_(conv_norm({.in = o.in, .out = o.out, .kernel = 1}, o.activation)) {}

Tensor DepthwiseSeparable::forward(Tensor x) { return pointwise_(depthwise_(std::move(x))); }

void DepthwiseSeparable::describe(Fields& f) {
  f.child("depthwise", depthwise_);
  f.child("pointwise", pointwise_);
}

PreActivationBottleneck::PreActivationBottleneck(PreActivationBottleneckOptions o)
    : bn1_(o.in),
      bn2_(o.width),
      bn3_(o.width),
      conv1_({.in = o.in, .out = o.width, .kernel = 1, .bias = false}),
      conv2_({.in = o.width, .out = o.width, .kernel = 3, .stride = o.stride, .padding = 1, .bias = false}),
      conv3_({.in = o.width, .out = 4 * o.width, .kernel = 1, .bias = false}) {
  if (o.stride != 1 || o.in != 4 * o.width)
    shortcut_.add("conv", Conv2d{{.in = o.in, .out = 4 * o.width, .kernel = 1, .stride = o.stride, .bias = false}});
}

schedule::Value PreActivationBottleneck::pass(schedule::Value x, bool statistics) {
  const auto normalise = [](BatchNorm2d& norm, schedule::Value a) {
    Pending p = norm.pass(std::move(a), Epilogue::relu);
    norm.tell_observers(p.x.shape(), p.any());
    return p;
  };
  const auto convolve = [](Conv2d& conv, Pending p, bool wanted, Tensor residual = {}) {
    schedule::Value y = conv.pass(std::move(p), wanted, std::move(residual));
    conv.tell_observers(y.x.shape());
    return y;
  };
  const bool same_shape = shortcut_.size() == 0;
  Tensor kept = same_shape ? x.x : Tensor();
  Pending h = normalise(bn1_, std::move(x));
  if (!same_shape) kept = convolve(static_cast<Conv2d&>(shortcut_[0]), h, false).x;
  schedule::Value y = convolve(conv1_, std::move(h), bn2_.training());
  y = convolve(conv2_, normalise(bn2_, std::move(y)), bn3_.training());
  return convolve(conv3_, normalise(bn3_, std::move(y)), statistics, std::move(kept));
}

void PreActivationBottleneck::describe(Fields& f) {
  f.child("bn1", bn1_);
  f.child("conv1", conv1_);
  f.child("bn2", bn2_);
  f.child("conv2", conv2_);
  f.child("bn3", bn3_);
  f.child("conv3", conv3_);
  if (shortcut_.size() > 0) f.child("downsample", shortcut_[0]);
}

SqueezeExcite::SqueezeExcite(SqueezeExciteOptions o)
    : fc1_({.in = o.channels, .out = o.squeeze}),
      fc2_({.in = o.squeeze, .out = o.channels}),
      activation_(o.activation),
      gate_(o.gate) {}

Tensor SqueezeExcite::forward(Tensor x) {
  const std::int64_t images = x.size(0), channels = x.size(-1);
  Tensor s = reshape(global_avg_pool(x), Shape{images, 1, 1, channels});
  s = activate(fc1_(std::move(s)), activation_);
  s = activate(fc2_(std::move(s)), gate_);
  return mul(std::move(x), std::move(s));
}

void SqueezeExcite::describe(Fields& f) {
  f.child("fc1", fc1_);
  f.child("fc2", fc2_);
}

InvertedBottleneck::InvertedBottleneck(InvertedBottleneckOptions o)
    : names_(o.names),
      residual_(o.stride.h == 1 && o.stride.w == 1 && o.in == o.out && o.kernel.h % 2 == 1 && o.kernel.w % 2 == 1) {
  if (o.expand < 1) fail(str("InvertedBottleneck: expand must be at least 1, got ", o.expand));
  if (o.hidden < 0) fail(str("InvertedBottleneck: hidden must not be negative, got ", o.hidden));
  if (o.squeeze_excite < 0) fail(str("InvertedBottleneck: squeeze_excite must not be negative, got ", o.squeeze_excite));
  if (residual_ && o.stochastic_depth != 0) skip_.emplace(o.stochastic_depth);
  const int hidden = o.hidden > 0 ? o.hidden : o.in * o.expand;
  const auto add = [&](Sequential part, bool by_itself) {
    if (by_itself)
      conv_.add(std::move(part));
    else
      conv_.extend(std::move(part));
  };
  const bool in_a_row = names_ == BlockNames::mnasnet;
  if (hidden != o.in) add(conv_norm({.in = o.in, .out = hidden, .kernel = 1}, o.activation, o.norm), !in_a_row);
  add(depthwise_norm(hidden, o.kernel, o.stride, o.activation, o.norm), !in_a_row);
  if (o.squeeze_excite > 0)
    conv_.add(SqueezeExcite{{.channels = hidden, .squeeze = o.squeeze_excite, .activation = o.squeeze_activation, .gate = o.gate}});
  add(conv_norm({.in = hidden, .out = o.out, .kernel = 1}, Activation::none, o.norm), names_ == BlockNames::mobilenet_v3);
}

Tensor InvertedBottleneck::load(Pending p) {
  if (!residual_) return settle(conv_.forward_pending(std::move(p)));
  Pending y = conv_.forward_pending(p);
  if (skip_ && skip_->active()) y = {(*skip_)(settle(std::move(y)))};
  return add_shortcut(std::move(y), std::move(p));
}

void InvertedBottleneck::describe(Fields& f) {
  const char* const names[] = {"conv", "block", "layers"};
  f.child(names[static_cast<int>(names_)], conv_);
  if (skip_) f.child("stochastic_depth", *skip_);
}

}  // namespace rewind_lib::nn
