// Layers and blocks: what they compute, how they start, what they refuse.

#include <rewind/autograd/backward.h>
#include <rewind/core/random.h>
#include <rewind/nn/blocks.h>
#include <rewind/nn/init.h>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

namespace rw = rewind;
namespace nn = rw::nn;
namespace init = rw::nn::init;

namespace {

struct Moments {
  double mean, deviation, largest;
};
Moments moments(const rw::Tensor& t) {
  double sum = 0, squares = 0, largest = 0;
  for (const float v : t.values<float>()) {
    sum += v;
    squares += static_cast<double>(v) * v;
    largest = std::max(largest, std::abs(static_cast<double>(v)));
  }
  const auto n = static_cast<double>(t.numel());
  return {sum / n, std::sqrt(squares / n - sum / n * sum / n), largest};
}

void check_normal(const rw::Tensor& w, double deviation) {
  const Moments m = moments(w);
  CHECK(std::abs(m.mean) < 5 * deviation / std::sqrt(static_cast<double>(w.numel())));
  CHECK(m.deviation == doctest::Approx(deviation).epsilon(0.02));
  CHECK(m.largest > 3 * deviation);
}
void check_uniform(const rw::Tensor& w, double bound) {
  const Moments m = moments(w);
  CHECK(std::abs(m.mean) < 5 * bound / std::sqrt(static_cast<double>(w.numel())));
  CHECK(m.deviation == doctest::Approx(bound / std::sqrt(3.0)).epsilon(0.02));
  CHECK(m.largest <= bound);
  CHECK(m.largest > 0.99 * bound);
}

}  // namespace

TEST_CASE("initialisations have the variance of their papers") {
  rw::random::seed(3);
  rw::Tensor w = rw::empty({200, 300});
  init::kaiming_normal(w);
  check_normal(w, std::sqrt(2.0 / 300));
  init::kaiming_normal(w, init::Mode::fan_out, init::Nonlinearity::tanh);
  check_normal(w, 5.0 / 3 / std::sqrt(200.0));
  init::kaiming_uniform(w);
  check_uniform(w, std::sqrt(6.0 / 300));
  init::xavier_normal(w);
  check_normal(w, std::sqrt(2.0 / 500));
  init::xavier_uniform(w);
  check_uniform(w, std::sqrt(6.0 / 500));
  init::constant(w, 0.5);
  CHECK(moments(w).largest == 0.5);

  CHECK(init::fans({64, 3, 5, 32}).in == 480);
  CHECK(init::fans({64, 3, 5, 32}).out == 960);
  CHECK(init::fans({3, 3, 32}).in == 9);
  CHECK_THROWS_WITH_AS(init::kaiming_normal(rw::empty({8})), doctest::Contains("shape [8] has no fan-in"), rw::Error);
  CHECK_THROWS_WITH_AS(init::uniform(w, 1, -1), doctest::Contains("low must not be above high"), rw::Error);
}

TEST_CASE("layers start as documented") {
  rw::random::seed(4);
  const nn::Linear fc{400, 200};
  CHECK(fc.weight.shape() == rw::Shape{200, 400});
  check_uniform(fc.weight, 1 / std::sqrt(400.0));
  CHECK(moments(fc.bias).largest == 0);
  const nn::Conv2d conv{{.in = 64, .out = 128, .kernel = 3, .groups = 2}};
  CHECK(conv.weight.shape() == rw::Shape{128, 3, 3, 32});
  check_normal(conv.weight, std::sqrt(2.0 / (9 * 32)));
  const nn::DepthwiseConv2d depthwise{{.channels = 4096, .kernel = {3, 5}, .bias = false}};
  CHECK(depthwise.weight.shape() == rw::Shape{3, 5, 4096});
  check_normal(depthwise.weight, std::sqrt(2.0 / 15));
  CHECK(!depthwise.bias.defined());
  const nn::BatchNorm2d norm{{.channels = 5, .affine = false}};
  CHECK(!norm.weight.defined());
  CHECK(norm.running_var.to_vector<float>() == std::vector<float>(5, 1));
  for (const rw::Tensor& t : {fc.weight, fc.bias, conv.weight}) {
    CHECK(t.requires_grad());
    CHECK(t.category() == rw::Category::parameter);
  }
  CHECK(norm.running_mean.category() == rw::Category::parameter);
  CHECK(!norm.running_mean.requires_grad());
}

