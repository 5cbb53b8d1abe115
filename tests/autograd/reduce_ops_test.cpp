// sum, mean, max and argmax: numbers by hand, axes, where gradients go, second derivatives and errors.

#include <rewind/autograd/backward.h>
#include <rewind/autograd/dry_run.h>
#include <rewind/autograd/functional.h>
#include <rewind/autograd/grad_mode.h>
#include <rewind/autograd/gradcheck.h>
#include <rewind/autograd/ops/sample.h>

#include <doctest/doctest.h>

#include <string>
#include <vector>

namespace rw = rewind;
using rw::Shape;
using rw::Tensor;
using rw::ops::sample;
using Values = std::vector<double>;

namespace {

Tensor counting(const Shape& shape) { return rw::view_as(rw::arange(shape.numel(), rw::float64), shape); }

template <class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const rw::Error& e) {
    return e.what();
  }
  return "nothing was thrown";
}
bool says(const std::string& text, const char* part) {
  INFO(text);
  CHECK(text.find(part) != text.npos);
  return text.find(part) != text.npos;
}

}  // namespace

TEST_CASE("sum, mean and max agree with sums by hand over every set of axes") {
  const Tensor x = counting({2, 3});
  CHECK(rw::sum(x).item() == 15);
  CHECK(rw::sum(x).shape() == Shape{});
  CHECK(rw::sum(x, {0}).to_vector<double>() == Values{3, 5, 7});
  CHECK(rw::sum(x, {1}).to_vector<double>() == Values{3, 12});
  CHECK(rw::sum(x, {-1}).to_vector<double>() == Values{3, 12});
  CHECK(rw::sum(x, {1, 0}).item() == 15);
  CHECK(rw::sum(x, {0}, true).shape() == Shape{1, 3});
  CHECK(rw::sum(x, {}, true).shape() == Shape{1, 1});
  CHECK(rw::mean(x).item() == 2.5);
  CHECK(rw::mean(x, {0}).to_vector<double>() == Values{1.5, 2.5, 3.5});
  CHECK(rw::max(x, {0}).to_vector<double>() == Values{3, 4, 5});
  CHECK(rw::max(x, {1}, true).shape() == Shape{2, 1});
  CHECK(rw::max(x).item() == 5);
  CHECK(rw::sum(rw::scalar(7, rw::float64)).item() == 7);
}

TEST_CASE("the sum of nothing is zero") {
  CHECK(rw::sum(rw::zeros({0, 3}, rw::float64), {0}).to_vector<double>() == Values{0, 0, 0});
  CHECK(rw::sum(rw::zeros({0, 3}, rw::float64)).item() == 0);
}

TEST_CASE("argmax finds the first of equal elements along any axis") {
  const Tensor x = rw::from<double>({1, 5, 5, 7, 7, 0}, {2, 3});
  const Tensor last = rw::argmax(x);
  CHECK(last.dtype() == rw::int64);
  CHECK(last.to_vector<std::int64_t>() == std::vector<std::int64_t>{1, 0});
  CHECK(rw::argmax(x, 0).to_vector<std::int64_t>() == std::vector<std::int64_t>{1, 1, 0});
  CHECK(!rw::argmax(x.clone().set_requires_grad()).requires_grad());
}

TEST_CASE("the gradient of max goes to the first of equal elements") {
  Tensor x = rw::from<double>({1, 5, 5, 7, 7, 0}, {2, 3});
  x.set_requires_grad();
  rw::backward(rw::sum(rw::max(x, {1})));
  CHECK(x.grad().to_vector<double>() == Values{0, 1, 0, 1, 0, 0});
  x.set_grad({});
  rw::backward(rw::max(x));
  CHECK(x.grad().to_vector<double>() == Values{0, 0, 0, 1, 0, 0});
}

TEST_CASE("the gradient of mean shares one over the number of elements") {
  Tensor x = sample({4, 5});
  x.set_requires_grad();
  rw::backward(rw::sum(rw::mean(x, {0})));
  for (const double g : x.grad().values<double>()) CHECK(g == 0.25);
}

TEST_CASE("reductions can be differentiated twice") {
  Tensor x = sample({3, 4});
  x.set_requires_grad();
  // d2/dx2 of (sum x)^2 / 2 along a direction v is sum v everywhere.
  const Tensor g = rw::grad(0.5 * rw::square(rw::sum(x)), {x}, {.create_graph = true})[0];
  const Tensor h = rw::grad(rw::sum(g * counting({3, 4})), {x})[0];
  for (const double v : h.values<double>()) CHECK(v == doctest::Approx(66));

  const auto f = [](std::vector<Tensor> in) {
    Tensor parts = rw::square(rw::mean(in[0], {0})) * rw::max(in[0], {0});
    return rw::sum(rw::exp(rw::sum(in[0], {1}, true) * 0.1)) + rw::sum(std::move(parts));
  };
  const rw::NoGrad ignored;  // gradcheck records
  const rw::GradcheckResult r = rw::gradcheck(f, {sample({3, 4})}, {.second_order = true});
  CHECK_MESSAGE(r.ok, r.message);
}

TEST_CASE("a dry run knows the scratch memory of large sums") {
  const auto step = [] {
    Tensor x = rw::zeros({700, 300});
    x.set_requires_grad();
    rw::backward(rw::sum(rw::mean(x, {0})) + rw::sum(x));
  };
  const rw::DryRun plan = rw::dry_run(step);
  const rw::memory::Scope scope;
  step();
  CHECK(plan.peak == scope.peak());
  CHECK(scope.peak()[rw::Category::workspace] > 0);
}

TEST_CASE("reductions name themselves, the axis and the shape in errors") {
  const Tensor x = sample({2, 3});
  says(message_of([&] { rw::sum(x, {2}); }), "sum: axis 2 does not exist in shape [2, 3]: axes go from -2 to 1");
  says(message_of([&] { rw::mean(x, {0, -2}); }), "mean: axis -2 of shape [2, 3] is given twice");
  says(message_of([&] { rw::max(rw::zeros({0, 3})); }), "max: there is no maximum of no elements, in shape [0, 3]");
  says(message_of([&] { rw::argmax(x, 5); }), "argmax: axis 5 does not exist");
  says(message_of([&] { rw::sum(Tensor()); }), "sum: input 0 is undefined");
  says(message_of([&] { rw::sum(rw::arange(3, rw::int64)); }), "sum: needs float32 or float64");
}
