// Twenty steps leave the same bits whatever is recomputed, in whatever order, on however many threads.

#include "zoo.h"

#include <rewind/autograd/checkpoint.h>
#include <rewind/autograd/schedule/simulate.h>
#include <rewind/nn/describe_chain.h>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <random>

namespace rw = rewind;
namespace nn = rewind::nn;
namespace schedule = rewind::schedule;
using Hashes = std::vector<std::uint64_t>;

namespace {

constexpr int steps = 20;

/// Loss of every step; gradients of the last; parameters, running statistics and the random numbers' place after it.
Hashes train(zoo::Task& task, const std::string& optimizer) {
  rw::random::seed(7);
  const auto optim = zoo::make_optimizer(optimizer, task.net.parameters());
  Hashes all;
  for (int i = 0; i < steps; ++i) {
    rw::Tensor loss = task.loss();
    all.push_back(rw::hash(loss));
    rw::backward(std::move(loss));
    if (i + 1 == steps)
      for (const rw::Parameter& p : task.net.parameters()) all.push_back(rw::hash(p.value.grad()));
    optim->step();
  }
  for (const rw::Parameter& p : task.net.parameters()) all.push_back(rw::hash(p.value));
  for (const rw::Parameter& b : task.net.buffers()) {
    all.push_back(rw::hash(b.value));
    if (b.name.ends_with("num_batches_tracked")) CHECK(b.value.item<std::int64_t>() == steps);
  }
  all.push_back(rw::random::default_generator().offset());
  return all;
}

Hashes train(const zoo::Model& model, const std::string& strategy, const std::string& optimizer, int threads) {
  const zoo::Threads scope(threads);
  zoo::Task task(model);
  task.recompute(strategy, task.state_bytes(optimizer));
  return train(task, optimizer);
}

/// Everything that has state of its own, wide enough that kernels are cut into pieces.
nn::Sequential small() {
  nn::Sequential net{nn::Conv2d{{.in = 1, .out = 8, .kernel = 3, .padding = 1, .bias = false}}, nn::BatchNorm2d{8}, nn::ReLU6{}};
  net.add(nn::Dropout{0.3});
  net.add(nn::InvertedBottleneck{{.in = 8, .out = 8, .expand = 3, .squeeze_excite = 4}});
  net.add(nn::InvertedBottleneck{{.in = 8, .out = 16, .expand = 2, .stride = 2}});
  net.add(nn::GlobalAvgPool{});
  net.add(nn::Dropout{0.2});
  net.add(nn::Linear{16, 10});
  return net;
}
constexpr zoo::Model small_model{"small", 48, 8, 1, 10, small};

/// A stage that is checkpointed by itself, or could be.
struct Checkpointed : nn::Module {
  nn::Sequential body;
  bool on;
  Checkpointed(nn::Sequential s, bool checkpoint) : body(std::move(s)), on(checkpoint) {}
  void describe(nn::Fields& f) override { f.child("body", body); }
  rw::Tensor forward(rw::Tensor x) override {
    if (!on) return body(std::move(x));
    return rw::checkpoint([this](rw::Tensor h) { return body(std::move(h)); }, std::move(x));
  }
};

enum class Wrap { none, plain, checkpoint };

nn::Sequential block(Wrap wrap) {
  nn::Sequential body{nn::InvertedBottleneck{{.in = 8, .out = 8, .expand = 2}}, nn::Dropout{0.2}, nn::BatchNorm2d{8}, nn::Tanh{}};
  nn::Sequential s;
  if (wrap != Wrap::none)
    s.add("0", Checkpointed{std::move(body), wrap == Wrap::checkpoint});
  else
    s.add("0", std::move(body));
  return s;
}

/// Three blocks, each in a module of its own that may be a checkpoint, or a Sequential with a strategy of its own ("": none).
zoo::Task nested(Wrap wrap, const std::string& inner, const std::string& outer) {
  zoo::Task task(zoo::Model{"nested", 4, 8, 1, 10, [] { return nn::Sequential{}; }});
  rw::random::seed(3);
  task.net.add("stem", nn::conv_norm({.in = 1, .out = 8, .kernel = 3, .padding = 1}));
  for (const char* name : {"a", "b", "c"}) task.net.add(name, block(wrap));
  task.net.add("head", nn::Sequential{nn::GlobalAvgPool{}, nn::Dropout{0.2}, nn::Linear{8, 10}});
  if (!inner.empty())
    for (const int i : {1, 3}) dynamic_cast<nn::Sequential&>(task.net[i]).recompute(rw::Recompute::parse(inner));
  task.recompute(outer, task.state_bytes("adam"));
  return task;
}

/// A net of stages of different sizes, for schedules that no planner would make.
nn::Sequential uneven() {
  return nn::Sequential{nn::Conv2d{{.in = 2, .out = 12, .kernel = 3, .padding = 1}},
                        nn::BatchNorm2d{12},
                        nn::InvertedBottleneck{{.in = 12, .out = 12, .expand = 3}},
                        nn::Dropout{0.25},
                        nn::InvertedBottleneck{{.in = 12, .out = 12, .expand = 1}},
                        nn::MaxPool2d{2},
                        nn::InvertedBottleneck{{.in = 12, .out = 12, .expand = 6}},
                        nn::GlobalAvgPool{},
                        nn::Linear{12, 10}};
}

/// A list that is sound but otherwise left to chance. It gives up checkpoints before their backward, runs stages more often
/// than needed, and tapes some early.
std::vector<schedule::Action> random_actions(int n, std::mt19937& random) {
  std::vector<schedule::Action> list;
  std::vector<bool> kept(static_cast<std::size_t>(n) + 1), taped(kept);
  kept[0] = true;
  const auto at = [](int l) { return static_cast<std::size_t>(l); };
  const auto run = [&](int l, bool tape) {
    // The chain's input is needed to the end; an activation inside a tape stays whatever happens.
    const bool drop = l > 1 && random() % 2 == 0;
    if (tape) {
      list.push_back(schedule::Fall(l));
      taped[at(l)] = true;
      return;
    }
    list.push_back(drop ? schedule::Fnone(l) : schedule::Fck(l));
    kept[at(l)] = true;
    if (drop) kept[at(l - 1)] = false;
  };
  const unsigned often = 2 + random() % 4;  // one in so many stages is taped before it must be
  for (int l = 1; l <= n; ++l) run(l, l == n || random() % often == 0);
  for (int l = n; l >= 1; --l) {
    for (;;) {
      const bool there = kept[at(l - 1)] || taped[at(l - 1)];
      if (there && taped[at(l)]) break;
      int from = there ? l : l - 1;  // the stage to run next: the first after the nearest activation
      while (!kept[at(from - 1)] && !taped[at(from - 1)]) --from;
      run(from, from == l || random() % often == 0);
    }
    list.push_back(schedule::B(l));
    taped[at(l)] = kept[at(l - 1)] = kept[at(l)] = false;
  }
  return list;
}

Hashes step(zoo::Task& task) {
  rw::random::seed(11);
  rw::Tensor loss = task.loss();
  Hashes all{rw::hash(loss)};
  rw::backward(std::move(loss));
  for (const rw::Parameter& p : task.net.parameters()) {
    all.push_back(rw::hash(p.value.grad()));
    p.value.set_grad({});
  }
  all.push_back(rw::random::default_generator().offset());
  return all;
}

}  // namespace

