// A dry run predicts what is measured, byte for byte and at every moment: each model of the examples, under each strategy, with
// each optimizer.

#include "zoo.h"

#include <rewind/autograd/checkpoint.h>
#include <rewind/autograd/grad_mode.h>

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <functional>
#include <sstream>

namespace rw = rewind;
namespace nn = rewind::nn;

namespace {

std::string show(const rw::memory::Usage& u) {
  std::ostringstream out;
  for (const std::size_t b : u.bytes) out << b << ' ';
  out << "= " << u.total;
  return out.str();
}

std::string show(const rw::memory::Event& e) {
  return rw::str(rw::name_of(e.category), ' ', e.delta, " -> ", e.total, " in ", e.op, " of ", e.module);
}

/// Runs the step dry, then really. What differs, in words; empty when nothing does.
std::string difference(const std::function<void()>& step) {
  const std::uint64_t offset = rw::random::default_generator().offset();
  const rw::memory::Usage before = rw::memory::live();
  const rw::DryRun plan = rw::dry_run(step);
  if (!(rw::memory::live() == before)) return "the dry run left memory: " + show(rw::memory::live()) + " after " + show(before);
  if (rw::random::default_generator().offset() != offset) return "the dry run moved the random numbers";
  if (!(plan.before == before)) return "before: " + show(plan.before) + " is really " + show(before);

  rw::memory::reset_peak();
  rw::memory::start_timeline();
  step();
  const rw::memory::Usage peak = rw::memory::peak(), at_peak = rw::memory::at_peak(), after = rw::memory::live();
  const auto timeline = rw::memory::stop_timeline();
  for (std::size_t i = 0; i < std::min(plan.timeline.size(), timeline.size()); ++i)
    if (!(plan.timeline[i] == timeline[i]))
      return rw::str("event ", i, ": ", show(plan.timeline[i]), " is really ", show(timeline[i]));
  if (plan.timeline.size() != timeline.size()) return rw::str(plan.timeline.size(), " events, really ", timeline.size());
  if (!(plan.peak == peak)) return "peak: " + show(plan.peak) + " is really " + show(peak);
  if (!(plan.at_peak == at_peak)) return "at the peak: " + show(plan.at_peak) + " is really " + show(at_peak);
  if (!(plan.after == after)) return "after: " + show(plan.after) + " is really " + show(after);
  return timeline.empty() ? "nothing happened" : "";
}

constexpr const char* none = "";

}  // namespace

TEST_CASE("three steps are predicted to the byte: every model, every strategy, every optimizer") {
  const zoo::Threads one(1);
  for (const zoo::Model& model : zoo::models) {
    INFO(model.name);
    for (const char* strategy : zoo::strategies) {
      INFO(strategy);
      for (const char* optimizer : zoo::optimizers) {
        INFO(optimizer);
        zoo::Task task(model);
        task.recompute(strategy, task.state_bytes(optimizer));
        const auto optim = zoo::make_optimizer(optimizer, task.net.parameters());
        const auto step = [&] {
          task.forward_backward();
          optim->step();
        };
        // The first step allocates the state of the optimizer, the others find it.
        CHECK(difference([&] {
                step();
                step();
              }) == none);
        CHECK(optim->steps() == 2);
        CHECK(difference(step) == none);
      }
    }
  }
}

TEST_CASE("evaluation and accumulation are predicted to the byte: every model, every strategy") {
  const zoo::Threads one(1);
  for (const zoo::Model& model : zoo::models) {
    INFO(model.name);
    zoo::Task task(model);
    const auto adam = zoo::make_optimizer("adam", task.net.parameters());
    for (const char* strategy : zoo::strategies) {
      INFO(strategy);
      task.recompute(strategy, task.state_bytes("adam"));
      CHECK(difference([&] {
              const rw::NoGrad no_grad;
              task.net.eval();
              task.loss();
              task.net.train();
            }) == none);
      // Gradients are there before the second backward, and after it, until the step.
      task.forward_backward();
      CHECK(difference([&] {
              task.forward_backward();
              adam->step();
              task.forward_backward();
            }) == none);
      adam->zero_grad();
    }
  }
}

