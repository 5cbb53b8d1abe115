// Recomputation where it is easy to get wrong: inputs that need a gradient, views, batches of another size, evaluation in
// between, nets that move, stages that throw, checkpoints around, second derivatives.

#include "zoo.h"

#include <rewind/autograd/checkpoint.h>
#include <rewind/autograd/grad_mode.h>
#include <rewind/autograd/observer.h>

#include <doctest/doctest.h>

namespace rw = rewind;
namespace nn = rewind::nn;
using Hashes = std::vector<std::uint64_t>;

namespace {

/// Returns its input itself.
struct Identity : nn::Module {
  rw::Tensor forward(rw::Tensor x) override { return x; }
};

/// Throws when its countdown ends.
struct Mine : nn::Module {
  int* countdown;
  explicit Mine(int* c) : countdown(c) {}
  rw::Tensor forward(rw::Tensor x) override {
    if (--*countdown == 0) rw::fail("the mine went off");
    return rw::tanh(std::move(x));
  }
};

/// No parameters at first, then views and identities between layers that compute.
nn::Sequential odd() {
  nn::Sequential net{nn::Tanh{}, nn::Flatten{}, Identity{}, nn::Linear{64, 32}, nn::Flatten{}, nn::Tanh{}};
  net.add(Identity{});
  net.add(nn::Dropout{0.2});
  net.add(nn::Linear{32, 10});
  net.add(nn::Flatten{});
  net.add(Identity{});
  return net;
}
constexpr zoo::Model odd_model{"odd", 64, 8, 1, 10, odd};

void take_gradients(nn::Module& net, Hashes& to) {
  for (const rw::Parameter& p : net.parameters()) {
    to.push_back(rw::hash(p.value.grad()));
    p.value.set_grad({});
  }
}

Hashes step(zoo::Task& task) {
  rw::random::seed(11);
  rw::Tensor loss = task.loss();
  Hashes all{rw::hash(loss)};
  rw::backward(std::move(loss));
  take_gradients(task.net, all);
  for (const rw::Parameter& b : task.net.buffers()) all.push_back(rw::hash(b.value));
  return all;
}

}  // namespace

TEST_CASE("stages that are views or identities, and stages without parameters, recompute to the same bits") {
  zoo::Task plain(odd_model);
  const Hashes expected = step(plain);
  for (const char* strategy : zoo::strategies) {
    INFO(std::string(strategy));
    zoo::Task task(odd_model);
    task.recompute(strategy, 0, strategy == std::string("budget") ? 0.1 : 0);
    CHECK(step(task) == expected);
  }
}

TEST_CASE("an input that requires a gradient, and one with a history, get the same gradient under every strategy") {
  for (const bool history : {false, true}) {
    CAPTURE(history);
    const auto run = [&](const std::string& strategy) {
      zoo::Task task(zoo::find("digits"));
      nn::Sequential before{nn::Conv2d{{.in = 1, .out = 1, .kernel = 3, .padding = 1}}, nn::Tanh{}};
      rw::Tensor leaf = task.x.clone().set_requires_grad();
      task.recompute(strategy);
      rw::random::seed(3);
      Hashes all;
      for (int i = 0; i < 2; ++i) {
        task.x = history ? before(leaf) : leaf;
        rw::Tensor loss = task.loss();
        task.x = rw::Tensor();
        all.push_back(rw::hash(loss));
        rw::backward(std::move(loss));
        all.push_back(rw::hash(leaf.grad()));
        leaf.set_grad({});
        take_gradients(task.net, all);
        if (history) take_gradients(before, all);
      }
      return all;
    };
    const Hashes expected = run("vanilla");
    for (const char* strategy : zoo::strategies) {
      INFO(std::string(strategy));
      CHECK(run(strategy) == expected);
    }
  }
}

