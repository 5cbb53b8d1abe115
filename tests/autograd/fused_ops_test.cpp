// Fused convolutions against the plain ops that they stand for: values, gradients, bits, what is saved, a trained chain.

#include <rewind/autograd/backward.h>
#include <rewind/autograd/checkpoint.h>
#include <rewind/autograd/dry_run.h>
#include <rewind/autograd/functional.h>
#include <rewind/autograd/fused.h>
#include <rewind/autograd/grad_mode.h>
#include <rewind/autograd/gradcheck.h>
#include <rewind/core/parallel.h>
#include <rewind/core/random.h>

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

namespace rw = rewind;
using rw::Epilogue;
using rw::FusedConvOptions;
using rw::Shape;
using rw::Tensor;

namespace {

Tensor uniform(const Shape& shape, double low, double high, std::uint64_t seed) {
  Tensor t = rw::empty(shape, rw::float64);
  rw::random::fill_uniform(t.mutate<double>().data(), t.numel(), low, high, 5, seed << 32);
  return t;
}

/// The largest difference, relative to the largest value.
double difference(const Tensor& a, const Tensor& b) {
  REQUIRE(a.shape() == b.shape());
  const Tensor left = a.to(rw::float64), right = b.to(rw::float64);
  const auto x = left.values<double>(), y = right.values<double>();
  double worst = 0, most = 1e-3;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double d = std::abs(x[i] - y[i]);
    if (!(d <= worst)) worst = d;
    most = std::max(most, std::abs(y[i]));
  }
  return worst / most;
}

bool same_bits(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  bool same = a.size() == b.size();
  for (std::size_t i = 0; same && i < a.size(); ++i)
    same = a[i].bytes() == b[i].bytes() && std::memcmp(a[i].raw<char>(), b[i].raw<char>(), a[i].bytes()) == 0;
  return same;
}

struct Layer {
  Shape w;
  FusedConvOptions options = {};
  Epilogue epilogue = Epilogue::relu6;
  bool residual = false;  // of the convolution, before its normalisation
};
struct Chain {
  Shape x;
  std::vector<Layer> layers;
  bool shortcut = false;  // x is added at the end
};

