#include <doctest/doctest.h>

#include <rewind/autograd/backward.h>
#include <rewind/autograd/functional.h>
#include <rewind/autograd/observer.h>
#include <rewind/core/memory.h>
#include <rewind/core/parallel.h>
#include <rewind/core/random.h>
#include <rewind/optim/adam.h>
#include <rewind/optim/clip.h>
#include <rewind/optim/schedule.h>
#include <rewind/optim/sgd.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

using namespace rewind;
using doctest::Contains;
using optim::Adam;
using optim::AdamW;
using optim::clip_grad_norm;
using optim::SGD;

namespace {

// The problem of the reference vectors: f(w) = 0.5 sum_i a_i (w_i - b_i)^2.
const std::vector<double> a{1, 10, 0.1}, b{1, -2, 0.5}, start{0, 0, 3};

Tensor leaf(const std::vector<double>& values, DType dtype = float64) {
  Tensor w = from(values, {static_cast<std::int64_t>(values.size())}).to(dtype);
  w.set_category(Category::parameter);
  w.set_requires_grad();
  return w;
}

void descend(const Tensor& w) {
  Tensor f = 0.5 * (from(a, {3}).to(w.dtype()) * square(w - from(b, {3}).to(w.dtype())));
  Tensor g = ones(f.shape(), f.dtype());
  backward(std::move(f), std::move(g));
}

template <class Optimizer>
std::vector<double> after(int steps, const typename Optimizer::Options& options, DType dtype = float64) {
  Tensor w = leaf(start, dtype);
  Optimizer optimizer{{w}, options};
  for (int i = 0; i < steps; ++i) {
    descend(w);
    optimizer.step();
  }
  return w.to(float64).to_vector<double>();
}

void check_close(const std::vector<double>& got, const std::vector<double>& expected, double tolerance) {
  REQUIRE(got.size() == expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) CHECK(std::abs(got[i] - expected[i]) <= tolerance);
}

std::size_t tracked() { return memory::live()[Category::optimizer_state]; }

Tensor normal(const Shape& shape, std::uint64_t seed, DType dtype = float64) {
  Tensor t = empty(shape, dtype);
  visit_float(dtype, [&](auto zero) {
    using T = decltype(zero);
    random::fill_normal(t.mutate<T>().data(), t.numel(), T{0}, T{1}, seed, 0);
  });
  return t;
}

}  // namespace

TEST_CASE("ten steps land where PyTorch lands") {
  check_close(after<SGD>(10, {.lr = 0.05}), {0.4012630607616211, -1.998046875, 2.877775326164429}, 1e-12);
  check_close(after<SGD>(10, {.lr = 0.05, .momentum = 0.9}), {1.310922910669629, -1.824550464, 2.504929593865632}, 1e-12);
  check_close(after<SGD>(10, {.lr = 0.05, .momentum = 0.9, .weight_decay = 0.01, .nesterov = true}),
              {1.2540257332148363, -2.030626366096413, 2.382084286626541}, 1e-12);
  check_close(after<Adam>(10, {.lr = 0.1}), {0.9237508393802448, -0.9754131642926388, 2.0180319480271462}, 1e-12);
  check_close(after<AdamW>(10, {.lr = 0.1, .weight_decay = 0.01}), {0.9198131303955015, -0.9710780272231081, 1.9932831013316794},
              1e-12);
}

TEST_CASE("Adam's first step moves each element by the learning rate, but for eps") {
  check_close(after<Adam>(1, {.lr = 0.1}), {0.09999999900000002, -0.09999999995, 2.900000004}, 1e-12);
}

TEST_CASE("Adam's efficient order equals Algorithm 1") {
  for (const double eps : {1e-8, 1e-2})
    for (const int steps : {1, 2, 10, 300}) {
      const auto plain = after<Adam>(steps, {.lr = 0.03, .eps = eps, .weight_decay = 0.1});
      check_close(after<Adam>(steps, {.lr = 0.03, .eps = eps, .weight_decay = 0.1, .efficient_order = true}), plain, 1e-13);
    }
}

