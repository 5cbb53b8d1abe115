#pragma once
// Training a classifier: the loop that train_digits and train_fashion_mnist share.

#include "progress.h"

namespace support {

namespace rw = rewind;

struct Options {
  int epochs = 10;
  std::int64_t batch = 64;
  std::uint64_t seed = 1;
  double lr = 1e-3;
};

struct Result {
  double test_accuracy = 0, train_loss = 0, seconds = 0;
  int epochs = 0;  // begun
};

inline std::int64_t count_correct(const rw::Tensor& logits, const rw::Tensor& labels) {
  const auto guess = rw::argmax(logits).to_vector<std::int64_t>();
  const auto truth = labels.values<std::int64_t>();
  std::int64_t correct = 0;
  for (std::size_t i = 0; i < guess.size(); ++i) correct += guess[i] == truth[i] ? 1 : 0;
  return correct;
}

/// The share of a data set that the net classifies right.
inline double accuracy(rw::nn::Module& net, const rw::data::Dataset& set) {
  const rw::NoGrad no_grad;
  net.eval();
  std::int64_t correct = 0;
  for (auto [x, y] : rw::data::DataLoader(set, {.batch = 500})) correct += count_correct(net(std::move(x)), y);
  net.train();
  return static_cast<double>(correct) / static_cast<double>(set.samples());
}

/// Adam with a short warm-up and a cosine to zero.
inline Result train(rw::nn::Module& net, rw::optim::Adam& adam, rw::data::DataLoader& loader, const rw::data::Dataset& test,
                    const Options& options) {
  const std::int64_t steps = loader.batches() * options.epochs;
  const std::int64_t ramp = std::max<std::int64_t>(1, steps / 20);
  const auto schedule = rw::optim::warmup({.steps = ramp}, rw::optim::Cosine{.steps = std::max<std::int64_t>(1, steps - ramp)});
  finish_on_interrupt();
  Progress progress(steps);
  Result result;
  const auto start = Clock::now();
  while (result.epochs < options.epochs && !interrupted) {
    ++result.epochs;
    double correct = 0, seen = 0;
    for (auto [x, y] : loader) {
      rw::Tensor logits = net(std::move(x));
      correct += static_cast<double>(count_correct(logits, y));
      seen += static_cast<double>(y.numel());
      rw::Tensor loss = rw::cross_entropy(std::move(logits), y);
      result.train_loss = loss.item();
      rw::backward(std::move(loss));
      adam.follow(schedule);
      adam.step();
      progress.step(result.epochs, y.numel(), result.train_loss, correct / seen);
      if (interrupted) break;
    }
  }
  progress.finish();
  result.seconds = seconds_since(start);
  result.test_accuracy = accuracy(net, test);
  return result;
}

}  // namespace support
