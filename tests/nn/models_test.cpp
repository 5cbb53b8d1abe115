// The models: exact counts, PyTorch's names, and that each of them trains.

#include <rewind/autograd/backward.h>
#include <rewind/autograd/observer.h>
#include <rewind/core/random.h>
#include <rewind/nn/layers.h>
#include <rewind/nn/models/densenet.h>
#include <rewind/nn/models/efficientnet.h>
#include <rewind/nn/models/mobilenet_v2.h>
#include <rewind/nn/models/registry.h>
#include <rewind/nn/models/resnet.h>
#include <rewind/nn/models/shufflenet_v1.h>
#include <rewind/nn/models/vgg.h>
#include <rewind/nn/models/width.h>
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

TEST_CASE("the zoo has torchvision's parameters, buffers and MACs to the unit") {
  // Of torchvision 0.14.1 on a single image: buffers with num_batches_tracked; MACs of convolutions and linear layers. The
  // CIFAR forms are its ResNets with another stem.
  const struct {
    const char* name;
    models::Options options;
    std::int64_t parameters, buffers, macs;
  } zoo[] = {
      {"alexnet", {}, 61100840, 0, 714188480},
      {"alexnet", {.size = 128}, 61100840, 0, 254835392},
      {"vgg16", {}, 138357544, 0, 15470264320},
      {"vgg16", {.size = 128}, 138357544, 0, 5134778368},
      {"resnet18", {}, 11689512, 9620, 1814073344},
      {"resnet34", {}, 21797672, 17060, 3663761408},
      {"resnet50", {}, 25557032, 53173, 4089184256},
      {"resnet101", {}, 44549160, 105448, 7801405440},
      {"resnet152", {}, 60192808, 151579, 11513626624},
      {"resnet18_cifar", {}, 11173962, 9620, 555422720},
      {"resnet34_cifar", {}, 21282122, 17060, 1159402496},
      {"resnet50_cifar", {}, 23520842, 53173, 1297829888},
      {"resnet101_cifar", {}, 42512970, 105448, 2509983744},
      {"resnet152_cifar", {}, 58156618, 151579, 3722137600},
      {"mobilenet_v2", {.width = 0.75}, 2636424, 26692, 209069792},
      {"mobilenet_v3_large", {}, 5483032, 24446, 216589760},
      {"mobilenet_v3_large", {.width = 0.75}, 3377576, 18462, 140033816},
      {"mobilenet_v3_small", {}, 2542856, 12146, 56510400},
      {"mobilenet_v3_small", {.width = 0.5}, 917264, 6178, 18970736},
      {"efficientnet_b0", {}, 5288548, 42065, 385814752},
      {"efficientnet_b1", {}, 7794184, 62117, 686802832},
      {"efficientnet_b1", {.size = 224}, 7794184, 62117, 569651680},
      {"shufflenet_v2", {}, 2278604, 16236, 144907992},
      {"shufflenet_v2", {.width = 0.5}, 1366792, 8008, 40476448},
      {"shufflenet_v2", {.width = 1.5}, 3503624, 23496, 295759392},
      {"shufflenet_v2", {.width = 2}, 7393996, 33772, 583253464},
      {"squeezenet1_1", {}, 1235496, 0, 349151936},
      {"squeezenet1_1", {.size = 230}, 1235496, 0, 390801152},  // where rounding up in the pools makes a difference
      {"mnasnet", {}, 4383312, 37972, 314415872},
      {"mnasnet", {.width = 0.5}, 2218512, 20676, 104455968},
      {"mnasnet", {.width = 0.75}, 3170208, 29860, 215493104},
      {"mnasnet", {.width = 1.3}, 6282256, 48868, 526362432},
      {"densenet121", {}, 7978856, 83769, 2834161664},
      {"densenet121", {.size = 100}, 7978856, 83769, 541102848},
  };
  for (const auto& want : zoo) {
    CAPTURE(want.name);
    CAPTURE(want.options.width);
    CAPTURE(want.options.size);
    const rw::nn::Summary s = count(want.name, want.options);
    CHECK(s.parameters == want.parameters);
    CHECK(s.trainable == want.parameters);
    CHECK(s.buffers == want.buffers);
    CHECK(s.macs == want.macs);
  }

  const auto check = [](rw::nn::Sequential net, std::int64_t parameters, std::int64_t macs) {
    const rw::nn::Summary s = rw::nn::summarize(net, {1, 224, 224, 3});
    CHECK(s.parameters == parameters);
    CHECK(s.macs == macs);
  };
  const rw::ShapesOnly dry;
  check(models::vgg({.depth = 11}), 132863336, 7609090048);
  check(models::vgg({.depth = 13}), 133047848, 11308466176);
  check(models::vgg({.depth = 19}), 143667240, 19632062464);
  check(models::densenet({.depth = 169}), 14149480, 3359843328);
  check(models::densenet({.depth = 201}), 20013928, 4291365888);
}

