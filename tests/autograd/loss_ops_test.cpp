// softmax, cross_entropy, mse and dropout: closed forms, identities, what is saved, replay of masks, and errors.

#include <rewind/autograd/backward.h>
#include <rewind/autograd/checkpoint.h>
#include <rewind/autograd/dry_run.h>
#include <rewind/autograd/functional.h>
#include <rewind/autograd/grad_mode.h>
#include <rewind/autograd/gradcheck.h>
#include <rewind/autograd/ops/sample.h>
#include <rewind/core/random.h>

#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

namespace rw = rewind;
using doctest::Approx;
using rw::Shape;
using rw::Tensor;
using rw::ops::sample;
using rw::ops::sample_labels;
using Values = std::vector<double>;

namespace {

Values values(const Tensor& t) { return t.to_vector<double>(); }

bool close(const Tensor& a, const Tensor& b, double tolerance = 1e-12) {
  if (!(a.shape() == b.shape())) return false;
  const auto x = a.values<double>(), y = b.values<double>();
  for (std::size_t i = 0; i < x.size(); ++i)
    if (!(std::abs(x[i] - y[i]) <= tolerance)) return false;
  return true;
}

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

TEST_CASE("softmax is exp over its sum, along any axis") {
  for (int axis = -3; axis < 3; ++axis) {
    const Tensor x = sample({2, 3, 4}, -3, 3), e = rw::exp(x);
    const Tensor expected = e / rw::sum(e, {axis}, true);
    CHECK(close(rw::softmax(x, axis), expected));
    CHECK(close(rw::log_softmax(x, axis), rw::log(expected)));
  }
}

TEST_CASE("softmax does not overflow") {
  const Tensor x = rw::from<double>({1000, 1000, -1000}, {1, 3});
  CHECK(values(rw::softmax(x)) == Values{0.5, 0.5, 0});
  CHECK(rw::log_softmax(x).values<double>()[0] == Approx(-std::log(2.0)));
}

TEST_CASE("cross_entropy is the mean of -log softmax at the labels") {
  const Tensor logits = sample({3, 4}, -3, 3);
  const std::vector<std::int64_t> labels{2, 0, 3};
  const Values lp = values(rw::log_softmax(logits));
  double expected = 0, spread = 0;
  for (std::size_t r = 0; r < 3; ++r) expected -= lp[r * 4 + static_cast<std::size_t>(labels[r])] / 3;
  for (const double v : lp) spread -= v / 12;
  CHECK(rw::cross_entropy(logits, rw::from(labels, {3})).item() == Approx(expected).epsilon(1e-14));
  CHECK(rw::cross_entropy(logits, rw::from(labels, {3}), 0.1).item() == Approx(0.9 * expected + 0.1 * spread).epsilon(1e-14));
  CHECK(rw::cross_entropy(rw::zeros({5, 8}, rw::float64), rw::zeros({5}, rw::int32)).item() == Approx(std::log(8.0)));
}

TEST_CASE("the gradient of cross_entropy is softmax minus one-hot, over the rows") {
  Tensor logits = sample({2, 3});
  logits.set_requires_grad();
  rw::backward(rw::cross_entropy(logits, rw::from<std::int32_t>({1, 2}, {2})));
  const Tensor one_hot = rw::from<double>({0, 1, 0, 0, 0, 1}, {2, 3});
  CHECK(close(logits.grad(), (rw::softmax(logits.detach()) - one_hot) * 0.5));
}

TEST_CASE("the gradient of cross_entropy is as exact for large logits, whose log-sum-exp rounds") {
  for (const double size : {1e4, 1e6, 1e8}) {
    Tensor logits = rw::full({2, 10}, size).set_requires_grad();
    rw::backward(rw::cross_entropy(logits, rw::from<std::int64_t>({3, 0}, {2})));
    const auto g = logits.grad().to_vector<float>();
    CHECK(g[3] == doctest::Approx(-0.45).epsilon(1e-6));
    CHECK(g[10] == doctest::Approx(-0.45).epsilon(1e-6));
    CHECK(g[0] == doctest::Approx(0.05).epsilon(1e-6));
    CHECK(g[19] == doctest::Approx(0.05).epsilon(1e-6));
  }
}

TEST_CASE("the gradient of cross_entropy takes over the buffer of the logits") {
  Tensor x = sample({64, 32});
  x.set_requires_grad();
  Tensor loss = rw::cross_entropy(x * 2.0, sample_labels(64, 32));
  const std::size_t before = rw::memory::live().total;
  const rw::memory::Scope scope;
  rw::backward(std::move(loss));
  // Not one more matrix, but for a unit gradient and the like.
  CHECK(scope.peak().total < before + x.bytes() / 2);
  CHECK(x.grad().defined());
}

TEST_CASE("cross_entropy names the row of a bad label, and the classes") {
  const Tensor logits = sample({3, 4});
  says(message_of([&] {
         rw::cross_entropy(logits, rw::from<std::int64_t>({0, 4, 1}, {3}));
       }),
       "cross_entropy: row 1 has label 4, but logits [3, 4] have 4 classes: labels go from 0 to 3");
  says(message_of([&] { rw::cross_entropy(logits, rw::from<std::int32_t>({0, 1, -7}, {3})); }), "row 2 has label -7");
  says(message_of([&] { rw::cross_entropy(logits, {}); }), "cross_entropy: the labels are undefined (logits [3, 4])");
  says(message_of([&] { rw::cross_entropy(logits, rw::zeros({3})); }),
       "labels must be class numbers, int32 or int64, not float32 [3]");
  says(message_of([&] { rw::cross_entropy(logits, rw::zeros({4}, rw::int64)); }),
       "logits [3, 4] need labels [3], one a row, not [4]");
  // A dry run has no labels to look at.
  const Tensor bad = rw::from<std::int64_t>({0, 4, 1}, {3});
  CHECK_NOTHROW(rw::dry_run([&] { rw::cross_entropy(logits, bad); }));
}

TEST_CASE("a dry run knows the memory of softmax and cross_entropy") {
  const auto step = [] {
    Tensor x = rw::zeros({2100, 65});
    x.set_requires_grad();
    rw::backward(rw::cross_entropy(rw::log_softmax(x * 2.0), rw::zeros({2100}, rw::int64), 0.1));
  };
  const rw::DryRun plan = rw::dry_run(step);
  const rw::memory::Scope scope;
  step();
  CHECK(plan.peak == scope.peak());
}

TEST_CASE("mse is the mean of squared differences") {
  Tensor a = rw::from<double>({1, 2, 3}, {3}), b = rw::from<double>({1, 0, 7}, {3});
  a.set_requires_grad();
  b.set_requires_grad();
  Tensor loss = rw::mse(a, b);
  CHECK(loss.item() == Approx(20.0 / 3));
  rw::backward(std::move(loss));
  CHECK(close(a.grad(), rw::from<double>({0, 4.0 / 3, -8.0 / 3}, {3})));
  CHECK(close(b.grad(), rw::from<double>({0, -4.0 / 3, 8.0 / 3}, {3})));
  says(message_of([&] {
         rw::mse(a, rw::zeros({1, 3}, rw::float64));
       }),
       "mse: prediction and target must have one shape, got [3] and [1, 3]");
}

TEST_CASE("losses and softmax can be differentiated twice") {
  const Tensor labels = rw::from<std::int64_t>({1, 0, 3}, {3});
  const auto check = [](auto f, std::vector<Tensor> in) {
    const rw::GradcheckResult r = rw::gradcheck(f, in, {.second_order = true});
    CHECK_MESSAGE(r.ok, r.message);
  };
  check([&](std::vector<Tensor> in) { return rw::cross_entropy(in[0], labels, 0.2); }, {sample({3, 4})});
  check([](std::vector<Tensor> in) { return rw::softmax(in[0], 0); }, {sample({3, 4})});
  check([](std::vector<Tensor> in) { return rw::log_softmax(in[0]); }, {sample({3, 4})});
  check([](std::vector<Tensor> in) { return rw::mse(rw::square(in[0]), in[1]); }, {sample({3, 2}), sample({3, 2}, -1, 1, 1)});
}

TEST_CASE("the Hessian of cross_entropy is diag(p) - p p'") {
  Tensor x = sample({1, 3});
  x.set_requires_grad();
  const Tensor g = rw::grad(rw::cross_entropy(x, rw::from<std::int64_t>({1}, {1})), {x}, {.create_graph = true})[0];
  const Values p = values(rw::softmax(x.detach()));
  const Values row = values(rw::grad(rw::sum(rw::slice(g, 1, 0, 1)), {x})[0]);
  CHECK(row[0] == Approx(p[0] - p[0] * p[0]));
  CHECK(row[1] == Approx(-p[0] * p[1]));
  CHECK(row[2] == Approx(-p[0] * p[2]));
}

TEST_CASE("dropout keeps the expectation") {
  rw::random::seed(5);
  const double p = 0.3;
  const Tensor y = rw::dropout(rw::ones({100000}, rw::float64), p);
  std::int64_t zeros = 0, scaled = 0;
  for (const double v : y.values<double>()) {
    if (v == 0) ++zeros;
    if (std::abs(v - 1 / (1 - p)) < 1e-12) ++scaled;
  }
  CHECK(zeros + scaled == 100000);
  CHECK(static_cast<double>(zeros) / 100000 == Approx(p).epsilon(0.02));
  CHECK(rw::mean(y).item() == Approx(1).epsilon(0.02));
}

TEST_CASE("dropout with p = 0 is nothing, with p = 1 zeros, outside [0, 1] an error") {
  const Tensor x = sample({3, 4});
  const std::uint64_t before = rw::random::default_generator().offset();
  CHECK(rw::dropout(x, 0).same(x));
  says(message_of([&] { rw::dropout(x, 1.25); }), "dropout: the probability p must lie in [0, 1], not 1.25 (input [3, 4])");
  says(message_of([&] { rw::dropout(x, std::nan("")); }), "must lie in [0, 1]");
  says(message_of([&] { rw::dropout(Tensor(), 0.5); }), "dropout: input 0 is undefined");
  CHECK(rw::random::default_generator().offset() == before);
  CHECK(close(rw::dropout(x, 1), rw::zeros({3, 4}, rw::float64)));
}

TEST_CASE("the gradient of dropout has the mask of its forward, and so has a checkpointed replay") {
  const auto run = [](bool recompute) {
    rw::random::seed(11);
    Tensor x = sample({5, 40}, 1, 2);
    x.set_requires_grad();
    const auto f = [](Tensor t) { return rw::square(rw::dropout(rw::dropout(std::move(t), 0.5) * 3.0, 0.25)); };
    const Tensor y = recompute ? rw::checkpoint(f, x) : f(x);
    const Values out = values(y);
    rw::dropout(x, 0.5);  // later numbers do not disturb the replay
    rw::backward(rw::sum(y));
    const Values g = values(x.grad());
    for (std::size_t i = 0; i < g.size(); ++i) CHECK((g[i] == 0) == (out[i] == 0));
    return std::pair{g, rw::random::default_generator().offset()};
  };
  CHECK(run(true) == run(false));
}

TEST_CASE("two calls of dropout draw different masks") {
  const Tensor x = rw::ones({64}, rw::float64);
  CHECK(values(rw::dropout(x, 0.5)) != values(rw::dropout(x, 0.5)));
}

TEST_CASE("dropout draws from the generator on shapes alone as in a real run") {
  const Tensor x = rw::ones({100});
  rw::random::seed(1);
  rw::dropout(x, 0.5);
  const std::uint64_t real = rw::random::default_generator().offset();
  rw::random::seed(1);
  {
    const rw::ShapesOnly shapes_only;
    rw::dropout(x, 0.5);
  }
  CHECK(rw::random::default_generator().offset() == real);
}
