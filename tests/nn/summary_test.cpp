// The summary: what it counts is what a real step does, and it leaves no trace.

#include <rewind/autograd/backward.h>
#include <rewind/autograd/dry_run.h>
#include <rewind/autograd/grad_mode.h>
#include <rewind/autograd/observer.h>
#include <rewind/core/random.h>
#include <rewind/nn/blocks.h>
#include <rewind/nn/models/registry.h>
#include <rewind/nn/summary.h>

#include <doctest/doctest.h>

#include <algorithm>

namespace rw = rewind;
namespace nn = rw::nn;
namespace models = rw::nn::models;

namespace {

const nn::LayerSummary& layer(const nn::Summary& s, std::string_view path) {
  const auto at = std::ranges::find(s.layers, path, &nn::LayerSummary::path);
  REQUIRE(at != s.layers.end());
  return *at;
}

rw::Tensor input(const rw::Shape& shape) {
  const rw::memory::CategoryScope scope(rw::Category::input);
  return rw::randn(shape);
}

}  // namespace

TEST_CASE("the bytes that the summary says are saved are the bytes that the tracker counts") {
  for (const char* name :
       {"mlp", "lenet5", "resnet18_cifar", "preresnet", "mobilenet_v2_cifar", "mobilenet_v1", "resnet50_cifar",
        "mobilenet_v3_small", "efficientnet_b0", "shufflenet_v1", "shufflenet_v2", "squeezenet1_1", "mnasnet", "densenet121"}) {
    CAPTURE(name);
    nn::Sequential net = models::make(name, {.depth = name == std::string("preresnet") ? 20 : 0});
    const rw::Shape shape = models::input_shape(name, 2, name == std::string("mlp") || name == std::string("lenet5") ? 28 : 32);
    const nn::Summary s = nn::summarize(net, shape);
    const std::size_t before = rw::memory::live()[rw::Category::activation];
    const rw::Tensor y = net(input(shape));
    const std::size_t held = rw::memory::live()[rw::Category::activation] - before;
    CHECK(held == static_cast<std::size_t>(s.activation_bytes_saved) + y.bytes());
  }
}

TEST_CASE("recompute changes nothing in the summary") {
  nn::Sequential net = models::make("mobilenet_v2_cifar");
  const nn::Summary plain = nn::summarize(net, {2, 32, 32, 3});
  net.recompute(rw::Recompute::sqrt());
  const nn::Summary recomputed = nn::summarize(net, {2, 32, 32, 3});
  CHECK(recomputed.macs == plain.macs);
  CHECK(recomputed.training_step_macs == plain.training_step_macs);
  CHECK(recomputed.activation_bytes_saved == plain.activation_bytes_saved);
}

