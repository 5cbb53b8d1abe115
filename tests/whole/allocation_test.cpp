// Running out of memory at any allocation of a training step leaves a state to go on from: nothing leaks, parameters and
// optimizer state are as before, no half gradients remain, and the step can be taken again with the bits that it would have had.
//
// A forward that was cut off has shown its batch to the layers that it passed. Each of those has moved its running statistics
// once, count included, and the others not at all; dropout has taken numbers from the generator. Neither has an influence on
// what parameters learn, except through the place of the generator, which can be put back.

#include "zoo.h"

#include <rewind/autograd/checkpoint.h>

#include <doctest/doctest.h>

#include <optional>

namespace rw = rewind;
namespace nn = rewind::nn;
using Hashes = std::vector<std::uint64_t>;

namespace {

nn::Sequential small() {
  nn::Sequential net{nn::Conv2d{{.in = 1, .out = 4, .kernel = 3, .padding = 1, .bias = false}}, nn::BatchNorm2d{4}, nn::ReLU6{}};
  net.add(nn::Dropout{0.3});
  net.add(nn::InvertedBottleneck{{.in = 4, .out = 4, .expand = 2}});
  net.add(nn::InvertedBottleneck{{.in = 4, .out = 8, .expand = 2, .stride = 2, .squeeze_excite = 4}});
  net.add(nn::GlobalAvgPool{});
  net.add(nn::Linear{8, 10});
  return net;
}

struct Checkpointed : nn::Module {
  nn::Sequential body = small();
  void describe(nn::Fields& f) override { f.child("body", body); }
  rw::Tensor forward(rw::Tensor x) override {
    return rw::checkpoint([this](rw::Tensor h) { return body(std::move(h)); }, std::move(x));
  }
};

Hashes hashes(const std::vector<rw::Parameter>& tensors) {
  Hashes all;
  for (const rw::Parameter& t : tensors) all.push_back(rw::hash(t.value));
  return all;
}

struct Run {
  zoo::Task task;
  std::unique_ptr<rw::optim::Optimizer> optimizer;
  Hashes gradients;

  Run(const zoo::Model& model, const std::string& strategy, const char* optimizer_name) : task(model) {
    if (!strategy.empty()) task.recompute(strategy, task.state_bytes(optimizer_name));
    optimizer = zoo::make_optimizer(optimizer_name, task.net.parameters());
  }
  double step() {
    rw::Tensor loss = task.loss();
    const double value = loss.item();
    rw::backward(std::move(loss));
    gradients.clear();
    for (const rw::Parameter& p : task.net.parameters()) gradients.push_back(rw::hash(p.value.grad()));
    optimizer->step();
    return value;
  }
  Hashes parameters() { return hashes(task.net.parameters()); }
  Hashes state() {
    Hashes all;
    for (const auto& p : task.net.parameters())
      for (const char* slot : {"m", "v"})
        if (const rw::Tensor s = optimizer->state(p.name, slot); s.defined()) all.push_back(rw::hash(s));
    return all;
  }
  Hashes buffers() { return hashes(task.net.buffers()); }
};

/// Whether each layer's running mean, variance and count are all as in `before` or all as in `after`.
void check_statistics(const Hashes& now, const Hashes& before, const Hashes& after) {
  REQUIRE(now.size() % 3 == 0);
  for (std::size_t i = 0; i < now.size(); i += 3) {
    const auto part = [i](const Hashes& all) { return Hashes(all.begin() + i, all.begin() + i + 3); };
    const bool whole = part(now) == part(before) || part(now) == part(after);
    CHECK(whole);
  }
}

/// Fails the n-th allocation of the step after `warm` whole ones, for n = 1, 2, ... until there is none. Returns how many.
std::uint64_t sweep(const zoo::Model& model, const std::string& strategy, int warm) {
  const zoo::Threads scope(1);
  Hashes parameters, gradients, state, moved;
  double loss = 0;
  {
    Run undisturbed(model, strategy, "adam");
    for (int i = 0; i <= warm; ++i) loss = undisturbed.step();
    parameters = undisturbed.parameters();
    gradients = undisturbed.gradients;
    state = undisturbed.state();
    moved = undisturbed.buffers();
  }
  const rw::memory::Usage outside = rw::memory::live();
  for (std::uint64_t n = 1;; ++n) {
    CAPTURE(n);
    std::optional<Run> run(std::in_place, model, strategy, "adam");
    for (int i = 0; i < warm; ++i) run->step();
    const auto place = rw::random::default_generator().offset();
    const Hashes parameters_before = run->parameters(), state_before = run->state(), buffers_before = run->buffers();
    const std::size_t live = rw::memory::live().total, state_bytes = run->optimizer->state_bytes();

    rw::memory::fail_at(n);
    bool failed = false;
    try {
      run->step();
    } catch (const rw::OutOfMemory&) {
      failed = true;
    }
    rw::memory::fail_at(0);
    if (!failed) {
      CHECK(run->parameters() == parameters);
      return n - 1;
    }

    CHECK(run->parameters() == parameters_before);
    if (warm > 0) CHECK(run->state() == state_before);
    check_statistics(run->buffers(), buffers_before, moved);
    // Gradients are there in full, when the optimizer failed, or not at all.
    std::size_t held = 0;
    for (const rw::Parameter& p : run->task.net.parameters()) held += p.value.grad().defined() ? 1 : 0;
    const bool all_or_none = held == 0 || held == run->task.net.parameters().size();
    CHECK(all_or_none);
    run->optimizer->zero_grad();
    CHECK(rw::memory::live().total - run->optimizer->state_bytes() == live - state_bytes);

    rw::random::default_generator().set_offset(place);
    CHECK(run->step() == loss);
    CHECK(run->gradients == gradients);
    CHECK(run->parameters() == parameters);
    CHECK(run->state() == state);

    run.reset();
    CHECK(rw::memory::live() == outside);
  }
}

}  // namespace

