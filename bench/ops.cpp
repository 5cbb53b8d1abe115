// Single ops, forward and backward, with their FLOP/s and bytes/s; and what the framework costs an op of one element.

#include <rewind/rewind.h>

#include <benchmark/benchmark.h>

namespace rw = rewind;
using rw::Tensor;

namespace {

/// Runs a step over and over, and reports its rates as a dry run counts them, and what share of the machine's roofline that is
/// (measured too; above 1 where caches serve what the roofline takes from memory, or Winograd's transform multiplies less often
/// than FLOPs are counted).
template <class F>
void measure(benchmark::State& state, F&& step) {
  const rw::DryRun cost = rw::dry_run(step);
  step();  // the first one takes the memory, an optimizer's state too
  for (auto _ : state) step();
  const auto per_iteration = benchmark::Counter::kIsIterationInvariantRate;
  state.counters["FLOP/s"] = benchmark::Counter(static_cast<double>(cost.flops), per_iteration);
  state.counters["B/s"] = benchmark::Counter(static_cast<double>(cost.bytes_moved), per_iteration);
  const double least = rw::machine().roofline(static_cast<double>(cost.flops), static_cast<double>(cost.bytes_moved));
  state.counters["of_roofline"] = benchmark::Counter(least, per_iteration);
}

void pointwise(benchmark::State& state) {
  const auto in = state.range(0), out = state.range(1), size = state.range(2);
  Tensor x = rw::randn({16, size, size, in}).set_requires_grad(), w = rw::randn({out, 1, 1, in}).set_requires_grad();
  const Tensor g = rw::randn({16, size, size, out});
  measure(state, [&] {
    rw::backward(rw::conv2d(x, w), g);
    x.set_grad({});
    w.set_grad({});
  });
}
BENCHMARK(pointwise)
    ->Args({16, 96, 112})
    ->Args({24, 144, 56})
    ->Args({32, 192, 28})
    ->Args({64, 384, 14})
    ->Args({160, 960, 7})
    ->UseRealTime();

void conv3x3(benchmark::State& state) {
  const auto channels = state.range(0), size = state.range(1);
  Tensor x = rw::randn({32, size, size, channels}).set_requires_grad();
  Tensor w = rw::randn({channels, 3, 3, channels}).set_requires_grad();
  const Tensor g = rw::randn(x.shape());
  measure(state, [&] {
    rw::backward(rw::conv2d(x, w, {}, {.padding = 1}), g);
    x.set_grad({});
    w.set_grad({});
  });
}
BENCHMARK(conv3x3)->Args({16, 32})->Args({64, 16})->Args({128, 16})->Args({512, 4})->UseRealTime();

void linear(benchmark::State& state) {
  const auto rows = state.range(0), in = state.range(1), out = state.range(2);
  Tensor x = rw::randn({rows, in}).set_requires_grad(), w = rw::randn({out, in}).set_requires_grad();
  const Tensor g = rw::randn({rows, out});
  measure(state, [&] {
    rw::backward(rw::linear(x, w), g);
    x.set_grad({});
    w.set_grad({});
  });
}
BENCHMARK(linear)->Args({128, 784, 512})->Args({16, 1280, 1000})->Args({512, 1024, 1024})->UseRealTime();

void depthwise(benchmark::State& state) {
  const auto channels = state.range(0), size = state.range(1);
  Tensor x = rw::randn({16, size, size, channels}).set_requires_grad(), w = rw::randn({3, 3, channels}).set_requires_grad();
  const rw::DepthwiseOptions options{.stride = static_cast<int>(state.range(2)), .padding = 1};
  const Tensor g = rw::randn(rw::depthwise_conv2d(x.detach(), w.detach(), {}, options).shape());
  measure(state, [&] {
    rw::backward(rw::depthwise_conv2d(x, w, {}, options), g);
    x.set_grad({});
    w.set_grad({});
  });
}
BENCHMARK(depthwise)
    ->Args({32, 112, 1})
    ->Args({96, 112, 2})
    ->Args({144, 56, 1})
    ->Args({144, 56, 2})
    ->Args({192, 28, 1})
    ->Args({192, 28, 2})
    ->Args({384, 14, 1})
    ->Args({576, 14, 1})
    ->Args({576, 14, 2})
    ->Args({960, 7, 1})
    ->UseRealTime();

void batch_norm_relu6(benchmark::State& state) {
  const auto channels = state.range(0), size = state.range(1);
  Tensor x = rw::randn({16, size, size, channels}).set_requires_grad(), gamma = rw::ones({channels}).set_requires_grad(),
         beta = rw::zeros({channels}).set_requires_grad();
  const Tensor g = rw::randn(x.shape());
  measure(state, [&] {
    rw::backward(rw::batch_norm(x, gamma, beta, {}, {}, {.epilogue = rw::Epilogue::relu6}), g);
    for (const Tensor& t : {x, gamma, beta}) t.set_grad({});
  });
}
BENCHMARK(batch_norm_relu6)->Args({96, 112})->Args({144, 56})->Args({384, 14})->UseRealTime();

void cross_entropy(benchmark::State& state) {
  Tensor x = rw::randn({state.range(0), state.range(1)}).set_requires_grad();
  Tensor labels = rw::zeros({state.range(0)}, rw::int64);
  measure(state, [&] {
    rw::backward(rw::cross_entropy(x, labels));
    x.set_grad({});
  });
}
BENCHMARK(cross_entropy)->Args({2048, 65})->Args({512, 32000})->UseRealTime();

/// A step on 10 M parameters in 100 tensors.
template <class Optimizer>
void optimizer_step(benchmark::State& state, Optimizer make) {
  std::vector<rw::Parameter> parameters;
  for (int i = 0; i < 100; ++i) {
    rw::Tensor p = rw::randn({100000});
    p.set_requires_grad();
    parameters.push_back({rw::str(i), p});
  }
  auto optimizer = make(parameters);
  std::vector<Tensor> gradients;
  for (const rw::Parameter& p : parameters) gradients.push_back(rw::randn(p.value.shape()));
  measure(state, [&] {
    for (std::size_t i = 0; i < parameters.size(); ++i) parameters[i].value.set_grad(gradients[i]);
    optimizer.step();
  });
}
void adam(benchmark::State& state) {
  optimizer_step(state, [](auto& parameters) { return rw::optim::Adam(parameters, {.lr = 1e-4}); });
}
void momentum(benchmark::State& state) {
  optimizer_step(state, [](auto& parameters) { return rw::optim::SGD(parameters, {.lr = 1e-3, .momentum = 0.9}); });
}
BENCHMARK(adam)->UseRealTime();
BENCHMARK(momentum)->UseRealTime();

void scalar_add(benchmark::State& state) {
  const rw::NoGrad no_grad;
  const Tensor x = rw::ones({1});
  Tensor z = x;
  for (auto _ : state) z = std::move(z) + x;
}
BENCHMARK(scalar_add);

constexpr int chain = 1000;

// Recorded, and the record dropped.
void scalar_add_forward(benchmark::State& state) {
  const Tensor x = rw::ones({1}), leaf = rw::ones({1}).set_requires_grad();
  for (auto _ : state) {
    Tensor z = leaf;
    for (int i = 0; i < chain; ++i) z = std::move(z) + x;
  }
  state.SetItemsProcessed(state.iterations() * chain);
}
BENCHMARK(scalar_add_forward);

void scalar_add_backward(benchmark::State& state) {
  const Tensor x = rw::ones({1});
  Tensor leaf = rw::ones({1}).set_requires_grad();
  for (auto _ : state) {
    Tensor z = leaf;
    for (int i = 0; i < chain; ++i) z = std::move(z) + x;
    rw::backward(std::move(z));
    leaf.set_grad({});
  }
  state.SetItemsProcessed(state.iterations() * chain);
}
BENCHMARK(scalar_add_backward);

}  // namespace

BENCHMARK_MAIN();
