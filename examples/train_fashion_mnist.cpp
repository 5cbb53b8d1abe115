// Trains on Fashion-MNIST (Debian's dataset-fashion-mnist): a small MLP, or a CNN of inverted bottlenecks.
//
// --json F: {"model", "test_accuracy" (of 1), "train_loss", "train_seconds", "epochs", "peak_bytes", "peak_bytes_by_category",
// "parameters", "optimizer_state_bytes", "threads", "seed"}. train_loss is that of the last batch.

#include "support/classifier.h"
#include "support/fashion_nets.h"
#include "support/mirrored.h"
#include "support/options.h"

namespace rw = rewind;

int main(int argc, char** argv) {
  support::Options options{.epochs = 0, .batch = 128, .seed = 1, .lr = 0};
  int threads = rw::parallel::threads();
  std::string json, model = "mlp", folder = "/usr/share/datasets/fashion-mnist";
  CLI::App app{"Trains a classifier of 28x28 pictures of clothes"};
  app.add_option("--model", model)->check(CLI::IsMember({"mlp", "cnn"}));
  app.add_option("--data", folder, "folder with the four IDX files");
  app.add_option("--epochs", options.epochs, "default: 5 for the mlp, 8 for the cnn")->check(support::positive);
  app.add_option("--batch", options.batch)->check(support::positive);
  app.add_option("--lr", options.lr, "default: 0.002 for the mlp, 0.005 for the cnn")->check(support::positive);
  app.add_option("--seed", options.seed)->check(support::seed);
  app.add_option("--threads", threads)->check(support::positive);
  app.add_option("--json", json, "write the results to this file");
  CLI11_PARSE(app, argc, argv);

  return support::run({json}, [&] {
    rw::parallel::set_threads(threads);
    rw::random::seed(options.seed);
    auto [train, test] = rw::data::fashion_mnist(folder);
    const rw::data::Moments moments = train.moments();
    const rw::data::Split data{train.normalized(moments), test.normalized(moments)};
    rw::nn::Sequential net = model == "mlp" ? support::fashion_mlp() : support::fashion_cnn();
    if (options.epochs == 0) options.epochs = model == "mlp" ? 5 : 8;
    if (options.lr == 0) options.lr = model == "mlp" ? 2e-3 : 5e-3;
    rw::optim::Adam adam{net.parameters(), {.lr = options.lr}};
    support::Mirrored mirrored{data.train, options.seed};
    const rw::data::LoaderOptions order{.batch = options.batch, .shuffle = true, .seed = options.seed};
    rw::data::DataLoader loader = model == "mlp" ? rw::data::DataLoader{data.train, order} : rw::data::DataLoader{mirrored, order};

    const support::Result result = support::train(net, adam, loader, data.test, options);

    const std::int64_t parameters = rw::count_elements(net.parameters());
    std::cout << "test accuracy " << 100 * result.test_accuracy << " % after " << result.epochs << " epochs, " << result.seconds
              << " s; " << parameters << " parameters\n"
              << rw::memory::report();
    support::write_json(json, {{"model", model},
                               {"test_accuracy", result.test_accuracy},
                               {"train_loss", result.train_loss},
                               {"train_seconds", result.seconds},
                               {"epochs", result.epochs},
                               {"peak_bytes", rw::memory::peak().total},
                               {"peak_bytes_by_category", support::to_json(rw::memory::peak())},
                               {"parameters", parameters},
                               {"optimizer_state_bytes", adam.state_bytes()},
                               {"threads", threads},
                               {"seed", options.seed}});
  });
}