TEST_CASE("the same bits under every strategy with every optimizer on every number of threads") {
  for (const char* optimizer : zoo::optimizers) {
    INFO(optimizer);
    const Hashes expected = train(small_model, "vanilla", optimizer, 1);
    for (const char* strategy : zoo::strategies)
      for (int threads = 1; threads <= 4; ++threads) {
        INFO(strategy << " on " << threads);
        CHECK(train(small_model, strategy, optimizer, threads) == expected);
      }
  }
}

TEST_CASE("the same bits in every model") {
  int turn = 0;
  for (const zoo::Model& model : zoo::models) {
    INFO(model.name);
    Hashes expected[std::size(zoo::optimizers)];
    for (std::size_t o = 0; o < std::size(zoo::optimizers); ++o) expected[o] = train(model, "vanilla", zoo::optimizers[o], 1);
    // Every strategy; every optimizer with two of them; every number of threads, paired differently from model to model.
    for (const char* strategy : zoo::strategies) {
      const std::size_t o = static_cast<std::size_t>(turn) % std::size(zoo::optimizers);
      const int threads = 1 + (turn / 3 + turn) % 4;
      INFO(strategy << " with " << zoo::optimizers[o] << " on " << threads);
      CHECK(train(model, strategy, zoo::optimizers[o], threads) == expected[o]);
      ++turn;
    }
    ++turn;
  }
}