TEST_CASE("ShuffleNet V1 has the complexity of its paper") {
  // Table 1: 143, 140, 137, 133 and 137 million, rounded down there; to the unit, a definition after its text in PyTorch.
  const struct {
    int groups;
    std::int64_t parameters, buffers, macs;
  } columns[] = {{1, 1531936, 14737, 143078976},
                 {2, 1733848, 20449, 140836512},
                 {3, 1865728, 24529, 137460672},
                 {4, 1968344, 27793, 134339776},
                 {8, 2434768, 39217, 138365952}};
  const rw::ShapesOnly dry;
  for (const auto& want : columns) {
    CAPTURE(want.groups);
    rw::nn::Sequential net = models::shufflenet_v1({.groups = want.groups});
    const rw::nn::Summary s = rw::nn::summarize(net, {1, 224, 224, 3});
    CHECK(s.parameters == want.parameters);
    CHECK(s.buffers == want.buffers);
    CHECK(s.macs == want.macs);
  }
  CHECK(count("shufflenet_v1").macs == 137460672);
  CHECK(count("shufflenet_v1", {.width = 0.5}).parameters == 718324);
  CHECK(count("shufflenet_v1", {.width = 0.5}).macs == 37589856);
  CHECK(count("shufflenet_v1", {.width = 2}).parameters == 5450776);
}

TEST_CASE("the other models have their published counts") {
  const rw::nn::Summary v1 = count("mobilenet_v1");
  CHECK(v1.parameters == 4231976);
  CHECK(v1.macs == 568740352);
  CHECK(depthwise_macs(v1) == 17385984);
  CHECK(count("resnet18").optimizer_state_bytes.adam == 93516096);

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
  const std::pair<const char*, std::vector<const char*>> names[] = {
      {"alexnet", {"features.0.weight", "features.10.bias", "classifier.1.weight", "classifier.6.bias"}},
      {"vgg16", {"features.28.weight", "classifier.0.weight", "classifier.6.bias"}},
      {"resnet18",
       {"conv1.weight", "bn1.bias", "layer1.0.conv1.weight", "layer2.0.downsample.0.weight", "layer4.1.bn2.weight", "fc.weight"}},
      {"resnet50", {"layer1.0.conv3.weight", "layer1.0.downsample.1.bias", "layer3.5.bn3.weight"}},
      {"mobilenet_v2",
       {"features.0.0.weight", "features.1.conv.0.0.weight", "features.1.conv.1.weight", "features.2.conv.1.1.bias",
        "features.17.conv.3.weight", "features.18.1.weight", "classifier.1.bias"}},
      {"mobilenet_v3_large",
       {"features.1.block.0.0.weight", "features.1.block.1.1.bias", "features.4.block.2.fc1.bias", "features.4.block.3.0.weight",
        "features.16.1.weight", "classifier.0.weight", "classifier.3.bias"}},
      {"efficientnet_b0",
       {"features.0.0.weight", "features.1.0.block.1.fc2.weight", "features.4.2.block.3.1.bias", "features.8.0.weight",
        "classifier.1.weight"}},
      {"shufflenet_v2", {"conv1.0.weight", "stage2.0.branch1.3.bias", "stage4.3.branch2.5.weight", "conv5.1.bias", "fc.weight"}},
      {"squeezenet1_1",
       {"features.0.bias", "features.3.squeeze.weight", "features.12.expand1x1.bias", "features.12.expand3x3.weight",
        "classifier.1.weight"}},
      {"mnasnet", {"layers.0.weight", "layers.7.bias", "layers.8.0.layers.7.weight", "layers.15.weight", "classifier.1.bias"}},
      {"densenet121",
       {"features.conv0.weight", "features.denseblock1.denselayer1.norm1.weight", "features.denseblock4.denselayer16.conv2.weight",
        "features.transition3.conv.weight", "features.norm5.bias", "classifier.weight"}},
  };
  for (const auto& model : names) {
    rw::nn::Sequential net = models::make(model.first);
    for (const char* name : model.second) CHECK_MESSAGE(has_parameter(net, name), model.first, ": ", name);
  }
  rw::nn::Sequential resnet = models::make("resnet18");
  CHECK(!has_parameter(resnet, "layer1.0.downsample.0.weight"));
}

