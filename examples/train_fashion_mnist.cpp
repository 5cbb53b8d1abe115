// Trains on Fashion-MNIST (Debian's dataset-fashion-mnist): a small MLP, or a CNN of inverted bottlenecks.

#include "support/classifier.h"

#include <CLI/CLI.hpp>

namespace rw = rewind;

static rw::nn::Sequential mlp() {
  using namespace rw::nn;
  return Sequential{Flatten{}, Linear{784, 128}, ReLU{}, Linear{128, 10}};
}

/// Under 100,000 parameters: inverted bottlenecks at 14x14 and 7x7.
static rw::nn::Sequential cnn() {
  using namespace rw::nn;
  return Sequential{Conv2d{{.in = 1, .out = 16, .kernel = 3, .stride = 2, .padding = 1, .bias = false}},
                    BatchNorm2d{16},
                    ReLU6{},
                    InvertedBottleneck{{.in = 16, .out = 24, .expand = 4}},
                    InvertedBottleneck{{.in = 24, .out = 24, .expand = 4}},
                    InvertedBottleneck{{.in = 24, .out = 40, .expand = 4, .stride = 2}},
                    InvertedBottleneck{{.in = 40, .out = 40, .expand = 4}},
                    InvertedBottleneck{{.in = 40, .out = 40, .expand = 4}},
                    GlobalAvgPool{},
                    Dropout{0.1},
                    Linear{40, 10}};
}

int main(int argc, char** argv) {
  support::Options options{.epochs = 5, .batch = 128, .seed = 1, .lr = 2e-3};
  int threads = rw::parallel::threads();
  std::string json, model = "mlp", folder = "/usr/share/datasets/fashion-mnist";
  CLI::App app{"Trains a classifier of 28x28 pictures of clothes"};
  app.add_option("--model", model)->check(CLI::IsMember({"mlp", "cnn"}));
  app.add_option("--data", folder, "folder with the four IDX files");
  app.add_option("--epochs", options.epochs)->check(CLI::PositiveNumber);
  app.add_option("--batch", options.batch)->check(CLI::PositiveNumber);
  app.add_option("--lr", options.lr)->check(CLI::PositiveNumber);
  app.add_option("--seed", options.seed);
  app.add_option("--threads", threads)->check(CLI::PositiveNumber);
  app.add_option("--json", json, "write the results to this file");
  CLI11_PARSE(app, argc, argv);

  return support::run([&] {
    rw::parallel::set_threads(threads);
    rw::random::seed(options.seed);
    auto [train, test] = rw::data::fashion_mnist(folder);
    const rw::data::Moments moments = train.moments();
    const rw::data::Split data{train.normalized(moments), test.normalized(moments)};
    rw::nn::Sequential net = model == "mlp" ? mlp() : cnn();
    rw::optim::Adam adam{net.parameters(), {.lr = options.lr}};

    const support::Result result = support::train(net, adam, data, options);

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