// What the two cases above take samples of, in full: minutes. make check-bits runs it.
TEST_CASE("the same bits in every model with every optimizer under every strategy on every number of threads" * doctest::skip()) {
  for (const zoo::Model& model : zoo::models)
    for (const char* optimizer : zoo::optimizers) {
      const Hashes expected = train(model, "vanilla", optimizer, 1);
      for (const char* strategy : zoo::strategies)
        for (int threads = 1; threads <= 4; ++threads) {
          INFO(std::string(model.name) << ", " << optimizer << ", " << strategy << ", threads: " << threads);
          CHECK(train(model, strategy, optimizer, threads) == expected);
        }
    }
}

TEST_CASE("the same bits with schedules inside schedules and checkpoints inside stages") {
  const zoo::Threads one(1);
  const auto run = [](Wrap wrap, const std::string& inner, const std::string& outer) {
    zoo::Task task = nested(wrap, inner, outer);
    return train(task, "adam");
  };
  const Hashes expected = run(Wrap::none, "", "vanilla"), wrapped = run(Wrap::plain, "", "vanilla");
  for (const char* outer : zoo::strategies) {
    INFO("outer " << outer);
    CHECK(run(Wrap::plain, "", outer) == wrapped);
    CHECK(run(Wrap::checkpoint, "", outer) == wrapped);
    for (const char* inner : {"low-memory", "recursive", "segments:2", "revolve:1"}) {
      INFO("inner " << inner);
      CHECK(run(Wrap::none, inner, outer) == expected);
    }
  }
}

TEST_CASE("normalisations pass on from chain to chain whatever each was told to recompute") {
  const zoo::Threads one(1);
  const auto run = [](const char* first, const char* second, const char* outer, bool fuse) {
    zoo::Task task(zoo::Model{"nested", 4, 8, 1, 10, [] {
                                nn::Sequential a = nn::conv_norm({.in = 1, .out = 8, .kernel = 3});
                                a.add(nn::depthwise_norm(8, 3, 1, nn::Activation::none));
                                nn::Sequential b = nn::conv_norm({.in = 8, .out = 12});
                                b.add(nn::Conv2d{{.in = 12, .out = 8, .bias = false}});
                                nn::Sequential net{std::move(a), std::move(b), nn::BatchNorm2d{8}, nn::GlobalAvgPool{}};
                                net.add(nn::Linear{8, 10});
                                return net;
                              }});
    task.net.fuse(fuse);
    dynamic_cast<nn::Sequential&>(task.net[0]).recompute(rw::Recompute::parse(first));
    dynamic_cast<nn::Sequential&>(task.net[1]).recompute(rw::Recompute::parse(second));
    task.recompute(outer);
    return train(task, "adam");
  };
  for (const bool fuse : {true, false}) {
    const Hashes expected = run("vanilla", "vanilla", "vanilla", fuse);
    for (const char* outer : {"vanilla", "low-memory", "segments:2"})
      for (const char* first : {"vanilla", "low-memory", "segments:2"})
        for (const char* second : {"vanilla", "low-memory", "segments:2"}) {
          INFO(outer << " around " << first << " and " << second);
          CHECK(run(first, second, outer, fuse) == expected);
        }
  }
}

