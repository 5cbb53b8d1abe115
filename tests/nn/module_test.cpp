// Modules: names, modes, moving, modules of one's own, and where errors say they happened.

#include <rewind/autograd/backward.h>
#include <rewind/autograd/grad_mode.h>
#include <rewind/autograd/observer.h>
#include <rewind/autograd/profiler.h>
#include <rewind/core/random.h>
#include <rewind/nn/blocks.h>
#include <rewind/nn/summary.h>

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <thread>

namespace rw = rewind;
namespace nn = rw::nn;

namespace {

class Net final : public nn::Module {
 public:
  nn::Linear hidden{4, 8}, out{8, 3};
  nn::BatchNorm2d norm{8};
  void describe(nn::Fields& f) override {
    f.child("hidden", hidden);
    f.child("norm", norm);
    f.child("out", out);
  }
  rw::Tensor forward(rw::Tensor x) override { return out(rw::relu(norm(hidden(std::move(x))))); }
};

std::vector<std::string> names(const std::vector<rw::Parameter>& list) {
  std::vector<std::string> all;
  for (const rw::Parameter& p : list) all.push_back(p.name);
  return all;
}

class Paths final : public rw::Observer {
 public:
  std::vector<std::string> seen;

 private:
  void after(const rw::OpEvent& event) override { seen.push_back(rw::str(event.op.name, " ", event.module)); }
};

}  // namespace

TEST_CASE("a module of one's own trains like any other") {
  Net net;
  CHECK(names(net.parameters()) ==
        std::vector<std::string>{"hidden.weight", "hidden.bias", "norm.weight", "norm.bias", "out.weight", "out.bias"});
  CHECK(names(net.buffers()) == std::vector<std::string>{"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"});
  CHECK(net.type() == "Net");
  rw::Tensor loss = rw::cross_entropy(net(rw::randn({6, 4})), rw::from<std::int64_t>({0, 1, 2, 0, 1, 2}, {6}));
  rw::backward(std::move(loss));
  for (const rw::Parameter& p : net.parameters()) CHECK_MESSAGE(p.value.grad().defined(), p.name);

  nn::Sequential outer{Net{}, nn::ReLU{}};
  CHECK(names(outer.parameters()).front() == "0.hidden.weight");
}

TEST_CASE("a tensor under two names is one parameter") {
  class Tied final : public nn::Module {
   public:
    nn::Linear a{3, 3, false}, b{3, 3, false};
    Tied() { b.weight = a.weight; }
    void describe(nn::Fields& f) override {
      f.child("a", a);
      f.child("b", b);
    }
    rw::Tensor forward(rw::Tensor x) override { return b(a(std::move(x))); }
  };
  Tied tied;
  CHECK(names(tied.parameters()) == std::vector<std::string>{"a.weight"});
}

TEST_CASE("errors name the module by its path") {
  nn::Sequential net, features;
  features.add(nn::conv_norm({.in = 3, .out = 8, .kernel = 3}));
  features.add(nn::InvertedBottleneck{{.in = 16, .out = 16, .expand = 2}});
  net.add("features", std::move(features));
  CHECK_THROWS_WITH_AS(net(rw::randn({1, 8, 8, 3})), doctest::Contains("(in module features.1.conv.0.0)"), rw::Error);
  CHECK_THROWS_WITH_AS(net(rw::randn({1, 8, 8, 4})), doctest::Contains("(in module features.0.0)"), rw::Error);
  // and the label is gone afterwards
  CHECK_THROWS_WITH_AS(rw::add(rw::randn({2}), rw::randn({3})), doctest::Contains("[2]"), rw::Error);
  CHECK(std::string(rw::location().module).empty());
}

TEST_CASE("a module that is added after the first call gets its path") {
  nn::Sequential net{nn::Linear{3, 4}};
  net(rw::randn({2, 3}));
  net.add("head", nn::Linear{9, 2});
  CHECK_THROWS_WITH_AS(net(rw::randn({2, 3})), doctest::Contains("(in module head)"), rw::Error);
  nn::Sequential inner{nn::Linear{3, 4}};
  inner(rw::randn({2, 3}));
  struct Outer final : nn::Module {
    nn::Sequential* body = nullptr;
    rw::Tensor forward(rw::Tensor x) override { return (*body)(std::move(x)); }
    void describe(nn::Fields& f) override { f.child("body", *body); }
  } outer;
  outer.body = &inner;
  outer(rw::randn({2, 3}));
  inner.add("more", nn::Linear{9, 2});  // the names stay those of the outer one
  CHECK_THROWS_WITH_AS(outer(rw::randn({2, 3})), doctest::Contains("(in module body.more)"), rw::Error);
}

