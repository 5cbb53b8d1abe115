// Recompute in a Sequential: the same bits under every schedule, and running statistics that move once.

#include <rewind/autograd/backward.h>
#include <rewind/autograd/checkpoint.h>
#include <rewind/autograd/observer.h>
#include <rewind/core/parallel.h>
#include <rewind/core/random.h>
#include <rewind/nn/blocks.h>

#include <doctest/doctest.h>

#include <array>
#include <cmath>

namespace rw = rewind;
namespace nn = rw::nn;

namespace {

nn::Sequential small_net() {
  nn::Sequential net;
  net.add("stem", nn::conv_norm({.in = 3, .out = 8, .kernel = 3, .padding = 1}, nn::Activation::relu6));
  nn::Sequential body;
  body.add(nn::InvertedBottleneck{{.in = 8, .out = 8, .expand = 2, .squeeze_excite = 4, .activation = nn::Activation::hardswish}});
  body.add(nn::Dropout{0.3});
  body.add(nn::InvertedBottleneck{{.in = 8, .out = 16, .expand = 3, .stride = 2}});
  body.add(nn::DepthwiseSeparable{{.in = 16, .out = 16}});
  body.add(nn::Residual{nn::Sequential{nn::conv_norm({.in = 16, .out = 16, .kernel = 3, .padding = 1}, nn::Activation::none)},
                        {},
                        nn::Activation::relu});
  net.add("body", std::move(body));
  net.add("head", nn::Sequential{nn::GlobalAvgPool{}, nn::Dropout{0.2}, nn::Linear{16, 5}});
  return net;
}

/// Everything that a step leaves behind, as hashes.
std::vector<std::uint64_t> step(nn::Module& net) {
  rw::random::seed(7);
  rw::Tensor x = rw::randn({4, 8, 8, 3});
  rw::Tensor loss = rw::cross_entropy(net(std::move(x)), rw::from<std::int64_t>({0, 1, 2, 4}, {4}));
  std::vector<std::uint64_t> all{rw::hash(loss)};
  rw::backward(std::move(loss));
  for (rw::Parameter& p : net.parameters()) {
    all.push_back(rw::hash(p.value.grad()));
    p.value.set_grad({});
  }
  for (const rw::Parameter& b : net.buffers()) all.push_back(rw::hash(b.value));
  all.push_back(rw::random::default_generator().offset());
  return all;
}

/// A step of a new net with the same weights.
std::vector<std::uint64_t> step_with(const rw::Recompute& how) {
  rw::random::seed(1);
  nn::Sequential net = small_net();
  net.recompute(how);
  return step(net);
}

class CountCalls final : public nn::Module {
 public:
  explicit CountCalls(int* calls) : calls_(calls) {}
  rw::Tensor forward(rw::Tensor x) override {
    ++*calls_;
    return rw::tanh(std::move(x));
  }

 private:
  int* calls_;
};

}  // namespace

TEST_CASE("loss, gradients, running statistics and random numbers have the same bits under every recompute") {
  const std::vector<std::uint64_t> expected = step_with(rw::Recompute::vanilla());
  CHECK(step_with(rw::Recompute::vanilla()) == expected);
  CHECK(step_with(rw::Recompute::sqrt()) == expected);
  rw::random::seed(1);
  const int stages = static_cast<int>(small_net().stages().size());
  CHECK(stages == 12);  // see small_net()
  for (int k = 1; k <= stages; ++k) {
    CAPTURE(k);
    CHECK(step_with(rw::Recompute::segments(k)) == expected);
  }
}

TEST_CASE("neither donation nor the number of threads changes a bit") {
  const std::vector<std::uint64_t> expected = step_with(rw::Recompute::vanilla());
  {
    const rw::NoDonation off;
    CHECK(step_with(rw::Recompute::vanilla()) == expected);
    CHECK(step_with(rw::Recompute::sqrt()) == expected);
  }
  const int threads = rw::parallel::threads();
  for (const int t : {1, 2, 3}) {
    rw::parallel::set_threads(t);
    CHECK(step_with(rw::Recompute::segments(4)) == expected);
  }
  rw::parallel::set_threads(threads);
}

/// All of another net, run again in backward.
class Checkpointed final : public nn::Module {
 public:
  explicit Checkpointed(nn::Module& net) : net_(net) {}
  void describe(nn::Fields& f) override { f.child("net", net_); }
  rw::Tensor forward(rw::Tensor x) override { return rw::checkpoint(net_, std::move(x)); }

 private:
  nn::Module& net_;
};

TEST_CASE("a module, which cannot be copied, is a function that checkpoint() takes") {
  rw::random::seed(1);
  nn::Sequential net = small_net();
  Checkpointed again(net);
  const auto bits = step(again);
  CHECK(bits == step_with(rw::Recompute::vanilla()));
}

