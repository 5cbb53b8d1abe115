// rewind::profile: its sums are right, it measures nearly all of a step, and it leaves no trace.

#include <rewind/autograd/backward.h>
#include <rewind/autograd/functional.h>
#include <rewind/core/random.h>
#include <rewind/nn/blocks.h>
#include <rewind/nn/models/registry.h>
#include <rewind/nn/summary.h>
#include <rewind/optim/adam.h>
#include <rewind/optim/sgd.h>
#include <rewind/profile/profile.h>

#include <doctest/doctest.h>

#include <algorithm>
#include <optional>

namespace rw = rewind;
namespace nn = rw::nn;
using rw::Tensor;

namespace {

Tensor images(const rw::Shape& shape) {
  const rw::memory::CategoryScope scope(rw::Category::input);
  return rw::randn(shape);
}

nn::Sequential small_net() {
  return nn::Sequential{nn::Conv2d{{.in = 3, .out = 8, .kernel = 3, .padding = 1, .bias = false}},
                        nn::BatchNorm2d{8},
                        nn::ReLU6{},
                        nn::InvertedBottleneck{{.in = 8, .out = 8, .expand = 2}},
                        nn::GlobalAvgPool{},
                        nn::Linear{8, 5}};
}

rw::ProfileOptions brief(int steps = 3) {
  rw::ProfileOptions o;
  o.steps = steps;
  o.latency_runs = 0;
  o.throughput = false;
  return o;
}

}  // namespace

TEST_CASE("classes, ops and modules each add up to the whole, and the whole is what a dry run counts") {
  for (const bool fused : {true, false}) {
    CAPTURE(fused);
    nn::Sequential net = small_net();
    net.fuse(fused);
    rw::optim::Adam adam{net.parameters(), {}};
    const rw::Profile p = rw::profile(net, images({4, 8, 8, 3}), adam, brief());
    CHECK(p.fused == fused);
    CHECK(p.total.flops == p.memory.plan.flops);
    CHECK(p.total.macs == p.memory.plan.macs);
    CHECK(p.total.bytes() == p.memory.plan.bytes_moved);

    rw::Work classes, ops, modules;
    double flops = 0, bytes = 0;
    const auto add = [](rw::Work& to, const rw::Work& w) {
      to.calls += w.calls;
      to.flops += w.flops;
      to.macs += w.macs;
      to.bytes_read += w.bytes();
      to.saved_bytes += w.saved_bytes;
      to.share += w.share;
      to.roofline += w.roofline;
    };
    for (const auto& c : p.classes) {
      add(classes, c.work);
      flops += c.flops_share;
      bytes += c.bytes_share;
    }
    for (const auto& r : p.ops) add(ops, r.work);
    for (const auto& m : p.modules)
      for (const rw::Work& w : m.phase) add(modules, w);
    for (const rw::Work& sum : {classes, ops, modules}) {
      CHECK(sum.calls == p.total.calls);
      CHECK(sum.flops == p.total.flops);
      CHECK(sum.macs == p.total.macs);
      CHECK(sum.bytes_read == p.total.bytes());
      CHECK(sum.saved_bytes == p.total.saved_bytes);
      CHECK(sum.share == doctest::Approx(p.total.share));
      CHECK(sum.roofline == doctest::Approx(p.total.roofline));
    }
    CHECK(flops == doctest::Approx(1));
    CHECK(bytes == doctest::Approx(1));
  }
}

TEST_CASE("a net without normalisation still stands beside all of what is published") {
  nn::Sequential net{nn::Linear{6, 4}, nn::ReLU{}, nn::Linear{4, 3}};
  rw::optim::SGD sgd{net.parameters(), {.lr = 0.1}};
  const rw::Profile p = rw::profile(net, images({2, 6}), sgd, brief(1));
  double flops = 0, time = 0;
  for (const rw::ClassRow& c : p.classes) {
    flops += std::max(c.published_flops, 0.0);
    time += std::max(c.published_time, 0.0);
  }
  CHECK(flops == doctest::Approx(100));
  CHECK(time == doctest::Approx(100));
  const auto none = std::ranges::find(p.classes, rw::Kind::normalisation, &rw::ClassRow::kind);
  REQUIRE(none != p.classes.end());
  CHECK(none->work.calls == 0);
}

