#pragma once
// The layers. Images are [N, H, W, C]. Weights and biases are public members; biases start at zero, batch and layer
// normalisation at gamma 1 and beta 0, convolutions Kaiming normal on the fan-in, Linear uniform on +-1 / sqrt(in).
// nn/init.h has the others: init::xavier_uniform(layer.weight).
//
// Constructors throw Error for counts and kernels below 1, negative padding or eps; forward for an x that does not fit.

#include <rewind/nn/fusing.h>
#include <rewind/nn/module.h>

namespace rewind_lib::nn {

struct LinearOptions {
  int in = 0;
  int out = 0;
  bool bias = true;
};
/// [..., in] -> [..., out].
class Linear final : public Module, public TakesActivation {
 public:
  explicit Linear(LinearOptions options);
  Linear(int in, int out, bool with_bias = true) : Linear(LinearOptions{in, out, with_bias}) {}
  Tensor forward(Tensor x) override { return forward(std::move(x), Epilogue::none); }
  Tensor forward(Tensor x, Epilogue then) override;
  void describe(Fields& f) override;

  Tensor weight;  ///< [out, in]
  Tensor bias;    ///< [out], or undefined
};

struct Conv2dOptions {
  int in = 0;
  int out = 0;
  Pair kernel = 1;
  Pair stride = 1;
  Pair padding = 0;
  Pair dilation = 1;
  int groups = 1;
  bool bias = true;
};
/// [N, H, W, in] -> [N, OH, OW, out].
class Conv2d final : public Module, public TakesActivation, public TakesPool, public GivesStatistics {
 public:
  /// Throws Error when groups do not divide in and out.
  explicit Conv2d(Conv2dOptions options);
  Tensor forward(Tensor x) override { return forward(std::move(x), Epilogue::none); }
  Tensor forward(Tensor x, Epilogue then) override;
  Tensor forward(Tensor x, Epilogue then, const PoolOptions& pool) override;
  Shape unpooled(const Shape& x) const override { return conv2d_shape(x, weight.shape(), options_); }
  /// Without groups and dilation.
  bool can_fuse() const override;
  schedule::Value pass(Pending p, bool statistics, Tensor residual = {}) override;
  const Tensor& bias_left() const override { return bias; }
  void describe(Fields& f) override;

  Tensor weight;  ///< [out, KH, KW, in / groups]
  Tensor bias;    ///< [out], or undefined

 private:
  ConvOptions options_;
};

struct DepthwiseConv2dOptions {
  int channels = 0;
  Pair kernel = 3;
  Pair stride = 1;
  Pair padding = 0;
  Pair dilation = 1;
  bool bias = true;
};
/// A filter a channel: [N, H, W, C] -> [N, OH, OW, C].
class DepthwiseConv2d final : public Module, public GivesStatistics {
 public:
  explicit DepthwiseConv2d(DepthwiseConv2dOptions options);
  Tensor forward(Tensor x) override;
  /// 3x3 and 5x5, stride 1 and 2, without dilation.
  bool can_fuse() const override;
  schedule::Value pass(Pending p, bool statistics, Tensor residual = {}) override;
  const Tensor& bias_left() const override { return bias; }
  void describe(Fields& f) override;

  Tensor weight;  ///< [KH, KW, C]
  Tensor bias;    ///< [C], or undefined

 private:
  DepthwiseOptions options_;
};

struct BatchNorm2dOptions {
  int channels = 0;
  double eps = 1e-5;
  double momentum = 0.1;  ///< of the running statistics: running = (1 - momentum) running + momentum batch
  bool affine = true;
};
/// Normalises each channel (the last axis) over all the others: in training by the batch's own statistics, which also move
/// the running ones, once a step whether it is recomputed or not; in evaluation by the running ones. In training a channel needs
/// two values (Error): of one there is no variance.
class BatchNorm2d final : public Module, public TakesActivation {
 public:
  explicit BatchNorm2d(BatchNorm2dOptions options);
  explicit BatchNorm2d(int channels) : BatchNorm2d(BatchNorm2dOptions{.channels = channels}) {}
  Tensor forward(Tensor x) override { return forward(std::move(x), Epilogue::none); }
  Tensor forward(Tensor x, Epilogue then) override;
  /// then(forward(x + bias)), with the normalisation left for the next module to do. If x comes without its statistics, in
  /// training, all is computed here. bias [C] is the one that the convolution before has left out; it may be undefined.
  Pending pass(schedule::Value x, Epilogue then = Epilogue::none, const Tensor& bias = {});
  void describe(Fields& f) override;