TEST_CASE("batches of another size and evaluation in between, under a budget: the same bits, within it") {
  const zoo::Model& model = zoo::find("fashion cnn");
  std::size_t peak = 0;
  const auto run = [&](std::size_t budget) {
    zoo::Task task(model);
    const auto optim = zoo::make_optimizer("momentum", task.net.parameters());
    if (budget > 0) task.net.recompute(rw::Budget{budget});
    const rw::Tensor x = task.x, y = task.y;
    rw::random::seed(5);
    rw::memory::reset_peak();
    Hashes all;
    for (int epoch = 0; epoch < 2; ++epoch) {
      for (const int n : {4, 4, 3}) {
        task.x = rw::view_rows(x, 0, n);
        task.y = rw::view_rows(y, 0, n);
        rw::backward(task.loss());
        optim->step();
      }
      const rw::NoGrad no_grad;
      task.net.eval();
      all.push_back(rw::hash(task.loss()));
      task.net.train();
    }
    peak = rw::memory::peak().total;
    for (const rw::Parameter& p : task.net.parameters()) all.push_back(rw::hash(p.value));
    return all;
  };
  const std::size_t live = rw::memory::live().total;
  const Hashes expected = run(0);
  const std::size_t budget = live + (peak - live) * 7 / 10;
  CHECK(run(budget) == expected);
  CHECK(peak <= budget);
}

TEST_CASE("a dry run plans for the steps that follow it, and steps plan for the dry runs that follow them") {
  zoo::Model model = zoo::find("digits");
  model.batch = 32;
  for (const int share : {0, 1, 2, 3, 4, 5, 6})
    for (const bool dry_first : {false, true}) {
      CAPTURE(share);
      CAPTURE(dry_first);
      zoo::Task task(model);
      const auto optim = zoo::make_optimizer("momentum", task.net.parameters());
      const std::size_t least = task.least_budget(), most = task.vanilla_peak(), state = task.state_bytes("momentum");
      // Tight: the first step, without the optimizer's state, has room for a faster schedule than the second.
      task.net.recompute(rw::Budget{least + state + (most - least) * static_cast<std::size_t>(share) / 12});
      const auto step = [&] {
        task.forward_backward();
        optim->step();
      };
      const auto twice = [&] {
        step();
        step();
      };
      if (!dry_first) step();
      const rw::DryRun plan = rw::dry_run(twice);
      rw::memory::reset_peak();
      rw::memory::start_timeline();
      twice();
      CHECK(plan.peak == rw::memory::peak());
      CHECK(plan.timeline == rw::memory::stop_timeline());
    }
}

TEST_CASE("a budget plans again when the chain has changed") {
  const auto task = [] { return zoo::Task(zoo::find("preresnet20")); };
  zoo::Task plain = task();
  const Hashes expected = step(plain);
  zoo::Task changed = task();
  changed.recompute("budget");
  CHECK(step(changed).front() == expected.front());
  const std::size_t stages = changed.net.stages().size();
  dynamic_cast<nn::Sequential&>(changed.net[1]).recompute(rw::Recompute::low_memory());
  CHECK(changed.net.stages().size() < stages);
  const Hashes again = step(changed);  // statistics have moved twice, all else is the same
  CHECK(again.front() == expected.front());
}

TEST_CASE("where there is no room to time the stages, costs are counted") {
  nn::Sequential net{nn::GlobalAvgPool{}, nn::Tanh{}, nn::Linear{4, 4}};
  const rw::Tensor x = rw::randn({4, 64, 64, 4});
  const std::size_t budget = rw::memory::live().total + x.bytes() / 2 + 65536;  // less than another input
  net.recompute(rw::Budget{budget});
  rw::memory::set_limit(budget);
  CHECK_NOTHROW(rw::backward(rw::sum(net(x))));
  rw::memory::set_limit(0);
  CHECK(net.parameters()[0].value.grad().defined());
}

TEST_CASE("planning is not counted as part of a dry run, nor seen by observers") {
  struct Count final : rw::Observer {
    int ops = 0;
    void after(const rw::OpEvent&) override { ++ops; }
  };
  struct CountModules final : nn::ModuleObserver {
    int modules = 0;
    void returned(nn::Module&, const rw::Shape&, bool) override { ++modules; }
  };
  zoo::Task task(zoo::find("digits"));
  task.recompute("budget");
  const rw::DryRun first = rw::dry_run([&] { task.forward_backward(); });
  const rw::DryRun second = rw::dry_run([&] { task.forward_backward(); });
  CHECK(first.flops == second.flops);
  for (const rw::Costs costs : {rw::Costs::counted, rw::Costs::measured}) {
    task.net.recompute(rw::Budget{.bytes = rw::memory::live().total + (std::size_t{1} << 20), .costs = costs});
    int ops[2], modules[2];
    for (int i = 0; i < 2; ++i) {
      Count count;
      CountModules count_modules;
      const rw::ObserverScope scope(count);
      task.forward_backward();
      for (const rw::Parameter& p : task.net.parameters()) p.value.set_grad({});
      ops[i] = count.ops;
      modules[i] = count_modules.modules;
    }
    CHECK(ops[1] > 0);
    CHECK(ops[0] == ops[1]);
    CHECK(modules[0] == modules[1]);
  }
}