TEST_CASE("profiles tell the kinds of update apart") {
  struct Names : Observer {
    std::string last;
    void before(const OpEvent& event) override { last = event.op.name; }
  } names;
  const ObserverScope scope(names);
  const auto op_of = [&](optim::Optimizer& optimizer, const Tensor& w) {
    w.set_grad(zeros(w.shape(), w.dtype()));
    optimizer.step();
    return names.last;
  };
  const Tensor w = leaf(start);
  SGD sgd{{w}}, momentum{{w}, {.momentum = 0.9}};
  Adam adam{{w}}, efficient{{w}, {.efficient_order = true}};
  AdamW adamw{{w}};
  CHECK(op_of(sgd, w) == "sgd_update");
  CHECK(op_of(momentum, w) == "momentum_update");
  CHECK(op_of(adam, w) == "adam_update");
  CHECK(op_of(efficient, w) == "adam_efficient_update");
  CHECK(op_of(adamw, w) == "adamw_update");
}

TEST_CASE("momentum follows its recurrence, dampening and weight decay included") {
  const double lr = 0.05, momentum = 0.8, dampening = 0.3, decay = 0.02;
  std::vector<double> w = start, buffer(3);
  for (int step = 0; step < 7; ++step)
    for (std::size_t i = 0; i < 3; ++i) {
      const double d = a[i] * (w[i] - b[i]) + decay * w[i];
      buffer[i] = step == 0 ? d : momentum * buffer[i] + (1 - dampening) * d;
      w[i] -= lr * buffer[i];
    }
  check_close(after<SGD>(7, {.lr = lr, .momentum = momentum, .dampening = dampening, .weight_decay = decay}), w, 1e-13);
}

TEST_CASE("Adam adds weight decay to the gradient, AdamW takes it off the parameter") {
  const double lr = 0.1, decay = 0.2, b1 = 0.8, b2 = 0.95, eps = 1e-6;
  for (const bool decoupled : {false, true}) {
    std::vector<double> w = start, m(3), v(3);
    for (int t = 1; t <= 6; ++t)
      for (std::size_t i = 0; i < 3; ++i) {
        double g = a[i] * (w[i] - b[i]);
        if (decoupled)
          w[i] -= lr * decay * w[i];
        else
          g += decay * w[i];
        m[i] = b1 * m[i] + (1 - b1) * g;
        v[i] = b2 * v[i] + (1 - b2) * g * g;
        w[i] -= lr * (m[i] / (1 - std::pow(b1, t))) / (std::sqrt(v[i] / (1 - std::pow(b2, t))) + eps);
      }
    check_close(decoupled ? after<AdamW>(6, {.lr = lr, .beta1 = b1, .beta2 = b2, .eps = eps, .weight_decay = decay})
                          : after<Adam>(6, {.lr = lr, .beta1 = b1, .beta2 = b2, .eps = eps, .weight_decay = decay}),
                w, 1e-13);
  }
}

TEST_CASE("float32 follows float64 to float32's accuracy") {
  check_close(after<SGD>(10, {.lr = 0.05, .momentum = 0.9}, float32), after<SGD>(10, {.lr = 0.05, .momentum = 0.9}), 2e-6);
  check_close(after<Adam>(10, {.lr = 0.1}, float32), after<Adam>(10, {.lr = 0.1}), 2e-6);
  check_close(after<AdamW>(10, {.lr = 0.1}, float32), after<AdamW>(10, {.lr = 0.1}), 2e-6);
}

TEST_CASE_TEMPLATE("state bytes equal the tracker's, by slot and in total", T, SGD, Adam, AdamW) {
  typename T::Options options{.lr = 0.1};
  if constexpr (std::is_same_v<T, SGD>) options.momentum = 0.9;
  const std::size_t before = tracked();
  {
    std::vector<Parameter> parameters{{"a", normal({30, 7}, 1)}, {"b", normal({11}, 2, float32)}, {"frozen", normal({100}, 3)}};
    T optimizer{parameters, options};
    CHECK(optimizer.state_bytes() == 0);
    CHECK(tracked() == before);
    const auto give_gradients = [&] {
      for (int i : {0, 1}) {
        const Tensor& w = parameters[static_cast<std::size_t>(i)].value;
        w.set_grad(normal(w.shape(), 9, w.dtype()));
      }
    };
    const std::size_t one = 30 * 7 * 8 + 11 * 4;
    for (int step = 1; step <= 3; ++step) {
      give_gradients();
      optimizer.step();
      std::size_t total = 0;
      for (const auto& slot : optimizer.state_bytes_by_slot()) {
        CHECK(slot.bytes == one);
        total += slot.bytes;
      }
      CHECK(optimizer.state_bytes() == total);
      CHECK(tracked() - before == total);
    }
    const auto slots = optimizer.state_bytes_by_slot();
    if constexpr (std::is_same_v<T, SGD>) {
      REQUIRE(slots.size() == 1);
      CHECK(std::string(slots[0].slot) == "momentum");
      CHECK_FALSE(optimizer.state("frozen", "momentum").defined());
      CHECK(optimizer.state("a", "momentum").shape() == Shape{30, 7});
    } else {
      REQUIRE(slots.size() == 2);
      CHECK(std::string(slots[0].slot) == "m");
      CHECK(std::string(slots[1].slot) == "v");
      CHECK_FALSE(optimizer.state("frozen", "m").defined());
      CHECK(optimizer.state("b", "v").dtype() == float32);
      CHECK(optimizer.state("b", "v").category() == Category::optimizer_state);
    }
    CHECK(optimizer.updates("a") == 3);
    CHECK(optimizer.updates("frozen") == 0);
    CHECK(optimizer.steps() == 3);
  }
  CHECK(tracked() == before);
}