TEST_CASE("a Sequential inside another may recompute by itself") {
  const auto nested = [](const rw::Recompute& inner, const rw::Recompute& outer) {
    rw::random::seed(1);
    nn::Sequential net = small_net();
    dynamic_cast<nn::Sequential&>(net[1]).recompute(inner);
    net.recompute(outer);
    return step(net);
  };
  const std::vector<std::uint64_t> expected = step_with(rw::Recompute::vanilla());
  CHECK(nested(rw::Recompute::segments(5), rw::Recompute::vanilla()) == expected);
  CHECK(nested(rw::Recompute::segments(2), rw::Recompute::segments(3)) == expected);
}

TEST_CASE("batch norm counts a step once, recomputed or not, and not in evaluation") {
  for (const rw::Recompute& how : {rw::Recompute::vanilla(), rw::Recompute::segments(2)}) {
    nn::Sequential net{nn::BatchNorm2d{2}, nn::Tanh{}, nn::Linear{2, 1}};
    auto& norm = dynamic_cast<nn::BatchNorm2d&>(net[0]);
    net.recompute(how);
    const rw::Tensor x = rw::from<float>({1, 10, 3, 20, 5, 30, 7, 40}, {1, 2, 2, 2});
    rw::backward(rw::mean(net(x)));
    CHECK(norm.num_batches_tracked.item<std::int64_t>() == 1);
    CHECK(norm.running_mean.values<float>()[0] == doctest::Approx(0.1 * 4));
    CHECK(norm.running_mean.values<float>()[1] == doctest::Approx(0.1 * 25));
    CHECK(norm.running_var.values<float>()[0] == doctest::Approx(0.9 + 0.1 * 20.0 / 3));  // unbiased
    rw::backward(rw::mean(net(x)));
    CHECK(norm.num_batches_tracked.item<std::int64_t>() == 2);

    net.eval();
    const float before = norm.running_mean.values<float>()[0];
    const rw::Tensor y = norm(x);
    CHECK(y.values<float>()[0] == doctest::Approx((1 - before) / std::sqrt(norm.running_var.values<float>()[0] + 1e-5)));
    CHECK(norm.running_mean.values<float>()[0] == before);
    CHECK(norm.num_batches_tracked.item<std::int64_t>() == 2);
  }
}

TEST_CASE("all segments but the last run twice") {
  for (const auto& [segments, first_calls, last_calls] : {std::array{1, 1, 1}, std::array{2, 2, 1}, std::array{4, 2, 1}}) {
    int first = 0, last = 0;
    nn::Sequential net{nn::Linear{3, 3}, CountCalls{&first}, nn::Linear{3, 3}, CountCalls{&last}};
    net.recompute(rw::Recompute::segments(segments));
    rw::backward(rw::mean(net(rw::randn({2, 3}))));
    CHECK(first == first_calls);
    CHECK(last == last_calls);
  }
}

TEST_CASE("recomputing holds less memory") {
  const auto saved = [](const rw::Recompute& how) {
    nn::Sequential net = small_net();
    net.recompute(how);
    const std::size_t before = rw::memory::live()[rw::Category::activation];
    const rw::Tensor y = net(rw::randn({4, 8, 8, 3}));
    return rw::memory::live()[rw::Category::activation] - before;
  };
  CHECK(2 * saved(rw::Recompute::segments(5)) < saved(rw::Recompute::vanilla()));
}

TEST_CASE("a strategy is read from text") {
  for (const char* text : {"vanilla", "low-memory", "sqrt", "recursive", "segments:6", "periodic:4", "revolve:8", "budget:300MiB"})
    CHECK(rw::Recompute::parse(text).name() == text);
  CHECK(rw::Recompute::parse("budget:1.5GB").budget()->bytes == 1500000000);
  CHECK(rw::Recompute::parse("budget:2KiB").budget()->bytes == 2048);
  CHECK(rw::Recompute::parse("budget:77").budget()->bytes == 77);
  for (const char* bad : {"", "square", "segments", "segments:", "segments:0", "segments:4x", "segments:-1",
                          "budget:", "budget:1000000000000GB", "budget:-3MB", "budget:3parsec", "sqrt:2"})
    CHECK_THROWS_WITH_AS(rw::Recompute::parse(bad), doctest::Contains("unknown strategy"), rw::Error);
  nn::Sequential net{nn::Linear{3, 3}, nn::Tanh{}};
  net.recompute(rw::Recompute::segments(3));
  CHECK_THROWS_WITH_AS(net(rw::randn({2, 3})), doctest::Contains("give 1 to 2"), rw::Error);
}

