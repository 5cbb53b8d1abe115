// The models: exact counts, PyTorch's names, and that each of them trains.

#include <rewind/autograd/backward.h>
#include <rewind/autograd/observer.h>
#include <rewind/nn/models/mobilenet_v2.h>
#include <rewind/nn/models/registry.h>
#include <rewind/nn/summary.h>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

namespace rw = rewind;
namespace models = rw::nn::models;

namespace {

rw::nn::Summary count(std::string_view name, const models::Options& options = {}) {
  const rw::ShapesOnly dry;
  rw::nn::Sequential net = models::make(name, options);
  return rw::nn::summarize(net, models::input_shape(name, 1, options.size));
}

std::int64_t depthwise_macs(const rw::nn::Summary& s) {
  std::int64_t n = 0;
  for (const rw::nn::LayerSummary& layer : s.layers)
    if (layer.type == "DepthwiseConv2d") n += layer.macs;
  return n;
}

bool has_parameter(rw::nn::Module& net, std::string_view name) {
  return std::ranges::any_of(net.parameters(), [&](const rw::Parameter& p) { return p.name == name; });
}

}  // namespace

TEST_CASE("MobileNetV2 has torchvision's counts") {
  const rw::nn::Summary s = count("mobilenet_v2");
  CHECK(s.parameters == 3504872);
  CHECK(s.trainable == 3504872);
  CHECK(s.buffers == 34164);  // num_batches_tracked included
  CHECK(s.macs == 300774272);
  CHECK(depthwise_macs(s) == 20716416);
  CHECK(s.training_step_macs == 891484800);
  CHECK(s.optimizer_state_bytes.sgd == 0);
  CHECK(s.optimizer_state_bytes.momentum == 14019488);
  CHECK(s.optimizer_state_bytes.adam == 28038976);

  const rw::nn::Summary half = count("mobilenet_v2", {.width = 0.5});
  CHECK(half.parameters == 1968680);
  CHECK(half.macs == 97131840);
  CHECK(depthwise_macs(half) == 11204928);

  const rw::nn::Summary small = count("mobilenet_v2", {.classes = 10, .size = 32});
  CHECK(small.parameters == 2236682);
  CHECK(small.macs == 6124928);
  CHECK(depthwise_macs(small) == 422784);
}

TEST_CASE("the other models have their published counts") {
  const rw::nn::Summary v1 = count("mobilenet_v1");
  CHECK(v1.parameters == 4231976);
  CHECK(v1.macs == 568740352);
  CHECK(depthwise_macs(v1) == 17385984);

  const rw::nn::Summary resnet18 = count("resnet18");
  CHECK(resnet18.parameters == 11689512);
  CHECK(resnet18.macs == 1814073344);
  CHECK(resnet18.optimizer_state_bytes.adam == 93516096);
  CHECK(count("resnet34").parameters == 21797672);

  const rw::nn::Summary lenet = count("lenet5_rgb32");
  CHECK(lenet.parameters == 62006);
  CHECK(lenet.macs == 651720);

  CHECK(count("preresnet").parameters == 1703258);
  CHECK(count("preresnet", {.depth = 1001}).parameters == 10327706);
  CHECK(count("mlp").parameters == 784 * 512 + 512 + 512 * 256 + 256 + 256 * 10 + 10);
}

TEST_CASE("a training step costs three forwards less the first layer's input gradient") {
  for (const char* name : {"mobilenet_v2_cifar", "resnet18_cifar", "preresnet", "lenet5"}) {
    CAPTURE(name);
    const rw::nn::Summary s = count(name);
    const auto first = std::ranges::find_if(s.layers, [](const rw::nn::LayerSummary& layer) { return layer.macs > 0; });
    CHECK(s.training_step_macs == 3 * s.macs - first->macs);
  }
}

TEST_CASE("channels are rounded to multiples of eight as in the MobileNets") {
  CHECK(models::make_divisible(32) == 32);
  CHECK(models::make_divisible(24 * 0.75) == 24);  // 16 would be less than 90 % of 18
  CHECK(models::make_divisible(16 * 1.4) == 24);
  CHECK(models::make_divisible(3) == 8);
}

TEST_CASE("parameters are named as torchvision names them") {
  const rw::ShapesOnly dry;
  rw::nn::Sequential mobilenet = models::make("mobilenet_v2");
  for (const char* name : {"features.0.0.weight", "features.1.conv.0.0.weight", "features.1.conv.1.weight",
                           "features.2.conv.1.1.bias", "features.17.conv.3.weight", "features.18.1.weight", "classifier.1.bias"})
    CHECK_MESSAGE(has_parameter(mobilenet, name), name);
  rw::nn::Sequential resnet = models::make("resnet18");
  for (const char* name :
       {"conv1.weight", "bn1.bias", "layer1.0.conv1.weight", "layer2.0.downsample.0.weight", "layer4.1.bn2.weight", "fc.weight"})
    CHECK_MESSAGE(has_parameter(resnet, name), name);
  CHECK(!has_parameter(resnet, "layer1.0.downsample.0.weight"));
}

TEST_CASE("every model of the registry runs forward and backward") {
  for (const models::Model& model : models::all()) {
    CAPTURE(model.name);
    rw::nn::Sequential net =
        models::make(model.name, {.classes = 5, .size = std::min(model.size, 32), .depth = model.has_depth ? 11 : 0});
    rw::Tensor x = rw::randn(models::input_shape(model.name, 2, std::min(model.size, 32)));
    rw::Tensor loss = rw::cross_entropy(net(std::move(x)), rw::from<std::int64_t>({1, 3}, {2}));
    CHECK(std::isfinite(loss.item()));
    rw::backward(std::move(loss));
    for (const rw::Parameter& p : net.parameters()) CHECK_MESSAGE(p.value.grad().defined(), p.name);
  }
}

TEST_CASE("models say what they do not have") {
  CHECK_THROWS_WITH_AS(models::make("resnet19"), doctest::Contains("no model 'resnet19'; known are mlp, lenet5"), rw::Error);
  CHECK_THROWS_WITH_AS(models::make("preresnet", {.depth = 100}), doctest::Contains("depth must be 9 n + 2"), rw::Error);
  CHECK_THROWS_WITH_AS(models::make("preresnet", {.depth = 2}), doctest::Contains("depth must be 9 n + 2"), rw::Error);
  CHECK_THROWS_WITH_AS(models::make("resnet18", {.width = 0.5}), "models: resnet18 has no width", rw::Error);
  CHECK_THROWS_WITH_AS(models::make("lenet5", {.depth = 20}), "models: lenet5 has no depth to choose", rw::Error);
  CHECK_THROWS_WITH_AS(models::make("mobilenet_v2", {.width = -1}), doctest::Contains("width must be positive"), rw::Error);
}