TEST_CASE("a training step that runs out of memory at any allocation can be taken again, and has its bits") {
  const zoo::Model plain{"small", 3, 8, 1, 10, small};
  const zoo::Model checkpointed{"checkpointed", 3, 8, 1, 10, [] {
                                  nn::Sequential s;
                                  s.add(Checkpointed{});
                                  return s;
                                }};
  for (const int warm : {0, 1}) {
    CAPTURE(warm);
    for (const char* strategy : {"vanilla", "sqrt", "revolve:2", "budget"}) {
      CAPTURE(strategy);
      CHECK(sweep(plain, strategy, warm) > 100);
    }
    CHECK(sweep(checkpointed, "", warm) > 100);
  }
}

TEST_CASE("a limit that refuses batch 64 lets batch 16 train on in the same process, with the same bits") {
  const zoo::Threads scope(1);
  const zoo::Model model{"small", 16, 16, 1, 10, small};
  for (const char* strategy : {"vanilla", "segments:3"}) {
    CAPTURE(strategy);
    const auto train = [&](bool refused_between) {
      Run run(model, strategy, "adam");
      Hashes all;
      for (int i = 0; i < 6; ++i) {
        if (refused_between && i >= 2) {
          const std::size_t live = rw::memory::live().total;
          const auto place = rw::random::default_generator().offset();
          const Hashes before = run.parameters();
          const std::size_t peak = rw::dry_run([&] { run.task.forward_backward(); }).peak.total;
          rw::memory::set_limit(peak);  // to the byte what batch 16 needs
          {
            const rw::Tensor images = rw::full({64, 16, 16, 1}, 0.5), labels = rw::zeros({64}, rw::int64);
            CHECK_THROWS_AS(rw::backward(rw::cross_entropy(run.task.net(images), labels)), rw::OutOfMemory);
          }
          CHECK(rw::memory::live().total == live);
          CHECK(run.parameters() == before);
          rw::random::default_generator().set_offset(place);
        }
        run.step();
        rw::memory::set_limit(0);
        all.insert(all.end(), run.gradients.begin(), run.gradients.end());
      }
      const Hashes end = run.parameters();
      all.insert(all.end(), end.begin(), end.end());
      return all;
    };
    const Hashes undisturbed = train(false);
    CHECK(train(true) == undisturbed);
  }
}