TEST_CASE("a chain whose input is used beside it, and in it more than once, has the same bits recomputed") {
  struct Skip final : nn::Module {
    nn::Sequential body;
    rw::Tensor forward(rw::Tensor x) override {
      rw::Tensor y = body(x);
      return y + x;
    }
    void describe(nn::Fields& f) override { f.child("body", body); }
  };
  const auto gradients = [](const rw::Recompute& how, bool of_a_leaf) {
    rw::random::seed(3);
    Skip net;
    net.body.add(nn::SqueezeExcite{{.channels = 8, .squeeze = 4}});
    net.body.add(nn::Conv2d{{.in = 8, .out = 8, .kernel = 3, .padding = 1}});
    net.body.add(nn::Tanh{});
    net.body.recompute(how);
    rw::Tensor x = rw::randn({4, 8, 8, 8}).set_requires_grad();
    const rw::Tensor y = of_a_leaf ? net(x) : net(rw::tanh(x));
    rw::backward(rw::sum(rw::square(y)));
    std::vector<std::uint64_t> all{rw::hash(x.grad())};
    for (const rw::Parameter& p : net.parameters()) all.push_back(rw::hash(p.value.grad()));
    return all;
  };
  for (const bool of_a_leaf : {false, true})
    for (const char* how : {"sqrt", "low-memory", "segments:1", "revolve:1"})
      CHECK_MESSAGE(gradients(rw::Recompute::parse(how), of_a_leaf) == gradients(rw::Recompute::vanilla(), of_a_leaf), how);
}

TEST_CASE("weights and modes that change between forward and a recomputing backward are noticed") {
  rw::random::seed(1);
  nn::Sequential net{nn::Linear{4, 8}, nn::Tanh{}, nn::Dropout{0.5}, nn::Linear{8, 8}, nn::Tanh{}, nn::Linear{8, 3}};
  const rw::Tensor x = rw::randn({5, 4});
  const auto loss = [&] { return rw::sum(rw::square(net(x))); };
  for (const char* how : {"low-memory", "segments:3"}) {
    net.recompute(rw::Recompute::parse(how));
    rw::Tensor one = loss();
    net.parameters()[0].value.fill(0.5);
    CHECK_THROWS_WITH_AS(rw::backward(one),
                         doctest::Contains("input 1 of linear in module 0, shape [8, 4], was modified in place after forward"),
                         rw::Error);
    one = rw::Tensor();
    rw::Tensor two = loss();
    net.eval();
    CHECK_THROWS_WITH_AS(rw::backward(two), doctest::Contains("train() or eval() was called between forward and backward"),
                         rw::Error);
    two = rw::Tensor();
    net.train();
    rw::Tensor three = loss();
    net.eval();
    net.train();  // as it was
    rw::backward(three);
  }
}

TEST_CASE("a fused net that is switched to evaluation before a recomputing backward is noticed") {
  for (const bool fused : {true, false})
    for (const char* how : {"low-memory", "sqrt"}) {
      rw::random::seed(1);
      nn::Sequential net;
      for (int i = 0; i < 3; ++i) net.add(nn::conv_norm({.in = 4, .out = 4, .kernel = 3, .padding = 1}, nn::Activation::relu6));
      net.add(nn::InvertedBottleneck{{.in = 4, .out = 4, .expand = 2}});
      net.fuse(fused);
      net.recompute(rw::Recompute::parse(how));
      rw::Tensor loss = rw::sum(rw::square(net(rw::randn({2, 6, 6, 4}))));
      net.eval();
      CHECK_THROWS_WITH_AS(rw::backward(loss), doctest::Contains("train() or eval() was called between"), rw::Error);
    }
  nn::Sequential chain{nn::Conv2d{{.in = 4, .out = 8}}, nn::BatchNorm2d{8}, nn::ReLU6{}, nn::Conv2d{{.in = 8, .out = 4}},
                       nn::BatchNorm2d{4}};
  chain.recompute(rw::Recompute::low_memory());
  rw::Tensor loss = rw::sum(rw::square(chain(rw::randn({2, 6, 6, 4}))));
  chain.eval();
  CHECK_THROWS_WITH_AS(rw::backward(loss), doctest::Contains("train() or eval() was called between"), rw::Error);
}

TEST_CASE("a fused net that is told not to fuse before a recomputing backward is noticed") {
  for (const char* how : {"low-memory", "sqrt"}) {
    nn::Sequential net;
    for (int i = 0; i < 3; ++i) net.add(nn::conv_norm({.in = 4, .out = 4, .kernel = 3, .padding = 1}, nn::Activation::relu6));
    net.add(nn::PreActivationBottleneck{{.in = 4, .width = 1}});
    net.recompute(rw::Recompute::parse(how));
    rw::Tensor loss = rw::sum(rw::square(net(rw::randn({2, 6, 6, 4}))));
    net.fuse(false);
    CHECK_THROWS_WITH_AS(rw::backward(loss), doctest::Contains("fuse() was called between forward and backward"), rw::Error);
  }
}