TEST_CASE("batch norms have torchvision's eps and momentum") {
  const auto first_norm = [](std::string_view name) {
    rw::nn::Sequential net = models::make(name, {.width = 0.5});
    auto& stem = dynamic_cast<rw::nn::Sequential&>(net[0]);
    rw::nn::Module& norm = name == "mnasnet" ? stem[1] : dynamic_cast<rw::nn::Sequential&>(stem[0])[1];
    return std::move(dynamic_cast<rw::nn::BatchNorm2d&>(norm));
  };
  // x is -1 and 1: y = 1 / sqrt(1 + eps) where x is 1, and the running variance moves from 1 to 1 + momentum (4/3 - 1) with
  // the unbiased estimate of four values.
  const struct {
    const char* name;
    double eps, momentum;
  } want[] = {{"mobilenet_v3_large", 1e-3, 0.01},
              {"mobilenet_v3_small", 1e-3, 0.01},
              {"efficientnet_b0", 1e-5, 0.1},
              {"mnasnet", 1e-5, 1 - 0.9997},
              {"mobilenet_v2", 1e-5, 0.1}};
  for (const auto& w : want) {
    CAPTURE(w.name);
    rw::nn::BatchNorm2d norm = first_norm(w.name);
    const std::int64_t channels = norm.running_mean.numel();
    rw::Tensor x = rw::ones({4, 1, 1, channels});
    for (std::int64_t i = 0; i < 2 * channels; ++i) x.mutate<float>()[static_cast<std::size_t>(i)] = -1;
    const rw::Tensor y = norm(std::move(x));
    CHECK(y.to_vector<float>().back() == doctest::Approx(1 / std::sqrt(1 + w.eps)).epsilon(1e-7));
    CHECK(norm.running_var.to_vector<float>().front() == doctest::Approx(1 + w.momentum / 3).epsilon(1e-6));
  }
}

TEST_CASE("an EfficientNet has stochastic depth in every block that adds its input") {
  const auto places = [](std::string_view name) {
    const rw::nn::Summary s = count(name);
    return std::ranges::count(s.layers, "StochasticDepth", &rw::nn::LayerSummary::type);
  };
  CHECK(places("efficientnet_b0") == 16 - 7);  // all blocks but the first of each stage
  CHECK(places("efficientnet_b1") == 23 - 7);
  CHECK(places("mobilenet_v2") == 0);
}

