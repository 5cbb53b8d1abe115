// Trains one net with every strategy side by side: the same loss and the same gradients to the last bit, less memory, more
// time. Each peak is predicted by a dry run and then measured. The digits are real; the larger nets get random images.
//
// --json F: [{"strategy", "predicted_peak_bytes", "measured_peak_bytes" (also as "peak_bytes"), "peak_bytes_by_category",
// "activation_peak_bytes", "process_peak_bytes" (resident, of the process so far), "step_ms_median", "recomputed_flops_ratio",
// "loss", "gradient_hash", "schedule", "steps" (timed), "model", "batch", "size", "optimizer", "threads", "program_bytes" (resident
// before the net), "fused"}]; recomputed_flops_ratio: FLOPs that are recomputed, over those of a step that recomputes nothing. With
// --frontier
// {"strategies": that list, "frontier": [{"bytes", "seconds"}]}, of the fastest step for every budget.

#include "support/compare.h"
#include "support/options.h"

#include <optional>

namespace rw = rewind;
using namespace support;

namespace {

struct Settings {
  compare::Task task;
  std::vector<std::string> strategies{"vanilla", "low-memory", "sqrt", "recursive", "segments:2", "segments:4"};
  int steps = 5, threads = rw::parallel::threads();
  bool frontier = false;
  std::string json, report;
};

/// Memory, loss and gradients: every strategy from the same weights, the third step. The first gives the optimizer its state,
/// and the second has a budget planned with it.
std::vector<compare::Result> measure(compare::Net& net, const Settings& s) {
  std::vector<compare::Result> results;
  compare::Weights start(net.chain);
  for (const std::string& strategy : s.strategies) {
    if (interrupted) break;
    net.chain.recompute(rw::Recompute::parse(strategy));
    start.restore();
    rw::random::seed(2);
    auto optimizer = compare::make_optimizer(s.task.optimizer, net.chain.parameters());
    for (int step = 0; step < 2; ++step) {
      net.forward_backward();
      optimizer->step();
    }

    compare::Result r{.strategy = strategy};
    r.plan = rw::dry_run([&] {
      net.forward_backward();
      optimizer->step();
    });
    rw::memory::reset_peak();
    r.loss = net.forward_backward().item();
    r.gradient_hash = compare::hash_gradients(net.chain);
    optimizer->step();
    r.peak = rw::memory::peak();
    r.process_bytes = compare::peak_resident();
    r.actions = net.chain.actions();
    results.push_back(std::move(r));
  }
  return results;
}

/// Time, in turns, so that a machine that drifts drifts for all.
void time(compare::Net& net, const Settings& s, std::vector<compare::Result>& results) {
  auto optimizer = compare::make_optimizer(s.task.optimizer, net.chain.parameters());
  for (int round = 0; round <= s.steps && !interrupted; ++round)
    for (compare::Result& r : results) {
      net.chain.recompute(r.actions.empty() ? rw::Recompute::vanilla() : rw::Recompute::actions(r.actions));
      const auto begin = Clock::now();
      net.forward_backward();
      optimizer->step();
      if (round > 0) r.step_ms.push_back(1e3 * seconds_since(begin));
    }
}

void compare_strategies(const Settings& s) {
  if (!s.report.empty()) rw::report::expect_chart();
  finish_on_interrupt();
  rw::parallel::set_threads(s.threads);
  const std::size_t program_bytes = compare::peak_resident();
  compare::Net net(s.task);
  const nlohmann::json about = net.about(s.threads, program_bytes);
  std::cout << net.described() << ", " << s.threads << " threads\n";

  std::vector<compare::Result> results = measure(net, s);
  time(net, s, results);
  std::erase_if(results, [](const compare::Result& r) { return r.step_ms.empty(); });
  if (results.empty()) rw::fail("interrupted before a step was timed; there is nothing to report");

  compare::print(results);
  nlohmann::json list = compare::to_json(results, about);
  std::optional<compare::Picture> picture;
  if (s.frontier || !s.report.empty()) picture = compare::picture(net, results);
  if (s.frontier) compare::print(*picture);
  write_json(s.json, s.frontier ? nlohmann::json{{"strategies", list}, {"frontier", picture->frontier}} : list);
  if (!s.report.empty()) compare::write_report(s.report, results, *picture, list, about);
  compare::assert_equal(results);
  std::cout << "\nPredicted peaks are the measured ones to the byte. The gradients and the loss of all strategies are identical to "
               "the last bit.\n";
}

}  // namespace

int main(int argc, char** argv) {
  Settings s;
  CLI::App app{"Compares memory, time and gradients of recompute strategies"};
  app.add_option("--model", s.task.model)->check(CLI::IsMember({"digits", "mobilenet_v2", "mobilenet_v2_cifar", "preresnet"}));
  app.add_option("--depth", s.task.depth, "of preresnet: 9n + 2")->check(support::positive);
  app.add_option("--batch", s.task.batch)->check(support::positive);
  app.add_option("--size", s.task.size, "height and width of the images")->check(support::positive);
  app.add_option("--optimizer", s.task.optimizer)->check(CLI::IsMember({"sgd", "momentum", "adam"}));
  app.add_option("--strategies", s.strategies,
                 "vanilla, low-memory, sqrt, recursive, segments:K, periodic:K, revolve:SLOTS, budget:BYTES, separated by commas; "
                 "the first is the one to compare with")
      ->delimiter(',');
  app.add_option("--steps", s.steps, "timed steps of each")->check(support::positive);
  app.add_option("--threads", s.threads)->check(support::positive);
  app.add_flag("--plain", s.task.plain, "convolutions, batch normalisations and activations one after the other, without fusion");
  app.add_flag("--frontier", s.frontier, "also the least time for every amount of memory");
  app.add_option("--json", s.json, "write the results to this file");
  app.add_option("--report", s.report, "write a page with charts to this file");
  CLI11_PARSE(app, argc, argv);
  return support::run({s.json, s.report}, [&] { compare_strategies(s); });
}
