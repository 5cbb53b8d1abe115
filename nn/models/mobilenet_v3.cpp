#include <rewind/nn/blocks.h>
#include <rewind/nn/models/mobilenet_v3.h>
#include <rewind/nn/models/width.h>

#include <span>

namespace rewind_lib::nn::models {
namespace {

/// A row of the tables: SE, NL and s are the columns `squeeze`, `activation` and `stride`.
struct Row {
  int kernel, hidden, out;
  bool squeeze;
  Activation activation;
  int stride;
};
constexpr Activation RE = Activation::relu, HS = Activation::hardswish;
constexpr Row large[] = {{3, 16, 16, false, RE, 1},  {3, 64, 24, false, RE, 2},  {3, 72, 24, false, RE, 1},
                         {5, 72, 40, true, RE, 2},   {5, 120, 40, true, RE, 1},  {5, 120, 40, true, RE, 1},
                         {3, 240, 80, false, HS, 2}, {3, 200, 80, false, HS, 1}, {3, 184, 80, false, HS, 1},
                         {3, 184, 80, false, HS, 1}, {3, 480, 112, true, HS, 1}, {3, 672, 112, true, HS, 1},
                         {5, 672, 160, true, HS, 2}, {5, 960, 160, true, HS, 1}, {5, 960, 160, true, HS, 1}};
constexpr Row small[] = {{3, 16, 16, true, RE, 2},  {3, 72, 24, false, RE, 2}, {3, 88, 24, false, RE, 1}, {5, 96, 40, true, HS, 2},
                         {5, 240, 40, true, HS, 1}, {5, 240, 40, true, HS, 1}, {5, 120, 48, true, HS, 1}, {5, 144, 48, true, HS, 1},
                         {5, 288, 96, true, HS, 2}, {5, 576, 96, true, HS, 1}, {5, 576, 96, true, HS, 1}};

}  // namespace

Sequential mobilenet_v3(MobileNetV3Options o) {
  if (!(o.width > 0)) fail(str("mobilenet_v3: width must be positive, got ", o.width));
  const auto scaled = [&](int channels) { return make_divisible(channels * o.width); };
  const NormOptions norm{.eps = 1e-3, .momentum = 0.01};

  Sequential features;
  int in = scaled(16);
  features.add(conv_norm({.in = 3, .out = in, .kernel = 3, .stride = 2, .padding = 1}, HS, norm));
  for (const Row& row : o.small ? std::span<const Row>(small) : std::span<const Row>(large)) {
    const int hidden = scaled(row.hidden), out = scaled(row.out);
    features.add(InvertedBottleneck{{.in = in,
                                     .out = out,
                                     .hidden = hidden,
                                     .kernel = row.kernel,
                                     .stride = row.stride,
                                     .squeeze_excite = row.squeeze ? make_divisible(hidden / 4) : 0,
                                     .activation = row.activation,
                                     .gate = Activation::hardsigmoid,
                                     .norm = norm,
                                     .names = BlockNames::mobilenet_v3}});
    in = out;
  }
  features.add(conv_norm({.in = in, .out = 6 * in, .kernel = 1}, HS, norm));

  const int last = scaled(o.small ? 1024 : 1280);
  Sequential net;
  net.add("features", std::move(features));
  net.add("avgpool", GlobalAvgPool{});
  net.add("classifier", Sequential{Linear{6 * in, last}, Hardswish{}, Dropout{o.dropout}, Linear{last, o.classes}});
  return net;
}

}  // namespace rewind_lib::nn::models