TEST_CASE("SGD without momentum has no state") {
  Tensor w = leaf(start);
  const std::size_t before = tracked();
  SGD sgd{{w}, {.lr = 0.1}};
  descend(w);
  sgd.step();
  CHECK(sgd.state_bytes() == 0);
  CHECK(sgd.state_bytes_by_slot().empty());
  CHECK(tracked() == before);
}

TEST_CASE("the state is the moments of the gradient") {
  Tensor w = leaf({1, 2});
  Adam adam{{Parameter{"w", w}}, {.lr = 0, .beta1 = 0.9, .beta2 = 0.99}};
  w.set_grad(from({1.0, -2.0}, {2}));
  adam.step();
  check_close(adam.state("w", "m").to_vector<double>(), {0.1, -0.2}, 1e-15);
  check_close(adam.state("w", "v").to_vector<double>(), {0.01, 0.04}, 1e-15);
  check_close(w.to_vector<double>(), {1, 2}, 0);
}

TEST_CASE("a step drops each gradient as soon as it is used") {
  const std::size_t before = memory::live()[Category::gradient];
  std::vector<Tensor> w;
  std::vector<std::size_t> seen;
  for (int i = 0; i < 3; ++i) {
    w.push_back(leaf(start));
    const memory::CategoryScope gradient(Category::gradient);
    w.back().set_grad(normal({3}, 5));
  }
  struct Watch : Observer {
    std::vector<std::size_t> gradient_bytes;
    void before(const OpEvent& event) override {
      CHECK(event.phase == Phase::optimizer);
      gradient_bytes.push_back(memory::live()[Category::gradient]);
    }
  } watch;
  const ObserverScope scope(watch);
  Adam adam{w};
  adam.step();
  CHECK(watch.gradient_bytes == std::vector<std::size_t>{before + 72, before + 48, before + 24});
  CHECK(memory::live()[Category::gradient] == before);
  for (const Tensor& t : w) CHECK_FALSE(t.grad().defined());

  w[0].set_grad(normal({3}, 5));
  adam.zero_grad();
  CHECK_FALSE(w[0].grad().defined());
}

TEST_CASE("parameters without a gradient stay, and count their own updates later") {
  Tensor used = leaf(start), late = leaf(start), alone = leaf(start);
  Adam adam{{used, late}, {.lr = 0.1}}, fresh{{alone}, {.lr = 0.1}};
  for (int i = 0; i < 3; ++i) {
    descend(used);
    adam.step();
  }
  CHECK(late.to_vector<double>() == start);
  descend(late);
  adam.step();
  descend(alone);
  fresh.step();
  CHECK(late.to_vector<double>() == alone.to_vector<double>());
  CHECK(adam.updates("0") == 3);
  CHECK(adam.updates("1") == 1);
  CHECK(adam.steps() == 4);
}

TEST_CASE("parameters may be views of one tensor") {
  Tensor all = normal({6, 40}, 7), copy = all.clone();
  std::vector<Tensor> rows{view_rows(all, 1, 3), view_rows(all, 3, 4)};
  Tensor first = view_rows(copy, 1, 3).clone(), second = view_rows(copy, 3, 4).clone();
  Adam on_views{rows, {.lr = 0.1}}, on_tensors{{first, second}, {.lr = 0.1}};
  for (int i = 0; i < 4; ++i) {
    rows[0].set_grad(normal({2, 40}, 8));
    rows[1].set_grad(normal({1, 40}, 9));
    first.set_grad(normal({2, 40}, 8));
    second.set_grad(normal({1, 40}, 9));
    on_views.step();
    on_tensors.step();
  }
  CHECK(rows[0].to_vector<double>() == first.to_vector<double>());
  CHECK(rows[1].to_vector<double>() == second.to_vector<double>());
  CHECK(view_rows(all, 0, 1).to_vector<double>() == view_rows(copy, 0, 1).to_vector<double>());
  CHECK(view_rows(all, 4, 6).to_vector<double>() == view_rows(copy, 4, 6).to_vector<double>());
  CHECK(on_views.state_bytes() == 2 * 3 * 40 * 8);
}

