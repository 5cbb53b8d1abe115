// Trains one net with every strategy side by side: the same loss and the same gradients to the last bit, less memory, more
// time. The digits are real; the larger nets get random images of the size that you ask for.

#include "support/digits_net.h"
#include "support/progress.h"

#include <CLI/CLI.hpp>

#include <algorithm>
#include <iomanip>
#include <iterator>
#include <memory>
#include <sstream>

namespace rw = rewind;

namespace {

struct Settings {
  std::string model = "digits", optimizer = "momentum", json;
  std::vector<std::string> strategies{"vanilla", "sqrt", "segments:2", "segments:4"};
  int depth = 164, steps = 5, threads = rw::parallel::threads();
  std::int64_t batch = 0, size = 0;  // 0: what suits the model
};

struct Task {
  rw::nn::Sequential net;
  rw::data::Batch batch;
};

/// The net, with its weights from seed 1, and one batch.
Task make_task(const Settings& s) {
  rw::random::seed(1);
  const rw::memory::CategoryScope input(rw::Category::input);
  if (s.model == "digits") return {support::digits_net(), rw::data::digits().train.read(0, s.batch > 0 ? s.batch : 256)};
  const bool small = s.model != "mobilenet_v2";
  const std::int64_t size = s.size > 0 ? s.size : small ? 32 : 224, batch = s.batch > 0 ? s.batch : small ? 32 : 16;
  const std::int64_t classes = small ? 10 : 1000;
  Task task{rw::nn::models::make(s.model, {.classes = static_cast<int>(classes), .depth = s.depth}),
            {rw::randn({batch, size, size, 3}), rw::empty({batch}, rw::int64)}};
  auto labels = task.batch.y.mutate<std::int64_t>();
  for (std::size_t i = 0; i < labels.size(); ++i) labels[i] = static_cast<std::int64_t>(i) % classes;
  return task;
}

std::unique_ptr<rw::optim::Optimizer> make_optimizer(const std::string& name, std::vector<rw::Parameter> parameters) {
  if (name == "adam") return std::make_unique<rw::optim::Adam>(std::move(parameters), rw::optim::AdamOptions{.lr = 1e-3});
  return std::make_unique<rw::optim::SGD>(std::move(parameters), rw::optim::SGDOptions{.lr = 1e-2, .momentum = name == "momentum" ? 0.9 : 0});
}

/// Parameters and buffers as they are now, to start from again.
class Weights {
 public:
  explicit Weights(rw::nn::Module& net) : tensors_(net.parameters()) {
    std::ranges::move(net.buffers(), std::back_inserter(tensors_));
    for (const auto& t : tensors_) copies_.push_back(t.value.clone());
  }
  void restore() {
    for (std::size_t i = 0; i < copies_.size(); ++i) tensors_[i].value.copy_from(copies_[i]);
  }

 private:
  std::vector<rw::Parameter> tensors_;
  std::vector<rw::Tensor> copies_;
};

/// A hash of all gradients, in order.
std::uint64_t hash_gradients(rw::nn::Module& net) {
  std::uint64_t hash = 0;
  for (const auto& p : net.parameters()) hash = hash * 0x9e3779b97f4a7c15 + rw::hash(p.value.grad());
  return hash;
}

struct Result {
  std::string strategy;
  rw::memory::Usage peak;
  double loss = 0;
  std::uint64_t gradient_hash = 0;
  std::vector<double> step_ms;