TEST_CASE("a layer that is assigned, or that joins a list, has its path in the net at once") {
  class Stack final : public nn::Module {
   public:
    std::vector<nn::Linear> layers;
    Stack() { layers.emplace_back(3, 3); }
    void describe(nn::Fields& f) override {
      for (std::size_t i = 0; i < layers.size(); ++i) f.child(std::to_string(i), layers[i]);
    }
    rw::Tensor forward(rw::Tensor x) override {
      for (nn::Linear& layer : layers) x = layer(std::move(x));
      return x;
    }
  } net;
  const auto paths = [&] {
    Paths watch;
    const rw::ObserverScope scope(watch);
    net(rw::randn({2, 3}));
    return watch.seen;
  };
  CHECK(paths() == std::vector<std::string>{"linear 0"});
  net.layers[0] = nn::Linear{3, 3};
  CHECK(paths() == std::vector<std::string>{"linear 0"});
  net.layers.reserve(3);  // the old ones stay where they are
  net.layers.emplace_back(3, 3);
  net.layers.emplace_back(3, 3);
  CHECK(paths() == std::vector<std::string>{"linear 0", "linear 1", "linear 2"});
  std::swap(net.layers[1], net.layers[2]);
  CHECK(paths() == std::vector<std::string>{"linear 0", "linear 1", "linear 2"});
}

TEST_CASE("a normalisation that is made again, and was consumed by another backward, is an error that says so") {
  nn::Sequential trunk = nn::conv_norm({.in = 3, .out = 8, .kernel = 3, .padding = 1});
  rw::Tensor w1 = rw::randn({4, 3, 3, 8}).set_requires_grad(), w2 = rw::randn({4, 3, 3, 8}).set_requires_grad();
  const rw::Tensor h = trunk(rw::randn({2, 8, 8, 3}));
  rw::Tensor one = rw::sum(rw::conv2d(h, w1)), two = rw::sum(rw::conv2d(h, w2));
  rw::backward(std::move(one));
  CHECK_THROWS_WITH_AS(rw::backward(std::move(two)), doctest::Contains("already consumed by an earlier backward"), rw::Error);
}

TEST_CASE("ops in forward and backward carry the module's path") {
  nn::Sequential net;
  net.add("fc", nn::Linear{3, 2});
  net.add("act", nn::Tanh{});
  Paths paths;
  const rw::ObserverScope scope(paths);
  rw::Tensor y = net(rw::randn({4, 3}));
  CHECK(paths.seen == std::vector<std::string>{"linear fc", "tanh act"});
  paths.seen.clear();
  rw::backward(y, rw::ones(y.shape()));
  for (const std::string& s : paths.seen) CHECK_MESSAGE((s.ends_with(" fc") || s.ends_with(" act")), s);
}

TEST_CASE("train and eval reach every module") {
  nn::Sequential net{nn::Sequential{nn::Dropout{0.5}}, nn::Residual{nn::Sequential{nn::Dropout{0.5}}}};
  CHECK(net.training());
  net.eval();
  const rw::Tensor x = rw::ones({64});
  CHECK(net(x).to_vector<float>() == std::vector<float>(64, 2));
  CHECK(!dynamic_cast<nn::Sequential&>(net[0])[0].training());
  net.train();
  CHECK(net(x).to_vector<float>() != std::vector<float>(64, 2));
}

TEST_CASE("moving a Sequential keeps its parameters") {
  nn::Sequential a{nn::Linear{3, 4}, nn::ReLU{}, nn::Linear{4, 2}};
  a.eval();
  const rw::Tensor x = rw::randn({5, 3});
  const std::vector<float> expected = a(x).to_vector<float>();
  const std::vector<rw::Parameter> before = a.parameters();
  nn::Sequential b = std::move(a);
  nn::Sequential c;
  c = std::move(b);
  const std::vector<rw::Parameter> after = c.parameters();
  REQUIRE(after.size() == before.size());
  for (std::size_t i = 0; i < after.size(); ++i) CHECK(after[i].value.same(before[i].value));
  CHECK(c(x).to_vector<float>() == expected);
  CHECK(!c.training());
  CHECK(a.size() == 0);  // NOLINT(bugprone-use-after-move)
}