TEST_CASE("groups have learning rates, weight decay and momentum of their own") {
  Tensor x = leaf(start), y = leaf(start), x_alone = leaf(start), y_alone = leaf(start);
  SGD both{{x}, {.lr = 0.05, .momentum = 0.9, .weight_decay = 0.1}};
  both.add_group({y}, {.lr = 0.02});
  SGD one{{x_alone}, {.lr = 0.05, .momentum = 0.9, .weight_decay = 0.1}}, other{{y_alone}, {.lr = 0.02}};
  for (int i = 0; i < 5; ++i) {
    for (const Tensor& w : {x, y, x_alone, y_alone}) descend(w);
    both.step();
    one.step();
    other.step();
  }
  CHECK(x.to_vector<double>() == x_alone.to_vector<double>());
  CHECK(y.to_vector<double>() == y_alone.to_vector<double>());
  CHECK(both.groups() == 2);
  CHECK(both.state_bytes() == 3 * 8);
  CHECK(both.state("0", "momentum").defined());
  CHECK_THROWS_WITH_AS(both.state("1", "momentum"), "SGD: parameter 1 has no state called momentum", Error);

  CHECK(both.learning_rate(0) == 0.05);
  CHECK(both.learning_rate(1) == 0.02);
  both.set_learning_rate(1, 0.5);
  both.scale_learning_rate(0.1);
  CHECK(both.learning_rate(0) == doctest::Approx(0.005));
  CHECK(both.learning_rate(1) == doctest::Approx(0.05));
  both.set_learning_rate(0.25);
  CHECK(both.learning_rate(0) == 0.25);
  CHECK(both.learning_rate(1) == 0.25);
}

TEST_CASE("a changed learning rate acts on the next step") {
  Tensor w = leaf({1});
  SGD sgd{{w}, {.lr = 1}};
  for (const double lr : {0.5, 0.0, 0.25}) {
    sgd.set_learning_rate(lr);
    w.set_grad(from({1.0}, {1}));
    sgd.step();
  }
  CHECK(w.item() == 0.25);
}

TEST_CASE("a step is a change in place that a waiting backward notices") {
  Tensor w = leaf(start);
  SGD sgd{{w}, {.lr = 0.1}};
  Tensor y = square(w);
  w.set_grad(ones({3}, float64));
  sgd.step();
  CHECK_THROWS_WITH_AS(backward(std::move(y), ones({3}, float64)), Contains("modified in place"), Error);
}

TEST_CASE("bits do not depend on the number of threads") {
  const auto train = [](auto make, DType dtype) {
    Tensor w = normal({130001}, 1, dtype);
    w.set_requires_grad();
    auto optimizer = make(w);
    for (int i = 0; i < 3; ++i) {
      w.set_grad(normal({130001}, 2 + static_cast<std::uint64_t>(i), dtype));
      clip_grad_norm({w}, 3.0);
      optimizer->step();
    }
    return w.to(float64).to_vector<double>();
  };
  const auto sgd = [](Tensor w) { return std::make_unique<SGD>(std::vector<Tensor>{w}, SGD::Options{.lr = 0.1}); };
  const auto momentum = [](Tensor w) {
    return std::make_unique<SGD>(std::vector<Tensor>{w}, SGD::Options{.lr = 0.1, .momentum = 0.9, .nesterov = true});
  };
  const auto adam = [](Tensor w) { return std::make_unique<Adam>(std::vector<Tensor>{w}); };
  const auto adamw = [](Tensor w) { return std::make_unique<AdamW>(std::vector<Tensor>{w}); };
  const int before = parallel::threads();
  const auto check = [&](auto make) {
    for (const DType dtype : {float32, float64}) {
      parallel::set_threads(1);
      const auto one = train(make, dtype);
      for (int threads = 2; threads <= 4; ++threads) {
        parallel::set_threads(threads);
        const auto many = train(make, dtype);
        CHECK(std::memcmp(one.data(), many.data(), one.size() * sizeof(double)) == 0);
      }
    }
  };
  check(sgd);
  check(momentum);
  check(adam);
  check(adamw);
  parallel::set_threads(before);
}