/// Every kind of convolution, each with a pending input and as the first of a chain.
const std::vector<Chain>& chains() {
  static const std::vector<Chain> list{
      {{2, 9, 8, 24}, {{{72, 1, 1, 24}}, {{3, 3, 72}, {.padding = 1}}, {{24, 1, 1, 72}, {}, Epilogue::none}}, true},
      {{17, 7, 7, 20}, {{{33, 1, 1, 20}}, {{3, 3, 33}, {.stride = 2, .padding = 1}, Epilogue::relu}, {{7, 1, 1, 33}}}},
      {{3, 9, 10, 8},
       {{{19, 1, 1, 8}, {}, Epilogue::relu}, {{5, 5, 19}, {.padding = 2}}, {{5, 5, 19}, {.stride = 2, .padding = 2}}}},
      {{34, 7, 7, 20}, {{{33, 1, 1, 20}}, {{3, 3, 33}, {.padding = 1}}}},  // pieces of two images, of pairs of rows and one
      {{2, 16, 17, 3}, {{{32, 3, 3, 3}, {.stride = 2, .padding = 1}}, {{3, 3, 32}, {.padding = 1}}, {{16, 1, 1, 32}}}},
      {{5, 6, 6, 16}, {{{16, 1, 1, 16}, {}, Epilogue::relu}, {{16, 3, 3, 16}, {.padding = 1}, Epilogue::relu}, {{64, 1, 1, 16}}}},
      {{5, 6, 6, 12}, {{{12, 3, 3, 12}, {.padding = 1}, Epilogue::relu, true}, {{12, 1, 1, 12}, {}, Epilogue::relu, true}}, true},
      {{2, 5, 5, 40}, {{{3, 3, 40}, {.padding = 1}, Epilogue::relu, true}, {{40, 1, 1, 40}, {}, Epilogue::relu, true}}, true},
      {{4, 5, 5, 8}, {{{8, 1, 1, 8}, {.stride = 2}, Epilogue::none}, {{9, 2, 3, 8}, {.padding = {0, 1}}, Epilogue::relu}}},
      {{1, 40, 33, 2}, {{{3, 3, 2}, {.padding = 1}}, {{5, 3, 3, 2}, {.stride = 2, .padding = 1}}}},
      {{2, 9, 11, 3}, {{{32, 3, 3, 3}, {.padding = 1}}, {{16, 1, 1, 32}}}},  // small windows, for dw in whole panels
      {{2, 8, 9, 1}, {{{30, 5, 5, 1}, {.padding = 2}}, {{4, 1, 1, 30}}}},
      {{1, 10, 9, 2}, {{{3, 3, 2}, {.padding = 1}}, {{30, 4, 4, 2}, {.padding = 1}}}},
      {{2, 6, 6, 96}, {{{96, 3, 3, 96}, {.padding = 1}}, {{96, 3, 3, 96}, {.padding = 1}, Epilogue::relu}}},
      {{1, 2, 202, 96}, {{{96, 3, 3, 96}, {.padding = 1}}, {{96, 3, 3, 96}, {.padding = 1}, Epilogue::relu}}},
      {{1, 22, 80, 80}, {{{80, 3, 3, 80}, {.padding = 1}}, {{80, 3, 3, 80}, {.padding = 1}, Epilogue::relu}}},
      {{2, 9, 8, 6}, {{{7, 5, 5, 6}, {.padding = 2}}, {{5, 3, 1, 7}, {.padding = {1, 0}}, Epilogue::relu}}},
      {{3, 4, 6, 16}, {{{48, 3, 3, 16}, {.padding = 1}}, {{16, 3, 3, 48}, {.padding = 1}, Epilogue::relu}}, true},
      {{2, 4, 4, 288}, {{{512, 3, 3, 288}, {.padding = 1}, Epilogue::relu}, {{160, 3, 3, 512}, {.padding = 1}}}},
      {{2, 4, 4, 256}, {{{256, 1, 1, 256}}, {{300, 3, 3, 256}, {.padding = 1}, Epilogue::relu}}},
      {{1, 4, 4, 60}, {{{101, 1, 1, 60}}, {{70, 1, 1, 101}}}},  // few rows: weights are read in place
      {{3, 9, 10, 8},
       {{{19, 1, 1, 8}, {}, Epilogue::hardswish},
        {{5, 5, 19}, {.padding = 2}, Epilogue::silu},
        {{5, 5, 19}, {.stride = 2, .padding = 2}, Epilogue::hardswish},
        {{24, 1, 1, 19}, {}, Epilogue::silu}}},
      {{2, 12, 9, 3},
       {{{32, 3, 3, 3}, {.stride = 2, .padding = 1}, Epilogue::silu},
        {{3, 3, 32}, {.padding = 1}, Epilogue::hardswish},
        {{3, 3, 32}, {.stride = 2, .padding = 1}, Epilogue::silu},
        {{32, 3, 3, 32}, {.padding = 1}, Epilogue::hardswish}}},
      {{2, 5, 5, 40},
       {{{40, 3, 3, 40}, {.padding = 1}, Epilogue::silu, true},
        {{40, 1, 1, 40}, {}, Epilogue::hardswish, true},
        {{40, 1, 1, 40}, {}, Epilogue::none}},
       true},
  };
  return list;
}

Tensor activated(Epilogue by, Tensor z) {
  switch (by) {
    case Epilogue::relu: return rw::relu(std::move(z));
    case Epilogue::relu6: return rw::relu6(std::move(z));
    case Epilogue::hardswish: return rw::hardswish(std::move(z));
    case Epilogue::silu: return rw::silu(std::move(z));
    case Epilogue::none: break;
  }
  return z;
}

