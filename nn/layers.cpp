#include <rewind/autograd/grad_mode.h>
#include <rewind/nn/init.h>
#include <rewind/nn/layers.h>

#include <cmath>

namespace rewind_lib::nn {
namespace {

Tensor parameter(const Shape& shape, double value = 0) {
  const memory::CategoryScope scope(Category::parameter);
  Tensor t = full(shape, value);
  t.set_requires_grad();
  return t;
}

Tensor buffer(const Shape& shape, double value, DType dtype = float32) {
  const memory::CategoryScope scope(Category::parameter);
  return full(shape, value, dtype);
}

void check_positive(const char* layer, const char* what, int value) {
  if (value < 1) fail(str(layer, ": ", what, " must be at least 1, got ", value));
}

void check_probability(const char* layer, double p) {
  if (!(p >= 0 && p < 1)) fail(str(layer, ": p must be in [0, 1), got ", p));
}

void check_window(const char* layer, Pair kernel, Pair stride, Pair padding, Pair dilation) {
  const auto check = [&](const char* what, Pair p, int least) {
    if (p.h < least || p.w < least) fail(str(layer, ": ", what, " must be at least ", least, ", got ", p.h, " x ", p.w));
  };
  check("kernel", kernel, 1);
  check("stride", stride, 1);
  check("padding", padding, 0);
  check("dilation", dilation, 1);
}

/// Of convolution layers: as one op, or one by one where that is off.
template <class Conv>
schedule::Value pass_through(Conv& conv, FusedConvOptions options, Pending p, Tensor residual) {
  const PathLabel label(conv);
  depends_on(conv.fusing(), "fuse()");
  if (conv.can_fuse()) {
    FusedConvResult r = fused_conv2d(std::move(p), conv.weight, options, std::move(residual));
    return {std::move(r.y), std::move(r.mean), std::move(r.var)};
  }
  Tensor y = conv.forward(settle(std::move(p)));
  return {residual.defined() ? add(std::move(y), std::move(residual)) : std::move(y)};
}

bool undilated(Pair dilation) { return dilation.h == 1 && dilation.w == 1; }

/// The means of `out` ranges that cover an axis.
Tensor average_ranges(Tensor x, int axis, int out) {
  const std::int64_t n = x.size(axis);
  if (n == out) return x;
  Tensor all;  // one by one: a list of them would be the one thing of a step that is allocated on the heap
  for (int i = 0; i < out; ++i) {
    const std::int64_t begin = i * n / out, end = ((i + 1) * n + out - 1) / out;
    const int count = static_cast<int>(end - begin);
    Tensor one = avg_pool2d(slice(x, axis, begin, end), {.kernel = axis == 1 ? Pair{count, 1} : Pair{1, count}});
    all = all.defined() ? concat(std::move(all), std::move(one), axis) : std::move(one);
  }
  return all;
}

}  // namespace

Linear::Linear(LinearOptions o) {
  check_positive("Linear", "in", o.in);
  check_positive("Linear", "out", o.out);
  weight = parameter({o.out, o.in});
  const double bound = 1 / std::sqrt(static_cast<double>(o.in));
  init::uniform(weight, -bound, bound);
  if (o.bias) bias = parameter({o.out});
}

Tensor Linear::forward(Tensor x, Epilogue then) { return linear(std::move(x), weight, bias, then); }

void Linear::describe(Fields& f) {
  f.parameter("weight", weight);
  f.parameter("bias", bias);
}

Conv2d::Conv2d(Conv2dOptions o) : options_{.stride = o.stride, .padding = o.padding, .dilation = o.dilation, .groups = o.groups} {
  check_positive("Conv2d", "in", o.in);
  check_positive("Conv2d", "out", o.out);
  check_positive("Conv2d", "groups", o.groups);
  check_window("Conv2d", o.kernel, o.stride, o.padding, o.dilation);
  if (o.in % o.groups != 0 || o.out % o.groups != 0)
    fail(str("Conv2d: ", o.groups, " groups do not divide both ", o.in, " input and ", o.out, " output channels"));
  weight = parameter({o.out, o.kernel.h, o.kernel.w, o.in / o.groups});
  init::kaiming_normal(weight);
  if (o.bias) bias = parameter({o.out});
}

Tensor Conv2d::forward(Tensor x, Epilogue then) {
  ConvOptions options = options_;
  options.epilogue = then;
  return conv2d(std::move(x), weight, bias, options);
}

Tensor Conv2d::forward(Tensor x, Epilogue then, const PoolOptions& pool) {
  ConvOptions options = options_;
  options.epilogue = then;
  return conv2d_max_pool(std::move(x), weight, bias, options, pool);
}

bool Conv2d::can_fuse() const {
  return fusing() && options_.groups == 1 && undilated(options_.dilation) &&
         fused_conv2d_covers(weight.shape(), {options_.stride, options_.padding});
}

schedule::Value Conv2d::pass(Pending p, bool statistics, Tensor residual) {
  return pass_through(*this, {options_.stride, options_.padding, statistics}, std::move(p), std::move(residual));
}

void Conv2d::describe(Fields& f) {
  f.parameter("weight", weight);
  f.parameter("bias", bias);
}

DepthwiseConv2d::DepthwiseConv2d(DepthwiseConv2dOptions o)
    : options_{.stride = o.stride, .padding = o.padding, .dilation = o.dilation} {
  check_positive("DepthwiseConv2d", "channels", o.channels);
  check_window("DepthwiseConv2d", o.kernel, o.stride, o.padding, o.dilation);
  weight = parameter({o.kernel.h, o.kernel.w, o.channels});
  init::kaiming_normal(weight);
  if (o.bias) bias = parameter({o.channels});
}

Tensor DepthwiseConv2d::forward(Tensor x) { return depthwise_conv2d(std::move(x), weight, bias, options_); }

bool DepthwiseConv2d::can_fuse() const {
  return fusing() && undilated(options_.dilation) && fused_conv2d_covers(weight.shape(), {options_.stride, options_.padding});
}

schedule::Value DepthwiseConv2d::pass(Pending p, bool statistics, Tensor residual) {
  return pass_through(*this, {options_.stride, options_.padding, statistics}, std::move(p), std::move(residual));
}

void DepthwiseConv2d::describe(Fields& f) {
  f.parameter("weight", weight);
  f.parameter("bias", bias);
}

BatchNorm2d::BatchNorm2d(BatchNorm2dOptions o) : options_{.eps = o.eps, .momentum = o.momentum} {
  check_positive("BatchNorm2d", "channels", o.channels);
  if (!(o.momentum >= 0 && o.momentum <= 1)) fail(str("BatchNorm2d: momentum must lie in [0, 1], got ", o.momentum));
  if (!(o.eps >= 0)) fail(str("BatchNorm2d: eps must not be negative, got ", o.eps));
  const Shape shape{o.channels};
  if (o.affine) {
    weight = parameter(shape, 1);
    bias = parameter(shape);
  }
  running_mean = buffer(shape, 0);
  running_var = buffer(shape, 1);
  num_batches_tracked = buffer({}, 0, int64);
}

Tensor BatchNorm2d::forward(Tensor x, Epilogue then) {
  note_mode();
  BatchNormOptions options = options_;
  options.epilogue = then;
  if (!training()) return batch_norm_inference(std::move(x), weight, bias, running_mean, running_var, options);
  // One value a channel cannot be trained on, but the shapes of a single image can be asked for.
  const bool shapes_of_one_value = DryLedger::active() && x.numel() == running_mean.numel();
  if (shapes_of_one_value) return batch_norm(std::move(x), weight, bias, {}, {}, options);
  Tensor y = batch_norm(std::move(x), weight, bias, running_mean, running_var, options);
  count_batch();
  return y;
}

Pending BatchNorm2d::pass(schedule::Value x, Epilogue then, const Tensor& bias_before) {
  const PathLabel label(*this);
  note_mode();
  depends_on(fusing(), "fuse()");
  if (bias_before.defined() && !(bias_before.shape() == running_mean.shape()))
    fail(str("BatchNorm2d: the convolution before it has a bias of shape ", bias_before.shape(), ", but makes ",
             running_mean.numel(), " channels"));
  const bool alone = !fusing() || (training() && (!x.mean.defined() || x.x.numel() == running_mean.numel()));
  if (alone) {
    Tensor y = bias_before.defined() ? add(std::move(x.x), bias_before) : std::move(x.x);
    if (then == Epilogue::hardswish) return {hardswish(forward(std::move(y)))};
    if (then == Epilogue::silu) return {silu(forward(std::move(y)))};
    return {forward(std::move(y), then)};
  }
  Pending p{.x = std::move(x.x), .gamma = weight, .beta = bias, .eps = options_.eps, .epilogue = then};
  p.mean = training() ? std::move(x.mean) : running_mean;
  p.var = training() ? x.var : running_var;
  if (training()) {
    if (bias_before.defined()) p.mean = add(std::move(p.mean), bias_before);
    move_running_statistics(p.mean, p.var, running_mean, running_var, p.x.numel() / running_mean.numel(), options_.momentum);
    count_batch();
  }
  // (x + bias) - mean = x - (mean - bias). In training that is x's own mean again, and the bias has no influence.
  if (bias_before.defined()) p.mean = sub(std::move(p.mean), bias_before);
  return p;
}

void BatchNorm2d::count_batch() {
  // The ops leave the running statistics alone in these two cases; so must the count.
  if (!replaying() && !DryLedger::active()) ++num_batches_tracked.mutate<std::int64_t>()[0];
}

void BatchNorm2d::describe(Fields& f) {
  f.parameter("weight", weight);
  f.parameter("bias", bias);
  f.buffer("running_mean", running_mean);
  f.buffer("running_var", running_var);
  f.buffer("num_batches_tracked", num_batches_tracked);
}

LayerNorm::LayerNorm(LayerNormOptions o) : eps_(o.eps) {
  check_positive("LayerNorm", "features", o.features);
  if (!(o.eps >= 0)) fail(str("LayerNorm: eps must not be negative, got ", o.eps));
  weight = parameter({o.features}, 1);
  bias = parameter({o.features});
}

Tensor LayerNorm::forward(Tensor x) { return layer_norm(std::move(x), weight, bias, eps_); }

void LayerNorm::describe(Fields& f) {
  f.parameter("weight", weight);
  f.parameter("bias", bias);
}

Tensor ReLU::forward(Tensor x) { return relu(std::move(x)); }
Tensor ReLU6::forward(Tensor x) { return relu6(std::move(x)); }
Tensor SiLU::forward(Tensor x) { return silu(std::move(x)); }
Tensor Hardswish::forward(Tensor x) { return hardswish(std::move(x)); }
Tensor Hardsigmoid::forward(Tensor x) { return hardsigmoid(std::move(x)); }
Tensor Sigmoid::forward(Tensor x) { return sigmoid(std::move(x)); }
Tensor Tanh::forward(Tensor x) { return tanh(std::move(x)); }
Tensor GELU::forward(Tensor x) { return gelu(std::move(x)); }

Tensor MaxPool2d::forward(Tensor x) { return max_pool2d(std::move(x), options_); }
Tensor AvgPool2d::forward(Tensor x) { return avg_pool2d(std::move(x), options_); }
Tensor GlobalAvgPool::forward(Tensor x) { return global_avg_pool(std::move(x)); }

AdaptiveAvgPool2d::AdaptiveAvgPool2d(Pair out) : out_(out) {
  if (out.h < 1 || out.w < 1) fail(str("AdaptiveAvgPool2d: the output must be at least 1 x 1, got ", out.h, " x ", out.w));
}
Tensor AdaptiveAvgPool2d::forward(Tensor x) {
  if (x.rank() != 4) fail(str("AdaptiveAvgPool2d: x must be [N, H, W, C], but is ", x.shape()));
  const std::int64_t h = x.size(1), w = x.size(2);
  if (h * w == 0) fail(str("AdaptiveAvgPool2d: images without pixels have no mean, x is ", x.shape()));
  if (h == out_.h && w == out_.w) return x;
  if (h % out_.h == 0 && w % out_.w == 0)
    return avg_pool2d(std::move(x), {.kernel = {static_cast<int>(h / out_.h), static_cast<int>(w / out_.w)}});
  return average_ranges(average_ranges(std::move(x), 1, out_.h), 2, out_.w);
}

ChannelShuffle::ChannelShuffle(int groups) : groups_(groups) { check_positive("ChannelShuffle", "groups", groups); }
Tensor ChannelShuffle::forward(Tensor x) {
  const Shape shape = x.shape();
  const std::int64_t channels = shape.rank() == 0 ? 0 : shape[shape.rank() - 1];
  if (channels % groups_ != 0 || channels == 0)
    fail(str("ChannelShuffle: the last axis of ", shape, " cannot be divided into ", groups_, " groups"));
  const std::int64_t pixels = x.numel() / channels;
  return reshape(permute(reshape(std::move(x), {pixels, groups_, channels / groups_}), {0, 2, 1}), shape);
}

Dropout::Dropout(double p) : p_(p) { check_probability("Dropout", p); }
Tensor Dropout::forward(Tensor x) {
  if (!training() || p_ == 0) return x;
  return dropout(std::move(x), p_);
}

StochasticDepth::StochasticDepth(double p) : p_(p) { check_probability("StochasticDepth", p); }
Tensor StochasticDepth::forward(Tensor x) {
  if (!active()) return x;
  if (x.rank() == 0) fail(str("StochasticDepth: the first axis counts samples, but the input is ", x.shape()));
  Shape samples = x.shape();
  for (int axis = 1; axis < samples.rank(); ++axis) samples.set(axis, 1);
  // dropout, as an op, draws the same numbers again when it is recomputed.
  Tensor mask = dropout(ones(samples, x.dtype()), p_);
  return mul(std::move(x), std::move(mask));
}

Tensor Flatten::forward(Tensor x) {
  const std::int64_t rows = x.rank() == 0 ? 1 : x.size(0);
  std::int64_t columns = 1;
  for (int axis = 1; axis < x.rank(); ++axis) columns *= x.size(axis);
  return reshape(std::move(x), Shape{rows, columns});
}

}  // namespace rewind_lib::nn