TEST_CASE("options that cannot be meant are refused") {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  const Tensor w = leaf(start);
  CHECK_THROWS_WITH_AS(SGD({w}, {.lr = -1}), Contains("SGD: the learning rate must be finite and not negative, got -1"), Error);
  CHECK_THROWS_WITH_AS(Adam({w}, {.lr = std::numeric_limits<double>::quiet_NaN()}), Contains("Adam: the learning rate"), Error);
  CHECK_THROWS_WITH_AS(SGD({w}, {.momentum = -0.5}), Contains("momentum must be finite and not negative"), Error);
  CHECK_THROWS_WITH_AS(SGD({w}, {.weight_decay = -0.5}), Contains("weight_decay must be finite and not negative"), Error);
  CHECK_THROWS_WITH_AS(SGD({w}, {.weight_decay = infinity}), Contains("weight_decay must be finite and not negative"), Error);
  CHECK_THROWS_WITH_AS(SGD({w}, {.momentum = infinity}), Contains("momentum must be finite"), Error);
  CHECK_THROWS_WITH_AS(SGD({w}, {.momentum = 0.9, .dampening = infinity}), Contains("dampening must be finite"), Error);
  CHECK_THROWS_WITH_AS(SGD({w}, {.nesterov = true}), Contains("act on the momentum, which is 0"), Error);
  CHECK_THROWS_WITH_AS(SGD({w}, {.dampening = 0.5}), Contains("act on the momentum, which is 0"), Error);
  CHECK_THROWS_WITH_AS(SGD({w}, {.momentum = 0.9, .dampening = 0.5, .nesterov = true}), Contains("nesterov needs dampening 0"),
                       Error);
  CHECK_THROWS_WITH_AS(Adam({w}, {.beta1 = 1}), Contains("Adam: beta1 must lie in [0, 1), got 1"), Error);
  CHECK_THROWS_WITH_AS(AdamW({w}, {.beta2 = -0.1}), Contains("AdamW: beta2 must lie in [0, 1)"), Error);
  CHECK_THROWS_WITH_AS(Adam({w}, {.eps = -1}), Contains("eps must be finite and not negative"), Error);
  CHECK_THROWS_WITH_AS(AdamW({w}, {.weight_decay = -1}), Contains("weight_decay must be finite and not negative"), Error);
  CHECK_THROWS_WITH_AS(AdamW({w}, {.weight_decay = infinity}), Contains("weight_decay must be finite"), Error);
  CHECK_THROWS_WITH_AS(Adam({w}, {.eps = infinity}), Contains("eps must be finite"), Error);

  SGD sgd{{w}, {.lr = 0.1}};
  CHECK_THROWS_WITH_AS(sgd.set_learning_rate(-1), Contains("learning rate"), Error);
  CHECK_THROWS_WITH_AS(sgd.set_learning_rate(1, 0.1), Contains("there is no group 1, only 1"), Error);
  CHECK_THROWS_WITH_AS(sgd.scale_learning_rate(-1), Contains("learning rate"), Error);
  CHECK_THROWS_WITH_AS(sgd.add_group({leaf(start)}, {.lr = -1}), Contains("learning rate"), Error);
  CHECK(sgd.groups() == 1);
  CHECK(sgd.learning_rate() == 0.1);
}

TEST_CASE("parameters that cannot be optimized are refused, with their name") {
  Tensor w = leaf(start);
  CHECK_THROWS_WITH_AS(SGD(std::vector<Parameter>{}), Contains("no parameters"), Error);
  CHECK_THROWS_WITH_AS(SGD({Parameter{"fc.weight", {}}}), Contains("parameter fc.weight is undefined"), Error);
  CHECK_THROWS_WITH_AS(SGD({Parameter{"index", arange(3, int64)}}), Contains("parameter index is int64 [3]"), Error);
  CHECK_THROWS_WITH_AS(SGD({Parameter{"y", square(w)}}), Contains("parameter y, shape [3], was computed by a recorded op"), Error);
  CHECK_THROWS_WITH_AS(SGD({Parameter{"a", w}, Parameter{"b", w}}), Contains("is given twice"), Error);
  SGD sgd{{Parameter{"a", w}}};
  CHECK_THROWS_WITH_AS(sgd.add_group({Parameter{"again", w}}, {}), Contains("parameter again, shape [3], is given twice"), Error);
  CHECK(sgd.groups() == 1);
  sgd.add_group({Parameter{"a", leaf(start)}}, {});
  CHECK_THROWS_WITH_AS(sgd.updates("a"), Contains("more than one parameter is called a"), Error);
  CHECK_THROWS_WITH_AS(sgd.state("b", "momentum"), Contains("no parameter is called b"), Error);
}