  double median_ms() const {
    std::vector<double> sorted = step_ms;
    std::ranges::sort(sorted);
    return sorted[sorted.size() / 2];
  }
};

std::string hex(std::uint64_t v) {
  std::ostringstream out;
  out << std::hex << std::setw(16) << std::setfill('0') << v;
  return out.str();
}

void compare(const Settings& s) {
  rw::parallel::set_threads(s.threads);
  Task task = make_task(s);
  rw::nn::Sequential& net = task.net;
  Weights start(net);
  std::vector<Result> results;
  std::cout << s.model << ", batch " << task.batch.x.size(0) << ", " << rw::count_elements(net.parameters()) << " parameters, "
            << net.stages().size() << " stages, " << s.optimizer << ", " << s.threads << " threads\n";

  const auto forward_backward = [&] {
    rw::Tensor loss = rw::cross_entropy(net(task.batch.x), task.batch.y);
    const double value = loss.item();
    rw::backward(std::move(loss));
    return value;
  };

  // First, every strategy from the same weights: memory, loss and gradients of the second step, when the optimizer has its state.
  std::vector<std::unique_ptr<rw::optim::Optimizer>> optimizers;
  for (const std::string& strategy : s.strategies) {
    if (support::interrupted) return;
    net.recompute(rw::Recompute::parse(strategy));
    start.restore();
    rw::random::seed(2);
    auto optimizer = make_optimizer(s.optimizer, net.parameters());
    forward_backward();
    optimizer->step();
    rw::memory::reset_peak();
    Result r{.strategy = strategy};
    r.loss = forward_backward();
    r.gradient_hash = hash_gradients(net);
    optimizer->step();
    r.peak = rw::memory::peak();
    results.push_back(std::move(r));
  }

  // Then time, in turns, so that a machine that drifts drifts for all.
  auto optimizer = make_optimizer(s.optimizer, net.parameters());
  for (int round = 0; round <= s.steps && !support::interrupted; ++round)
    for (Result& r : results) {
      net.recompute(rw::Recompute::parse(r.strategy));
      const auto begin = support::Clock::now();
      forward_backward();
      optimizer->step();
      if (round > 0) r.step_ms.push_back(1e3 * support::seconds_since(begin));
    }
  if (results.empty() || results.back().step_ms.empty()) return;

  std::printf("\n%-12s %12s %12s %12s %10s %7s %10s  %s\n", "strategy", "peak", "activations", "workspace", "ms/step", "time", "loss", "gradients");
  const Result& base = results.front();
  nlohmann::json list = nlohmann::json::array();
  bool same = true;
  for (const Result& r : results) {
    const bool equal = r.gradient_hash == base.gradient_hash && r.loss == base.loss;
    same &= equal;
    std::printf("%-12s %12s %12s %12s %10.1f %6.2fx %10.6f  %s%s\n", r.strategy.c_str(), rw::memory::human(r.peak.total).c_str(),
                rw::memory::human(r.peak[rw::Category::activation]).c_str(), rw::memory::human(r.peak[rw::Category::workspace]).c_str(),
                r.median_ms(), r.median_ms() / base.median_ms(), r.loss, hex(r.gradient_hash).c_str(), equal ? "" : "  DIFFERENT");
    list.push_back({{"strategy", r.strategy},
                    {"peak_bytes", r.peak.total},
                    {"peak_bytes_by_category", support::to_json(r.peak)},
                    {"step_ms_median", r.median_ms()},
                    {"loss", r.loss},
                    {"gradient_hash", hex(r.gradient_hash)},
                    {"model", s.model},
                    {"batch", task.batch.x.size(0)},
                    {"optimizer", s.optimizer},
                    {"threads", s.threads},
                    {"steps", r.step_ms.size()}});
  }
  support::write_json(s.json, list);
  if (!same) throw rw::InternalError("gradients or losses differ between strategies; this is a bug in Rewind, please report it");
  std::cout << "\nThe gradients and the loss of all strategies are identical to the last bit.\n";
}

}  // namespace

int main(int argc, char** argv) {
  Settings s;
  CLI::App app{"Compares memory, time and gradients of recompute strategies"};
  app.add_option("--model", s.model)->check(CLI::IsMember({"digits", "mobilenet_v2", "mobilenet_v2_cifar", "preresnet"}));
  app.add_option("--depth", s.depth, "of preresnet: 9n + 2");
  app.add_option("--batch", s.batch)->check(CLI::PositiveNumber);
  app.add_option("--size", s.size, "height and width of the images")->check(CLI::PositiveNumber);
  app.add_option("--optimizer", s.optimizer)->check(CLI::IsMember({"sgd", "momentum", "adam"}));
  app.add_option("--strategies", s.strategies, "vanilla, sqrt, segments:K, separated by commas; the first is the one to compare with")
      ->delimiter(',');
  app.add_option("--steps", s.steps, "timed steps of each")->check(CLI::PositiveNumber);
  app.add_option("--threads", s.threads)->check(CLI::PositiveNumber);
  app.add_option("--json", s.json, "write the results to this file");
  CLI11_PARSE(app, argc, argv);
  return support::run([&] { compare(s); });
}
