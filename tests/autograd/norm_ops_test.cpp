// batch_norm and layer_norm: against plain ops, running statistics, what is saved, derivatives of derivatives, errors.

#include <rewind/autograd/backward.h>
#include <rewind/autograd/checkpoint.h>
#include <rewind/autograd/dry_run.h>
#include <rewind/autograd/functional.h>
#include <rewind/autograd/grad_mode.h>
#include <rewind/autograd/gradcheck.h>
#include <rewind/autograd/ops/sample.h>

#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

namespace rw = rewind;
using doctest::Approx;
using rw::Epilogue;
using rw::Shape;
using rw::Tensor;
using rw::ops::sample;
using Values = std::vector<double>;

namespace {

Values values(const Tensor& t) { return t.to_vector<double>(); }
Tensor leaf(Tensor t) { return t.set_requires_grad(); }

bool close(const Tensor& a, const Tensor& b, double tolerance = 1e-10) {
  if (!(a.shape() == b.shape())) return false;
  const auto x = a.values<double>(), y = b.values<double>();
  for (std::size_t i = 0; i < x.size(); ++i)
    if (!(std::abs(x[i] - y[i]) <= tolerance * (1 + std::abs(y[i])))) return false;
  return true;
}

Tensor activate(Tensor z, Epilogue e) {
  return e == Epilogue::none ? z : e == Epilogue::relu ? rw::relu(std::move(z)) : rw::relu6(std::move(z));
}

/// The definition, in plain ops.
Tensor plain_norm(const Tensor& x, const Tensor& gamma, const Tensor& beta, const std::vector<int>& axes, double eps,
                  Epilogue e = Epilogue::none) {
  const Tensor centred = x - rw::mean(x, axes, true);
  const Tensor var = rw::mean(rw::square(centred), axes, true);
  return activate(centred / rw::sqrt(var + eps) * gamma + beta, e);
}

std::vector<int> all_but_last(const Tensor& x) {
  std::vector<int> axes;
  for (int i = 0; i + 1 < x.rank(); ++i) axes.push_back(i);
  return axes;
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

constexpr Epilogue epilogues[] = {Epilogue::none, Epilogue::relu, Epilogue::relu6};

}  // namespace

TEST_CASE("batch_norm equals its definition in plain ops, gradients included") {
  for (const Shape& shape : {Shape{8, 3}, Shape{3, 5, 4, 7}, Shape{2, 40, 1}})
    for (const Epilogue e : epilogues) {
      const Shape c{shape[-1]};
      std::vector<Tensor> results[2];
      for (const bool plain : {false, true}) {
        const Tensor x = leaf(sample(shape, -2, 5)), gamma = leaf(sample(c, 2, 5, 1)), beta = leaf(sample(c, -1, 3, 2));
        const Tensor y = plain ? plain_norm(x, gamma, beta, all_but_last(x), 1e-3, e)
                               : rw::batch_norm(x, gamma, beta, {}, {}, {.eps = 1e-3, .epilogue = e});
        rw::backward(rw::sum(y * sample(shape, -1, 1, 9)));
        results[plain] = {y.detach(), x.grad(), gamma.grad(), beta.grad()};
      }
      for (std::size_t i = 0; i < 4; ++i) CHECK(close(results[0][i], results[1][i]));
    }
}

TEST_CASE("batch_norm without gamma and beta gives mean 0 and variance 1") {
  const Tensor y = rw::batch_norm(sample({50, 3}, 100, 300), {}, {}, {}, {}, {.eps = 0});
  CHECK(close(rw::mean(y, {0}), rw::zeros({3}, rw::float64), 1e-12));
  CHECK(close(rw::mean(rw::square(y), {0}), rw::ones({3}, rw::float64), 1e-12));
}

TEST_CASE("running statistics move as PyTorch moves them: the variance unbiased") {
  const Tensor x = rw::from<double>({1, 10, 3, 20, 5, 60}, {3, 2});  // means 3, 30; unbiased variances 4, 700
  const Tensor mean = rw::zeros({2}, rw::float64), var = rw::ones({2}, rw::float64);
  rw::batch_norm(x, {}, {}, mean, var);
  CHECK(close(mean, rw::from<double>({0.3, 3}, {2})));
  CHECK(close(var, rw::from<double>({0.9 + 0.4, 0.9 + 70}, {2})));
  rw::batch_norm(x, {}, {}, mean, var, {.momentum = 1});
  CHECK(close(mean, rw::from<double>({3, 30}, {2})));
  CHECK(close(var, rw::from<double>({4, 700}, {2})));
}

TEST_CASE("running statistics keep their precision where the variance is far below eps") {
  const Tensor x = rw::from<float>({1e-6F, -1e-6F}, {2, 1}), mean = rw::zeros({1}), var = rw::zeros({1});
  rw::batch_norm(x, {}, {}, mean, var, {.eps = 1, .momentum = 1});
  CHECK(var.item() == Approx(2e-12).epsilon(1e-5));
}

TEST_CASE("running statistics move once, also in a checkpointed function, and not in a dry run") {
  Tensor mean = rw::zeros({3}, rw::float64), var = rw::ones({3}, rw::float64);
  const Tensor x = leaf(sample({6, 3})), gamma = leaf(sample({3}, 1, 2)), beta = leaf(sample({3}));
  const auto f = [=](Tensor t) { return rw::batch_norm(std::move(t), gamma, beta, mean, var, {.epilogue = Epilogue::relu}); };
  rw::dry_run([&] { rw::backward(rw::sum(f(sample({6, 3})))); });
  CHECK(values(mean) == Values{0, 0, 0});

  rw::backward(rw::sum(rw::square(f(x))));
  const Values once = values(mean), var_once = values(var), g = values(x.grad()), g_gamma = values(gamma.grad());
  for (const Tensor& t : {x, gamma, beta}) t.set_grad({});
  mean.fill(0);
  var.fill(1);
  rw::backward(rw::sum(rw::square(rw::checkpoint(f, x))));
  CHECK(values(mean) == once);
  CHECK(values(var) == var_once);
  CHECK(values(x.grad()) == g);
  CHECK(values(gamma.grad()) == g_gamma);
}

TEST_CASE("with the batch's own statistics the evaluation form gives the same numbers") {
  for (const Epilogue e : epilogues) {
    const Tensor x = sample({4, 5, 6}), gamma = sample({6}, 1, 4, 1), beta = sample({6}, -1, 3, 2);
    const Tensor mean = rw::mean(x, {0, 1}), var = rw::mean(rw::square(x - mean), {0, 1});
    CHECK(close(rw::batch_norm_inference(x, gamma, beta, mean, var, {.epilogue = e}),
                rw::batch_norm(x, gamma, beta, {}, {}, {.epilogue = e})));
  }
}

TEST_CASE("the evaluation form passes gradients to everything it is given") {
  for (const Epilogue e : epilogues) {
    std::vector<Tensor> results[2];
    for (const bool plain : {false, true}) {
      const std::vector<Tensor> in{leaf(sample({7, 4}, -2, 5)), leaf(sample({4}, 2, 5, 1)), leaf(sample({4}, -1, 3, 2)),
                                   leaf(sample({4}, -1, 1, 3)), leaf(sample({4}, 0.5, 2, 4))};
      const Tensor y = plain ? activate((in[0] - in[3]) / rw::sqrt(in[4] + 1e-5) * in[1] + in[2], e)
                             : rw::batch_norm_inference(in[0], in[1], in[2], in[3], in[4], {.epilogue = e});
      results[plain] = rw::grad(rw::sum(y * sample({7, 4}, -1, 1, 9)), in);
    }
    for (std::size_t i = 0; i < 5; ++i) CHECK(close(results[0][i], results[1][i]));
  }
}

TEST_CASE("an evaluation writes into its input's buffer, and a frozen batch_norm does not keep its input") {
  const Tensor mean = rw::zeros({64}), var = rw::ones({64});
  {
    const rw::NoGrad no_grad;
    Tensor x = rw::zeros({128, 64});
    const rw::memory::Scope scope;
    const Tensor y = rw::batch_norm_inference(std::move(x), {}, {}, mean, var);
    CHECK(scope.peak()[rw::Category::activation] == scope.before()[rw::Category::activation]);
  }
  const Tensor x = leaf(rw::zeros({128, 64}));
  const std::size_t before = rw::memory::live().total;
  const Tensor y = rw::batch_norm_inference(x * 2.0, {}, {}, mean, var);
  CHECK(rw::memory::live().total == before + y.bytes());
}

TEST_CASE("training keeps x and two numbers a channel of a batch_norm, and its backward needs one gradient more") {
  const Tensor x = leaf(rw::zeros({256, 64})), gamma = leaf(rw::ones({64})), beta = leaf(rw::zeros({64}));
  const std::size_t before = rw::memory::live().total;
  Tensor h = x * 2.0;
  Tensor y = rw::batch_norm(std::move(h), gamma, beta, {}, {}, {.epilogue = Epilogue::relu});
  CHECK(rw::memory::live().total == before + 2 * y.bytes() + 2 * gamma.bytes());
}

TEST_CASE("a dry run knows the memory of normalisations") {
  const auto step = [] {
    const Tensor x = leaf(rw::zeros({700, 96})), gamma = leaf(rw::ones({96})), beta = leaf(rw::zeros({96}));
    const Tensor mean = rw::zeros({96}), var = rw::ones({96});
    Tensor h = rw::batch_norm(x * 2.0, gamma, beta, mean, var, {.epilogue = Epilogue::relu6});
    h = rw::layer_norm(std::move(h), gamma, beta);
    h = rw::batch_norm_inference(std::move(h), gamma, beta, mean, var);
    rw::backward(rw::mean(h));
  };
  const rw::DryRun plan = rw::dry_run(step);
  const rw::memory::Scope scope;
  step();
  CHECK(plan.peak == scope.peak());
}

TEST_CASE("layer_norm equals its definition in plain ops, gradients included") {
  for (const Shape& shape : {Shape{7}, Shape{8, 3}, Shape{3, 5, 33}}) {
    const Shape c{shape[-1]};
    std::vector<Tensor> results[2];
    for (const bool plain : {false, true}) {
      const Tensor x = leaf(sample(shape, -2, 5)), gamma = leaf(sample(c, 1, 2, 1)), beta = leaf(sample(c, -1, 3, 2));
      const Tensor y = plain ? plain_norm(x, gamma, beta, {-1}, 1e-3) : rw::layer_norm(x, gamma, beta, 1e-3);
      rw::backward(rw::sum(y * sample(shape, -1, 1, 9)));
      results[plain] = {y.detach(), x.grad(), gamma.grad(), beta.grad()};
    }
    for (std::size_t i = 0; i < 4; ++i) CHECK(close(results[0][i], results[1][i]));
  }
}

TEST_CASE("normalisations can be differentiated twice") {
  const auto check = [](auto f, const std::vector<Tensor>& in) {
    const rw::GradcheckResult r = rw::gradcheck(f, in, {.second_order = true});
    CHECK_MESSAGE(r.ok, r.message);
  };
  for (const Epilogue e : epilogues) {
    const std::vector<Tensor> in{sample({6, 3}), sample({3}, 2, 4, 1), sample({3}, 0.3, 3, 2)};
    check([=](std::vector<Tensor> t) { return rw::batch_norm(t[0], t[1], t[2], {}, {}, {.eps = 0.01, .epilogue = e}); }, in);
    check([=](std::vector<Tensor> t) { return rw::batch_norm_inference(t[0], t[1], t[2], t[3], t[4], {.epilogue = e}); },
          {in[0], in[1], in[2], sample({3}, -0.2, 0.3, 3), sample({3}, 0.5, 2, 4)});
  }
  check([](std::vector<Tensor> t) { return rw::batch_norm(t[0], {}, {}, {}, {}, {.eps = 0.01}); }, {sample({2, 4, 2})});
  check([](std::vector<Tensor> t) { return rw::layer_norm(t[0], t[1], t[2], 0.01); },
        {sample({3, 5}), sample({5}, 0.5, 2, 1), sample({5})});
  check([](std::vector<Tensor> t) { return rw::layer_norm(t[0], {}, {}, 0.01); }, {sample({2, 2, 4})});
}

TEST_CASE("the second derivative of batch_norm is that of its definition") {
  // A gradient penalty, as in training a discriminator: the square of the gradient is differentiated.
  std::vector<Tensor> results[2];
  for (const bool plain : {false, true}) {
    const std::vector<Tensor> in{leaf(sample({9, 4})), leaf(sample({4}, 1, 2, 1)), leaf(sample({4}, 0.1, 1, 2))};
    const Tensor y =
        plain ? plain_norm(in[0], in[1], in[2], {0}, 0.01) : rw::batch_norm(in[0], in[1], in[2], {}, {}, {.eps = 0.01});
    const Tensor g = rw::grad(rw::sum(rw::square(y) * y), {in[0]}, {.create_graph = true})[0];
    rw::backward(rw::sum(rw::square(g)));
    for (const Tensor& t : in) results[plain].push_back(t.grad());
  }
  for (std::size_t i = 0; i < 3; ++i) CHECK(close(results[0][i], results[1][i], 1e-8));
}

TEST_CASE("normalisations name themselves and the shapes in errors") {
  const Tensor x = sample({2, 3}), c = sample({3}), wrong = sample({2});
  says(message_of([&] { rw::batch_norm(x, wrong, {}, {}, {}); }),
       "batch_norm: gamma must have shape [3], one element a channel of x [2, 3], not [2]");
  says(message_of([&] { rw::batch_norm(c, {}, {}, {}, {}); }), "batch_norm: x must be [..., channels]");
  says(message_of([&] { rw::batch_norm(x, {}, {}, c, {}); }), "batch_norm: give both of running_mean and running_var");
  says(message_of([&] { rw::batch_norm(sample({1, 3}), {}, {}, c, c.clone()); }), "batch_norm: x [1, 3] has one value a channel");
  CHECK_NOTHROW(rw::batch_norm(sample({1, 3}), {}, {}, {}, {}));
  says(message_of([&] { rw::batch_norm(x, {}, {}, wrong, wrong.clone()); }), "running_mean must have shape [3]");
  says(message_of([&] { rw::batch_norm(x.to(rw::float32), {}, {}, c, c.clone()); }), "inputs must have one dtype");
  says(message_of([&] { rw::batch_norm(Tensor(), {}, {}, {}, {}); }), "batch_norm: input 0 is undefined");
  says(message_of([&] { rw::batch_norm_inference(x, {}, {}, c, {}); }), "batch_norm_inference: input 4 is undefined");
  says(message_of([&] { rw::layer_norm(x, {}, wrong); }), "layer_norm: beta must have shape [3]");
}