TEST_CASE("a stage whose weight is replaced or frozen before a recomputing backward is noticed") {
  nn::Sequential net{nn::Linear{4, 8}, nn::Tanh{}, nn::Linear{8, 8}, nn::Tanh{}, nn::Linear{8, 3}};
  const rw::Tensor x = rw::randn({5, 4});
  auto& layer = dynamic_cast<nn::Linear&>(net[2]);
  for (const char* how : {"low-memory", "segments:3"}) {
    net.recompute(rw::Recompute::parse(how));
    rw::Tensor one = rw::sum(net(x));
    layer.weight = layer.weight.clone().set_requires_grad();
    CHECK_THROWS_WITH_AS(rw::backward(one),
                         doctest::Contains("input 1 of linear in module 2, shape [8, 8], was not read in the first run"),
                         rw::Error);
    rw::Tensor two = rw::sum(net(x));
    layer.weight.set_requires_grad(false);
    CHECK_THROWS_WITH_AS(rw::backward(two), doctest::Contains("was frozen after forward read it"), rw::Error);
    layer.weight.set_requires_grad();
    rw::backward(rw::sum(net(x)));
  }
}

TEST_CASE("a stage that changes its input in place is refused where it would be run again") {
  class AddOne final : public nn::Module {
   public:
    rw::Tensor forward(rw::Tensor x) override {
      for (float& v : x.detach().mutate<float>()) v += 1;
      return rw::tanh(std::move(x));
    }
  };
  const rw::Tensor x = rw::randn({2, 4});
  nn::Sequential net{nn::Linear{4, 4}, AddOne{}, nn::Linear{4, 4}, nn::Tanh{}};
  net.recompute(rw::Recompute::revolve(4));
  CHECK_THROWS_WITH_AS(net(x), doctest::Contains("recompute: what stage 1 made, shape [2, 4], was changed in place"), rw::Error);
  nn::Sequential flat{nn::Flatten{}, AddOne{}, nn::Linear{4, 4}, nn::Tanh{}, nn::Linear{4, 4}};  // through a view
  for (const char* how : {"low-memory", "sqrt", "revolve:2"}) {
    flat.recompute(rw::Recompute::parse(how));
    CHECK_THROWS_WITH_AS(flat(x), doctest::Contains("changed what they were given, shape [2, 4], in place"), rw::Error);
  }
}

TEST_CASE("a stage may return a parameter, and pass a leaf on to a stage that has captured it") {
  struct Constant final : nn::Module {
    rw::Tensor w = rw::randn({3, 4}).set_requires_grad();
    rw::Tensor forward(rw::Tensor) override { return w; }
    void describe(nn::Fields& f) override { f.parameter("w", w); }
  };
  struct Times final : nn::Module {
    rw::Tensor w;
    explicit Times(rw::Tensor t) : w(std::move(t)) {}
    rw::Tensor forward(rw::Tensor x) override { return rw::square(std::move(x) * w); }
  };
  rw::random::seed(2);
  nn::Sequential constant{Constant{}, nn::Linear{4, 8}, nn::Tanh{}, nn::Linear{8, 2}};
  const rw::Tensor leaf = rw::randn({3, 4}).set_requires_grad();
  nn::Sequential passing{nn::Flatten{}, Times{leaf}, nn::Tanh{}, nn::Linear{4, 2}};
  const auto gradients = [&](nn::Sequential& net, const rw::Tensor& x, const char* how) {
    net.recompute(rw::Recompute::parse(how));
    rw::backward(rw::sum(rw::square(net(x))));
    std::vector<std::uint64_t> all{leaf.grad().defined() ? rw::hash(leaf.take_grad()) : 0};
    for (const rw::Parameter& p : net.parameters()) all.push_back(rw::hash(p.value.take_grad()));
    return all;
  };
  for (const char* how : {"low-memory", "sqrt", "revolve:2", "segments:1"}) {
    CHECK_MESSAGE(gradients(constant, rw::zeros({3, 4}), how) == gradients(constant, rw::zeros({3, 4}), "vanilla"), how);
    CHECK_MESSAGE(gradients(passing, leaf, how) == gradients(passing, leaf, "vanilla"), how);
  }
}

TEST_CASE("a convolution's bias of another size is refused, fused or not") {
  for (const bool fused : {true, false}) {
    nn::Sequential net{nn::Conv2d{{.in = 3, .out = 8, .kernel = 3}}, nn::BatchNorm2d{8}};
    dynamic_cast<nn::Conv2d&>(net[0]).bias = rw::zeros({1});
    net.fuse(fused);
    CHECK_THROWS_WITH_AS(net(rw::randn({1, 5, 5, 3})), doctest::Contains("[1]"), rw::Error);
  }
}