TEST_CASE("a chain in a chain in a chain follows what it was told") {
  const zoo::Threads one(1);
  const auto make = [](const char* middle, const char* inner) {
    zoo::Task task(zoo::Model{"nested", 4, 8, 1, 10, [] {
                                nn::Sequential b = nn::conv_norm({.in = 8, .out = 12});
                                b.add(nn::conv_norm({.in = 12, .out = 8}));
                                b.add(nn::Tanh{});
                                nn::Sequential a = nn::conv_norm({.in = 1, .out = 8, .kernel = 3});
                                a.add(std::move(b));
                                a.add(nn::Sigmoid{});
                                return nn::Sequential{std::move(a), nn::GlobalAvgPool{}, nn::Linear{8, 10}};
                              }});
    auto& a = dynamic_cast<nn::Sequential&>(task.net[0]);
    a.recompute(rw::Recompute::parse(middle));
    dynamic_cast<nn::Sequential&>(a[a.size() - 2]).recompute(rw::Recompute::parse(inner));
    return task;
  };
  zoo::Task plain = make("vanilla", "vanilla");
  const Hashes expected = train(plain, "sgd");
  const auto recomputed = [](zoo::Task& task) {
    return rw::dry_run([&] { task.forward_backward(); }).flops_in(rw::Phase::recompute);
  };
  for (const char* middle : {"vanilla", "segments:2"})
    for (const char* inner : {"vanilla", "low-memory"}) {
      INFO(middle << " around " << inner);
      zoo::Task task = make(middle, inner);
      CHECK(train(task, "sgd") == expected);
      CHECK((recomputed(task) > 0) == (std::string(middle) != "vanilla" || std::string(inner) != "vanilla"));
    }
  zoo::Task outer = make("segments:2", "vanilla"), both = make("segments:2", "low-memory");
  CHECK(recomputed(both) > recomputed(outer));
}

TEST_CASE("fused and plain nets agree within rounding: loss, every gradient, running statistics, evaluation") {
  /// Makes a net compute in float64.
  class Widen final : public nn::Fields {
    void parameter(std::string_view, rw::Tensor& t) override {
      buffer("", t);
      if (t.defined()) t.set_requires_grad();
    }
    void buffer(std::string_view, rw::Tensor& t) override {
      if (t.defined() && t.dtype() == rw::float32) t = t.detach().to(rw::float64);
    }
    void child(std::string_view, nn::Module& module) override { module.describe(*this); }
  };
  const zoo::Threads one(1);
  for (zoo::Model model : zoo::models) {
    if (!model.fuse) continue;
    INFO(std::string(model.name));
    model.batch = 6;  // the fewer values are normalised together, the more rounding is amplified
    zoo::Task fused(model), plain(model);
    plain.net.fuse(false);
    for (zoo::Task* t : {&fused, &plain}) {
      Widen widen;
      t->net.describe(widen);
      for (rw::Parameter& p : t->net.parameters()) {  // which begin at zero
        if (!p.name.ends_with("bias")) continue;
        auto values = p.value.mutate<double>();
        for (std::size_t i = 0; i < values.size(); ++i) values[i] = 0.05 * static_cast<double>(i * 7 % 5) - 0.1;
      }
      t->x = t->x.to(rw::float64);
    }
    const auto close = [](const rw::Tensor& x, const rw::Tensor& y, double floor) {
      const auto p = x.values<double>(), q = y.values<double>();
      double difference = 0, size = 0;
      for (std::size_t i = 0; i < p.size(); ++i) {
        difference += (p[i] - q[i]) * (p[i] - q[i]);
        size += q[i] * q[i];
      }
      return std::sqrt(difference) <= 1e-9 * std::sqrt(size) + floor;
    };
    rw::random::seed(5);
    rw::Tensor a = fused.loss();
    rw::random::seed(5);
    rw::Tensor b = plain.loss();
    CHECK(close(a, b, 0));
    rw::backward(std::move(a));
    rw::backward(std::move(b));
    double largest = 0;
    for (const rw::Parameter& p : plain.net.parameters())
      for (const double g : p.value.grad().values<double>()) largest = std::max(largest, std::abs(g));
    const auto p = fused.net.parameters(), q = plain.net.parameters();
    REQUIRE(p.size() == q.size());
    for (std::size_t i = 0; i < p.size(); ++i) {
      INFO(p[i].name);
      CHECK(close(p[i].value.grad(), q[i].value.grad(), 1e-12 * largest));
    }
    const auto r = fused.net.buffers(), s = plain.net.buffers();
    for (std::size_t i = 0; i < r.size(); ++i)
      if (r[i].value.dtype() == rw::float64) CHECK(close(r[i].value, s[i].value, 1e-12));
    fused.net.eval();
    plain.net.eval();
    CHECK(close(fused.loss(), plain.loss(), 0));
  }
}

