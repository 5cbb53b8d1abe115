// How memory grows with depth: pre-activation ResNets of 164 to 1001 layers, under strategies that keep everything, a square
// root, or a logarithm of it. Dry runs: nothing is computed, and the bytes are those of the real step.
//
// --json F: [{"depth", "stages", "strategy", "activation_peak_bytes", "peak_bytes", "recomputed_forwards"}];
// recomputed_forwards: FLOPs that are recomputed, over those of a forward.

#include "support/options.h"
#include "support/progress.h"

namespace rw = rewind;

int main(int argc, char** argv) {
  std::vector<int> depths{164, 326, 650, 1001};
  std::vector<std::string> strategies{"vanilla", "sqrt", "recursive", "revolve:8", "low-memory"};
  std::int64_t batch = 32;
  std::string json;
  CLI::App app{"Activation memory of a training step against depth"};
  app.add_option("--depths", depths, "9n + 2 each, separated by commas")->delimiter(',')->check(support::positive);
  app.add_option("--strategies", strategies)->delimiter(',');
  app.add_option("--batch", batch)->check(support::positive);
  app.add_option("--json", json, "write the results to this file");
  CLI11_PARSE(app, argc, argv);

  return support::run({json}, [&] {
    nlohmann::json results = nlohmann::json::array();
    std::printf("%8s %8s", "depth", "stages");
    for (const auto& s : strategies) std::printf(" %22s", s.c_str());
    std::printf("\n");
    for (const int depth : depths) {
      rw::nn::Sequential net = rw::nn::models::make("preresnet", {.classes = 10, .depth = depth});
      std::printf("%8d %8zu", depth, net.stages().size());
      for (const auto& strategy : strategies) {
        net.recompute(rw::Recompute::parse(strategy));
        const rw::DryRun step = rw::dry_run([&] {
          rw::Tensor labels = rw::empty({batch}, rw::int64);
          rw::backward(rw::cross_entropy(net(rw::empty({batch, 32, 32, 3})), labels));
        });
        const double again =
            static_cast<double>(step.flops_in(rw::Phase::recompute)) / static_cast<double>(step.flops_in(rw::Phase::forward));
        std::printf(" %11s + %4.2f fwd", rw::memory::human(step.peak[rw::Category::activation]).c_str(), again);
        results.push_back({{"depth", depth},
                           {"stages", net.stages().size()},
                           {"strategy", strategy},
                           {"activation_peak_bytes", step.peak[rw::Category::activation]},
                           {"peak_bytes", step.peak.total},
                           {"recomputed_forwards", again}});
      }
      std::printf("\n");
    }
    support::write_json(json, results);
  });
}
