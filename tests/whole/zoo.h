#pragma once
// Every model of the examples at a size that a test can train, every strategy, every optimizer.

#include <rewind/autograd/backward.h>
#include <rewind/autograd/dry_run.h>
#include <rewind/autograd/functional.h>
#include <rewind/core/parallel.h>
#include <rewind/core/random.h>
#include <rewind/nn/layers.h>
#include <rewind/nn/models/alexnet.h>
#include <rewind/nn/models/densenet.h>
#include <rewind/nn/models/efficientnet.h>
#include <rewind/nn/models/lenet5.h>
#include <rewind/nn/models/mnasnet.h>
#include <rewind/nn/models/mobilenet_v1.h>
#include <rewind/nn/models/mobilenet_v2.h>
#include <rewind/nn/models/mobilenet_v3.h>
#include <rewind/nn/models/preresnet.h>
#include <rewind/nn/models/resnet.h>
#include <rewind/nn/models/shufflenet_v1.h>
#include <rewind/nn/models/shufflenet_v2.h>
#include <rewind/nn/models/squeezenet.h>
#include <rewind/nn/models/vgg.h>
#include <rewind/optim/adam.h>
#include <rewind/optim/sgd.h>

#include "../../examples/support/digits_net.h"
#include "../../examples/support/fashion_nets.h"

#include <memory>
#include <string>

#include "../threads.h"

namespace zoo {

namespace rw = rewind;
namespace nn = rewind::nn;

struct Model {
  const char* name;
  int batch, size, channels, classes;
  nn::Sequential (*build)();
  bool fuse = true;
};

/// Convolutions with biases, as one writes them without thinking of it.
inline nn::Sequential biased() {
  return nn::Sequential{nn::Conv2d{{.in = 3, .out = 8, .kernel = 3, .padding = 1}},
                        nn::BatchNorm2d{8},
                        nn::ReLU6{},
                        nn::DepthwiseConv2d{{.channels = 8, .kernel = 3, .stride = 2, .padding = 1}},
                        nn::BatchNorm2d{8},
                        nn::ReLU{},
                        nn::Conv2d{{.in = 8, .out = 12}},
                        nn::ReLU{},
                        nn::Conv2d{{.in = 12, .out = 8}},
                        nn::BatchNorm2d{8},
                        nn::InvertedBottleneck{{.in = 8, .out = 8, .expand = 2}},
                        nn::GlobalAvgPool{},
                        nn::Linear{8, 10}};
}

/// Widths are cut where the layers stay the same: bytes and bits are proven on small channels as on large ones.
inline const Model models[] = {
    {"digits", 4, 8, 1, 10, support::digits_net},
    {"fashion mlp", 4, 28, 1, 10, support::fashion_mlp},
    {"fashion cnn", 4, 28, 1, 10, support::fashion_cnn},
    {"lenet5", 4, 28, 1, 10, [] { return nn::models::lenet5(); }},
    {"mobilenet_v2", 2, 64, 3, 20, [] { return nn::models::mobilenet_v2({.width = 0.5, .classes = 20}); }},
    {"mobilenet_v2_cifar", 2, 16, 3, 10, [] { return nn::models::mobilenet_v2({.width = 0.5, .classes = 10, .cifar = true}); }},
    {"mobilenet_v2_cifar, unfused", 2, 16, 3, 10,
     [] { return nn::models::mobilenet_v2({.width = 0.5, .classes = 10, .cifar = true}); }, false},
    {"preresnet20, unfused", 2, 16, 3, 10, [] { return nn::models::preresnet({.depth = 20}); }, false},
    {"mobilenet_v1", 2, 32, 3, 10, [] { return nn::models::mobilenet_v1({.width = 0.25, .classes = 10}); }},
    {"biased", 2, 12, 3, 10, biased},
    {"preresnet20", 2, 16, 3, 10, [] { return nn::models::preresnet({.depth = 20}); }},
    {"preresnet29", 2, 16, 3, 10, [] { return nn::models::preresnet({.depth = 29}); }},
    {"mobilenet_v3_small", 2, 32, 3, 10, [] { return nn::models::mobilenet_v3({.small = true, .width = 0.25, .classes = 10}); }},
    {"efficientnet_b0", 2, 32, 3, 10, [] { return nn::models::efficientnet({.width = 0.25, .classes = 10}); }},
    {"shufflenet_v1", 2, 32, 3, 10, [] { return nn::models::shufflenet_v1({.width = 0.25, .classes = 10}); }},
    {"shufflenet_v2", 2, 32, 3, 10, [] { return nn::models::shufflenet_v2({.width = 0.5, .classes = 10}); }},
    {"resnet18_cifar", 2, 16, 3, 10, [] { return nn::models::resnet({.depth = 18, .classes = 10, .cifar = true}); }},
    {"alexnet", 2, 63, 3, 10, [] { return nn::models::alexnet({.width = 0.125, .classes = 10}); }},
    {"vgg", 2, 32, 3, 10, [] { return nn::models::vgg({.depth = 11, .width = 0.125, .classes = 10}); }},
    {"squeezenet", 2, 33, 3, 10, [] { return nn::models::squeezenet({.classes = 10}); }},
    {"mnasnet", 2, 32, 3, 10, [] { return nn::models::mnasnet({.width = 0.25, .classes = 10}); }},
    {"densenet", 2, 32, 3, 10, [] { return nn::models::densenet({.width = 0.125, .classes = 10}); }},
};

inline const Model& find(std::string_view name) {
  for (const Model& m : models)
    if (name == m.name) return m;
  rw::fail(rw::str("no model ", name));
}

/// As Task::recompute() takes them.
inline const char* const strategies[] = {"vanilla",    "low-memory", "sqrt",      "recursive",
                                         "segments:3", "periodic:2", "revolve:2", "budget"};
inline const char* const optimizers[] = {"sgd", "momentum", "adam", "adamw"};

inline std::unique_ptr<rw::optim::Optimizer> make_optimizer(const std::string& name, std::vector<rw::Parameter> parameters) {
  using namespace rw::optim;
  if (name == "adam") return std::make_unique<Adam>(std::move(parameters), AdamOptions{.lr = 1e-3});
  if (name == "adamw") return std::make_unique<AdamW>(std::move(parameters), AdamWOptions{.lr = 1e-3});
  return std::make_unique<SGD>(std::move(parameters), SGDOptions{.lr = 1e-2, .momentum = name == "momentum" ? 0.9 : 0});
}

/// Nets of this size are faster on one, on a busy machine by far.
using ::Threads;

/// A model with something to train on.
struct Task {
  nn::Sequential net;
  rw::Tensor x, y;

