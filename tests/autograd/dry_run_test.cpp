// A dry run predicts the real run to the byte, and leaves nothing behind.

#include <rewind/autograd/backward.h>
#include <rewind/autograd/checkpoint.h>
#include <rewind/autograd/dry_run.h>
#include <rewind/autograd/functional.h>
#include <rewind/autograd/grad_mode.h>
#include <rewind/core/random.h>

#include <doctest/doctest.h>

#include <string>

namespace rw = rewind;
using rw::Tensor;

namespace {

struct Measured {
  rw::memory::Usage peak, at_peak, after;
  std::vector<rw::memory::Event> timeline;
};

template <class F>
Measured measure(F&& step) {
  rw::memory::reset_peak();
  rw::memory::start_timeline();
  step();
  return {rw::memory::peak(), rw::memory::at_peak(), rw::memory::live(), rw::memory::stop_timeline()};
}

// Predicts, measures, and compares every number and every point in time.
template <class F>
void check_prediction(F&& step) {
  const rw::random::Generator generator = rw::random::default_generator();
  const auto live = rw::memory::live();
  const rw::DryRun plan = rw::dry_run(step);
  CHECK(rw::memory::live() == live);
  CHECK(rw::random::default_generator().offset() == generator.offset());
  const Measured real = measure(step);
  CHECK(plan.peak == real.peak);
  CHECK(plan.at_peak == real.at_peak);
  CHECK(plan.after == real.after);
  REQUIRE(plan.timeline.size() == real.timeline.size());
  for (std::size_t i = 0; i < plan.timeline.size(); ++i) CHECK(plan.timeline[i] == real.timeline[i]);
}

Tensor parameter(const rw::Shape& shape) {
  const rw::memory::CategoryScope scope(rw::Category::parameter);
  return rw::randn(shape).set_requires_grad();
}

struct Net {
  Tensor conv = parameter({8, 3, 3, 3}), depthwise = parameter({3, 3, 8}), gamma = parameter({8}), beta = parameter({8}),
         head = parameter({5, 8}), running_mean = rw::zeros({8}), running_var = rw::ones({8});
  Tensor labels = rw::from<std::int64_t>({0, 1, 2, 3}, {4});

  Tensor features(Tensor x) const {
    x = rw::conv2d(std::move(x), conv, {}, {.padding = 1});
    x = rw::relu6(rw::batch_norm(std::move(x), gamma, beta, running_mean, running_var));
    x = rw::depthwise_conv2d(std::move(x), depthwise, {}, {.stride = 2, .padding = 1});
    return rw::dropout(rw::silu(std::move(x)), 0.2);
  }
  Tensor loss(Tensor x, bool recompute) const {
    x = recompute ? rw::checkpoint([this](Tensor h) { return features(std::move(h)); }, std::move(x)) : features(std::move(x));
    return rw::cross_entropy(rw::linear(rw::global_avg_pool(std::move(x)), head), labels);
  }
  std::vector<Tensor> parameters() const { return {conv, depthwise, gamma, beta, head}; }
  void drop_gradients() const {
    for (const Tensor& p : parameters()) p.set_grad({});
  }
};

}  // namespace

TEST_CASE("a dry run predicts a training step to the byte, at every moment") {
  Net net;
  const Tensor x = rw::randn({4, 9, 9, 3});
  for (const bool recompute : {false, true}) {
    CAPTURE(recompute);
    check_prediction([&] {
      rw::backward(net.loss(x, recompute));
      net.drop_gradients();
    });
  }
}

TEST_CASE("a dry run predicts evaluation, gradient accumulation and create_graph") {
  Net net;
  const Tensor x = rw::randn({4, 9, 9, 3});
  check_prediction([&] {
    const rw::NoGrad no_grad;
    net.loss(x, false);
  });
  rw::backward(net.loss(x, false));
  check_prediction([&] { rw::backward(net.loss(x, false)); });
  check_prediction([&] {
    rw::backward(net.loss(x, true));
    net.drop_gradients();
    rw::backward(net.loss(x, false));
    rw::backward(net.loss(x, false));
  });
  net.drop_gradients();
  Tensor z = rw::randn({10, 8}).set_requires_grad();
  check_prediction([&] {
    Tensor y = rw::sum(rw::square(rw::tanh(rw::linear(z, net.head))));
    Tensor g = rw::grad(y, {z}, {.create_graph = true})[0];
    rw::backward(rw::sum(rw::square(std::move(g))));
    z.set_grad({});
    net.drop_gradients();
  });
}