  Tensor weight, bias;               ///< gamma and beta, [C]; undefined when not affine
  Tensor running_mean, running_var;  ///< [C]; the variance is the unbiased estimate
  Tensor num_batches_tracked;        ///< int64, one element: training steps so far

 private:
  void count_batch();

  BatchNormOptions options_;
};

struct LayerNormOptions {
  int features = 0;
  double eps = 1e-5;
};
/// Normalises over the last axis, which has `features` elements.
class LayerNorm final : public Module {
 public:
  explicit LayerNorm(LayerNormOptions options);
  explicit LayerNorm(int features) : LayerNorm(LayerNormOptions{.features = features}) {}
  Tensor forward(Tensor x) override;
  void describe(Fields& f) override;

  Tensor weight, bias;  ///< gamma and beta, [features]

 private:
  double eps_;
};

// Activations, element by element; autograd/functional.h says what they compute.
class ReLU final : public Module {
 public:
  Tensor forward(Tensor x) override;
};
class ReLU6 final : public Module {
 public:
  Tensor forward(Tensor x) override;
};
class SiLU final : public Module {
 public:
  Tensor forward(Tensor x) override;
};
class Hardswish final : public Module {
 public:
  Tensor forward(Tensor x) override;
};
class Hardsigmoid final : public Module {
 public:
  Tensor forward(Tensor x) override;
};
class Sigmoid final : public Module {
 public:
  Tensor forward(Tensor x) override;
};
class Tanh final : public Module {
 public:
  Tensor forward(Tensor x) override;
};
class GELU final : public Module {
 public:
  Tensor forward(Tensor x) override;
};

class MaxPool2d final : public Module {
 public:
  explicit MaxPool2d(PoolOptions options = {}) : options_(options) {}
  explicit MaxPool2d(int kernel) : options_{.kernel = kernel} {}
  Tensor forward(Tensor x) override;
  const PoolOptions& options() const { return options_; }

 private:
  PoolOptions options_;
};

/// Padding counts as zeros, in the divisor too.
class AvgPool2d final : public Module {
 public:
  explicit AvgPool2d(PoolOptions options = {}) : options_(options) {}
  explicit AvgPool2d(int kernel) : options_{.kernel = kernel} {}
  Tensor forward(Tensor x) override;

 private:
  PoolOptions options_;
};

/// [N, H, W, C] -> [N, out.h, out.w, C], whatever H and W: output i is the mean of rows floor(i H / out.h) to
/// ceil((i + 1) H / out.h), and of columns likewise.
class AdaptiveAvgPool2d final : public Module {
 public:
  /// Throws Error when an extent is below 1.
  explicit AdaptiveAvgPool2d(Pair out);
  Tensor forward(Tensor x) override;

 private:
  Pair out_;
};

/// [N, H, W, C] -> [N, C].
class GlobalAvgPool final : public Module {
 public:
  Tensor forward(Tensor x) override;
};

/// Deals the channels out like cards: of `groups` runs of C / groups channels, first the first of each, then the second ...
/// What a grouped convolution made apart, the next one then sees together (Zhang et al. 2018, ShuffleNet, section 3.1).
class ChannelShuffle final : public Module {
 public:
  /// Throws Error when there is less than one group.
  explicit ChannelShuffle(int groups);
  Tensor forward(Tensor x) override;

 private:
  int groups_;
};

/// Zeroes elements with probability p in training, does nothing in evaluation.
class Dropout final : public Module {
 public:
  /// Throws Error unless 0 <= p < 1.
  explicit Dropout(double p = 0.5);
  Tensor forward(Tensor x) override;

 private:
  double p_;
};

/// Zeroes whole samples with probability p in training and scales the others by 1 / (1 - p); does nothing in evaluation (Huang
/// et al. 2016, "Deep networks with stochastic depth"). Around a residual block's main path a sample skips the block.
class StochasticDepth final : public Module {
 public:
  /// Throws Error unless 0 <= p < 1.
  explicit StochasticDepth(double p);
  Tensor forward(Tensor x) override;
  /// Whether forward changes anything.
  bool active() const {
    note_mode();
    return training() && p_ > 0;
  }

 private:
  double p_;
};

/// [N, H, W, C] -> [N, H W C], in that order.
class Flatten final : public Module {
 public:
  Tensor forward(Tensor x) override;
};

class Identity final : public Module {
 public:
  Tensor forward(Tensor x) override { return x; }
};

}  // namespace rewind_lib::nn