TEST_CASE("an activation after a layer is applied by the layer, with the same bits") {
  const rw::Tensor x = rw::randn({2, 6, 6, 4});
  const auto run = [&](nn::Sequential& net, bool together) {
    rw::Tensor y;
    if (together) {
      y = net(x);
    } else {
      y = x;
      for (int i = 0; i < net.size(); ++i) y = net[i](std::move(y));
    }
    std::vector<std::uint64_t> all{rw::hash(y)};
    rw::backward(rw::mean(rw::square(std::move(y))));
    for (rw::Parameter& p : net.parameters()) {
      all.push_back(rw::hash(p.value.grad()));
      p.value.set_grad({});
    }
    return all;
  };
  nn::Sequential normed{nn::Conv2d{{.in = 4, .out = 8, .kernel = 3, .bias = false}}, nn::BatchNorm2d{8}, nn::ReLU6{}};
  nn::Sequential plain{nn::Conv2d{{.in = 4, .out = 8, .kernel = 3}}, nn::ReLU{}, nn::Flatten{}, nn::Linear{128, 5}, nn::ReLU6{}};
  CHECK(normed.stages().size() == 1);
  normed.fuse(false);
  CHECK(normed.stages().size() == 2);
  CHECK(plain.stages().size() == 3);
  CHECK(run(normed, true) == run(normed, false));
  CHECK(run(plain, true) == run(plain, false));
}

TEST_CASE("a hardswish or silu behind a batch norm is computed where that is, to the same values, and its input is not kept") {
  const rw::Tensor x = rw::randn({3, 12, 12, 4});
  nn::Sequential net{nn::Conv2d{{.in = 4, .out = 16, .bias = false}},
                     nn::BatchNorm2d{16},
                     nn::Hardswish{},
                     nn::DepthwiseConv2d{{.channels = 16, .padding = 1, .bias = false}},
                     nn::BatchNorm2d{16},
                     nn::SiLU{},
                     nn::SqueezeExcite{{.channels = 16, .squeeze = 4}},
                     nn::Conv2d{{.in = 16, .out = 8}},
                     nn::Hardswish{},
                     nn::BatchNorm2d{8},
                     nn::SiLU{}};
  const auto run = [&] {
    std::vector<rw::Tensor> all{net(x)};
    rw::backward(rw::mean(rw::square(all[0])));
    all[0] = all[0].detach();
    for (rw::Parameter& p : net.parameters()) all.push_back(p.value.take_grad());
    return all;
  };
  const auto ops = [&] {
    const rw::OpProfile profile = rw::profile_ops([&] { net(x); }, 1, 0);
    return std::ranges::count_if(profile.ops, [](const rw::OpRecord& r) {
      return std::string_view(r.op) == "hardswish" || std::string_view(r.op) == "silu";
    });
  };
  CHECK(net.stages().size() == 7);
  CHECK(ops() == 2);  // those that no batch norm comes before, or no convolution before that
  const std::vector<rw::Tensor> together = run();
  const auto saved = nn::summarize(net, x.shape()).activation_bytes_saved;
  net.fuse(false);
  CHECK(ops() == 4);
  const std::vector<rw::Tensor> apart = run();
  CHECK(nn::summarize(net, x.shape()).activation_bytes_saved >= saved + 4 * 3 * 12 * 12 * 16 * 4);
  const auto close = [](const rw::Tensor& a, const rw::Tensor& b) {
    return rw::max(rw::abs(a - b)).item() <= 1e-5 * rw::max(rw::abs(b)).item();
  };
  for (std::size_t i = 0; i < apart.size(); ++i) {
    CAPTURE(i);
    CHECK(close(together[i], apart[i]));
  }
  net.eval();
  const rw::Tensor evaluated = net(x);
  net.fuse(true);
  CHECK(close(net(x), evaluated));
  net.train();  // one value a channel has no statistics to pass on, but shapes
  CHECK(nn::summarize(net, {1, 1, 1, 4}).layers.back().output == rw::Shape{1, 1, 1, 8});
}