TEST_CASE("running out of memory in the first step changes nothing, and the next try succeeds") {
  const std::vector<double> expected = after<Adam>(1, {.lr = 0.1});
  const std::size_t before = tracked();
  for (std::uint64_t n = 1; n <= 4; ++n) {  // two parameters with two slots each
    Tensor x = leaf(start), y = leaf(start);
    Adam adam{{x, y}, {.lr = 0.1}};
    descend(x);
    descend(y);
    memory::fail_at(n);
    CHECK_THROWS_WITH_AS(adam.step(), Contains("Adam needs 24 bytes"), OutOfMemory);
    CHECK(x.to_vector<double>() == start);
    CHECK(y.to_vector<double>() == start);
    CHECK(x.grad().defined());
    CHECK(y.grad().defined());
    CHECK(adam.steps() == 0);
    CHECK(adam.state_bytes() == (n - 1) * 24);
    CHECK(adam.state_bytes() == tracked() - before);
    adam.step();
    CHECK(x.to_vector<double>() == expected);
    CHECK(y.to_vector<double>() == expected);
    CHECK(adam.state_bytes() == tracked() - before);
  }
  CHECK(tracked() == before);
}

TEST_CASE("a dry run counts the state that a step will take, and moves nothing") {
  Tensor w = leaf(start), v = leaf(start);
  Adam adam{{w}, {.lr = 0.1}};
  const std::size_t before = tracked();
  {
    const ShapesOnly dry;
    w.set_grad(zeros({3}, float64));
    CHECK(std::isnan(clip_grad_norm({w}, 1.0)));
    adam.step();
    CHECK(adam.state_bytes() == 2 * 3 * 8);
    CHECK(tracked() == before + 2 * 3 * 8);
    CHECK_FALSE(w.grad().defined());
    w.set_grad(zeros({3}, float64));
    adam.step();
    CHECK(tracked() == before + 2 * 3 * 8);
  }
  CHECK(adam.steps() == 0);
  CHECK(adam.updates("0") == 0);
  CHECK(adam.state_bytes() == 0);
  CHECK_FALSE(adam.state("0", "m").defined());
  CHECK(tracked() == before);
  CHECK(w.to_vector<double>() == start);

  descend(w);
  adam.step();
  CHECK(w.to_vector<double>() == after<Adam>(1, {.lr = 0.1}));
  CHECK(adam.state_bytes() == 2 * 3 * 8);
  CHECK(tracked() == before + 2 * 3 * 8);

  // With real state in place, a dry step leaves it alone.
  const auto m = adam.state("0", "m").to_vector<double>();
  {
    const ShapesOnly dry;
    w.set_grad(zeros({3}, float64));
    adam.step();
  }
  CHECK(adam.state("0", "m").to_vector<double>() == m);
  CHECK(adam.steps() == 1);
}

TEST_CASE("clipping scales all gradients by one factor and returns the norm") {
  Tensor x = leaf({0, 0}), y = leaf({0}), none = leaf(start);
  x.set_grad(from({3.0, 0.0}, {2}));
  y.set_grad(from({4.0}, {1}));
  CHECK(clip_grad_norm({x, none, y}, 1.0) == 5);
  const double factor = 1 / (5 + 1e-6);
  check_close(x.grad().to_vector<double>(), {3 * factor, 0}, 1e-15);
  check_close(y.grad().to_vector<double>(), {4 * factor}, 1e-15);
  CHECK_FALSE(none.grad().defined());
  // Floats whose squares are none.
  Tensor large = zeros({2}).set_requires_grad();
  large.set_grad(from<float>({3e20F, 4e20F}, {2}));
  CHECK(clip_grad_norm({large}, 1.0) == doctest::Approx(5e20));
  CHECK(large.grad().to_vector<float>()[1] == doctest::Approx(0.8));
  const optim::SGD sgd({large}, {.lr = 1});
  CHECK_THROWS_WITH_AS(sgd.options(7), doctest::Contains("there is no group 7 among its 1"), Error);
}

TEST_CASE("the norm of gradients whose squares float32 cannot hold") {
  for (const double size : {1e-20, 1e-25, 1e-37}) {
    Tensor p = zeros({4}).set_requires_grad();
    p.set_grad(full({4}, size));
    CHECK(clip_grad_norm({p}, std::numeric_limits<double>::infinity()) == doctest::Approx(2 * size).epsilon(1e-6));
  }
}

