#pragma once
// Blocks that nets are made of. Each holds a Sequential, so what it computes can be read off its constructor.

#include <rewind/nn/layers.h>
#include <rewind/nn/sequential.h>

#include <optional>

namespace rewind_lib::nn {

enum class Activation : std::uint8_t { none, relu, relu6, silu, hardswish, hardsigmoid, sigmoid, tanh, gelu };
Tensor activate(Tensor x, Activation activation);
/// Appends the layer of that activation; nothing for none.
void add_activation(Sequential& chain, Activation activation);

/// Of a batch normalisation; see BatchNorm2dOptions.
struct NormOptions {
  double eps = 1e-5;
  double momentum = 0.1;
};

/// Convolution without bias, batch normalisation, activation. The convolution's own `bias` is ignored.
Sequential conv_norm(Conv2dOptions conv, Activation activation = Activation::relu, NormOptions norm = {});
/// The same with a depthwise convolution, padded to keep height and width at stride 1 (by half of an odd kernel).
Sequential depthwise_norm(int channels, Pair kernel, Pair stride, Activation activation = Activation::relu, NormOptions norm = {});

/// activation(value of p + shortcut): in one pass where a normalisation is pending and the activation is a relu or none.
Tensor add_shortcut(Pending p, Pending shortcut, Activation activation = Activation::none);

/// activation(main(x) + shortcut(x)) (He et al. 2016). An empty shortcut is the identity. The children of `main` count as
/// the block's own ("conv1"), the shortcut is named "downsample", as PyTorch names them in its ResNets.
class Residual final : public Module, public TakesNormalisation {
 public:
  explicit Residual(Sequential main, Sequential shortcut = {}, Activation activation = Activation::none);
  Tensor forward(Tensor x) override { return load({std::move(x)}); }
  bool can_fuse() const override;
  Tensor load(Pending p) override;
  void describe(Fields& f) override;

 private:
  Sequential main_, shortcut_;
  Activation activation_;
};

/// first(x) and second(x), side by side along the channels (Huang et al. 2017, DenseNet). An empty chain is the identity. The
/// children of both count as the block's own, so no two may have the same name.
class Concat final : public Module {
 public:
  Concat(Sequential first, Sequential second);
  Tensor forward(Tensor x) override;
  void describe(Fields& f) override;

 private:
  Sequential first_, second_;
};

struct DepthwiseSeparableOptions {
  int in = 0;
  int out = 0;
  Pair kernel = 3;
  Pair stride = 1;
  Activation activation = Activation::relu;
};
/// A depthwise convolution and a 1x1 convolution, each normalised and activated (Howard et al. 2017, figure 3).
class DepthwiseSeparable final : public Module {
 public:
  explicit DepthwiseSeparable(DepthwiseSeparableOptions options);
  Tensor forward(Tensor x) override;
  void describe(Fields& f) override;
  std::vector<Sequential*> chains() override { return {&depthwise_, &pointwise_}; }

 private:
  Sequential depthwise_, pointwise_;
};

struct PreActivationBottleneckOptions {
  int in = 0;
  int width = 0;  ///< of the convolutions in the middle; four times as many channels come out
  int stride = 1;
};
/// h = relu(bn1(x)); conv3(relu(bn3(conv2(relu(bn2(conv1(h))))))) + shortcut, which is x itself, or a 1x1 convolution of h where
/// the shape changes (He et al. 2016, "Identity mappings in deep residual networks").
class PreActivationBottleneck final : public Module, public TakesStatistics {
 public:
  explicit PreActivationBottleneck(PreActivationBottleneckOptions options);
  Tensor forward(Tensor x) override { return pass({std::move(x)}, false).x; }
  bool can_fuse() const override { return fusing(); }
  bool wants_statistics() const override { return bn1_.training(); }
  schedule::Value pass(schedule::Value x, bool statistics) override;
  void describe(Fields& f) override;

 private:
  BatchNorm2d bn1_, bn2_, bn3_;
  Conv2d conv1_, conv2_, conv3_;
  Sequential shortcut_;
};

struct SqueezeExciteOptions {
  int channels = 0;
  int squeeze = 0;  ///< channels in the middle
  Activation activation = Activation::relu;
  Activation gate = Activation::sigmoid;
};
/// x times gate(fc2(activation(fc1(mean of x over height and width)))) (Hu et al. 2018).
class SqueezeExcite final : public Module {
 public:
  explicit SqueezeExcite(SqueezeExciteOptions options);
  Tensor forward(Tensor x) override;
  void describe(Fields& f) override;

 private:
  Conv2d fc1_, fc2_;  // 1x1 on one pixel
  Activation activation_, gate_;
};

/// How torchvision names the children of the block in each family of models, and so what they are called in files of
/// weights: "conv.0.0" with the projection as "conv.2" and "conv.3"; "block.0.0" with every part by itself (EfficientNet too);
/// and "layers.0", all in one row.
enum class BlockNames : std::uint8_t { mobilenet_v2, mobilenet_v3, mnasnet };

struct InvertedBottleneckOptions {
  int in = 0;
  int out = 0;
  int expand = 6;  ///< hidden channels: expand times in; no expanding convolution when that is in
  int hidden = 0;  ///< hidden channels, where they are no multiple; 0: see expand
  Pair kernel = 3;
  Pair stride = 1;
  int squeeze_excite = 0;  ///< channels of a SqueezeExcite after the depthwise convolution; 0: none
  Activation activation = Activation::relu6;
  Activation squeeze_activation = Activation::relu;  ///< inside the SqueezeExcite
  Activation gate = Activation::sigmoid;             ///< of the SqueezeExcite
  NormOptions norm = {};
  double stochastic_depth = 0;  ///< probability that a sample skips the block in training, where x is added
  BlockNames names = BlockNames::mobilenet_v2;
};
/// 1x1 expansion, depthwise convolution, linear 1x1 projection; x is added when stride is 1, in == out and the kernel is odd, so
/// that the shapes agree (Sandler et al. 2018, MobileNetV2).
class InvertedBottleneck final : public Module, public TakesNormalisation {
 public:
  explicit InvertedBottleneck(InvertedBottleneckOptions options);
  Tensor forward(Tensor x) override { return load({std::move(x)}); }
  bool can_fuse() const override { return conv_.takes_pending(); }
  Tensor load(Pending p) override;
  void describe(Fields& f) override;
  std::vector<Sequential*> chains() override { return residual_ ? std::vector<Sequential*>{} : std::vector{&conv_}; }
  /// Whether x is added.
  bool residual() const { return residual_; }

 private:
  Sequential conv_;
  std::optional<StochasticDepth> skip_;
  BlockNames names_;
  bool residual_;
};

}  // namespace rewind_lib::nn
