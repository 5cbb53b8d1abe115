// What an optimizer remembers. SGD remembers nothing, momentum one value a parameter, Adam two; for three nets, what that adds
// to a training step. Then Adam itself, Algorithm 1 of Kingma and Ba (2015) line by line, and the same steps by the library.
//
// --json F: {"nets": [{"net", "parameters", "batch", "optimizers": {"sgd" | "momentum" | "adam": {"state_bytes",
// "peak_bytes"}}}], "adam": {"steps", "largest_difference", "state_bytes", "bytes_moved_by_line", "bytes_moved_fused"}}

#include "../support/compare.h"
#include "../support/options.h"

#include <cmath>

namespace rw = rewind;

namespace {

/// Two steps on shapes alone: the second one runs beside the state that the first has made.
rw::DryRun plan(rw::nn::Module& net, const std::string& optimizer, const rw::Shape& input) {
  return rw::dry_run([&] {
    const auto rule = support::compare::make_optimizer(optimizer, net.parameters());
    for (int step = 0; step < 2; ++step) {
      rw::backward(rw::cross_entropy(net(rw::empty(input)), rw::empty({input[0]}, rw::int64)));
      rule->step();
    }
  });
}

nlohmann::json state_of(const std::string& name, int batch) {
  rw::nn::Sequential net = rw::nn::models::make(name);
  nlohmann::json j{{"net", name}, {"parameters", rw::count_elements(net.parameters())}, {"batch", batch}};
  for (const char* optimizer : {"sgd", "momentum", "adam"}) {
    const rw::DryRun step = plan(net, optimizer, rw::nn::models::input_shape(name, batch));
    const std::size_t state = step.peak[rw::Category::optimizer_state], peak = step.peak.total;
    std::printf("%-14s %10lld  %-8s  state %6.1f MB   peak of a step %7.1f MB, %4.1f %% of it state\n", name.c_str(),
                j["parameters"].get<long long>(), optimizer, 1e-6 * static_cast<double>(state), 1e-6 * static_cast<double>(peak),
                100 * static_cast<double>(state) / static_cast<double>(peak));
    j["optimizers"][optimizer] = {{"state_bytes", state}, {"peak_bytes", peak}};
  }
  return j;
}

/// Algorithm 1, in its own letters. g^2 is element-wise, as everything here.
struct Algorithm1 {
  rw::Tensor theta;
  double alpha = 0.001, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8;

  rw::Tensor m = rw::zeros(theta.shape(), theta.dtype());
  rw::Tensor v = rw::zeros(theta.shape(), theta.dtype());
  int t = 0;

  void step(const rw::Tensor& g) {
    const rw::NoGrad no_grad;
    t = t + 1;
    m = beta1 * m + (1 - beta1) * g;
    v = beta2 * v + (1 - beta2) * rw::square(g);
    const rw::Tensor m_hat = m / rw::scalar(1 - std::pow(beta1, t), m.dtype());
    const rw::Tensor v_hat = v / rw::scalar(1 - std::pow(beta2, t), v.dtype());
    theta = theta - alpha * m_hat / (rw::sqrt(v_hat) + epsilon);
  }
};

/// Both fit the same linear function of 100 inputs through noise, from the same start and with the same mini-batches.
nlohmann::json adam_twice(int steps) {
  const rw::Tensor start = rw::randn({1, 100}, rw::float64);
  Algorithm1 by_line{.theta = start.clone()};
  rw::Tensor w = start.clone().set_requires_grad();
  rw::optim::Adam adam{{w}, {.lr = by_line.alpha}};
  for (int step = 0; step < steps; ++step) {
    const rw::Tensor x = rw::randn({8, 100}, rw::float64), y = rw::sum(x, {1}, true) + rw::randn({8, 1}, rw::float64);
    by_line.theta.set_requires_grad();
    by_line.step(rw::grad(rw::mse(rw::linear(x, by_line.theta), y), {by_line.theta})[0]);
    rw::backward(rw::mse(rw::linear(x, w), y));
    adam.step();
  }
  const rw::NoGrad no_grad;
  const double difference = rw::max(rw::abs(w - by_line.theta)).item(), moved = rw::max(rw::abs(w - start)).item();
  // The same arithmetic, an op a line or all in one pass: what has to be read and written for it.
  const rw::Tensor g = rw::zeros(w.shape(), rw::float64);
  const auto line_bytes = rw::dry_run([&] { Algorithm1{.theta = w.detach()}.step(g); }).bytes_moved;
  const auto fused_bytes = rw::dry_run([&] {
                             w.set_grad(g);
                             adam.step();
                           }).bytes_moved;
  std::printf("\nAlgorithm 1 line by line and rw::optim::Adam, %d steps: weights moved by up to %.3g and differ by %.3g\n", steps,
              moved, difference);
  for (const auto& [slot, bytes] : adam.state_bytes_by_slot())
    std::printf("  state %s: %zu bytes for %zu of weights\n", slot, bytes, w.bytes());
  std::printf("  bytes moved a step: %lld line by line, %lld in the library's one pass\n", static_cast<long long>(line_bytes),
              static_cast<long long>(fused_bytes));
  return {{"steps", steps},
          {"largest_difference", difference},
          {"state_bytes", adam.state_bytes()},
          {"bytes_moved_by_line", line_bytes},
          {"bytes_moved_fused", fused_bytes}};
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> nets{"mobilenet_v2", "resnet50", "alexnet"};
  int batch = 32, steps = 1000;
  std::string json;
  CLI::App app{"What SGD, momentum and Adam add to memory; Adam line by line"};
  app.add_option("--nets", nets, "names of models, separated by commas")->delimiter(',');
  app.add_option("--batch", batch)->check(support::positive);
  app.add_option("--steps", steps, "of Adam")->check(support::positive);
  app.add_option("--json", json, "write the results to this file");
  CLI11_PARSE(app, argc, argv);
  return support::run({json}, [&] {
    nlohmann::json results;
    for (const std::string& net : nets) results["nets"].push_back(state_of(net, batch));
    results["adam"] = adam_twice(steps);
    support::write_json(json, results);
  });
}