TEST_CASE("clipping leaves gradients within the norm as they are") {
  Tensor x = leaf({0, 0});
  x.set_grad(from({0.3, -0.4}, {2}));
  CHECK(clip_grad_norm({Parameter{"x", x}}, 0.6) == doctest::Approx(0.5));
  CHECK(x.grad().to_vector<double>() == std::vector<double>{0.3, -0.4});
  CHECK(clip_grad_norm({x}, std::numeric_limits<double>::infinity()) == doctest::Approx(0.5));
  CHECK(x.grad().to_vector<double>() == std::vector<double>{0.3, -0.4});
  CHECK(clip_grad_norm(std::vector<Tensor>{}, 1.0) == 0);
  x.set_grad(from({std::numeric_limits<double>::infinity(), 1.0}, {2}));
  CHECK(std::isinf(clip_grad_norm({x}, std::numeric_limits<double>::infinity())));
  CHECK(x.grad().to_vector<double>()[1] == 1);
}

TEST_CASE("clipping takes float32 and float64 gradients together") {
  Tensor x = leaf({0, 0}), y = leaf({0, 0}, float32);
  x.set_grad(from({1.0, 1.0}, {2}));
  y.set_grad(from({1.0f, 1.0f}, {2}));
  CHECK(clip_grad_norm({x, y}, 1.0) == 2);
  CHECK(x.grad().to_vector<double>()[0] == doctest::Approx(0.5).epsilon(1e-6));
  CHECK(y.grad().to_vector<float>()[1] == doctest::Approx(0.5).epsilon(1e-6));
}

TEST_CASE("a norm that is not a number reaches the gradients") {
  Tensor x = leaf({0, 0});
  x.set_grad(from({1.0, std::numeric_limits<double>::quiet_NaN()}, {2}));
  CHECK(std::isnan(clip_grad_norm({x}, 1.0)));
  CHECK(std::isnan(x.grad().to_vector<double>()[0]));
  CHECK_THROWS_WITH_AS(clip_grad_norm({x}, -1.0), Contains("max_norm must not be negative, got -1"), Error);
}

TEST_CASE("schedules have their closed forms") {
  const optim::StepDecay step{.every = 3, .factor = 0.5};
  const double halves[] = {1, 1, 1, 0.5, 0.5, 0.5, 0.25};
  for (int t = 0; t < 7; ++t) CHECK(step.at(t) == halves[t]);

  const optim::Cosine cosine{.steps = 8, .end = 0.1};
  CHECK(cosine.at(0) == 1);
  CHECK(cosine.at(4) == doctest::Approx(0.55));
  for (int t = 0; t <= 8; ++t) CHECK(cosine.at(t) == doctest::Approx(0.1 + 0.9 * (1 + std::cos(std::acos(-1.0) * t / 8)) / 2));
  CHECK(cosine.at(8) == 0.1);
  CHECK(cosine.at(100) == 0.1);

  const optim::Linear linear{.steps = 4, .start = 0.2};
  const double ramp[] = {0.2, 0.4, 0.6, 0.8, 1, 1};
  for (int t = 0; t < 6; ++t) CHECK(linear.at(t) == doctest::Approx(ramp[t]));

  const auto both = optim::warmup({.steps = 4, .start = 0.2}, cosine);
  for (int t = 0; t < 4; ++t) CHECK(both.at(t) == linear.at(t));
  for (int t = 4; t < 20; ++t) CHECK(both.at(t) == cosine.at(t - 4));

  CHECK_THROWS_WITH_AS(step.at(-1), Contains("StepDecay: steps count from 0, got -1"), Error);
  CHECK_THROWS_WITH_AS((optim::StepDecay{.every = 0}.at(0)), Contains("every must be at least 1"), Error);
  CHECK_THROWS_WITH_AS((optim::Cosine{.steps = 0}.at(0)), Contains("Cosine: steps must be at least 1, got 0"), Error);
  CHECK_THROWS_WITH_AS((optim::Linear{.steps = -2}.at(0)), Contains("Linear: steps must be at least 1, got -2"), Error);
}