TEST_CASE("evaluation that is recorded, and training between evaluations, is predicted to the byte") {
  zoo::Task task(zoo::find("digits"));
  const auto optim = zoo::make_optimizer("momentum", task.net.parameters());
  for (const char* strategy : zoo::strategies) {
    INFO(strategy);
    task.recompute(strategy, 2 * task.state_bytes("momentum"));
    CHECK(difference([&] {
            task.net.eval();
            task.forward_backward();
            task.net.train();
            optim->zero_grad();
            task.forward_backward();
            optim->step();
          }) == none);
  }
}

TEST_CASE("create_graph is predicted to the byte") {
  const zoo::Threads one(1);
  for (const zoo::Model& model : zoo::models) {
    INFO(model.name);
    zoo::Task task(model);
    task.net.fuse(false);  // fused convolutions have first derivatives only
    const auto optim = zoo::make_optimizer("sgd", task.net.parameters());
    CHECK(difference([&] {
            std::vector<rw::Tensor> targets;
            for (const rw::Parameter& p : task.net.parameters()) targets.push_back(p.value);
            rw::Tensor penalty;
            for (rw::Tensor& g : rw::grad(task.loss(), targets, {.create_graph = true})) {
              rw::Tensor term = rw::sum(rw::square(std::move(g)));
              penalty = penalty.defined() ? rw::add(std::move(penalty), std::move(term)) : std::move(term);
            }
            rw::backward(std::move(penalty));
            optim->step();
          }) == none);
  }
}

TEST_CASE("schedules inside schedules and checkpoints are predicted to the byte") {
  const zoo::Threads one(1);
  zoo::Task task(zoo::find("preresnet29"));
  const auto optim = zoo::make_optimizer("sgd", task.net.parameters());
  const auto plain = [&] {
    task.forward_backward();
    optim->step();
  };
  const auto checkpointed = [&] {
    rw::backward(rw::checkpoint([&](rw::Tensor x) { return rw::cross_entropy(task.net(std::move(x)), task.y); }, task.x));
    optim->step();
  };
  for (const std::string outer : {"vanilla", "sqrt", "low-memory", "budget"})
    for (const std::string inner : {"vanilla", "low-memory", "recursive", "segments:3", "revolve:1"}) {
      INFO(inner << " in " << outer);
      dynamic_cast<nn::Sequential&>(task.net[2]).recompute(rw::Recompute::parse(inner));  // three blocks
      task.recompute(outer);
      CHECK(difference(plain) == none);
      CHECK(difference(checkpointed) == none);
    }
}

TEST_CASE("predictions hold on any number of threads") {
  for (const char* name : {"digits", "mobilenet_v2_cifar"})
    for (int threads = 2; threads <= 4; ++threads) {
      INFO(std::string(name) << " on " << threads);
      const zoo::Threads scope(threads);
      zoo::Task task(zoo::find(name));
      task.recompute("sqrt");
      const auto optim = zoo::make_optimizer("adamw", task.net.parameters());
      CHECK(difference([&] {
              task.forward_backward();
              optim->step();
            }) == none);
    }
}

namespace {

/// A line of /proc/self/status, in bytes.
std::size_t process_bytes(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with(key + ":")) return std::stoull(line.substr(key.size() + 1)) * 1024;
  return 0;
}

}  // namespace

TEST_CASE("a dry run of MobileNetV2 at batch 4096 takes no memory to speak of") {
  nn::Sequential net = nn::models::mobilenet_v2();
  for (const char* strategy : {"vanilla", "low-memory", "budget:100GB"}) {
    INFO(std::string(strategy));
    net.recompute(rw::Recompute::parse(strategy));
    std::ofstream("/proc/self/clear_refs") << 5;  // sets the process's peak back to what it has now
    const std::size_t before = process_bytes("VmRSS"), resident = rw::memory::resident();
    const rw::memory::Usage live = rw::memory::live();
    const auto start = std::chrono::steady_clock::now();
    const rw::DryRun plan = rw::dry_run([&] {
      rw::backward(rw::cross_entropy(net(rw::empty({4096, 224, 224, 3})), rw::empty({4096}, rw::int64)));
    });
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
    CHECK(plan.peak.total > std::size_t{40} << 30);
    CHECK(rw::memory::live() == live);
    CHECK(rw::memory::resident() == resident);
    const std::size_t peak = process_bytes("VmHWM");
    CHECK(peak < before + 50'000'000);
    MESSAGE(std::string(strategy), ": ", rw::memory::human(plan.peak.total), " predicted in ", took.count(), " ms and ",
            rw::memory::human(peak - std::min(peak, before)));
  }
}