TEST_CASE("forward MACs and parameters of the modules are those of the summary") {
  nn::Sequential net = rw::nn::models::make("mobilenet_v2_cifar", {.width = 0.5});
  rw::optim::SGD sgd{net.parameters(), {.lr = 0.1}};
  const rw::Shape shape{2, 32, 32, 3};
  const nn::Summary summary = nn::summarize(net, shape);
  const rw::Profile p = rw::profile(net, images(shape), sgd, brief(1));
  CHECK(p.parameters == summary.parameters);
  REQUIRE(p.modules.size() == summary.layers.size());
  for (std::size_t i = 0; i < p.modules.size(); ++i) {
    CAPTURE(p.modules[i].path);
    CHECK(p.modules[i].path == summary.layers[i].path);
    CHECK(p.modules[i].parameters == summary.layers[i].parameters);
    CHECK(p.modules[i].phase[0].macs == summary.layers[i].macs);
  }
  // Fused or not, an op counts what no op before it has read, and no running statistics.
  for (const bool fused : {true, false}) {
    net.fuse(fused);
    std::int64_t read = 0, moved = 0;
    for (const auto& op : rw::profile(net, images(shape), sgd, brief(1)).step.ops) {
      if (op.phase == rw::Phase::forward) read += op.parameters;
      if (op.phase == rw::Phase::optimizer) moved += op.parameters;
    }
    CHECK(read == p.parameters);
    CHECK(moved == p.parameters);
  }
  // Every parameter is moved once, and counts at the module that has it.
  for (const auto& m : p.modules) CHECK((m.phase[static_cast<int>(rw::Phase::optimizer)].calls > 0) == (m.parameters > 0));
}

TEST_CASE("the ops cover at least 97 % of a step of a net with real work") {
  nn::Sequential net = rw::nn::models::make("resnet18_cifar");
  rw::optim::SGD sgd{net.parameters(), {.lr = 0.01, .momentum = 0.9}};
  const rw::Profile p = rw::profile(net, images({8, 32, 32, 3}), sgd, brief(6));
  double best = 0;  // other programs may run, and stop this one between two ops
  for (std::size_t s = 0; s < p.step.step_seconds.size(); ++s) best = std::max(best, p.step.coverage(s));
  CHECK(best >= 0.97);
  CHECK(p.total.share <= 1);
}

TEST_CASE("with recompute, the ops that run again are a phase of their own") {
  nn::Sequential net = small_net();
  net.recompute(rw::Recompute::sqrt());
  rw::optim::SGD sgd{net.parameters(), {.lr = 0.1}};
  const rw::Profile p = rw::profile(net, images({4, 8, 8, 3}), sgd, brief(2));
  std::int64_t again = 0;
  for (const auto& r : p.ops)
    if (r.phase == rw::Phase::recompute) again += r.work.flops;
  CHECK(again > 0);
  CHECK(again == p.memory.plan.flops_in(rw::Phase::recompute));
}

TEST_CASE("checkpoints are among the holders of the peak, and in what forward saves") {
  nn::Sequential net;
  for (int i = 0; i < 8; ++i) net.add(nn::Sequential{nn::Linear{64, 64}, nn::Tanh{}});
  net.recompute(rw::Recompute::revolve(3));
  const auto step = [&] {
    rw::backward(rw::mean(net(images({512, 64}))));
    for (const rw::Parameter& p : net.parameters()) p.value.set_grad({});
  };
  const rw::PeakHolders h = rw::peak_holders(step);
  const auto kept = std::ranges::count_if(h.saved, [](const rw::SavedTensor& s) { return s.why.starts_with("a checkpoint"); });
  CHECK(kept > 0);
  CHECK(h.saved_bytes + h.running_bytes + h.other_bytes == h.live[rw::Category::activation]);
  const rw::OpProfile p = rw::profile_ops(step, 1);
  std::size_t saved = 0;
  for (const rw::OpRecord& op : p.ops)
    if (op.phase == rw::Phase::forward) saved += op.saved_bytes;
  CHECK(saved >= 2 * 512 * 64 * sizeof(float));
}