TEST_CASE("an optimizer follows a schedule, each group from its own learning rate") {
  Tensor x = leaf({0}), y = leaf({0});
  SGD sgd{{x}, {.lr = 1}};
  sgd.add_group({y}, {.lr = 10});
  const auto schedule = optim::warmup({.steps = 2, .start = 0.5}, optim::StepDecay{.every = 1, .factor = 0.1});
  double moved = 0;
  for (int t = 0; t < 5; ++t) {
    x.set_grad(from({-1.0}, {1}));
    y.set_grad(from({-1.0}, {1}));
    sgd.follow(schedule);
    sgd.step();
    moved += schedule.at(t);
  }
  CHECK(x.item() == doctest::Approx(moved));
  CHECK(y.item() == doctest::Approx(10 * moved));
}

TEST_CASE("after a trial an optimizer goes on as if its steps had not been") {
  const auto run = [](bool trial) {
    Tensor w = from({1.0f, 2.0f, 3.0f}, {3}).set_requires_grad();
    optim::Adam adam{{{"w", w}}, {.lr = 0.1}};
    const auto step = [&](float g) {
      w.set_grad(full({3}, g));
      adam.step();
    };
    step(1);
    if (trial) {
      w.set_grad(full({3}, 9));
      {
        const optim::Optimizer::Trial on_trial(adam);
        CHECK_FALSE(w.grad().defined());
        step(5);
        step(-7);
      }
      CHECK(adam.steps() == 1);
      CHECK(adam.updates("w") == 1);
      CHECK(w.grad().to_vector<float>() == std::vector<float>{9, 9, 9});
    }
    step(2);
    return hash(w);
  };
  CHECK(run(true) == run(false));
}

TEST_CASE("state that a trial made is gone after it") {
  Tensor w = ones({4}).set_requires_grad();
  optim::Adam adam{{{"w", w}}, {}};
  {
    const optim::Optimizer::Trial on_trial(adam);
    w.set_grad(ones({4}));
    adam.step();
    CHECK(adam.state_bytes() > 0);
  }
  CHECK(adam.state_bytes() == 0);
  CHECK(adam.steps() == 0);
  w.set_grad(ones({4}));
  adam.step();
  CHECK(adam.state_bytes() == 2 * 4 * 4);
  CHECK(adam.steps() == 1);
}

TEST_CASE("Adam goes on after a gradient whose square is infinite in float32") {
  const Tensor w = rewind::ones({1}).set_requires_grad();
  Adam adam{{{"w", w}}, {.lr = 0.1}};
  for (const float g : {2e19F, 1.0F, 1.0F}) {
    w.set_grad(rewind::full({1}, g));
    adam.step();
  }
  CHECK(w.to_vector<float>()[0] == doctest::Approx(0.78120).epsilon(1e-4));  // 1 where v is infinite
}

TEST_CASE("an optimizer resumes where another one stopped, with the same bits") {
  const auto train = [](auto& optimizer, const Tensor& w, int from, int to) {
    for (int i = from; i < to; ++i) {
      rewind::random::seed(static_cast<std::uint64_t>(i));
      w.set_grad(rewind::randn({33}));
      optimizer.follow(optim::Cosine{10});
      optimizer.step();
    }
  };
  const auto check = [&](auto make, std::initializer_list<const char*> slots) {
    const Tensor straight = rewind::ones({33}).set_requires_grad();
    auto whole = make(straight);
    train(whole, straight, 0, 7);

    const Tensor first = rewind::ones({33}).set_requires_grad();
    auto before = make(first);
    train(before, first, 0, 4);
    const Tensor second = first.clone().set_requires_grad();
    auto after = make(second);
    after.resume(before.steps());
    after.resume("w", before.updates("w"));
    for (const char* slot : slots) after.state("w", slot).copy_from(before.state("w", slot));
    train(after, second, 4, 7);
    CHECK(after.steps() == 7);
    CHECK(rewind::hash(second) == rewind::hash(straight));
  };
  check([](const Tensor& w) { return Adam{{{"w", w}}, {.lr = 0.1}}; }, {"m", "v"});
  check([](const Tensor& w) { return AdamW{{{"w", w}}, {.lr = 0.1}}; }, {"m", "v"});
  check([](const Tensor& w) { return SGD{{{"w", w}}, {.lr = 0.1, .momentum = 0.9, .dampening = 0.5}}; }, {"momentum"});
  Adam adam{{{"w", rewind::ones({1}).set_requires_grad()}}, {}};
  CHECK_THROWS_WITH_AS(adam.resume("w", -1), "Adam: cannot resume from a count of -1, which must not be negative", Error);
  CHECK_THROWS_WITH_AS(adam.resume("v", 1), "Adam: no parameter is called v", Error);
  adam.resume("w", 0);
  CHECK(adam.state_bytes() == 0);
}