TEST_CASE("a net that moved after recompute() follows its strategy") {
  zoo::Task plain(zoo::find("digits"));
  const Hashes expected = step(plain);
  for (const char* strategy : zoo::strategies) {
    INFO(std::string(strategy));
    zoo::Task task(zoo::find("digits"));
    task.recompute(strategy);
    nn::Sequential elsewhere = std::move(task.net);
    task.net = nn::Sequential{};
    task.net = std::move(elsewhere);
    CHECK(step(task) == expected);
    CHECK(task.net.actions().empty() == (strategy == std::string("vanilla")));
    // Between forward and backward, too.
    rw::random::seed(11);
    rw::Tensor loss = task.loss();
    nn::Sequential again = std::move(task.net);
    rw::backward(std::move(loss));
    Hashes gradients;
    take_gradients(again, gradients);
    CHECK(std::equal(gradients.begin(), gradients.end(), expected.begin() + 1));
  }
}

TEST_CASE("an exception in a stage, in forward, replay or backward, leaves a net that trains on") {
  int countdown = 0;
  zoo::Task task(zoo::find("lenet5"));
  task.net = nn::Sequential{nn::Flatten{}};
  for (int i = 0; i < 6; ++i) {
    task.net.add(nn::Linear{i == 0 ? 784 : 16, 16});
    task.net.add(nn::Dropout{0.1});
    task.net.add(Mine{&countdown});
  }
  const Hashes expected = step(task);
  const auto live = rw::memory::live();
  for (const char* strategy : zoo::strategies) {
    INFO(std::string(strategy));
    task.recompute(strategy);
    countdown = 0;
    CHECK(step(task) == expected);
    const int calls = -countdown;
    int thrown = 0;
    for (int at = 1; at <= calls; ++at) {
      if (strategy == std::string("budget")) task.recompute(strategy);  // so that some go off while it plans
      countdown = at;
      try {
        step(task);
      } catch (const rw::Error& e) {
        ++thrown;
        CHECK(std::string(e.what()).find("the mine went off") != std::string::npos);
        for (const rw::Parameter& p : task.net.parameters()) p.value.set_grad({});
        CHECK(rw::memory::live() == live);
      }
      countdown = 0;
    }
    CHECK(thrown == calls);
    CHECK(step(task) == expected);
    CHECK(rw::memory::live() == live);
  }
}

TEST_CASE("a budget inside a checkpoint, a checkpoint inside a budget: the same bits and less memory") {
  const zoo::Model model{"net", 8, 8, 1, 10, support::digits_net};
  const auto run = [&](zoo::Task& task, std::size_t* peak) {
    rw::random::seed(11);
    rw::memory::reset_peak();
    rw::Tensor loss = rw::checkpoint([&](rw::Tensor x) { return rw::cross_entropy(task.net(std::move(x)), task.y); }, task.x);
    Hashes all{rw::hash(loss)};
    rw::backward(std::move(loss));
    *peak = rw::memory::peak().total;
    take_gradients(task.net, all);
    return all;
  };
  zoo::Task task(model);
  std::size_t vanilla = 0, within = 0;
  const Hashes expected = run(task, &vanilla);
  const std::size_t least = task.least_budget();
  const std::size_t budget = least + (vanilla - least) / 3;
  task.net.recompute(rw::Budget{.bytes = budget, .costs = rw::Costs::counted});
  CHECK(run(task, &within) == expected);
  CHECK(within <= budget);
  CHECK(run(task, &within) == expected);
}