TEST_CASE("every layer gives the documented shape") {
  const rw::Tensor x = rw::randn({2, 8, 6, 4});
  const auto shape_of = [&](nn::Module&& m) { return m(x).shape(); };
  CHECK(shape_of(nn::Conv2d{{.in = 4, .out = 6, .kernel = 3}}) == rw::Shape{2, 6, 4, 6});
  CHECK(shape_of(nn::Conv2d{{.in = 4, .out = 6, .kernel = 3, .stride = 2, .padding = 1, .groups = 2}}) == rw::Shape{2, 4, 3, 6});
  CHECK(shape_of(nn::Conv2d{{.in = 4, .out = 6, .kernel = 3, .dilation = 2}}) == rw::Shape{2, 4, 2, 6});
  CHECK(shape_of(nn::DepthwiseConv2d{{.channels = 4, .stride = 2, .padding = 1}}) == rw::Shape{2, 4, 3, 4});
  CHECK(shape_of(nn::BatchNorm2d{4}) == x.shape());
  CHECK(shape_of(nn::LayerNorm{4}) == x.shape());
  CHECK(shape_of(nn::MaxPool2d{2}) == rw::Shape{2, 4, 3, 4});
  CHECK(shape_of(nn::AvgPool2d{{.kernel = 3, .stride = 2, .padding = 1}}) == rw::Shape{2, 4, 3, 4});
  CHECK(shape_of(nn::MaxPool2d{{.kernel = 3, .stride = 2, .ceil = true}}) == rw::Shape{2, 4, 3, 4});
  CHECK(shape_of(nn::AdaptiveAvgPool2d{{3, 5}}) == rw::Shape{2, 3, 5, 4});
  CHECK(shape_of(nn::ChannelShuffle{2}) == x.shape());
  CHECK(shape_of(nn::Concat{nn::Sequential(), nn::Sequential{nn::Conv2d{{.in = 4, .out = 3}}}}) == rw::Shape{2, 8, 6, 7});
  CHECK(shape_of(nn::GlobalAvgPool{}) == rw::Shape{2, 4});
  CHECK(shape_of(nn::Flatten{}) == rw::Shape{2, 192});
  CHECK(shape_of(nn::Identity{}) == x.shape());
  CHECK(shape_of(nn::Linear{4, 7}) == rw::Shape{2, 8, 6, 7});
  CHECK(shape_of(nn::DepthwiseSeparable{{.in = 4, .out = 5, .stride = 2}}) == rw::Shape{2, 4, 3, 5});
  CHECK(shape_of(nn::SqueezeExcite{{.channels = 4, .squeeze = 2}}) == x.shape());
}

TEST_CASE("activation layers compute their functions") {
  const rw::Tensor x = rw::from<float>({-7, -2, -0.5, 0, 0.5, 2, 7}, {7});
  const auto check = [&](nn::Module&& layer, nn::Activation activation) {
    const std::vector<float> y = layer(x).to_vector<float>();
    CHECK(y == nn::activate(x, activation).to_vector<float>());
    nn::Sequential chain;
    nn::add_activation(chain, activation);
    CHECK(chain(x).to_vector<float>() == y);
    CHECK(chain[0].type() == layer.type());
  };
  check(nn::ReLU{}, nn::Activation::relu);
  check(nn::ReLU6{}, nn::Activation::relu6);
  check(nn::SiLU{}, nn::Activation::silu);
  check(nn::Hardswish{}, nn::Activation::hardswish);
  check(nn::Hardsigmoid{}, nn::Activation::hardsigmoid);
  check(nn::Sigmoid{}, nn::Activation::sigmoid);
  check(nn::Tanh{}, nn::Activation::tanh);
  check(nn::GELU{}, nn::Activation::gelu);
  CHECK(nn::ReLU6{}(x).to_vector<float>() == std::vector<float>{0, 0, 0, 0, 0.5, 2, 6});
  CHECK(nn::activate(x, nn::Activation::none).same(x));
}