TEST_CASE("a schedule by hand that gives up a checkpoint before its backward") {
  const zoo::Threads one(1);
  const auto task = [] {
    return zoo::Task(zoo::Model{"three", 4, 8, 1, 10, [] {
                                  return nn::Sequential{nn::conv_norm({.in = 1, .out = 8, .kernel = 3}),
                                                        nn::Dropout{0.2},
                                                        nn::InvertedBottleneck{{.in = 8, .out = 8}},
                                                        nn::Dropout{0.1},
                                                        nn::GlobalAvgPool{},
                                                        nn::Linear{8, 10}};
                                }});
  };
  zoo::Task plain = task();
  const Hashes expected = train(plain, "adam");
  // conv and norm with relu, dropout, bottleneck, dropout, pool, linear
  for (const char* text : {"Fck1 Fnone2 Fck3 Fnone4 Fall5 Fall6 B6 B5 Fnone3 Fall4 B4 Fck1 Fall2 Fall3 B3 B2 Fall1 B1",
                           "Fck1 Fnone2 Fnone3 Fnone4 Fnone5 Fall6 B6 Fck1 Fnone2 Fnone3 Fall4 Fall5 B5 B4 Fck1 Fnone2 Fall3 B3 "
                           "Fck1 Fall2 B2 Fall1 B1",
                           "Fall1 Fck2 Fnone3 Fall4 Fck5 Fall6 B6 Fall5 B5 B4 Fnone2 Fall3 B3 Fall2 B2 B1"}) {
    INFO(std::string(text));
    zoo::Task t = task();
    t.net.recompute(rw::Recompute::actions(schedule::parse(text)));
    CHECK(train(t, "adam") == expected);
    CHECK(schedule::to_string(t.net.actions()) == text);
  }
  zoo::Task t = task();
  t.net.recompute(rw::Recompute::actions(schedule::parse("Fck1 Fnone2 Fall3 B3 Fck1 Fall2 B2 Fall1 B1")));
  CHECK_THROWS_WITH_AS(
      t.loss(), doctest::Contains("do not fit a chain of 6 stages: action 4, B3: the next backward in order is B6"), rw::Error);
}

TEST_CASE("random schedules run, give the same bits, and take about what the simulation claims") {
  const zoo::Threads one(1);
  std::mt19937 random(1);
  constexpr int n = 8;
  zoo::Task task(zoo::Model{"uneven", 4, 12, 2, 10, uneven});
  REQUIRE(task.net.stages().size() == n);
  const Hashes expected = step(task);
  double lowest = 1e9, highest = 0;
  std::int64_t below = 0, above = 0;
  int forwards = 0;
  for (int i = 0; i < 300; ++i) {
    const std::vector<schedule::Action> list = random_actions(n, random);
    CAPTURE(schedule::to_string(list));
    const schedule::Chain chain = nn::describe_chain(task.net, task.x, rw::Costs::counted);
    const schedule::Trace trace = schedule::simulate(chain, list);
    REQUIRE(trace.fault == "");
    forwards += static_cast<int>(list.size()) - n;
    task.net.recompute(rw::Recompute::actions(list));
    CHECK(step(task) == expected);

    // What the model of a chain leaves out is beside it throughout: parameters and their gradients.
    const rw::DryRun run = rw::dry_run([&] {
      const rw::memory::CategoryScope gradient(rw::Category::gradient);
      for (const rw::Parameter& p : task.net.parameters()) p.value.set_grad(rw::empty(p.value.shape()));
      const rw::memory::CategoryScope activation(rw::Category::activation);
      rw::Tensor y = task.net(task.x);
      rw::Tensor g = rw::empty(y.shape());
      rw::backward(std::move(y), std::move(g));
    });
    std::int64_t beside = static_cast<std::int64_t>(run.before.total) - chain.input;
    for (const rw::Parameter& p : task.net.parameters()) beside += static_cast<std::int64_t>(p.value.bytes());
    const std::int64_t real = static_cast<std::int64_t>(run.peak.total) - beside;
    lowest = std::min(lowest, static_cast<double>(real) / static_cast<double>(trace.peak));
    highest = std::max(highest, static_cast<double>(real) / static_cast<double>(trace.peak));
    below = std::min(below, real - trace.peak);
    above = std::max(above, real - trace.peak);
  }
  MESSAGE("300 schedules of ", n, " stages, ", forwards / 300.0, " forwards each: the dry run's peak is ", lowest, " to ", highest,
          " of the simulation's (", below, " to +", above, " bytes)");
  CHECK(lowest > 0.7);
  CHECK(highest < 1.02);
}
