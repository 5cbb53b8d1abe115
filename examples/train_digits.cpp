// Trains a small inverted-bottleneck network on 8x8 handwritten digits: over 97 % of the test set in seconds.
//
// --json F: {"test_accuracy" (of 1), "train_loss", "train_seconds", "epochs", "peak_bytes", "peak_bytes_by_category", "parameters",
// "optimizer_state_bytes", "recompute", "threads", "seed"}. train_loss is that of the last batch.

#include "support/classifier.h"
#include "support/digits_net.h"
#include "support/options.h"

namespace rw = rewind;

int main(int argc, char** argv) {
  support::Options options{.epochs = 20, .batch = 64, .seed = 1, .lr = 4e-3};
  int threads = rw::parallel::threads();
  std::string json, recompute = "vanilla";
  CLI::App app{"Trains an inverted-bottleneck network on the UCI digits"};
  app.add_option("--epochs", options.epochs)->check(support::positive);
  app.add_option("--seed", options.seed)->check(support::seed);
  app.add_option("--threads", threads)->check(support::positive);
  app.add_option("--recompute", recompute,
                 "vanilla, low-memory, sqrt, recursive, segments:K, periodic:K, revolve:SLOTS or budget:BYTES");
  app.add_option("--json", json, "write the results to this file");
  CLI11_PARSE(app, argc, argv);

  return support::run({json}, [&] {
    rw::parallel::set_threads(threads);
    rw::random::seed(options.seed);
    const rw::data::Split data = rw::data::digits();
    rw::nn::Sequential net = support::digits_net();
    net.recompute(rw::Recompute::parse(recompute));
    rw::optim::Adam adam{net.parameters(), {.lr = options.lr}};
    rw::data::DataLoader loader{data.train, {.batch = options.batch, .shuffle = true, .seed = options.seed}};

    const support::Result result = support::train(net, adam, loader, data.test, options);  // the loop: support/classifier.h

    const std::int64_t parameters = rw::count_elements(net.parameters());
    std::cout << "test accuracy " << 100 * result.test_accuracy << " % after " << result.epochs << " epochs, " << result.seconds
              << " s; " << parameters << " parameters\n"
              << rw::memory::report();
    support::write_json(json, {{"test_accuracy", result.test_accuracy},
                               {"train_loss", result.train_loss},
                               {"train_seconds", result.seconds},
                               {"epochs", result.epochs},
                               {"peak_bytes", rw::memory::peak().total},
                               {"peak_bytes_by_category", support::to_json(rw::memory::peak())},
                               {"parameters", parameters},
                               {"optimizer_state_bytes", adam.state_bytes()},
                               {"recompute", recompute},
                               {"threads", threads},
                               {"seed", options.seed}});
  });
}