TEST_CASE("stochastic depth drops whole samples in training, and its gradient the same ones") {
  rw::random::seed(5);
  nn::StochasticDepth depth{0.3};
  rw::Tensor x = rw::ones({1000, 2, 3});
  x.set_requires_grad();
  const rw::Tensor y = depth(x);
  int kept = 0;
  for (std::size_t sample = 0; sample < 1000; ++sample) {
    const std::span<const float> values = y.values<float>().subspan(6 * sample, 6);
    CHECK(std::ranges::count(values, values[0]) == 6);
    if (values[0] == 0) continue;
    ++kept;
    CHECK(values[0] == doctest::Approx(1 / 0.7));
  }
  CHECK(kept == doctest::Approx(700).epsilon(0.05));
  rw::backward(rw::sum(y));
  CHECK(x.grad().to_vector<float>() == y.to_vector<float>());
  depth.eval();
  CHECK(depth(x).same(x));
  depth.train();
  CHECK_THROWS_WITH_AS(depth(rw::ones({})), doctest::Contains("the first axis counts samples"), rw::Error);
  CHECK_THROWS_WITH_AS(nn::StochasticDepth{1}, doctest::Contains("p must be in [0, 1), got 1"), rw::Error);
}

TEST_CASE("an inverted bottleneck with stochastic depth is skipped by some samples in training, fused or not") {
  rw::random::seed(6);
  nn::InvertedBottleneck block{{.in = 8, .out = 8, .expand = 2, .stochastic_depth = 0.5}};
  const rw::Tensor x = rw::randn({64, 3, 3, 8});
  const auto skipped = [&] {
    rw::random::seed(7);
    const rw::Tensor y = block(x);
    std::vector<bool> same;
    for (int sample = 0; sample < 64; ++sample)
      same.push_back(rw::slice(y, 0, sample, sample + 1).to_vector<float>() ==
                     rw::slice(x, 0, sample, sample + 1).to_vector<float>());
    return same;
  };
  const std::vector<bool> fused = skipped();
  const auto some = std::ranges::count(fused, true);
  CHECK((some > 16 && some < 48));
  block.fuse(false);
  CHECK(skipped() == fused);
  block.eval();
  CHECK(std::ranges::count(skipped(), true) == 0);
  CHECK_THROWS_WITH_AS((nn::InvertedBottleneck{{.in = 8, .out = 8, .stochastic_depth = -0.1}}), doctest::Contains("p must be in"),
                       rw::Error);
}

TEST_CASE("dropout zeroes a share p in training and scales the rest") {
  rw::random::seed(5);
  nn::Dropout dropout{0.3};
  const rw::Tensor x = rw::ones({100, 200});
  int kept = 0;
  const rw::Tensor y = dropout(x);
  for (const float v : y.values<float>()) {
    if (v == 0) continue;
    ++kept;
    CHECK(v == doctest::Approx(1 / 0.7));
  }
  CHECK(kept == doctest::Approx(0.7 * 20000).epsilon(0.02));
  dropout.eval();
  CHECK(dropout(x).same(x));
  CHECK_THROWS_WITH_AS((nn::BatchNorm2d{{.channels = 2, .momentum = -3}}), doctest::Contains("momentum must lie in [0, 1]"),
                       rw::Error);
  CHECK_THROWS_WITH_AS(nn::Dropout{1}, doctest::Contains("p must be in [0, 1), got 1"), rw::Error);
}

TEST_CASE("an inverted bottleneck adds its input only when shapes allow") {
  CHECK(nn::InvertedBottleneck{{.in = 8, .out = 8}}.residual());
  CHECK(!nn::InvertedBottleneck{{.in = 8, .out = 8, .stride = 2}}.residual());
  CHECK(!nn::InvertedBottleneck{{.in = 8, .out = 16}}.residual());

  // With gamma zero in the last normalisation the main path is zero, and what is left is the input.
  nn::InvertedBottleneck block{{.in = 8, .out = 8}};
  for (rw::Parameter& p : block.parameters())
    if (p.name == "conv.3.weight") p.value.fill(0);
  const rw::Tensor x = rw::randn({2, 5, 5, 8});
  CHECK(block(x).to_vector<float>() == x.to_vector<float>());
}