/// The chain's result, the gradient of x, and those of every layer's weight, gamma and beta.
std::vector<Tensor> run(const Chain& chain, rw::DType dtype, bool fused, double offset = 0) {
  std::vector<Tensor> leaves;
  std::uint64_t seed = 1;
  const auto leaf = [&](const Shape& s, double low, double high) {
    leaves.push_back(uniform(s, low, high, seed++).to(dtype).set_requires_grad());
    return leaves.back();
  };
  const Tensor x = leaf(chain.x, offset - 1, offset + 1);
  rw::Pending p{.x = x};
  for (const Layer& layer : chain.layers) {
    const Shape c{layer.w.rank() == 3 ? layer.w[2] : layer.w[0]};
    const Tensor w = leaf(layer.w, -0.5, 0.5), gamma = leaf(c, 0.5, 2), beta = leaf(c, -1, 1);
    if (fused) {
      rw::FusedConvResult r = rw::fused_conv2d(p, w, layer.options, layer.residual ? x : Tensor());
      p = {r.y, r.mean, r.var, gamma, beta, 1e-5, layer.epilogue};
    } else {
      Tensor y = layer.w.rank() == 3
                     ? rw::depthwise_conv2d(p.x, w, {}, {.stride = layer.options.stride, .padding = layer.options.padding})
                     : rw::conv2d(p.x, w, {}, {.stride = layer.options.stride, .padding = layer.options.padding});
      if (layer.residual) y = rw::add(y, x);
      const Epilogue then = &layer == &chain.layers.back() ? Epilogue::none : layer.epilogue;
      const bool by_norm = then == Epilogue::relu || then == Epilogue::relu6;
      p.x = rw::batch_norm(y, gamma, beta, {}, {}, {.epilogue = by_norm ? then : Epilogue::none});
      if (!by_norm) p.x = activated(then, p.x);
    }
  }
  Tensor y;
  if (fused) {
    y = chain.shortcut ? rw::settle(p, {x}) : rw::settle(p);
  } else {
    y = activated(chain.layers.back().epilogue, chain.shortcut ? rw::add(p.x, x) : p.x);
  }
  std::vector<Tensor> result{y.detach().clone()};
  rw::backward(rw::sum(rw::mul(y, uniform(y.shape(), -1, 1, 99).to(dtype))));
  for (const Tensor& t : leaves) result.push_back(t.grad());
  return result;
}

}  // namespace

TEST_CASE("fused convolutions equal plain ones, values and gradients") {
  for (const Chain& chain : chains()) {
    CAPTURE(chain.x);
    const std::vector<Tensor> plain = run(chain, rw::float64, false), fused = run(chain, rw::float64, true);
    for (std::size_t i = 0; i < plain.size(); ++i) {
      CAPTURE(i);
      CHECK(difference(fused[i], plain[i]) < 1e-12);
    }
    const std::vector<Tensor> single = run(chain, rw::float32, true);
    for (std::size_t i = 0; i < plain.size(); ++i) {
      CAPTURE(i);
      CHECK(difference(single[i], plain[i]) < 1e-4);
    }
  }
}

TEST_CASE("an activation with nothing pending is refused") {
  CHECK_THROWS_WITH_AS(rw::fused_conv2d({.x = rw::ones({1, 2, 2, 3}), .epilogue = rw::Epilogue::relu}, rw::ones({3, 1, 1, 3}), {}),
                       doctest::Contains("fused_conv2d: nothing is pending"), rw::Error);
}

TEST_CASE("statistics are sound when the mean is large") {
  const Tensor w = uniform({24, 1, 1, 16}, 0.1, 0.5, 3).to(rw::float32), x = uniform({4, 12, 12, 16}, 999, 1001, 4).to(rw::float32);
  const Tensor depth = uniform({3, 3, 16}, 0.1, 0.5, 5).to(rw::float32),
               dense = uniform({8, 3, 3, 16}, 0.1, 0.5, 6).to(rw::float32);
  for (const Tensor& weight : {w, depth, dense}) {
    const rw::FusedConvResult r = rw::fused_conv2d({.x = x}, weight);
    const Tensor y = r.y.to(rw::float64), mean = rw::mean(y, {0, 1, 2});
    CHECK(difference(r.mean, mean) < 1e-6);
    CHECK(difference(r.var, rw::mean(rw::square(rw::sub(y, mean)), {0, 1, 2})) < 1e-4);
  }
}

TEST_CASE("fused convolutions give the same bits for any number of threads") {
  const int before = rw::parallel::threads();
  for (const Chain& chain : chains()) {
    rw::parallel::set_threads(1);
    const std::vector<Tensor> one = run(chain, rw::float32, true);
    for (const int n : {2, 3, 5}) {
      rw::parallel::set_threads(n);
      CHECK(same_bits(run(chain, rw::float32, true), one));
    }
  }
  rw::parallel::set_threads(before);
}