TEST_CASE("a stage that passes its input on is as good as none: the same bits in what is before the chain") {
  std::vector<Hashes> all;
  for (const rw::Recompute& how : {rw::Recompute::vanilla(), rw::Recompute::low_memory(), rw::Recompute::periodic(1)}) {
    rw::random::seed(3);
    nn::Sequential main{Identity{}, nn::SqueezeExcite{{.channels = 8, .squeeze = 4}}, nn::GELU{}};
    main.recompute(how);
    nn::Sequential net{nn::Conv2d{{.in = 3, .out = 8, .kernel = 3}}};
    net.add(nn::Residual{std::move(main)});
    rw::backward(rw::mean(rw::square(net(rw::randn({4, 9, 9, 3})))));
    Hashes& hashes = all.emplace_back();
    for (const rw::Parameter& p : net.parameters()) hashes.push_back(rw::hash(p.value.grad()));
    CHECK(hashes == all.front());
  }
}

namespace {

/// Leaves a tensor for a later stage, beside the chain.
struct Put : nn::Module {
  rw::Tensor* left;
  nn::Linear linear{8, 8};
  explicit Put(rw::Tensor* t) : left(t) {}
  rw::Tensor forward(rw::Tensor x) override {
    *left = linear(std::move(x));
    return rw::tanh(*left);
  }
  void describe(nn::Fields& f) override { f.child("linear", linear); }
};
/// Leaves what it is given, or what it returns.
struct Keep : nn::Module {
  rw::Tensor* left;
  bool input;
  nn::Linear linear{8, 8};
  Keep(rw::Tensor* t, bool i) : left(t), input(i) {}
  rw::Tensor forward(rw::Tensor x) override {
    if (input) *left = x;
    rw::Tensor y = linear(std::move(x));
    if (!input) *left = y;
    return y;
  }
  void describe(nn::Fields& f) override { f.child("linear", linear); }
};
struct Get : nn::Module {
  const rw::Tensor* left;
  explicit Get(const rw::Tensor* t) : left(t) {}
  rw::Tensor forward(rw::Tensor x) override { return rw::mul(std::move(x), *left); }
};

}  // namespace

TEST_CASE("gradients that would get lost beside a chain are an error") {
  for (const rw::Recompute& how : {rw::Recompute::low_memory(), rw::Recompute::periodic(1), rw::Recompute::sqrt()}) {
    rw::Tensor left;
    nn::Sequential net{nn::Linear{8, 8}, Put{&left}, nn::Linear{8, 8}, Get{&left}, nn::Tanh{}};
    net.recompute(how);
    CHECK_THROWS_WITH_AS(net(rw::randn({2, 8})), doctest::Contains("mul: input 1 [2, 8]"), rw::Error);
  }
  for (const rw::Recompute& how : {rw::Recompute::low_memory(), rw::Recompute::periodic(2), rw::Recompute::segments(2)}) {
    rw::Tensor left;
    nn::Linear stem{8, 8};
    nn::Sequential net{Keep{&left, false}, Get{&left}, nn::Linear{8, 8}, nn::Tanh{}};
    net.recompute(how);
    const auto step = [&] { rw::backward(rw::mean(net(stem(rw::randn({2, 8}))))); };
    CHECK_THROWS_WITH_AS(step(), doctest::Contains("another stage"), rw::Error);
  }
  int runs = 0;
  const rw::Tensor w = rw::randn({4}).set_requires_grad();
  rw::Tensor y = rw::checkpoint([&](rw::Tensor x) { return ++runs == 1 ? rw::mul(x, w) : rw::mul(x, w.detach()); }, rw::randn({4}));
  CHECK_THROWS_WITH_AS(rw::backward(rw::sum(y)),
                       doctest::Contains("input 1 of mul, which gets a gradient, was read in the first run"), rw::Error);
  y = rw::checkpoint([&](rw::Tensor x) { return ++runs == 3 ? rw::tanh(x) : rw::tanh(x.detach()); }, w);
  CHECK_THROWS_WITH_AS(rw::backward(rw::sum(y)), doctest::Contains("result 0, shape [4], led to a gradient in the first run"),
                       rw::Error);
}