TEST_CASE("an inverted bottleneck that does not expand has no expanding convolution") {
  const auto count = [](nn::InvertedBottleneck&& block) { return rw::count_elements(block.parameters()); };
  CHECK(count(nn::InvertedBottleneck{{.in = 32, .out = 16, .expand = 1}}) == 32 * 9 + 64 + 32 * 16 + 32);
  CHECK(count(nn::InvertedBottleneck{{.in = 24, .out = 24, .expand = 6}}) == 8208 + 624);
  CHECK(count(nn::InvertedBottleneck{{.in = 24, .out = 24, .expand = 6, .squeeze_excite = 6}}) ==
        8208 + 624 + 2 * 144 * 6 + 144 + 6);
}

TEST_CASE("a residual adds its shortcut and then activates") {
  nn::Residual identity{nn::Sequential{nn::Linear{3, 3, false}}};
  for (rw::Parameter& p : identity.parameters()) p.value.fill(0);
  const rw::Tensor x = rw::from<float>({-1, 0, 2}, {1, 3});
  CHECK(identity(x).to_vector<float>() == std::vector<float>{-1, 0, 2});

  nn::Residual projected{nn::Sequential{nn::Linear{3, 2, false}}, nn::Sequential{nn::Linear{3, 2}}, nn::Activation::relu};
  for (rw::Parameter& p : projected.parameters()) p.value.fill(p.name == "0.weight" ? 1 : p.name == "downsample.0.bias" ? -3 : 1);
  CHECK(projected(x).to_vector<float>() == std::vector<float>{0, 0});
  CHECK(projected.parameters().front().name == "0.weight");
  CHECK(projected(rw::from<float>({1, 1, 1}, {1, 3})).to_vector<float>() == std::vector<float>{3, 3});
}

TEST_CASE("squeeze and excitation scales each channel by its gate") {
  nn::SqueezeExcite block{{.channels = 4, .squeeze = 2}};
  for (rw::Parameter& p : block.parameters()) p.value.fill(0);
  const rw::Tensor x = rw::randn({2, 3, 3, 4});
  const rw::Tensor y = block(x);
  for (std::size_t i = 0; i < y.values<float>().size(); ++i)
    CHECK(y.values<float>()[i] == doctest::Approx(x.values<float>()[i] / 2));
}

TEST_CASE(
    "pools that round up have a last window over the edge, as PyTorch's, which counts only what it sees of the padded image") {
  const rw::Tensor x = rw::from<float>({1, 2, -3, -6}, {1, 4, 1, 1});
  const rw::PoolOptions up{.kernel = {3, 1}, .stride = {2, 1}, .ceil = true};
  CHECK(nn::MaxPool2d{up}(x).to_vector<float>() == std::vector<float>{2, -3});
  CHECK(nn::AvgPool2d{up}(x).to_vector<float>() == std::vector<float>{0, -4.5f});
  const rw::Tensor padded = nn::AvgPool2d{{.kernel = 3, .stride = 2, .padding = 1, .ceil = true}}(rw::ones({1, 4, 4, 1}));
  CHECK(padded.to_vector<float>()[0] == doctest::Approx(4.0 / 9));  // padding counts
  CHECK(padded.to_vector<float>()[8] == doctest::Approx(1.0 / 4));  // of 2 by 2, three padding
  // A window that would start beyond the image is not there.
  CHECK(nn::MaxPool2d{{.kernel = 1, .stride = {3, 1}, .ceil = true}}(rw::ones({1, 3, 1, 1})).numel() == 1);
  CHECK_THROWS_WITH_AS((nn::MaxPool2d{{.kernel = 3, .stride = 2, .ceil = true}}(rw::ones({1, 1, 1, 1}))),
                       doctest::Contains("the padded image has 1x1"), rw::Error);
}