TEST_CASE("in evaluation, running statistics take the place of the batch's, and no statistics are made") {
  const Tensor x = uniform({2, 6, 6, 8}, -1, 1, 1), w = uniform({16, 1, 1, 8}, -1, 1, 2), v = uniform({3, 3, 16}, -1, 1, 3);
  const Tensor mean = uniform({16}, -1, 1, 4), var = uniform({16}, 0.5, 2, 5), gamma = uniform({16}, 0.5, 2, 6),
               beta = uniform({16}, -1, 1, 7);
  const rw::NoGrad no_grad;
  rw::FusedConvResult r = rw::fused_conv2d({.x = x}, w, {.statistics = false});
  CHECK_FALSE(r.mean.defined());
  r = rw::fused_conv2d({r.y, mean, var, gamma, beta, 1e-5, Epilogue::relu6}, v, {.padding = 1, .statistics = false});
  const Tensor plain = rw::depthwise_conv2d(
      rw::batch_norm_inference(rw::conv2d(x, w), gamma, beta, mean, var, {.epilogue = Epilogue::relu6}), v, {}, {.padding = 1});
  CHECK(difference(r.y, plain) < 1e-12);
}

TEST_CASE("a chain saves raw outputs once, and nothing else of their size") {
  const Tensor x = uniform({4, 8, 8, 16}, -1, 1, 1).to(rw::float32);
  const Tensor w1 = uniform({96, 1, 1, 16}, -1, 1, 2).to(rw::float32).set_requires_grad();
  const Tensor w2 = uniform({3, 3, 96}, -1, 1, 3).to(rw::float32).set_requires_grad();
  const Tensor w3 = uniform({16, 1, 1, 96}, -1, 1, 4).to(rw::float32).set_requires_grad();
  const Tensor gamma = uniform({96}, 0.5, 2, 5).to(rw::float32).set_requires_grad();
  const auto level = []() -> std::size_t { return rw::memory::live().total; };
  const std::size_t before = level();
  rw::FusedConvResult r = rw::fused_conv2d({.x = x}, w1);
  r = rw::fused_conv2d({r.y, r.mean, r.var, gamma, {}, 1e-5, Epilogue::relu6}, w2, {.padding = 1});
  r = rw::fused_conv2d({r.y, r.mean, r.var, gamma, {}, 1e-5, Epilogue::relu6}, w3);
  const std::size_t raw = std::size_t{4} * 8 * 8 * (96 + 96 + 16) * 4, statistics = std::size_t{2} * (96 + 96 + 16) * 4;
  CHECK(level() - before >= raw + statistics);
  CHECK(level() - before <= raw + statistics + 4096);  // the allocator rounds
}

TEST_CASE("what ends a chain is not kept for those who read it, but made again") {
  const Tensor w = uniform({16, 1, 1, 16}, -0.4, 0.4, 1).to(rw::float32), x = uniform({4, 8, 8, 16}, -1, 1, 2).to(rw::float32);
  const std::size_t one = x.bytes(), level = rw::memory::live().total;
  const auto blocks = [&](int count, bool modified) {
    Tensor z = x;
    std::vector<Tensor> weights;
    for (int i = 0; i < count; ++i) {
      weights.push_back(w.clone().set_requires_grad());
      rw::FusedConvResult r = rw::fused_conv2d({.x = z}, weights.back());
      z = rw::settle({r.y, r.mean, r.var, {}, {}, 1e-5, Epilogue::relu}, {.x = z});
      if (modified) z.detach().mutate<float>();  // to the same values: but nobody can know
    }
    const std::size_t held = rw::memory::live().total - level;
    rw::backward(rw::sum(rw::square(std::move(z))));
    std::vector<Tensor> gradients;
    for (const Tensor& t : weights) gradients.push_back(t.grad());
    return std::pair(held, gradients);
  };
  const auto [held, gradients] = blocks(6, false);
  const auto [more, same] = blocks(6, true);
  CHECK(same_bits(gradients, same));
  // Each block keeps what its convolution made. Of the ends two in a row are made again, the third is kept; the sixth is in hand.
  CHECK(held >= (6 + 1 + 1) * one);
  CHECK(held < (6 + 1 + 2) * one);
  CHECK(more >= held + 4 * one);
}