TEST_CASE("what the chain was given may be read by later stages, too: the same bits") {
  const auto run = [](const rw::Recompute& how) {
    rw::random::seed(4);
    rw::Tensor left;
    nn::Linear stem{8, 8};
    nn::Sequential net{Keep{&left, true}, nn::Linear{8, 8}, Get{&left}, nn::Linear{8, 8}, Get{&left}, nn::Tanh{}};
    net.recompute(how);
    rw::backward(rw::mean(net(stem(rw::randn({2, 8})))));
    Hashes all;
    for (const rw::Parameter& p : net.parameters()) all.push_back(rw::hash(p.value.grad()));
    all.push_back(rw::hash(stem.weight.grad()));
    return all;
  };
  const Hashes expected = run(rw::Recompute::vanilla());
  for (const char* how : {"low-memory", "recursive", "periodic:1", "periodic:2", "revolve:2", "segments:2", "sqrt"})
    CHECK_MESSAGE(run(rw::Recompute::parse(how)) == expected, how);
}

namespace {

/// Returns what it captured, made before or a leaf.
struct Lookup : nn::Module {
  rw::Tensor table;
  explicit Lookup(rw::Tensor t) : table(std::move(t)) {}
  rw::Tensor forward(rw::Tensor) override { return table; }
};
struct Twice : nn::Module {
  rw::Tensor forward(rw::Tensor x) override {
    rw::Tensor t = rw::mul(x, rw::tanh(x));
    return rw::add(std::move(t), rw::exp(std::move(x)));
  }
};

}  // namespace

TEST_CASE("a stage that returns what it captured: gradients are added there one by one, the same bits") {
  for (const bool computed : {false, true})
    for (const bool inside : {false, true}) {
      const auto run = [&](const char* how) {
        rw::random::seed(6);
        const rw::Tensor w = rw::randn({3, 8}).set_requires_grad();
        for (int batch = 0; batch < 2; ++batch) {  // accumulated
          const rw::Tensor table = computed ? rw::affine(w, 1, 0) : w;
          nn::Sequential net{nn::Linear{8, 8}, Lookup{table}, Twice{}, nn::Linear{8, 8}, nn::Tanh{}};
          net.recompute(rw::Recompute::parse(how));
          rw::Tensor y =
              inside ? rw::checkpoint([&](rw::Tensor x) { return net(std::move(x)); }, rw::randn({3, 8})) : net(rw::randn({3, 8}));
          rw::backward(rw::add(rw::mean(rw::square(std::move(y))), rw::mean(rw::exp(table))));
        }
        return rw::hash(w.grad());
      };
      const std::uint64_t expected = run("vanilla");
      for (const char* how :
           {"low-memory", "recursive", "periodic:1", "periodic:2", "revolve:2", "revolve:3", "segments:2", "sqrt"})
        CHECK_MESSAGE(run(how) == expected, how);
    }
}

namespace {

/// Changes what it is given, where that has no gradient.
struct Writes : nn::Module {
  nn::Linear linear{8, 8};
  rw::Tensor forward(rw::Tensor x) override {
    const rw::NoGrad no_grad;
    rw::Tensor t = x.detach();
    for (float& v : t.mutate<float>()) v *= 0.5F;
    return x;
  }
  void describe(nn::Fields& f) override { f.child("linear", linear); }
};

}  // namespace

TEST_CASE("what a replay keeps to run something again is not to be changed either") {
  const auto run = [](const rw::Recompute& how) {
    rw::random::seed(8);
    nn::Sequential net;
    for (int i = 0; i < 6; ++i) net.add(nn::Tanh{});
    net.add(Writes{});
    for (int i = 0; i < 4; ++i) net.add(nn::Linear{8, 8});
    net.recompute(how);
    rw::backward(rw::mean(net(rw::randn({2, 8}))));
    Hashes all;
    for (const rw::Parameter& p : net.parameters())
      if (p.value.grad().defined()) all.push_back(rw::hash(p.value.grad()));
    return all;
  };
  const Hashes expected = run(rw::Recompute::vanilla());
  for (const char* how : {"low-memory", "recursive", "periodic:1", "periodic:2", "revolve:2", "revolve:3", "segments:3", "sqrt"}) {
    Hashes seen;
    try {
      seen = run(rw::Recompute::parse(how));
    } catch (const rw::Error& e) {
      CHECK(std::string_view(e.what()).find("in place") != std::string_view::npos);
      continue;
    }
    CHECK_MESSAGE(seen == expected, how);
  }
}