TEST_CASE("the predicted peak is the measured one, and state is listed by slot") {
  nn::Sequential net = small_net();
  rw::optim::Adam adam{net.parameters(), {}};
  const rw::Profile p = rw::profile(net, images({4, 8, 8, 3}), adam, brief(1));
  CHECK(p.memory.plan.peak == p.memory.measured);
  REQUIRE(p.memory.state.size() == 2);
  std::size_t parameters = 0;
  for (const auto& q : net.parameters()) parameters += q.value.bytes();
  CHECK(p.memory.state[0].bytes == parameters);
  CHECK(p.memory.state[1].bytes == parameters);
}

TEST_CASE("what is saved in forward is what the summary says") {
  for (const bool fused : {true, false}) {
    nn::Sequential net = small_net();
    net.fuse(fused);
    rw::optim::SGD sgd{net.parameters(), {.lr = 0.1}};
    const rw::Shape shape{4, 8, 8, 3};
    const nn::Summary summary = nn::summarize(net, shape);
    // A loss that keeps nothing.
    const rw::Profile p = rw::profile(
        net, images(shape), sgd, [](Tensor y) { return rw::sum(std::move(y)); }, brief(1));
    CHECK(static_cast<std::int64_t>(p.total.saved_bytes) == summary.activation_bytes_saved);
  }
}

TEST_CASE("a profile leaves no trace") {
  rw::random::seed(3);
  nn::Sequential net = small_net();
  net[1].eval();
  rw::optim::Adam adam{net.parameters(), {.lr = 0.1}};
  const Tensor x = images({4, 8, 8, 3});
  rw::backward(rw::sum(net(x)));
  adam.step();
  rw::backward(rw::sum(net(x)));  // gradients that wait for their step

  const auto fingerprint = [&] {
    std::vector<std::uint64_t> hashes;
    for (const auto& p : net.parameters())
      for (const Tensor& t : {p.value, p.value.grad(), adam.state(p.name, "m"), adam.state(p.name, "v")})
        hashes.push_back(rw::hash(t));
    for (const auto& b : net.buffers()) hashes.push_back(rw::hash(b.value));
    for (const auto& p : net.parameters()) hashes.push_back(static_cast<std::uint64_t>(adam.updates(p.name)));
    hashes.push_back(static_cast<std::uint64_t>(adam.steps()));
    return hashes;
  };
  const auto before = fingerprint();
  const rw::memory::Usage live = rw::memory::live();
  const rw::random::Generator generator = rw::random::default_generator();
  const std::uint64_t next = rw::hash(rw::randn({8}));
  rw::random::default_generator() = generator;
  const rw::Profile p = rw::profile(net, x, adam, {.steps = 2, .latency_runs = 2});
  CHECK(fingerprint() == before);
  CHECK(rw::memory::live() == live);
  CHECK_FALSE(net[1].training());
  CHECK(net[0].training());
  CHECK(rw::hash(rw::randn({8})) == next);
}

TEST_CASE("an optimizer without state has none after a profile either") {
  nn::Sequential net = small_net();
  rw::optim::Adam adam{net.parameters(), {}};
  static_cast<void>(rw::profile(net, images({4, 8, 8, 3}), adam, brief(1)));
  CHECK(adam.state_bytes() == 0);
  CHECK(adam.steps() == 0);
}