TEST_CASE("a chain in a checkpoint gives the same bits") {
  const auto block = [](const Tensor& x, const Tensor& w, const Tensor& gamma, const Tensor& beta, const Tensor& v) {
    rw::FusedConvResult r = rw::fused_conv2d({.x = x}, w);
    r = rw::fused_conv2d({r.y, r.mean, r.var, gamma, beta, 1e-5, Epilogue::relu6}, v, {.padding = 1});
    return rw::settle({r.y, r.mean, r.var, gamma, beta});
  };
  const auto step = [&](bool recompute) {
    std::vector<Tensor> in{uniform({2, 5, 5, 4}, -1, 1, 1), uniform({12, 1, 1, 4}, -1, 1, 2), uniform({12}, 0.5, 2, 3),
                           uniform({12}, -1, 1, 4), uniform({3, 3, 12}, -1, 1, 5)};
    for (Tensor& t : in) t.set_requires_grad();
    Tensor y = recompute ? rw::checkpoint(block, in[0], in[1], in[2], in[3], in[4]) : block(in[0], in[1], in[2], in[3], in[4]);
    rw::backward(rw::sum(rw::square(std::move(y))));
    std::vector<Tensor> g;
    for (const Tensor& t : in) g.push_back(t.grad());
    return g;
  };
  CHECK(same_bits(step(true), step(false)));
}

TEST_CASE("second derivatives of fused convolutions are refused with the reason") {
  const Tensor x = uniform({1, 3, 3, 2}, -1, 1, 1).set_requires_grad(), w = uniform({3, 1, 1, 2}, -1, 1, 2);
  std::string message;
  try {
    const std::vector<Tensor> g = rw::grad(rw::sum(rw::square(rw::fused_conv2d({.x = x}, w).y)), {x}, {.create_graph = true});
    rw::backward(rw::sum(rw::square(g[0])));
  } catch (const rw::Error& e) {
    message = e.what();
  }
  CHECK(message.find("turn fusion off") != message.npos);
}

TEST_CASE("running statistics move as batch_norm moves them") {
  const Tensor x = uniform({2, 3, 3, 4}, -1, 1, 1), w = uniform({5, 1, 1, 4}, -1, 1, 2);
  Tensor mean[2], var[2];
  for (int i = 0; i < 2; ++i) {
    mean[i] = rw::zeros({5}, rw::float64);
    var[i] = rw::ones({5}, rw::float64);
  }
  rw::batch_norm(rw::conv2d(x, w), {}, {}, mean[0], var[0], {.momentum = 0.3});
  const rw::FusedConvResult r = rw::fused_conv2d({.x = x}, w);
  rw::move_running_statistics(r.mean, r.var, mean[1], var[1], 18, 0.3);
  CHECK(difference(mean[1], mean[0]) < 1e-12);
  CHECK(difference(var[1], var[0]) < 1e-12);
}

TEST_CASE("a dry run of a fused chain takes the bytes that the step takes") {
  const Tensor x = uniform({4, 9, 9, 16}, -1, 1, 1).to(rw::float32);
  const Tensor w1 = uniform({24, 3, 3, 16}, -1, 1, 2).to(rw::float32).set_requires_grad();
  const Tensor w2 = uniform({3, 3, 24}, -1, 1, 3).to(rw::float32).set_requires_grad();
  const Tensor w3 = uniform({16, 1, 1, 24}, -1, 1, 4).to(rw::float32).set_requires_grad();
  const Tensor gamma = uniform({24}, 0.5, 2, 5).to(rw::float32).set_requires_grad();
  const auto step = [&] {
    rw::FusedConvResult r = rw::fused_conv2d({.x = x}, w1, {.padding = 1});
    r = rw::fused_conv2d({r.y, r.mean, r.var, gamma, {}, 1e-5, Epilogue::relu6}, w2, {.padding = 1});
    r = rw::fused_conv2d({r.y, r.mean, r.var, gamma, {}, 1e-5, Epilogue::relu6}, w3);
    rw::backward(rw::sum(rw::square(rw::settle({r.y, r.mean, r.var}, {x}))));
    for (const Tensor& t : {w1, w2, w3, gamma}) t.take_grad();
  };
  const rw::DryRun plan = rw::dry_run(step);
  rw::memory::reset_peak();
  step();
  CHECK(plan.peak == rw::memory::peak());
}
