// What ops make of values that overflow, underflow, lie at kinks or far from all others, and of no values at all.

#include <rewind/autograd/backward.h>
#include <rewind/autograd/functional.h>
#include <rewind/autograd/gradcheck.h>
#include <rewind/core/random.h>

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace rw = rewind;
using doctest::Approx;
using rw::Tensor;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

Tensor one(float value) { return rw::full({1}, value); }

/// The gradient of f at x, from g.
template <class F>
float slope(F f, float x, float g) {
  const Tensor at = one(x).set_requires_grad();
  rw::backward(f(at), one(g));
  return at.grad().to_vector<float>()[0];
}

}  // namespace

TEST_CASE("the gradient of a divisor is finite where the gradient over the divisor is not") {
  const auto of_divisor = [](float a, float b, float g) {
    return slope([a](const Tensor& x) { return rw::div(one(a), x); }, b, g);
  };
  CHECK(of_divisor(0, 1e-20F, 1e20F) == 0);
  CHECK(of_divisor(1e-20F, 1e-19F, 1e20F) == Approx(-1e38));
  CHECK(of_divisor(1e38F, 1e30F, 1e-10F) == Approx(-1e-32).epsilon(1e-6));
}

TEST_CASE("where a slope is zero, an infinite gradient is not passed on") {
  const auto hardswish = [](const Tensor& x) { return rw::hardswish(x); };
  const auto hardsigmoid = [](const Tensor& x) { return rw::hardsigmoid(x); };
  CHECK(slope(hardswish, -9, infinity) == 0);
  CHECK(slope(hardswish, -3, 1) == 0);
  CHECK(slope(hardswish, 3, 1) == 1);
  CHECK(slope(hardsigmoid, -9, -infinity) == 0);
  CHECK(slope(hardsigmoid, 9, infinity) == 0);
  CHECK(slope(hardsigmoid, 0, 6) == Approx(1));
}

TEST_CASE("the mean of a large image in float32 is as good as its values") {
  const Tensor y = rw::global_avg_pool(rw::full({1, 1000, 1000, 17}, 0.1));
  for (const float v : y.to_vector<float>()) CHECK(v == Approx(0.1).epsilon(1e-7));
}

TEST_CASE("batch_norm's variance survives one row far from the others") {
  constexpr std::int64_t rows = 4096;
  rw::random::seed(1);
  for (const std::int64_t outlier : {std::int64_t{0}, rows / 2, rows - 1}) {
    Tensor x = rw::affine(rw::randn({rows, 16}), 1, 1000);
    for (std::int64_t c = 0; c < 16; ++c) x.mutate<float>()[static_cast<std::size_t>(outlier * 16 + c)] = 0;
    const Tensor exact = x.to(rw::float64), mean = rw::mean(exact, {0}, true);
    const std::vector<double> var = rw::mean(rw::square(rw::sub(exact, mean)), {0}).to_vector<double>();
    Tensor running_mean = rw::zeros({16}), running_var = rw::zeros({16});
    static_cast<void>(rw::batch_norm(x, {}, {}, running_mean, running_var, {.momentum = 1}));
    const std::vector<float> seen = running_var.to_vector<float>();
    for (std::size_t c = 0; c < 16; ++c) CHECK(seen[c] == Approx(var[c] * rows / (rows - 1)).epsilon(5e-6));
  }
}

TEST_CASE("gradcheck refuses to find nothing to check") {
  const auto f = [](std::vector<Tensor> in) { return rw::sum(in[0]); };
  CHECK_THROWS_WITH_AS(rw::gradcheck(f, {rw::arange(3, rw::int64)}), doctest::Contains("no input is a float64 tensor"), rw::Error);
}