TEST_CASE("latency, throughput and an epoch are there when they are asked for") {
  nn::Sequential net = small_net();
  rw::optim::SGD sgd{net.parameters(), {.lr = 0.1}};
  rw::data::DataLoader loader(images({10, 8, 8, 3}), rw::zeros({10}, rw::int64), {.batch = 4});
  const rw::Profile p = rw::profile(net, images({6, 8, 8, 3}), sgd, {.steps = 1, .latency_runs = 20, .loader = &loader});
  CHECK(p.latency.runs == 20);
  CHECK(p.latency.median > 0);
  CHECK(p.latency.median <= p.latency.p95);
  CHECK(p.latency.p95 <= p.latency.p99);
  std::vector<std::int64_t> batches;
  for (const auto& t : p.throughput) batches.push_back(t.batch);
  CHECK(batches == std::vector<std::int64_t>{1, 2, 4, 6});
  CHECK(p.throughput[0].training == 0);
  CHECK(p.throughput[3].training > 0);
  CHECK(p.epoch.batches == 3);
  CHECK(p.epoch.samples == 10);
  CHECK(p.epoch.seconds >= p.epoch.waiting);
  CHECK(loader.epoch() == 0);
  rw::data::DataLoader full(images({10, 8, 8, 3}), rw::zeros({10}, rw::int64), {.batch = 4, .drop_last = true});
  CHECK(rw::profile(net, images({6, 8, 8, 3}), sgd, {.steps = 1, .latency_runs = 0, .throughput = false, .loader = &full})
            .epoch.samples == 8);
}

TEST_CASE("a loss of one's own is used, and targets are") {
  nn::Sequential net{nn::Linear{6, 3}};
  rw::optim::SGD sgd{net.parameters(), {.lr = 0.1}};
  int calls = 0;
  const rw::Profile p = rw::profile(
      net, images({4, 6}), sgd,
      [&](Tensor y) {
        ++calls;
        return rw::mean(rw::square(std::move(y)));
      },
      brief(1));
  CHECK(calls > 0);
  CHECK(std::ranges::any_of(p.ops, [](const rw::OpRow& r) { return std::string_view(r.op) == "square"; }));

  // What the optimizer moves beside the net is put back, too.
  nn::Linear head{3, 2};
  std::vector<rw::Parameter> both = net.parameters();
  std::ranges::move(head.parameters(), std::back_inserter(both));
  rw::optim::SGD of_both{both, {.lr = 0.1}};
  const std::uint64_t before = rw::hash(head.weight);
  head.bias.set_grad(rw::ones({2}));
  rw::profile(
      net, images({4, 6}), of_both, [&](Tensor y) { return rw::mean(rw::square(head(std::move(y)))); }, brief(1));
  CHECK(rw::hash(head.weight) == before);
  CHECK(head.bias.grad().to_vector<float>() == std::vector<float>{1, 1});

  rw::data::DataLoader loader(images({10, 6}), rw::zeros({10}, rw::int64), {.batch = 4});
  rw::ProfileOptions with_loader = brief(1);
  with_loader.loader = &loader;
  CHECK_THROWS_WITH_AS(rw::profile(
                           net, images({4, 6}), sgd, [](Tensor y) { return rw::mean(std::move(y)); }, with_loader),
                       doctest::Contains("got a loader and a loss"), rw::Error);

  rw::ProfileOptions options = brief(1);
  options.target = rw::full({4}, 7, rw::int64);  // out of range for three classes
  CHECK_THROWS_WITH_AS(rw::profile(net, images({4, 6}), sgd, options), doctest::Contains("label"), rw::Error);
}