TEST_CASE("a batch of no images goes through convolutions and their norms in evaluation, fused or not") {
  nn::Sequential net{nn::Conv2d{{.in = 3, .out = 8, .kernel = 3, .bias = false}},
                     nn::BatchNorm2d{8},
                     nn::ReLU6{},
                     nn::DepthwiseConv2d{{.channels = 8, .kernel = 3, .padding = 1, .bias = false}},
                     nn::BatchNorm2d{8},
                     nn::Conv2d{{.in = 8, .out = 4, .kernel = 1, .bias = false}},
                     nn::BatchNorm2d{4}};
  for (const bool fused : {true, false}) {
    net.fuse(fused);
    net.train();
    CHECK_THROWS_AS(net(rw::zeros({0, 8, 8, 3})), rw::Error);
    net.eval();
    const rw::Tensor x = rw::zeros({0, 8, 8, 3}).set_requires_grad();
    rw::Tensor y = net(x);
    CHECK(y.shape() == rw::Shape{0, 6, 6, 4});
    rw::backward(rw::sum(y));
    for (const rw::Parameter& p : net.parameters())
      for (const float g : p.value.grad().to_vector<float>()) CHECK(g == 0);
    for (const rw::Parameter& p : net.parameters()) static_cast<void>(p.value.take_grad());
  }
}

TEST_CASE("an empty batch is flattened to no rows of as many columns") {
  CHECK(nn::Flatten{}(rw::zeros({0, 2, 3, 4})).shape() == rw::Shape{0, 24});
  CHECK(nn::Flatten{}(rw::zeros({3, 0, 4})).shape() == rw::Shape{3, 0});
}

TEST_CASE("adaptive pools average ranges that cover the image") {
  const rw::Tensor x = rw::reshape(rw::arange(35, rw::float32), {1, 5, 7, 1});
  // rows 0-1, 1-3, 3-4; columns 0-3, 3-6: as PyTorch's adaptive_avg_pool2d
  CHECK(nn::AdaptiveAvgPool2d{{3, 2}}(x).to_vector<float>() == std::vector<float>{5, 8, 15.5, 18.5, 26, 29});
  CHECK(nn::AdaptiveAvgPool2d{{5, 7}}(x).same(x));
  CHECK(nn::AdaptiveAvgPool2d{1}(x).to_vector<float>() == std::vector<float>{17});
  CHECK(nn::AdaptiveAvgPool2d{2}(rw::full({1, 1, 1, 3}, 4)).to_vector<float>() == std::vector<float>(12, 4));
  const rw::Tensor even = rw::randn({2, 6, 4, 3});
  const rw::Tensor pooled = nn::AdaptiveAvgPool2d{{3, 2}}(even);
  CHECK(pooled.to_vector<float>() == rw::avg_pool2d(even, {.kernel = 2}).to_vector<float>());

  CHECK_THROWS_WITH_AS(nn::AdaptiveAvgPool2d{0}, "AdaptiveAvgPool2d: the output must be at least 1 x 1, got 0 x 0", rw::Error);
  CHECK_THROWS_WITH_AS(nn::AdaptiveAvgPool2d{2}(rw::ones({3, 4})), doctest::Contains("x must be [N, H, W, C], but is [3, 4]"),
                       rw::Error);
  CHECK_THROWS_WITH_AS(nn::AdaptiveAvgPool2d{2}(rw::ones({1, 0, 4, 1})), doctest::Contains("no mean, x is [1, 0, 4, 1]"),
                       rw::Error);
}

TEST_CASE("a channel shuffle deals the groups out, and the other number of groups undoes it") {
  const rw::Tensor x = rw::reshape(rw::arange(12, rw::float32), {2, 1, 1, 6});
  const rw::Tensor y = nn::ChannelShuffle{2}(x);
  CHECK(y.to_vector<float>() == std::vector<float>{0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11});
  CHECK(nn::ChannelShuffle{3}(y).to_vector<float>() == x.to_vector<float>());
  CHECK_THROWS_WITH_AS(nn::ChannelShuffle{4}(x), "ChannelShuffle: the last axis of [2, 1, 1, 6] cannot be divided into 4 groups",
                       rw::Error);
  CHECK_THROWS_WITH_AS(nn::ChannelShuffle{0}, "ChannelShuffle: groups must be at least 1, got 0", rw::Error);
}