TEST_CASE("every model of the registry runs forward and backward") {
  for (const models::Model& model : models::all()) {
    CAPTURE(model.name);
    const int size = model.name == std::string("alexnet") ? 64 : std::min(model.size, 32);
    rw::random::seed(1);
    rw::nn::Sequential net = models::make(
        model.name, {.classes = 5, .size = size, .width = model.has_width ? 0.5 : 1, .depth = model.has_depth ? 11 : 0});
    rw::Tensor x = rw::randn(models::input_shape(model.name, 2, size));
    rw::Tensor loss = rw::cross_entropy(net(std::move(x)), rw::from<std::int64_t>({1, 3}, {2}));
    CHECK(std::isfinite(loss.item()));
    rw::backward(std::move(loss));
    for (const rw::Parameter& p : net.parameters()) CHECK_MESSAGE(p.value.grad().defined(), p.name);
  }
}

TEST_CASE("models say what they do not have") {
  const auto refuses = [](std::string_view name, const models::Options& options, const char* why) {
    CHECK_THROWS_WITH_AS(models::make(name, options), doctest::Contains(why), rw::Error);
  };
  refuses("resnet19", {}, "no model 'resnet19'; known are mlp, lenet5");
  refuses("preresnet", {.depth = 100}, "depth must be 9 n + 2");
  refuses("preresnet", {.depth = 2}, "depth must be 9 n + 2");
  refuses("resnet18", {.width = 0.5}, "models: resnet18 has no width");
  refuses("squeezenet1_1", {.width = 0.5}, "models: squeezenet1_1 has no width");
  refuses("lenet5", {.depth = 20}, "models: lenet5 has no depth to choose");
  refuses("shufflenet_v2", {.width = 0.75}, "shufflenet_v2: width must be 0.5, 1, 1.5 or 2, got 0.75");
  for (const models::Model& model : models::all())
    if (model.has_width && model.name != std::string("shufflenet_v2"))
      for (const double width : {-1.0, 0.0, std::nan("")}) refuses(model.name, {.width = width}, "width must be positive");
  refuses("vgg16", {.width = 1e6}, "channels are too many; choose a smaller width");

  CHECK_THROWS_WITH_AS(models::resnet({.depth = 20}), "resnet: depth must be 18, 34, 50, 101 or 152, got 20", rw::Error);
  CHECK_THROWS_WITH_AS(models::vgg({.depth = 12}), "vgg: depth must be 11, 13, 16 or 19, got 12", rw::Error);
  CHECK_THROWS_WITH_AS(models::densenet({.depth = 120}), "densenet: depth must be 121, 169 or 201, got 120", rw::Error);
  CHECK_THROWS_WITH_AS(models::shufflenet_v1({.groups = 5}), "shufflenet_v1: groups must be 1, 2, 3, 4 or 8, got 5", rw::Error);
  CHECK_THROWS_WITH_AS(models::efficientnet({.variant = 2}), "efficientnet: variant must be 0 or 1, got 2", rw::Error);
}

TEST_CASE("an image that is too small is an error of the op that it is too small for") {
  const rw::ShapesOnly dry;
  const struct {
    const char* name;
    int least;
    const char* op;
    const char* shape;
  } limits[] = {
      {"alexnet", 63, "max_pool2d", "x [1, 2, 2, 256]"},
      {"vgg16", 32, "max_pool2d", "x [1, 1, 1, 512]"},
      {"squeezenet1_1", 17, "max_pool2d", "x [1, 1, 1, 256]"},
      {"densenet121", 29, "avg_pool2d", "x [1, 1, 1, 512]"},
  };
  for (const auto& limit : limits) {
    CAPTURE(limit.name);
    rw::nn::Sequential net = models::make(limit.name);
    CHECK_NOTHROW(net(rw::empty({1, limit.least, limit.least, 3})));
    const rw::Tensor small = rw::empty({1, limit.least - 1, limit.least - 1, 3});
    CHECK_THROWS_WITH_AS(net(small), doctest::Contains(limit.op), rw::Error);
    CHECK_THROWS_WITH_AS(net(small), doctest::Contains(limit.shape), rw::Error);
  }
}
