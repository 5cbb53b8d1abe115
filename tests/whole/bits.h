#pragma once
// Training whose bits must not depend on the number of threads, nor on the OpenBLAS that is loaded: every model, wide enough
// that its kernels are cut into pieces, a few steps.

#include "zoo.h"

#include <rewind/nn/models/mlp.h>

namespace bits {

namespace rw = rewind;
namespace nn = rewind::nn;

/// Dropout at both ends, since the net of the examples has none.
inline nn::Sequential digits_with_dropout() { return nn::Sequential{nn::Dropout{0.1}, support::digits_net()}; }

struct Case {
  zoo::Model model;
  const char* optimizer;
};
inline const Case cases[] = {
    {{"digits", 64, 8, 1, 10, digits_with_dropout}, "adam"},
    {{"mobilenet_v2_cifar", 4, 32, 3, 10, [] { return nn::models::mobilenet_v2({.width = 0.5, .classes = 10, .cifar = true}); }},
     "momentum"},
    {{"preresnet20", 8, 32, 3, 10, [] { return nn::models::preresnet({.depth = 20}); }}, "momentum"},
    {{"mlp", 128, 28, 1, 10,
      [] {
        return nn::models::mlp({784, 512, 256, 10});
      }},
     "adam"},
    {{"lenet5", 32, 28, 1, 10, [] { return nn::models::lenet5(); }}, "momentum"},
};

/// Loss and gradients of every step, then parameters and running statistics.
inline std::vector<std::uint64_t> train(const Case& c, int steps) {
  zoo::Task task(c.model);
  const auto optimizer = zoo::make_optimizer(c.optimizer, task.net.parameters());
  std::vector<std::uint64_t> all;
  for (int i = 0; i < steps; ++i) {
    rw::Tensor loss = task.loss();
    all.push_back(rw::hash(loss));
    rw::backward(std::move(loss));
    for (const rw::Parameter& p : task.net.parameters()) all.push_back(rw::hash(p.value.grad()));
    optimizer->step();
  }
  for (const rw::Parameter& p : task.net.parameters()) all.push_back(rw::hash(p.value));
  for (const rw::Parameter& b : task.net.buffers()) all.push_back(rw::hash(b.value));
  return all;
}

}  // namespace bits