TEST_CASE("a summary of a net with a budget does not plan, which a budget for smaller batches would not stand") {
  nn::Sequential net = models::make("mobilenet_v2_cifar");
  const nn::Summary plain = nn::summarize(net, {2, 32, 32, 3});
  net.recompute(rw::Budget{1000});
  CHECK(nn::summarize(net, {2, 32, 32, 3}).activation_bytes_saved == plain.activation_bytes_saved);
  CHECK_THROWS_WITH_AS(net(rw::zeros({2, 32, 32, 3})), doctest::Contains("a budget of 1000 bytes is too small"), rw::Error);
  // Nor does it follow a plan that was made for other stages.
  net.recompute(rw::Budget{1'000'000'000});
  rw::backward(rw::sum(net(rw::zeros({2, 32, 32, 3}))));
  const std::size_t planned = net.actions().size();
  CHECK(planned > 0);
  net.fuse(false);
  CHECK_NOTHROW(nn::summarize(net, {2, 32, 32, 3}));
  net.fuse(true);
  rw::backward(rw::sum(net(rw::zeros({2, 32, 32, 3}))));
  CHECK(net.actions().size() == planned);
}

TEST_CASE("a summary leaves no trace") {
  rw::random::seed(9);
  nn::Sequential net{nn::Conv2d{{.in = 3, .out = 4, .kernel = 3}},
                     nn::BatchNorm2d{4},
                     nn::ReLU{},
                     nn::Dropout{0.5},
                     nn::GlobalAvgPool{},
                     nn::Linear{4, 2}};
  rw::backward(rw::mean(net(rw::randn({2, 8, 8, 3}))));
  net[3].eval();
  std::vector<std::uint64_t> before;
  const auto collect = [&] {
    std::vector<std::uint64_t> all;
    for (const rw::Parameter& p : net.parameters()) {
      all.push_back(rw::hash(p.value));
      all.push_back(rw::hash(p.value.grad()));
    }
    for (const rw::Parameter& b : net.buffers()) all.push_back(rw::hash(b.value));
    all.push_back(rw::random::default_generator().offset());
    for (const bool mode : {net.training(), net[1].training(), net[3].training()}) all.push_back(mode);
    all.push_back(rw::memory::live().total);
    return all;
  };
  before = collect();
  const nn::Summary s = nn::summarize(net, {16, 64, 64, 3});
  CHECK(collect() == before);
  CHECK(s.layers.size() == 7);
  CHECK_THROWS_AS(nn::summarize(net, {16, 64, 64, 5}), rw::Error);
  CHECK(collect() == before);
  {
    const rw::NoGrad no_grad;  // a summary is of training all the same
    CHECK(nn::summarize(net, {16, 64, 64, 3}).training_step_macs == s.training_step_macs);
  }
}

TEST_CASE("a net of any size can be summarised without its memory") {
  const rw::memory::Scope scope;
  {
    const rw::ShapesOnly dry;
    nn::Sequential net = models::make("resnet34");
    CHECK(nn::summarize(net, {64, 224, 224, 3}).activation_bytes_saved > std::int64_t{1} << 30);
  }
  CHECK(scope.peak().total == scope.before().total);
}

TEST_CASE("a summary goes down into modules of one's own") {
  class Twice final : public nn::Module {
   public:
    nn::Linear fc{8, 8};
    void describe(nn::Fields& f) override { f.child("fc", fc); }
    rw::Tensor forward(rw::Tensor x) override {
      x = rw::tanh(fc(std::move(x)));
      return fc(std::move(x));
    }
  };
  nn::Sequential net;
  net.add("twice", Twice{});
  net.add("head", nn::Linear{8, 3, false});
  const nn::Summary s = nn::summarize(net, {10, 8});
  CHECK(layer(s, "twice").type == "Twice");
  CHECK(layer(s, "twice.fc").macs == 2 * 10 * 64);
  CHECK(layer(s, "twice.fc").parameters == 72);
  CHECK(layer(s, "twice").saved_bytes == 10 * 8 * 4);  // the output of tanh
  CHECK(layer(s, "head").output == rw::Shape{10, 3});
  CHECK(s.parameters == 96);
  CHECK(s.optimizer_state_bytes.adam == 2 * 96 * 4);

  // part of a net that has run before, under the paths of that net
  net(rw::randn({1, 8}));
  CHECK(layer(nn::summarize(net[0], {10, 8}), "fc").macs == 2 * 10 * 64);
}

TEST_CASE("frozen parameters are counted but have no optimizer state") {
  nn::Sequential net{nn::Linear{4, 4, false}, nn::Linear{4, 4, false}};
  net.parameters()[0].value.set_requires_grad(false);
  const nn::Summary s = nn::summarize(net, {1, 4});
  CHECK(s.parameters == 32);
  CHECK(s.trainable == 16);
  CHECK(s.optimizer_state_bytes.momentum == 64);
  CHECK(s.training_step_macs == 32 + 16);
}

TEST_CASE("every layer of every model has its output in the summary") {
  for (const models::Model& model : models::all()) {
    const rw::ShapesOnly dry;
    nn::Sequential net = models::make(model.name, {});
    for (const nn::LayerSummary& l : nn::summarize(net, models::input_shape(model.name, 1)).layers) {
      INFO(std::string(model.name), " ", l.path, " ", l.type);
      CHECK(l.output.rank() > 0);
    }
  }
}

TEST_CASE("the summary is printed as a table, cut at a depth") {
  nn::Sequential net;
  net.add("stem", nn::conv_norm({.in = 3, .out = 8, .kernel = 3, .padding = 1}));
  net.add("pool", nn::GlobalAvgPool{});
  net.add("fc", nn::Linear{8, 10});
  const nn::Summary s = nn::summarize(net, {1, 8, 8, 3});
  const std::string full = nn::to_string(s), cut = nn::to_string(s, 1);
  CHECK(full.find("    0: Conv2d          [1, 8, 8, 8]         216  13,824") != full.npos);
  CHECK(full.find("  pool: GlobalAvgPool  [1, 8]") != full.npos);
  CHECK(full.find("Parameters                322 (322 trainable)") != full.npos);
  CHECK(cut.find("Conv2d") == cut.npos);
  CHECK(cut.find("  stem: Sequential     [1, 8, 8, 8]         232  13,824") != cut.npos);
}

TEST_CASE("a dry run of a step has the peak of the step, to the byte, with recompute too") {
  for (const char* name : {"mobilenet_v2_cifar", "preresnet", "lenet5", "mobilenet_v3_small", "shufflenet_v1", "shufflenet_v2",
                           "squeezenet1_1", "densenet121"}) {
    for (const char* how : {"vanilla", "sqrt", "segments:3"}) {
      CAPTURE(name);
      CAPTURE(how);
      nn::Sequential net = models::make(name, {.depth = name == std::string("preresnet") ? 20 : 0});
      net.recompute(rw::Recompute::parse(how));
      const rw::Shape shape = models::input_shape(name, 2, name == std::string("lenet5") ? 28 : 32);
      const auto step = [&] {
        rw::Tensor loss = rw::cross_entropy(net(input(shape)), rw::from<std::int64_t>({0, 1}, {2}));
        rw::backward(std::move(loss));
      };
      const std::size_t predicted = rw::dry_run(step).peak.total;
      const rw::memory::Scope scope;
      step();
      CHECK(scope.peak().total == predicted);
    }
  }
}