TEST_CASE("concat puts two chains side by side, and the children of both are its own") {
  nn::Sequential doubled;
  doubled.add("double", nn::Linear{1, 1});
  nn::Concat block{nn::Sequential(), std::move(doubled)};
  for (rw::Parameter& p : block.parameters()) p.value.fill(p.name == "double.weight" ? 2 : 0);
  CHECK(block.parameters().size() == 2);
  const rw::Tensor x = rw::from<float>({1, 5}, {2, 1}), y = block(x);
  CHECK(y.shape() == rw::Shape{2, 2});
  CHECK(y.to_vector<float>() == std::vector<float>{1, 2, 5, 10});
}

TEST_CASE("a chain can be extended by another, with the numbers going on") {
  nn::Sequential chain = nn::conv_norm({.in = 2, .out = 4, .kernel = 1});
  chain.extend(nn::depthwise_norm(4, 3, 1, nn::Activation::none));
  CHECK(chain.size() == 5);
  CHECK(chain.parameters().back().name == "4.bias");
  CHECK(chain[3].type() == "DepthwiseConv2d");
  CHECK(chain(rw::randn({2, 4, 4, 2})).shape() == rw::Shape{2, 4, 4, 4});
}

TEST_CASE("inverted bottlenecks take hidden channels, norms and names as their family has them") {
  const auto names = [](nn::BlockNames scheme) {
    nn::InvertedBottleneck block{{.in = 4, .out = 8, .hidden = 10, .squeeze_excite = 2, .names = scheme}};
    CHECK(block.parameters()[0].value.shape() == rw::Shape{10, 1, 1, 4});
    return std::pair{block.parameters()[0].name, block.parameters().back().name};
  };
  CHECK(names(nn::BlockNames::mobilenet_v2) == std::pair<std::string, std::string>{"conv.0.0.weight", "conv.4.bias"});
  CHECK(names(nn::BlockNames::mobilenet_v3) == std::pair<std::string, std::string>{"block.0.0.weight", "block.3.1.bias"});
  CHECK(names(nn::BlockNames::mnasnet) == std::pair<std::string, std::string>{"layers.0.weight", "layers.8.bias"});
  CHECK_THROWS_WITH_AS((nn::InvertedBottleneck{{.in = 8, .out = 8, .hidden = -1}}),
                       doctest::Contains("hidden must not be negative"), rw::Error);
}

TEST_CASE("layers refuse extents that make no sense") {
  CHECK_THROWS_WITH_AS(nn::Linear(0, 3), "Linear: in must be at least 1, got 0", rw::Error);
  CHECK_THROWS_WITH_AS((nn::Conv2d{{.in = 3}}), "Conv2d: out must be at least 1, got 0", rw::Error);
  CHECK_THROWS_WITH_AS((nn::Conv2d{{.in = 3, .out = 4, .stride = 0}}), "Conv2d: stride must be at least 1, got 0 x 0", rw::Error);
  CHECK_THROWS_WITH_AS((nn::Conv2d{{.in = 3, .out = 4, .padding = {0, -1}}}), "Conv2d: padding must be at least 0, got 0 x -1",
                       rw::Error);
  CHECK_THROWS_WITH_AS((nn::Conv2d{{.in = 3, .out = 4, .groups = 2}}),
                       doctest::Contains("2 groups do not divide both 3 input and 4 output channels"), rw::Error);
  CHECK_THROWS_WITH_AS(nn::BatchNorm2d{0}, "BatchNorm2d: channels must be at least 1, got 0", rw::Error);
  CHECK_THROWS_WITH_AS((nn::InvertedBottleneck{{.in = 8, .out = 8, .expand = 0}}), doctest::Contains("expand must be at least 1"),
                       rw::Error);
}