TEST_CASE("mistakes are named") {
  nn::Sequential net = small_net();
  rw::optim::SGD sgd{net.parameters(), {.lr = 0.1}};
  const Tensor x = images({4, 8, 8, 3});
  CHECK_THROWS_WITH_AS(rw::profile(net, Tensor(), sgd), doctest::Contains("undefined"), rw::Error);
  CHECK_THROWS_WITH_AS(rw::profile(net, rw::empty({0, 8, 8, 3}), sgd), doctest::Contains("[0, 8, 8, 3]"), rw::Error);
  CHECK_THROWS_WITH_AS(rw::profile(net, x, sgd, {.steps = 0}), doctest::Contains("at least one step"), rw::Error);
  CHECK_THROWS_WITH_AS(rw::profile(net, x, sgd, {.latency_runs = -1}), doctest::Contains("latency_runs"), rw::Error);
  CHECK_THROWS_WITH_AS(rw::profile(net, x, sgd, {.target = rw::zeros({3}, rw::int64)}), doctest::Contains("one target for each"),
                       rw::Error);
  CHECK_THROWS_WITH_AS(rw::dry_run([&] { static_cast<void>(rw::profile(net, x, sgd)); }), doctest::Contains("dry run"), rw::Error);
  CHECK_THROWS_AS(rw::profile(net, images({4, 8, 8, 5}), sgd), rw::Error);

  std::optional<rw::ShapesOnly> dry(std::in_place);
  nn::Sequential shapes = small_net();
  rw::optim::SGD of_shapes{shapes.parameters(), {.lr = 0.1}};
  dry.reset();
  CHECK_THROWS_WITH_AS(rw::profile(shapes, x, of_shapes), doctest::Contains("was made in a dry run"), rw::Error);
}

TEST_CASE("the machine is measured once, or again for what is more, and its roofs meet at the ridge") {
  const rw::Machine m = rw::machine();
  CHECK(m.flops == rw::machine().flops);
  CHECK(m.bytes_per_second == rw::machine().bytes_per_second);
  const rw::Machine again = rw::machine_again();
  CHECK(again.flops >= m.flops);
  CHECK(again.bytes_per_second >= m.bytes_per_second);
  CHECK(again.threads == m.threads);
  CHECK(again.cores == m.cores);
  CHECK(rw::machine().flops == again.flops);
  CHECK(m.cores >= 1);
  CHECK(m.flops > 0);
  CHECK(m.bytes_per_second > 0);
  CHECK(m.roofline(m.ridge() * 1e6, 1e6) == doctest::Approx(1e6 / m.bytes_per_second));
  CHECK(m.roofline(0, 1e6) == doctest::Approx(1e6 / m.bytes_per_second));
  CHECK(m.roofline(1e6, 0) == doctest::Approx(1e6 / m.flops));
}

TEST_CASE("energy by hand: a linear layer of two rows") {
  // 2 x 3 times 3 x 4: 24 MACs; with the bias 8 more FLOPs. It reads 6 + 12 + 4 words and writes 8.
  const rw::Cost cost{.flops = 56, .macs = 24, .bytes_read = 4 * 22, .bytes_written = 4 * 8};
  const rw::Energy e = rw::estimate_energy(cost);
  CHECK(e.arithmetic == doctest::Approx(1e-12 * (24 * 4.6 + 8 * 0.9)));
  CHECK(e.dram == doctest::Approx(1e-12 * 30 * 640));
  CHECK(e.sram == doctest::Approx(1e-12 * 30 * 5));
  CHECK(e.instructions == doctest::Approx(1e-12 * 32 * 70));

  nn::Sequential net{nn::Linear{3, 4}};
  rw::optim::SGD sgd{net.parameters(), {.lr = 0.1}};
  const rw::Profile p = rw::profile(net, images({2, 3}), sgd, brief(1));
  const auto linear = std::ranges::find_if(p.ops, [](const rw::OpRow& r) { return std::string_view(r.op) == "linear"; });
  REQUIRE(linear != p.ops.end());
  CHECK(linear->work.energy.arithmetic == doctest::Approx(e.arithmetic));
  CHECK(linear->work.energy.dram == doctest::Approx(e.dram));
}

TEST_CASE("a part of a net that has run as a whole is profiled by its own paths") {
  nn::Sequential whole{small_net(), nn::ReLU{}};
  static_cast<void>(whole(images({2, 8, 8, 3})));
  nn::Module& part = whole[0];
  rw::optim::SGD sgd{part.parameters(), {.lr = 0.1}};
  const rw::Profile p = rw::profile(part, images({2, 8, 8, 3}), sgd, brief(1));
  const auto linear = std::ranges::find(p.modules, "5", &rw::ModuleRow::path);
  REQUIRE(linear != p.modules.end());
  CHECK(linear->phase[0].macs == 2 * 8 * 5);
}