TEST_CASE("a net that becomes a part of itself keeps that part, and a part that was replaced is missed") {
  nn::Sequential net;
  net.add("features", nn::Sequential{nn::Linear{4, 4}, nn::Tanh{}});
  net.add("head", nn::Linear{4, 2});
  auto& features = static_cast<nn::Sequential&>(net[0]);
  net.recompute(rw::Recompute::low_memory());
  rw::Tensor y = net(rw::randn({2, 4}));
  features = nn::Sequential{nn::Linear{4, 4}};
  CHECK_THROWS_WITH_AS(rw::backward(rw::sum(y)), doctest::Contains("its module was destroyed"), rw::Error);
  const std::uint64_t before = rw::hash(features.parameters()[0].value);
  net = std::move(features);
  CHECK(net.size() == 1);
  CHECK(rw::hash(net.parameters()[0].value) == before);

  nn::Sequential a{nn::Linear{4, 4}, nn::Tanh{}}, b{nn::Linear{4, 4}, nn::Tanh{}};
  a.recompute(rw::Budget{1});
  a = std::move(b);
  b = nn::Sequential{nn::Linear{4, 4}, nn::Tanh{}};
  CHECK(b(rw::randn({2, 4})).numel() == 8);  // a's budget has not come over
}

TEST_CASE("a checkpointed function returns up to 32 results with gradients") {
  const auto parts = [](int n) {
    const rw::Tensor x = rw::ones({1}).set_requires_grad();
    std::vector<rw::Tensor> y = rw::checkpoint(
        [n](const rw::Tensor& in) {
          std::vector<rw::Tensor> out;
          for (int i = 0; i < n; ++i) out.push_back(rw::mul(in, rw::full({1}, i)));
          return out;
        },
        x);
    rw::backward(rw::sum(rw::concat(std::move(y), 0)));
    return x.grad().to_vector<float>()[0];
  };
  CHECK(parts(32) == 31 * 32 / 2);
  CHECK_THROWS_WITH_AS(parts(33), doctest::Contains("at most the first 32 results"), rw::Error);
}

TEST_CASE("what is recomputed cannot be differentiated twice, and says so") {
  for (const char* strategy : zoo::strategies) {
    if (strategy == std::string("vanilla")) continue;
    INFO(std::string(strategy));
    zoo::Task task(zoo::find("digits"));
    task.recompute(strategy, 0, 0.1);
    std::vector<rw::Tensor> targets;
    for (const rw::Parameter& p : task.net.parameters()) targets.push_back(p.value);
    const auto live = rw::memory::live();
    CHECK_THROWS_WITH_AS(rw::grad(task.loss(), targets, {.create_graph = true}),
                         doctest::Contains("a recomputed chain cannot be differentiated twice; use Recompute::vanilla()"),
                         rw::Error);
    CHECK(rw::memory::live() == live);
    task.net.recompute(rw::Recompute::vanilla());
    CHECK(rw::grad(task.loss(), targets, {.create_graph = true}).size() == targets.size());
  }
  zoo::Task task(zoo::find("digits"));
  const rw::Tensor w = task.net.parameters()[0].value;
  CHECK_THROWS_WITH_AS(
      rw::grad(rw::checkpoint([&](rw::Tensor x) { return rw::cross_entropy(task.net(std::move(x)), task.y); }, task.x), {w},
               {.create_graph = true}),
      doctest::Contains("a checkpointed function cannot be differentiated twice; call it without checkpoint()"), rw::Error);
}

TEST_CASE("a backward that needs a module which is gone says so") {
  for (const char* strategy : {"vanilla", "sqrt", "low-memory"}) {
    rw::Tensor loss;
    rw::Tensor w;
    {
      zoo::Task task(zoo::find("digits"));
      task.recompute(strategy);
      w = task.net.parameters()[0].value;
      loss = task.loss();
    }
    if (strategy == std::string("vanilla")) {
      rw::backward(std::move(loss));  // everything is on the tape
      CHECK(w.grad().defined());
    } else {
      CHECK_THROWS_WITH_AS(rw::backward(std::move(loss)), doctest::Contains("its module was destroyed"), rw::Error);
      CHECK(!w.grad().defined());
    }
  }
}