TEST_CASE("a pool behind a convolution is computed with it, to the same values, and its input is not kept") {
  const rw::Tensor x = rw::randn({3, 12, 12, 2});
  nn::Sequential net{nn::Conv2d{{.in = 2, .out = 6, .kernel = 5}},
                     nn::ReLU{},
                     nn::MaxPool2d{2},
                     nn::Conv2d{{.in = 6, .out = 7, .kernel = 3, .padding = 1}},
                     nn::MaxPool2d{{.kernel = 3, .stride = 1}},
                     nn::Flatten{},
                     nn::Linear{28, 3}};
  const auto run = [&] {
    rw::Tensor y = net(x);
    std::vector<rw::Tensor> all{y.detach().clone()};
    rw::backward(rw::mean(rw::square(std::move(y))));
    for (rw::Parameter& p : net.parameters()) all.push_back(p.value.take_grad());
    return all;
  };
  CHECK(net.stages().size() == 4);
  const std::vector<rw::Tensor> together = run();
  const auto saved = nn::summarize(net, x.shape()).activation_bytes_saved;
  net.fuse(false);
  CHECK(net.stages().size() == 6);
  const std::vector<rw::Tensor> apart = run();
  CHECK(nn::summarize(net, x.shape()).activation_bytes_saved >= saved + 3 * 8 * 8 * 6 * 4);
  for (std::size_t i = 0; i < apart.size(); ++i) {
    CAPTURE(i);
    CHECK(rw::max(rw::abs(together[i] - apart[i])).item() <= 1e-5 * rw::max(rw::abs(apart[i])).item());
  }
}

TEST_CASE("a Sequential refuses names that cannot be told apart") {
  nn::Sequential net;
  net.add("fc", nn::Linear{2, 2});
  CHECK_THROWS_WITH_AS(net.add("fc", nn::ReLU{}), doctest::Contains("already a child named 'fc'"), rw::Error);
  CHECK_THROWS_WITH_AS(net.add("a.b", nn::ReLU{}), doctest::Contains("must not be empty or hold a dot"), rw::Error);
  CHECK_THROWS_WITH_AS(net[3], doctest::Contains("child 3 does not exist; there are 1"), rw::Error);
}

TEST_CASE("an evaluation without gradients holds two activations at most") {
  nn::Sequential net;
  for (int i = 0; i < 6; ++i) net.add(nn::Linear{64, 64, false});
  rw::Tensor x = rw::randn({512, 64});
  const std::size_t one = x.bytes();
  const rw::NoGrad no_grad;
  const rw::memory::Scope scope;
  const rw::Tensor y = net(std::move(x));
  CHECK(scope.peak()[rw::Category::activation] - scope.before()[rw::Category::activation] <= one);
}

TEST_CASE("threads run one net in evaluation while another makes nets of its own") {
  rw::random::seed(2);
  nn::Sequential net;
  net.add(nn::conv_norm({.in = 3, .out = 8, .kernel = 3, .padding = 1}));
  for (int i = 0; i < 4; ++i) net.add(nn::InvertedBottleneck{{.in = 8, .out = 8}});
  net.add(nn::GlobalAvgPool{});
  net.eval();
  const rw::NoGrad no_grad;
  const rw::Tensor x = rw::randn({1, 8, 8, 3});
  const std::uint64_t expected = rw::hash(net(x));
  net.fuse();  // what is derived from the net is derived again, by several at once
  std::atomic<bool> over = false;
  std::thread maker([&] {
    while (!over) nn::Sequential{nn::Linear{2, 2}, nn::Sequential{nn::Tanh{}, nn::Linear{2, 2}}};
  });
  std::atomic<int> wrong = 0;
  std::vector<std::thread> runners;
  for (int t = 0; t < 3; ++t)
    runners.emplace_back([&] {
      const rw::NoGrad none;
      for (int i = 0; i < 200; ++i)
        if (rw::hash(net(x)) != expected) ++wrong;
    });
  for (std::thread& t : runners) t.join();
  over = true;
  maker.join();
  CHECK(wrong == 0);
}
