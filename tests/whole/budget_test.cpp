// A budget in bytes: the fastest schedule that fits, the same bits, and never a byte more.

#include "zoo.h"

#include <rewind/autograd/checkpoint.h>
#include <rewind/nn/describe_chain.h>
#include <rewind/nn/summary.h>

#include <doctest/doctest.h>

#include <string>

namespace rw = rewind;
namespace nn = rewind::nn;
using rw::Tensor;
using namespace rw::literals;

namespace {

nn::Sequential net() {
  rw::random::seed(5);
  nn::Sequential s{nn::Conv2d{{.in = 3, .out = 16, .kernel = 3, .padding = 1, .bias = false}}, nn::BatchNorm2d{16}, nn::ReLU6{}};
  for (int i = 0; i < 6; ++i) s.add(nn::InvertedBottleneck{{.in = 16, .out = 16, .expand = 4}});
  s.add(nn::Dropout{0.3});
  s.add(nn::GlobalAvgPool{});
  s.add(nn::Linear{16, 10});
  return s;
}

/// A model that is no chain, around one.
struct Wrapped : nn::Module {
  nn::Sequential body = net();
  nn::Linear extra{10, 4};
  void describe(nn::Fields& f) override {
    f.child("body", body);
    f.child("extra", extra);
  }
  Tensor forward(Tensor x) override { return extra(rw::relu(body(std::move(x)))); }
};

struct Outcome {
  std::vector<std::uint64_t> hashes;
  std::size_t peak = 0;
};

template <class Net>
Outcome train(Net& model, int steps, int classes) {
  rw::random::seed(9);
  rw::optim::Adam adam{model.parameters(), {.lr = 1e-3}};
  const rw::memory::CategoryScope input(rw::Category::input);
  const Tensor x = rw::randn({4, 16, 16, 3});
  Tensor y = rw::arange(4, rw::int64);
  for (auto& v : y.mutate<std::int64_t>()) v %= classes;
  const rw::memory::CategoryScope activation(rw::Category::activation);
  rw::memory::reset_peak();
  Outcome o;
  for (int i = 0; i < steps; ++i) {
    Tensor loss = rw::cross_entropy(model(x), y);
    o.hashes.push_back(rw::hash(loss));
    rw::backward(std::move(loss));
    adam.step();
  }
  o.peak = rw::memory::peak().total;
  for (const auto& p : model.parameters()) o.hashes.push_back(rw::hash(p.value));
  for (const auto& p : model.buffers()) o.hashes.push_back(rw::hash(p.value));
  return o;
}

std::string message_of(nn::Module& model, const Tensor& x) {
  try {
    model(x);
  } catch (const rw::Error& e) {
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("steps that the limit refuses under vanilla train under a budget with that limit set, with the same bits") {
  nn::Sequential plain = net();
  const std::size_t before = rw::memory::live().total;
  const Outcome vanilla = train(plain, 3, 10);
  const std::size_t own = vanilla.peak - before;
  for (const double share : {0.95, 0.85, 0.75, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.37}) {
    CAPTURE(share);
    const std::size_t limit = before + static_cast<std::size_t>(share * static_cast<double>(own));
    plain = net();
    rw::memory::set_limit(limit);
    CHECK_THROWS_AS(train(plain, 1, 10), rw::OutOfMemory);
    rw::memory::set_limit(0);
    plain = net();
    plain.recompute(rw::Budget{limit});
    rw::memory::set_limit(limit);
    const Outcome o = train(plain, 3, 10);
    rw::memory::set_limit(0);
    CHECK(o.hashes == vanilla.hashes);
    CHECK(o.peak <= limit);
  }
}

TEST_CASE("a limit that refuses vanilla is enough for a budget of as much, from the least that works to almost vanilla's") {
  const zoo::Threads one(1);
  for (const char* name : {"digits", "mobilenet_v2_cifar", "preresnet29"}) {
    INFO(std::string(name));
    zoo::Model model = zoo::find(name);
    model.batch = 16;  // so that activations count beside parameters, gradients and the state of Adam
    // After a first step, which allocates that state, three more, under a limit. Returns their bits.
    const auto train = [&](std::size_t budget, bool choose, std::size_t* peak) {
      zoo::Task task(model);
      rw::random::seed(2);
      const auto adam = zoo::make_optimizer("adam", task.net.parameters());
      std::vector<std::uint64_t> hashes;
      const auto step = [&] {
        rw::Tensor loss = task.loss();
        hashes.push_back(rw::hash(loss));
        rw::backward(std::move(loss));
        adam->step();
      };
      step();
      if (choose) task.net.recompute(rw::Budget{budget});
      rw::memory::set_limit(budget);
      rw::memory::reset_peak();
      try {
        for (int i = 0; i < 3; ++i) step();
      } catch (...) {
        rw::memory::set_limit(0);
        throw;
      }
      rw::memory::set_limit(0);
      *peak = rw::memory::peak().total;
      for (const rw::Parameter& p : task.net.parameters()) hashes.push_back(rw::hash(p.value));
      for (const rw::Parameter& p : task.net.buffers()) hashes.push_back(rw::hash(p.value));
      return hashes;
    };
    std::size_t most = 0, least = 0, peak = 0;
    const auto expected = train(0, false, &most);
    {
      zoo::Task task(model);
      const auto adam = zoo::make_optimizer("adam", task.net.parameters());
      task.forward_backward();
      adam->step();
      least = task.least_budget();
    }
    REQUIRE(least < most);
    for (int i = 0; i < 10; ++i) {
      const std::size_t budget = least + (most - least) * static_cast<std::size_t>(i) / 10;
      CAPTURE(budget);
      CHECK_THROWS_AS(train(budget, false, &peak), rw::OutOfMemory);
      CHECK(train(budget, true, &peak) == expected);
      CHECK(peak <= budget);
    }
    CHECK_THROWS_WITH_AS(train(least - 1, true, &peak), doctest::Contains("is too small; this step needs at least"), rw::Error);
    MESSAGE(std::string(name), ": vanilla takes ", most, " bytes, the least budget is ", least);
  }
}

TEST_CASE("a larger budget never takes more recomputation") {
  nn::Sequential model = net();
  const Tensor x = rw::randn({4, 16, 16, 3});
  double first = 0, last = 0;
  for (const std::size_t budget : {1_GiB, 3_MiB, 2_MiB}) {
    model.recompute(rw::Budget{.bytes = rw::memory::live().total + budget, .costs = rw::Costs::counted});
    const rw::DryRun run = rw::dry_run([&] { rw::backward(rw::sum(model(x))); });
    const double flops = static_cast<double>(run.flops);
    CHECK(flops >= last);
    if (first == 0) first = flops;
    last = flops;
    CHECK(run.peak.total <= run.before.total + budget);
  }
  CHECK(last > first);
}

TEST_CASE("a budget that is too small is an error that says what is needed, and that much is enough") {
  nn::Sequential model = net();
  const Tensor x = rw::randn({4, 16, 16, 3});
  model.recompute(rw::Budget{.bytes = rw::memory::live().total + 1000, .costs = rw::Costs::counted});
  const std::string text = message_of(model, x);
  CHECK(text.find("is too small; this step needs at least ") != text.npos);
  CHECK(text.find("parameter ") != text.npos);
  CHECK(text.find("Of the chain, stage") != text.npos);
  const auto at = text.find("at least ") + 9;
  const std::size_t needed = std::stoull(text.substr(at));
  model.recompute(rw::Budget{.bytes = needed, .costs = rw::Costs::counted});
  rw::memory::reset_peak();
  rw::backward(rw::sum(model(x)));
  CHECK(rw::memory::peak().total <= needed);
}

TEST_CASE("a step that fits without recomputation is not refused, whatever the chain's model makes of it") {
  const auto step = [](nn::Sequential& model) {
    rw::memory::reset_peak();
    rw::Tensor loss = rw::mean(model(rw::zeros({16, 32, 32, 1})));
    rw::backward(std::move(loss));
    for (const rw::Parameter& p : model.parameters()) p.value.set_grad({});
    return rw::memory::peak().total;
  };
  // sigmoid writes over what the convolution made, and pooling keeps neither: stage by stage that looks like more.
  nn::Sequential model{nn::Conv2d{{.in = 1, .out = 16, .kernel = 3, .padding = 1}}, nn::Sigmoid{}, nn::MaxPool2d{2},
                       nn::BatchNorm2d{16}};
  const std::size_t vanilla = step(model), reserve = 2 * 16 * 16 * 16 * 16 * sizeof(float) + 65536;
  model.recompute(rw::Budget{.bytes = vanilla + reserve, .costs = rw::Costs::counted});
  CHECK(step(model) == vanilla);
}

TEST_CASE("a budget of all there is recomputes nothing") {
  nn::Sequential model = net();
  const auto macs = [&](std::size_t bytes) {
    model.recompute(rw::Budget{.bytes = bytes, .costs = rw::Costs::counted});
    return rw::dry_run([&] { rw::backward(rw::sum(model(rw::zeros({4, 16, 16, 3})))); }).macs;
  };
  for (const std::size_t bytes : {~std::size_t{0}, ~std::size_t{0} / 2, ~std::size_t{0} / 4}) CHECK(macs(bytes) == macs(1_GiB));
}

TEST_CASE("a budget plans again when parameters are unfrozen, or a part of the net is switched to training") {
  nn::Sequential model;
  for (int i = 0; i < 8; ++i)
    model.add(nn::conv_norm({.in = i == 0 ? 3 : 16, .out = 16, .kernel = 3, .padding = 1}, nn::Activation::relu));
  model.add(nn::Sequential{nn::GlobalAvgPool{}, nn::Linear{16, 10}});
  const Tensor x = rw::randn({8, 32, 32, 3});
  constexpr std::size_t budget = 3'500'000;
  const auto peak = [&] {
    rw::memory::reset_peak();
    rw::backward(rw::sum(model(x)));
    for (const rw::Parameter& p : model.parameters()) p.value.set_grad({});
    return rw::memory::peak().total;
  };
  const auto freeze = [&](bool on) {
    for (int i = 0; i < 8; ++i)
      for (const rw::Parameter& p : model[i].parameters()) rw::Tensor(p.value).set_requires_grad(!on);
  };
  model.recompute(rw::Budget{.bytes = budget, .costs = rw::Costs::counted});
  for (const bool frozen : {true, false, true}) {
    freeze(frozen);
    CHECK(peak() <= budget);
  }
  for (const bool training : {false, true}) {
    for (int i = 0; i < 8; ++i) model[i].train(training);
    CHECK(peak() <= budget);
  }
}

TEST_CASE("a block with a shortcut takes a budget by itself, and not inside a net that leaves it a normalisation to do") {
  const auto step = [](nn::Module& model) {
    rw::random::seed(4);
    const Tensor x = rw::randn({4, 12, 12, 8});
    Tensor loss = rw::mean(rw::square(model(x)));
    std::vector<std::uint64_t> all{rw::hash(loss)};
    rw::backward(std::move(loss));
    for (const rw::Parameter& p : model.parameters()) {
      all.push_back(rw::hash(p.value.grad()));
      p.value.set_grad({});
    }
    return all;
  };
  rw::random::seed(1);
  nn::InvertedBottleneck block{{.in = 8, .out = 8, .expand = 4}};
  const auto expected = step(block);
  block.recompute(rw::Budget{.bytes = 100_MiB, .costs = rw::Costs::counted});
  CHECK(step(block) == expected);

  nn::Sequential s{nn::Conv2d{{.in = 8, .out = 8, .bias = false}}, nn::BatchNorm2d{8}, nn::ReLU{}};
  s.add(nn::InvertedBottleneck{{.in = 8, .out = 8, .expand = 4}}).recompute(rw::Budget{100_MiB});
  CHECK_THROWS_WITH_AS(step(s), doctest::Contains("InvertedBottleneck 3 has a budget of its own"), rw::Error);
}

TEST_CASE(
    "what runs stage by stage inside a chain refuses a budget of its own, and the budget of the whole sees what it was told") {
  const auto nested = [] {
    nn::Sequential s;
    s.add("features", net());
    s.add("head", nn::Linear{10, 4});
    return s;
  };
  const std::size_t before = rw::memory::live().total;
  nn::Sequential plain = nested();
  const Outcome vanilla = train(plain, 2, 4);
  plain = {};
  const rw::Budget budget{.bytes = before + (vanilla.peak - before) * 6 / 10, .costs = rw::Costs::counted};

  nn::Sequential both = nested();
  auto& features = static_cast<nn::Sequential&>(both[0]);
  features.recompute(budget);
  CHECK_THROWS_WITH_AS(train(both, 1, 4), doctest::Contains("Sequential features has a budget of its own"), rw::Error);
  features.recompute(rw::Recompute::low_memory());
  both.recompute(budget);
  const Outcome within = train(both, 2, 4);
  CHECK(within.hashes == vanilla.hashes);
  CHECK(within.peak <= budget.bytes);
  features.recompute(rw::Recompute::segments(1));  // all of it recorded at once
  CHECK_THROWS_WITH_AS(train(both, 1, 4), doctest::Contains("is too small"), rw::Error);
  features.recompute(rw::Recompute::low_memory());
  CHECK(train(both, 2, 4).peak <= budget.bytes);

  nn::Sequential main{nn::Conv2d{{.in = 3, .out = 3, .kernel = 3, .padding = 1}}, nn::BatchNorm2d{3}};
  main.recompute(budget);
  nn::Residual residual{std::move(main)};
  CHECK_THROWS_WITH_AS(residual(rw::randn({2, 4, 4, 3})), doctest::Contains("has a budget of its own"), rw::Error);
}

namespace {

/// Adds what somebody else holds.
struct Plus : nn::Module {
  const Tensor* other;
  explicit Plus(const Tensor* o) : other(o) {}
  Tensor forward(Tensor x) override { return rw::add(std::move(x), *other); }
};
/// y = x w^T with somebody else's weight.
struct Tied : nn::Module {
  const Tensor* weight;
  explicit Tied(const Tensor* w) : weight(w) {}
  Tensor forward(Tensor x) override { return rw::linear(std::move(x), *weight); }
};

}  // namespace

TEST_CASE("planning leaves alone what is around the chain: weights that are not its own, and histories that it reads") {
  std::vector<std::uint64_t> expected;
  for (const bool planned : {false, true}) {
    rw::random::seed(6);
    nn::Linear embed{16, 16};
    Tensor condition;
    nn::Sequential body{nn::Linear{16, 16}, Plus{&condition}, nn::Tanh{}, Tied{&embed.weight}};
    if (planned) body.recompute(rw::Budget{1_GiB});
    condition = embed(rw::randn({2, 16}));
    Tensor loss = rw::mean(rw::square(body(rw::randn({2, 16}))));
    if (planned) nn::summarize(body, {2, 16});
    rw::backward(std::move(loss));
    std::vector<std::uint64_t> all{rw::hash(embed.weight.grad())};
    for (const rw::Parameter& p : body.parameters()) all.push_back(rw::hash(p.value.grad()));
    if (planned) CHECK(all == expected);
    expected = all;
  }
}

TEST_CASE("the step that plans keeps to the budget, too") {
  const Tensor x = rw::randn({4, 24, 24, 8});
  for (const rw::Costs costs : {rw::Costs::counted, rw::Costs::measured}) {
    nn::Sequential s;
    for (int i = 0; i < 6; ++i) {
      s.add(nn::Conv2d{{.in = 8, .out = 8, .kernel = 3, .padding = 1}});
      s.add(nn::GELU{});
    }
    s.recompute(rw::Budget{1, costs});
    const std::string text = message_of(s, x);
    const std::size_t least = std::stoul(text.substr(text.find("at least ") + 9));
    s.recompute(rw::Budget{least, costs});
    rw::memory::reset_peak();
    rw::backward(rw::sum(s(x)));
    CHECK(rw::memory::peak().total <= least);
    s.recompute(rw::Budget{least - 1, costs});
    s.parameters()[0].value.set_grad({});
    CHECK(message_of(s, x).find("too small") != std::string::npos);
  }
}

namespace {

/// Keeps a statistic of a step for whoever wants to look, beside what it computes.
struct Watched : nn::Module {
  nn::Linear linear{64, 64};
  Tensor last;
  Tensor forward(Tensor x) override {
    last = rw::mean(rw::square(linear.weight));
    return linear(std::move(x));
  }
  void describe(nn::Fields& f) override { f.child("linear", linear); }
};

}  // namespace

TEST_CASE("what a trial replaces on the tape does not hide the backward that is measured") {
  const auto chain = [] {
    nn::Sequential s{Watched{}};
    for (int i = 0; i < 12; ++i) {
      s.add(nn::GELU{});
      s.add(nn::Linear{64, 64});
    }
    s.add(nn::Linear{64, 1});
    return s;
  };
  const auto peak = [&](std::size_t budget) {
    nn::Sequential s = chain();
    const Tensor x = rw::randn({4096, 64});
    if (budget > 0) s.recompute(rw::Budget{budget, rw::Costs::counted});
    rw::memory::reset_peak();
    rw::backward(rw::sum(s(x)));
    return rw::memory::peak().total;
  };
  const std::size_t vanilla = peak(0);
  for (const std::size_t percent : {25, 30, 33}) {
    const std::size_t budget = vanilla * percent / 100;
    CHECK(peak(budget) <= budget);
  }
  nn::Sequential s = chain();
  const std::int64_t macs = nn::summarize(s, {4, 64}).training_step_macs;
  s(rw::randn({4, 64}));
  CHECK(nn::summarize(s, {4, 64}).training_step_macs == macs);
}

TEST_CASE("of several strategies for one chain the last counts, and a plan is made anew where a layer was replaced") {
  const Tensor x = rw::randn({4, 16, 16, 3});
  Wrapped model;
  const auto list = [&] {
    rw::backward(rw::sum(model(x)));
    return model.body.actions();
  };
  model.body.recompute(rw::Budget{1_GiB, rw::Costs::counted});
  model.recompute(rw::Budget{1_GiB, rw::Costs::counted});
  CHECK(list().front().kind == rw::schedule::Kind::Fall);
  model.recompute(rw::Recompute::low_memory());
  CHECK(list().front().kind == rw::schedule::Kind::Fck);
  model.recompute(rw::Budget{1_GiB, rw::Costs::counted});
  model.body.recompute(rw::Recompute::low_memory());
  CHECK(list().front().kind == rw::schedule::Kind::Fck);

  // Another chain becomes the largest: the one that was follows its plan no more.
  struct Two : nn::Module {
    nn::Sequential a{nn::Linear{4, 4}, nn::Tanh{}, nn::Linear{4, 4}}, b{nn::Linear{4, 4}, nn::Tanh{}};
    void describe(nn::Fields& f) override {
      f.child("a", a);
      f.child("b", b);
    }
    Tensor forward(Tensor in) override { return b(a(std::move(in))); }
  } two;
  const auto run = [&] { rw::backward(rw::sum(two(rw::randn({2, 4})))); };
  two.recompute(rw::Budget{1_GiB, rw::Costs::counted});
  run();
  for (int i = 0; i < 4; ++i) two.b.add(nn::Tanh{});
  two.b.recompute(rw::Recompute::low_memory());
  run();
  CHECK(two.b.actions().front().kind == rw::schedule::Kind::Fck);
  two.a.add(nn::Tanh{});
  run();
  two.recompute(rw::Budget{1_GiB, rw::Costs::counted});
  run();
  two.a.recompute(rw::Recompute::low_memory());
  for (int i = 0; i < 4; ++i) two.a.add(nn::Tanh{});
  run();
  CHECK(two.a.actions().front().kind == rw::schedule::Kind::Fck);
  two.recompute(rw::Recompute::vanilla());
  run();

  nn::Sequential small{nn::Conv2d{{.in = 3, .out = 64, .kernel = 1, .stride = 4}}, nn::GELU{}, nn::GELU{}, nn::GELU{}};
  const auto peak = [&] {
    rw::memory::reset_peak();
    rw::backward(rw::sum(small(x)));
    return rw::memory::peak().total;
  };
  const std::size_t budget = peak() + 65536 + 3 * 4 * 4 * 4 * 64 * 4;  // room for the loss
  small.recompute(rw::Budget{budget, rw::Costs::counted});
  peak();
  static_cast<nn::Conv2d&>(small[0]) = nn::Conv2d{{.in = 3, .out = 64, .kernel = 1}};
  CHECK(message_of(small, x).find("too small") != std::string::npos);
}

TEST_CASE("in a model that is no chain, the largest chain inside is recomputed, within the budget of the whole") {
  const auto run = [](std::size_t budget) {
    rw::random::seed(3);
    Wrapped model;
    if (budget > 0) model.recompute(rw::Budget{budget});
    return train(model, 3, 4);
  };
  const std::size_t before = rw::memory::live().total;
  const Outcome vanilla = run(0);
  const std::size_t budget = before + (vanilla.peak - before) * 6 / 10;
  const Outcome within = run(budget);
  CHECK(within.peak <= budget);
  CHECK(within.hashes == vanilla.hashes);
}

TEST_CASE("a module without a chain says so") {
  nn::Linear layer{3, 3};
  CHECK_THROWS_WITH_AS(layer.recompute(rw::Recompute::sqrt()), doctest::Contains("Linear contains no Sequential"), rw::Error);
}

TEST_CASE("planning leaves gradients, statistics and random numbers as they were") {
  nn::Sequential model = net();
  const Tensor x = rw::randn({4, 16, 16, 3});
  rw::backward(rw::sum(model(x)));
  std::vector<std::uint64_t> before, after;
  const auto take = [&](std::vector<std::uint64_t>& to) {
    for (const auto& p : model.parameters()) to.push_back(rw::hash(p.value.grad()));
    for (const auto& p : model.buffers()) to.push_back(rw::hash(p.value));
    to.push_back(rw::random::default_generator().offset());
    to.push_back(rw::memory::live().total);
  };
  take(before);
  nn::describe_chain(model, x, rw::Costs::measured);
  take(after);
  CHECK(before == after);
}

TEST_CASE("a module that fails before or beside its chain says so, and can be called again") {
  struct Picky : nn::Module {
    nn::Sequential body{nn::Linear{4, 4}, nn::Tanh{}, nn::Linear{4, 4}};
    bool refuse = true, skip = false;
    void describe(nn::Fields& f) override { f.child("body", body); }
    Tensor forward(Tensor x) override {
      if (refuse) rw::fail("not today");
      return skip ? rw::tanh(std::move(x)) : body(std::move(x));
    }
  } model;
  model.recompute(rw::Budget{1_GiB});
  const Tensor x = rw::randn({2, 4});
  CHECK_THROWS_WITH_AS(model(x), "not today", rw::Error);
  model.refuse = false;
  model.skip = true;
  CHECK_THROWS_WITH_AS(model(x), doctest::Contains("does not run the chain that the budget is for"), rw::Error);
  model.skip = false;
  model.body(rw::randn({2, 4}));  // nobody looks at its input any more
  rw::backward(rw::sum(model(x)));
  CHECK(model.parameters()[0].value.grad().defined());
}

namespace {

/// Multiplies by a tensor that was computed before the net.
struct Modulate : nn::Module {
  Tensor by;
  explicit Modulate(Tensor t) : by(std::move(t)) {}
  Tensor forward(Tensor x) override { return rw::tanh(rw::matmul(rw::matmul(std::move(x), by), by, false, true)); }
};

}  // namespace

TEST_CASE("a budget counts the gradient of a computed tensor that stages read beside the chain") {
  for (const bool computed : {false, true})
    for (std::size_t budget = 9000 << 10; budget <= 14000 << 10; budget += 500 << 10) {
      rw::random::seed(1);
      const Tensor w = rw::affine(rw::randn({64, 4096}), 0.01, 0).set_requires_grad();
      const Tensor by = computed ? rw::tanh(w) : w;
      nn::Sequential chain;
      chain.add(nn::Tanh{});
      for (int i = 0; i < 5; ++i) chain.add(Modulate{by});
      chain.recompute(rw::Budget{.bytes = budget, .costs = rw::Costs::counted});
      rw::memory::reset_peak();
      try {
        rw::backward(rw::mean(rw::square(chain(rw::randn({256, 64})))));
      } catch (const rw::Error&) {
        continue;
      }
      CHECK_MESSAGE(rw::memory::peak().total <= budget, computed, " ", budget);
    }
}

TEST_CASE("a net with a budget inside a checkpoint follows each input's own plan when it runs again") {
  rw::random::seed(1);
  nn::Sequential chain;
  for (int i = 0; i < 10; ++i) {
    chain.add(nn::Linear{64, 64});
    chain.add(nn::GELU{});
  }
  constexpr std::size_t budget = 2400 << 10;
  chain.recompute(rw::Budget{.bytes = budget, .costs = rw::Costs::counted});
  const Tensor large = rw::randn({1024, 64}).set_requires_grad(), small = rw::randn({16, 64}).set_requires_grad();
  rw::memory::reset_peak();
  Tensor a = rw::checkpoint(chain, large), b = rw::checkpoint(chain, small);
  rw::backward(rw::add(rw::mean(std::move(a)), rw::mean(std::move(b))));
  CHECK(rw::memory::peak().total <= budget);
}