TEST_CASE("a dry run leaves gradients, running statistics and the tape as they were") {
  Net net;
  const Tensor x = rw::randn({4, 9, 9, 3});
  rw::backward(net.loss(x, false));
  std::vector<std::uint64_t> hashes;
  for (const Tensor& p : net.parameters()) hashes.push_back(rw::hash(p.grad()));
  const std::uint64_t mean = rw::hash(net.running_mean);
  rw::dry_run([&] {
    rw::backward(net.loss(x, true));
    net.drop_gradients();
    rw::backward(net.loss(x, false));
  });
  std::size_t i = 0;
  for (const Tensor& p : net.parameters()) CHECK(rw::hash(p.grad()) == hashes[i++]);
  CHECK(rw::hash(net.running_mean) == mean);
}

TEST_CASE("a dry run restores everything when the step throws") {
  Net net;
  const Tensor x = rw::randn({4, 9, 9, 3});
  rw::backward(net.loss(x, false));
  const auto live = rw::memory::live();
  const std::uint64_t hash = rw::hash(net.conv.grad());
  CHECK_THROWS_WITH_AS(rw::dry_run([&] {
                         Tensor loss = net.loss(x, false);
                         rw::backward(loss);
                         static_cast<void>(loss.item());
                       }),
                       doctest::Contains("belongs to a dry run and has no elements to read"), rw::Error);
  CHECK(rw::memory::live() == live);
  CHECK(rw::hash(net.conv.grad()) == hash);
  CHECK_THROWS_WITH_AS(rw::dry_run([] { rw::dry_run([] {}); }), doctest::Contains("dry runs do not nest"), rw::Error);
}

TEST_CASE("a dry run takes no memory to speak of and ignores the limit") {
  const std::size_t resident = rw::memory::resident();
  rw::memory::set_limit(rw::memory::live().total + (1 << 20));
  const rw::DryRun plan = rw::dry_run([] {
    Tensor w = rw::empty({64, 3, 3, 64}).set_requires_grad();
    rw::backward(rw::sum(rw::conv2d(rw::empty({4096, 112, 112, 64}), w, {}, {.padding = 1})));
  });
  rw::memory::set_limit(0);
  CHECK(plan.peak.total > (std::size_t{20} << 30));
  CHECK(plan.macs == 2 * std::int64_t{4096} * 112 * 112 * 64 * 64 * 9);  // forward, and the gradient of the weight
  CHECK(rw::memory::resident() <= resident + (1 << 22));
  CHECK(plan.peak_op == "conv2d_backward_weight");
  CHECK(plan.report().find("conv2d") != std::string::npos);
}

TEST_CASE("what a dry run leaves behind has no elements, and says so") {
  Tensor made, x = rw::ones({3}).set_requires_grad(), y;
  rw::dry_run([&] {
    made = rw::ones({3});
    y = rw::exp(x);
  });
  CHECK_THROWS_WITH_AS(x + made, doctest::Contains("add: input 1, shape [3], was made in a dry run, which is over"), rw::Error);
  CHECK_THROWS_WITH_AS(rw::backward(rw::sum(y)), doctest::Contains("was made in a dry run"), rw::Error);
  CHECK_NOTHROW(rw::dry_run([&] { x + made; }));  // in another dry run it need not have any
  for (const rw::memory::Holding& h : rw::memory::largest(1000)) CHECK(h.bytes != 12345 * sizeof(float));
  rw::dry_run([&] { made = rw::ones({12345}); });
  for (const rw::memory::Holding& h : rw::memory::largest(1000)) CHECK(h.bytes != 12345 * sizeof(float));
}

TEST_CASE("a dry run inside another tells it what became of the other's tensors") {
  const rw::ShapesOnly outer;
  const auto bytes = [](rw::Category c) { return rw::memory::live()[c]; };
  const std::size_t gradients = bytes(rw::Category::gradient), activations = bytes(rw::Category::activation);
  Tensor x = rw::empty({1000}), y = rw::empty({1000});
  {
    const rw::ShapesOnly inner;
    x.set_category(rw::Category::gradient);
    y = Tensor();
    CHECK(bytes(rw::Category::gradient) == gradients + 4000);
    CHECK(bytes(rw::Category::activation) == activations);
  }
  CHECK(bytes(rw::Category::gradient) == gradients + 4000);
  CHECK(bytes(rw::Category::activation) == activations);
  x = Tensor();
  CHECK(bytes(rw::Category::gradient) == gradients);
}