  explicit Task(const Model& model, unsigned seed = 1) {
    rw::random::seed(seed);
    net = model.build();
    net.fuse(model.fuse);
    const rw::memory::CategoryScope input(rw::Category::input);
    x = rw::randn({model.batch, model.size, model.size, model.channels});
    y = rw::empty({model.batch}, rw::int64);
    auto labels = y.mutate<std::int64_t>();
    for (std::size_t i = 0; i < labels.size(); ++i) labels[i] = static_cast<std::int64_t>(i) * 3 % model.classes;
  }
  rw::Tensor loss() { return rw::cross_entropy(net(x), y); }
  void forward_backward() { rw::backward(loss()); }

  /// The smallest budget for a step with what is live now, as the error about a smaller one says.
  std::size_t least_budget() {
    net.recompute(rw::Budget{.bytes = 1, .costs = rw::Costs::counted});
    try {
      rw::dry_run([&] { loss(); });
    } catch (const rw::Error& e) {
      const std::string text = e.what(), mark = "needs at least ";
      if (const auto at = text.find(mark); at != text.npos) return std::stoull(text.substr(at + mark.size()));
      throw;
    }
    rw::fail("a budget of one byte was accepted");
  }
  std::size_t vanilla_peak() {
    net.recompute(rw::Recompute::vanilla());
    return rw::dry_run([&] { forward_backward(); }).peak.total;
  }
  /// Chooses a strategy. "budget" is so far (0..1) from the smallest budget to vanilla's peak, and leaves room for `state`
  /// bytes that are not live yet.
  void recompute(const std::string& strategy, std::size_t state = 0, double share = 0.4) {
    if (strategy != "budget") return net.recompute(rw::Recompute::parse(strategy));
    const std::size_t least = least_budget(), most = std::max(least, vanilla_peak());
    net.recompute(rw::Budget{.bytes = least + state + static_cast<std::size_t>(share * static_cast<double>(most - least)),
                             .costs = rw::Costs::counted});
  }
  /// Bytes of optimizer state to come.
  std::size_t state_bytes(const std::string& optimizer) {
    std::size_t bytes = 0;
    for (const rw::Parameter& p : net.parameters()) bytes += p.value.bytes();
    return optimizer == "sgd" ? 0 : optimizer == "momentum" ? bytes : 2 * bytes;
  }
};

}  // namespace zoo
