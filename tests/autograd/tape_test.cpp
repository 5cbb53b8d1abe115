// The tape: what backward computes, what it frees and when, and what it says when it is misused.

#include <rewind/autograd/backward.h>
#include <rewind/autograd/checkpoint.h>
#include <rewind/autograd/functional.h>
#include <rewind/autograd/grad_mode.h>
#include <rewind/autograd/gradcheck.h>
#include <rewind/autograd/observer.h>
#include <rewind/core/memory.h>

#include <doctest/doctest.h>

#include <atomic>
#include <cmath>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace rw = rewind;
using rw::Tensor;

namespace {

Tensor leaf(std::initializer_list<double> v) {
  Tensor t = rw::from<double>(v, {static_cast<std::int64_t>(v.size())});
  t.set_requires_grad();
  return t;
}

std::size_t live() { return rw::memory::live().total; }

template <class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const rw::Error& e) {
    return e.what();
  }
  return "";
}

bool contains(const std::string& text, const char* part) { return text.find(part) != text.npos; }

}  // namespace

TEST_CASE("backward adds to leaves, step after step") {
  Tensor x = leaf({1, 2, 3});
  rw::backward(rw::sum_to(x * x, {}));
  CHECK(x.grad().to_vector<double>() == std::vector<double>{2, 4, 6});
  rw::backward(rw::sum_to(x * x, {}));
  CHECK(x.grad().to_vector<double>() == std::vector<double>{4, 8, 12});
}

TEST_CASE("a value that is used twice collects both gradients") {
  Tensor x = leaf({3});
  Tensor y = x * x;
  rw::backward(rw::sum_to(y * y + y, {}));  // x^4 + x^2
  CHECK(x.grad().item() == doctest::Approx(4 * 27 + 6));
}

TEST_CASE("backward frees everything that forward saved") {
  Tensor x = leaf({1, 2, 3});
  const std::size_t before = live();
  {
    Tensor y = rw::sum_to(rw::exp(x * x), {});
    CHECK(live() > before);
    rw::backward(std::move(y));
  }
  x.set_grad({});
  CHECK(live() == before);
}

TEST_CASE("a graph that nobody goes back through is dropped with its last handle") {
  Tensor x = leaf({1, 2, 3});
  const std::size_t before = live();
  {
    Tensor y = rw::exp(x * x);
    Tensor z = rw::tanh(y * y);
    CHECK(live() > before);
  }
  CHECK(live() == before);
}

TEST_CASE("dropping a very long graph does not recurse") {
  Tensor x = leaf({1});
  const std::size_t before = live();
  {
    Tensor y = x * x;
    for (int i = 0; i < 200000; ++i) y = y * 1.0;
  }
  CHECK(live() == before);
}

TEST_CASE("graphs may be interleaved, kept and gone back through in any order") {
  Tensor x = leaf({2});
  Tensor a = x * x;
  Tensor b = x * x * x;
  Tensor c = x + 1.0;
  rw::backward(rw::sum_to(a, {}));
  CHECK(x.grad().item() == 4);
  x.set_grad({});
  rw::backward(rw::sum_to(c, {}));
  CHECK(x.grad().item() == 1);
  x.set_grad({});
  rw::backward(rw::sum_to(b, {}));
  CHECK(x.grad().item() == 12);
}

TEST_CASE("a second backward over the same tape is an error that says so") {
  Tensor x = leaf({1, 2});
  Tensor y = rw::sum_to(x * x, {});
  rw::backward(y);
  CHECK(contains(message_of([&] { rw::backward(y); }), "already consumed by an earlier backward"));

  Tensor trunk = x * x;
  Tensor one = rw::sum_to(trunk, {}), two = rw::sum_to(trunk * 2.0, {});
  rw::backward(one);
  x.set_grad({});
  CHECK(contains(message_of([&] { rw::backward(two); }), "already consumed by an earlier backward"));
}

TEST_CASE("a saved tensor that is modified in place is noticed") {
  Tensor x = leaf({1, 2});
  Tensor y = x + 1.0;
  Tensor z = rw::sum_to(y * y, {});
  y.detach().mutate<double>()[0] = 7;
  const std::string text = message_of([&] { rw::backward(z); });
  CHECK(contains(text, "of mul, shape [2]"));
  CHECK(contains(text, "modified in place"));
}

TEST_CASE("what a recorded op has computed is not written to, since backward would not know") {
  Tensor x = leaf({1, 2});
  Tensor y = x * 2.0;  // saves nothing that could be noticed
  for (const std::string& text :
       {message_of([&] { y.fill(5); }), message_of([&] { y.copy_from(x); }), message_of([&] { y.mutate<double>(); })}) {
    CHECK(contains(text, "this tensor [2] was computed by a recorded op"));
    CHECK(contains(text, "detach()"));
  }
  rw::backward(rw::sum(y));
  CHECK(x.grad().to_vector<double>() == std::vector<double>{2, 2});
  const rw::NoGrad no_grad;
  (x * 2.0).fill(5);
}

TEST_CASE("each gradient that grad() returns is a buffer of its own") {
  Tensor a = leaf({1, 2}), b = leaf({3, 4}), seed = rw::ones({2}, rw::float64);
  const auto g = rw::grad(rw::sum(a + b), {a, b, a});
  Tensor first = g[0];
  first.fill(7);
  CHECK(g[1].to_vector<double>() == std::vector<double>{1, 1});
  CHECK(g[2].to_vector<double>() == std::vector<double>{1, 1});
  CHECK_FALSE(rw::grad(a + 1.0, {a}, {.output_gradient = seed})[0].shares_storage(seed));
}

TEST_CASE("an output gradient with a history leaves none in the gradients, moved in or not") {
  Tensor w = leaf({1, 1}), x = leaf({1, 1});
  for (const bool moved : {false, true}) {
    Tensor g = w * 2.0;
    if (moved)
      rw::backward(x + 1.0, std::move(g));
    else
      rw::backward(x + 1.0, g);
    CHECK(x.grad().is_leaf());
    CHECK_FALSE(x.grad().requires_grad());
    x.set_grad({});
  }
}

TEST_CASE("what has nothing to do gives its argument back, under NoGrad without a history") {
  Tensor x = leaf({2, 3});
  const Tensor h = x * 1.0;
  const auto same = [&] {
    return std::vector{rw::reshape(h, {2}), rw::sum_to(h, {2}), rw::broadcast_to(h, {2}), rw::dropout(h, 0)};
  };
  for (const Tensor& t : same()) CHECK(t.requires_grad());
  const rw::NoGrad no_grad;
  for (const Tensor& t : same()) {
    CHECK_FALSE(t.requires_grad());
    CHECK(t.shares_storage(h));
  }
}

TEST_CASE("grad() of one of several results of a checkpointed function is refused: the function may have made others of it") {
  Tensor x = leaf({0.5, 0.5});
  const auto both = [](Tensor a) {
    Tensor h = std::move(a) * 2.0;
    return std::vector{h, rw::square(h)};
  };
  const std::vector<Tensor> v = rw::checkpoint(both, x);
  CHECK(contains(message_of([&] { rw::grad(rw::sum(v[0] + v[1]), {v[0]}); }),
                 "was returned by a checkpointed function together with others"));
  CHECK(rw::grad(rw::sum(v[0] + v[1]), {x})[0].to_vector<double>() == std::vector<double>{6, 6});
  const Tensor one = rw::checkpoint([](Tensor a) { return std::move(a) * 2.0; }, x);
  CHECK(rw::grad(rw::sum(rw::square(one)), {one})[0].to_vector<double>() == std::vector<double>{2, 2});
}

TEST_CASE("observers may go in any order") {
  struct Count final : rw::Observer {
    int ops = 0;
    void after(const rw::OpEvent&) override { ++ops; }
  } first, second;
  auto one = std::make_unique<rw::ObserverScope>(first), two = std::make_unique<rw::ObserverScope>(second);
  one.reset();
  rw::exp(leaf({1}));
  two.reset();
  rw::exp(leaf({1}));
  CHECK(first.ops == 0);
  CHECK(second.ops == 1);
}

/// An op that says what it makes, and does nothing.
template <std::uint32_t Mutates>
struct Declared {
  static constexpr const char* name = "declared";
  static constexpr rw::Kind kind = rw::Kind::elementwise;
  static constexpr std::uint32_t mutates = Mutates;
  static constexpr const char* no_gradient = "it makes nothing";
  struct Attr {
    int outputs = 1;
    std::int64_t rows = 1, view_offset = -1;
  };
  static rw::Specs infer(rw::Inputs, const Attr& a) {
    rw::Specs specs;
    for (int i = 0; i < a.outputs; ++i) specs.push_back({.shape = {a.rows}, .view_offset = a.view_offset});
    return specs;
  }
  static rw::Cost cost(rw::Inputs, const rw::Specs&, const Attr&) { return {}; }
  static void forward(const rw::Forward&, const Attr&) {}
  static void samples(rw::Samples<Attr>) {}
};

TEST_CASE("an op of one's own that cannot be is refused by name, as a mistake of its author") {
  const Tensor x = rw::ones({4});
  CHECK(contains(message_of([&] { rw::apply<Declared<0>>({x}, {.outputs = 2}); }), "declared: makes 2 outputs"));
  CHECK(contains(message_of([&] { rw::apply<Declared<0>>({x}, {.outputs = 8}); }), "at most 7 outputs"));
  CHECK(contains(message_of([&] { rw::apply<Declared<1>>({x}); }),
                 "declared: an op that changes its inputs in place has no outputs"));
  CHECK(rw::apply<Declared<0>>({x}, {.rows = 2, .view_offset = 8}).to_vector<float>() == std::vector<float>{1, 1});
  CHECK(contains(message_of([&] { rw::apply<Declared<0>>({x}, {.rows = 3, .view_offset = 8}); }),
                 "declared: its output float32 [3], a view from byte 8 on, does not lie in input 0, float32 [4]"));
}

TEST_CASE("backward from several elements or from a constant is an error that says what to do") {
  Tensor x = leaf({1, 2});
  CHECK(contains(message_of([&] { rw::backward(x * x); }), "has shape [2]; reduce it with sum() or mean()"));
  CHECK(contains(message_of([&] { rw::backward(rw::scalar(1)); }), "has no history"));
  {
    const rw::NoGrad no_grad;
    Tensor y = rw::sum_to(x * x, {});
    CHECK_FALSE(y.requires_grad());
  }
  CHECK(contains(message_of([&] { rw::backward(x * x, rw::ones({3}, rw::float64)); }), "output gradient is float64 [3]"));
}

TEST_CASE("backward with a given output gradient weighs the outputs") {
  Tensor x = leaf({1, 2, 3});
  rw::backward(x * x, rw::from<double>({1, 0, -1}, {3}));
  CHECK(x.grad().to_vector<double>() == std::vector<double>{2, 0, -6});
}

TEST_CASE("grad returns gradients of leaves and of computed values, and leaves the leaves alone") {
  Tensor x = leaf({2}), w = leaf({3});
  Tensor h = x * w;
  Tensor y = rw::sum_to(h * h, {});
  const auto g = rw::grad(y, {x, h});
  CHECK(g[0].item() == 2 * 6 * 3);
  CHECK(g[1].item() == 12);
  CHECK_FALSE(x.grad().defined());
  CHECK_FALSE(w.grad().defined());
}

TEST_CASE("grad says which input has no influence") {
  Tensor x = leaf({2}), w = leaf({3});
  Tensor y = rw::sum_to(x * x, {});
  CHECK(contains(message_of([&] { rw::grad(y, {x, w}); }), "y does not depend on x[1]"));
}

TEST_CASE("create_graph differentiates again and again") {
  Tensor x = leaf({2});
  Tensor y = rw::sum_to(x * x * x * x, {});
  Tensor d1 = rw::grad(y, {x}, {.create_graph = true})[0];
  CHECK(d1.item() == doctest::Approx(32));
  Tensor d2 = rw::grad(rw::sum_to(d1, {}), {x}, {.create_graph = true})[0];
  CHECK(d2.item() == doctest::Approx(48));
  Tensor d3 = rw::grad(rw::sum_to(d2, {}), {x})[0];
  CHECK(d3.item() == doctest::Approx(48));
}

TEST_CASE("backward after grad() of one leaf, over the tape that it kept, reaches the others") {
  Tensor x = leaf({2}), w = leaf({3});
  Tensor y = rw::sum_to(w * x * x, {});
  CHECK(rw::grad(y, {x}, {.create_graph = true})[0].item() == doctest::Approx(12));
  rw::backward(std::move(y));
  CHECK(x.grad().item() == doctest::Approx(12));
  CHECK(w.grad().item() == doctest::Approx(4));
}

TEST_CASE("create_graph leaves nothing behind once its handles are gone") {
  Tensor x = leaf({2});
  const std::size_t before = live();
  {
    Tensor y = rw::sum_to(rw::tanh(x * x), {});
    Tensor d = rw::grad(y, {x}, {.create_graph = true})[0];
    Tensor d2 = rw::grad(rw::sum_to(d, {}), {x}, {.create_graph = true})[0];
    CHECK(live() > before);
  }
  CHECK(live() == before);
}

TEST_CASE("checkpoint recomputes, once a backward, and keeps only its inputs") {
  Tensor x = rw::randn({1000}, rw::float64).set_requires_grad();
  int calls = 0;
  const auto f = [&calls](Tensor h) {
    ++calls;
    return rw::tanh(rw::exp(rw::sigmoid(std::move(h))));
  };
  rw::backward(rw::sum_to(f(x), {}));
  const Tensor expected = x.grad();
  x.set_grad({});
  calls = 0;
  const std::size_t before = live();
  Tensor y = rw::checkpoint(f, x);
  CHECK(calls == 1);
  CHECK(live() - before == y.bytes());
  rw::backward(rw::sum_to(std::move(y), {}));
  CHECK(calls == 2);
  CHECK(x.grad().to_vector<double>() == expected.to_vector<double>());
  CHECK(live() - before == x.bytes());  // the gradient
}

TEST_CASE("checkpoints nest, take several inputs, give several outputs and capture parameters and computed values") {
  Tensor x = rw::randn({50}, rw::float64).set_requires_grad(), w = rw::randn({50}, rw::float64).set_requires_grad();
  const auto run = [&](bool recompute) {
    Tensor h = x * w;  // computed outside, captured inside
    const auto inner = [&w](Tensor a, Tensor b) { return rw::sigmoid(std::move(a) * w) + rw::tanh(std::move(b)); };
    const auto outer = [&, h](Tensor a, Tensor b) {
      Tensor c = recompute ? rw::checkpoint(inner, a, b) : inner(a, b);
      return std::vector<Tensor>{rw::exp(c) * h, c * b, a};
    };
    Tensor a = x + 1.0, b = x * 0.5;
    const auto out = recompute ? rw::checkpoint(outer, a, b) : outer(a, b);
    Tensor loss = rw::sum_to(out[0] * out[1] + out[2], {});
    h = Tensor();
    rw::backward(loss);
    std::vector<double> all = x.grad().to_vector<double>();
    const auto more = w.grad().to_vector<double>();
    all.insert(all.end(), more.begin(), more.end());
    x.set_grad({});
    w.set_grad({});
    return all;
  };
  CHECK(run(false) == run(true));
}

TEST_CASE("a checkpointed function whose inputs need no gradient still trains what it captured") {
  Tensor w = leaf({3}), x = rw::from<double>({2}, {1});
  rw::backward(rw::sum_to(rw::checkpoint([&](Tensor h) { return std::move(h) * w * w; }, x), {}));
  CHECK(w.grad().item() == 12);
}

TEST_CASE("a value that escapes from a checkpointed function has no history and says so") {
  Tensor x = leaf({2}), escaped;
  Tensor y = rw::checkpoint(
      [&](Tensor h) {
        escaped = h * h;
        return escaped + 1.0;
      },
      x);
  CHECK(contains(message_of([&] { escaped* x; }), "was made inside a checkpointed function"));
}

TEST_CASE("a checkpointed function cannot be differentiated twice, and says so") {
  Tensor x = leaf({2});
  Tensor y = rw::sum_to(rw::checkpoint([](Tensor h) { return h * h; }, x), {});
  CHECK(contains(message_of([&] { rw::grad(y, {x}, {.create_graph = true}); }), "cannot be differentiated twice"));
}

TEST_CASE("grad reaches through a checkpoint") {
  Tensor x = leaf({2}), w = leaf({5});
  Tensor h = x * 3.0;
  Tensor y = rw::sum_to(rw::checkpoint([&](Tensor a) { return std::move(a) * w * w; }, h), {});
  const auto g = rw::grad(y, {x, w});
  CHECK(g[0].item() == 75);
  CHECK(g[1].item() == 60);
}

TEST_CASE("an exception in the middle of backward drops half gradients and leaves a usable tape") {
  Tensor x = rw::randn({100}, rw::float64).set_requires_grad();
  const std::size_t before = live();
  const auto step = [&] { rw::backward(rw::sum_to(rw::tanh(rw::exp(x * x)) * x, {})); };
  step();
  const auto expected = x.grad().to_vector<double>();
  x.set_grad({});
  bool finished = false;
  for (std::uint64_t n = 1; !finished; ++n) {
    rw::memory::fail_at(n);
    try {
      step();
      finished = true;
    } catch (const rw::OutOfMemory&) {
      CHECK_FALSE(x.grad().defined());
    }
    rw::memory::fail_at(0);
    if (finished) break;
    CHECK(live() == before);
    step();
    CHECK(x.grad().to_vector<double>() == expected);
    x.set_grad({});
  }
  x.set_grad({});
  CHECK(live() == before);
}

TEST_CASE("moved tensors hold two buffers along a chain of element-wise ops") {
  const std::int64_t n = 100000;
  const rw::NoGrad no_grad;
  Tensor x = rw::randn({n});
  rw::memory::Scope scope;
  x = rw::relu(rw::tanh(rw::exp(rw::sigmoid(std::move(x)))));
  CHECK(scope.peak().total - scope.before().total == 0);
}

TEST_CASE("the NaN guard names the first op that makes a value that is not finite") {
  Tensor x = leaf({-1, 1});
  const rw::NanGuard guard;
  CHECK(contains(message_of([&] { rw::exp(rw::log(x)); }), "op log made"));
  Tensor z = leaf({0});
  Tensor y = rw::sum_to(rw::sqrt(z), {});
  CHECK(contains(message_of([&] { rw::backward(y); }), "the gradient of sqrt"));
}

TEST_CASE("threads record on tapes of their own") {
  std::vector<std::thread> threads;
  std::atomic<int> good{0};
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&good, t] {
      for (int i = 0; i < 100; ++i) {
        Tensor x = leaf({1.0 + t});
        rw::backward(rw::sum_to(x * x * x, {}));
        if (x.grad().item() == 3 * (1.0 + t) * (1.0 + t)) ++good;
      }
    });
  for (auto& t : threads) t.join();
  CHECK(good == 400);
}

TEST_CASE("threads hand values on, and drop them whenever they like") {
  const std::size_t before = live();
  {
    Tensor x = leaf({2}), kept;
    std::thread([&] { kept = rw::exp(x); }).join();  // its history stays behind on the tape of a thread that has ended
    CHECK(contains(message_of([&] { rw::backward(kept); }), "computed on another thread"));
    Tensor h = rw::square(x);
    std::thread([&] { const Tensor z = h * h; }).join();  // records on a tape of its own, and lets go there
    rw::backward(rw::sum(h));
    CHECK(x.grad().item() == 4);
    Tensor gone;
    std::thread([&] {
      Tensor loss = rw::sum(rw::square(x));
      rw::backward(loss);
      gone = loss;
    }).join();
    CHECK(gone.item() == 4);
  }
  std::thread([] { rw::backward(rw::sum(rw::square(leaf({1})))); }).join();
  CHECK(live() == before);

  // One thread trains, another looks at its losses and drops them.
  Tensor w = leaf({1, 2, 3});
  std::mutex lock;
  std::vector<Tensor> box;
  std::atomic<bool> stop{false};
  std::thread reader([&] {
    while (!stop) {
      std::vector<Tensor> mine;
      const std::lock_guard guard(lock);
      mine.swap(box);
    }
  });
  for (int i = 0; i < 3000; ++i) {
    Tensor loss = rw::sum(rw::tanh(rw::square(w)));
    {
      const std::lock_guard guard(lock);
      box.push_back(loss);
    }
    if (i % 2 == 0) rw::backward(std::move(loss));  // of the others the reader has the last handle
    w.set_grad({});
  }
  stop = true;
  reader.join();
  box.clear();
  rw::backward(rw::sum(w));
  w = Tensor();
  CHECK(live() == before);
}

TEST_CASE("grad() through a part of the tape that is gone says so, instead of leaving it out") {
  Tensor a = leaf({1});
  const Tensor h = rw::exp(a);
  CHECK(rw::grad(rw::sum(h), {a})[0].item() == doctest::Approx(std::exp(1.0)));
  CHECK(contains(message_of([&] { rw::grad(rw::sum(h) + rw::sum(a * 2), {a}); }), "already consumed"));
  CHECK(contains(message_of([&] { rw::grad(rw::sum(h), {a}); }), "already consumed"));
  CHECK(rw::grad(rw::sum(a * 2), {a})[0].item() == 2);
}

TEST_CASE("what a checkpoint gives to an input is added in the order of a step without it: the same bits") {
  const Tensor w = 0.3 * rw::randn({16, 16}), c = rw::randn({64, 16}), x0 = rw::randn({64, 16});
  const auto gate = [w](Tensor h) { return h * rw::sigmoid(rw::linear(h, w)) + rw::tanh(h); };
  for (const bool of_a_leaf : {false, true}) {
    const auto gradient = [&](bool recompute) {
      Tensor x = x0.clone().set_requires_grad();
      const Tensor h = of_a_leaf ? x : rw::tanh(x), before = h * c;
      const Tensor y = recompute ? rw::checkpoint(gate, h) : gate(h);
      rw::backward(rw::sum(rw::square(before + y + rw::exp(h))));
      return x.grad();
    };
    CHECK(rw::hash(gradient(true)) == rw::hash(gradient(false)));
  }
}

TEST_CASE("a tensor that a checkpoint is given twice, or given and captured, has the same bits") {
  const Tensor c = rw::randn({64, 16}), x0 = rw::randn({64, 16});
  for (const bool of_a_leaf : {false, true})
    for (const bool captured : {false, true}) {
      const auto gradient = [&](bool recompute) {
        Tensor x = x0.clone().set_requires_grad();
        const Tensor h = of_a_leaf ? x : rw::tanh(x), before = h * c;
        const auto fn = [&, h](Tensor a, Tensor b) {
          Tensor y = rw::exp(a) + rw::sigmoid(b) * a;
          return captured ? y * rw::square(h) + rw::tanh(b) : y;
        };
        const Tensor y = recompute ? rw::checkpoint(fn, h, h) : fn(h, h);
        rw::backward(rw::sum(rw::square(before + y + rw::exp(h))));
        return x.grad();
      };
      CHECK(rw::hash(gradient(true)) == rw::hash(gradient(false)));
    }
}

TEST_CASE("a captured tensor that is modified before a checkpoint runs again is noticed") {
  Tensor w = leaf({3}), x = leaf({2});
  Tensor y = rw::checkpoint([w](Tensor t) { return rw::sum(rw::square(t * w)); }, x);
  w.fill(5);
  CHECK(contains(message_of([&] { rw::backward(y); }), "input 1 of mul, shape [1], was modified in place after forward read it"));
}

TEST_CASE("a checkpoint that reads another leaf the second time, or one that was frozen meanwhile, is noticed") {
  Tensor x = leaf({2}), w = leaf({3});
  const auto fn = [&w](Tensor t) { return rw::sum(rw::square(t * w)); };
  Tensor one = rw::checkpoint(fn, x);
  w = leaf({4});
  CHECK(contains(message_of([&] { rw::backward(one); }), "replay: input 1 of mul, shape [1], was not read in the first run"));
  Tensor two = rw::checkpoint([&](Tensor t) { return rw::checkpoint(fn, t); }, x);
  const Tensor old = std::exchange(w, leaf({5}));
  CHECK(contains(message_of([&] { rw::backward(two); }), "was not read in the first run"));
  Tensor three = rw::checkpoint(fn, x);
  w.set_requires_grad(false);
  CHECK(contains(message_of([&] { rw::backward(three); }), "input 1 of mul, shape [1], was frozen after forward read it"));
  CHECK(!w.grad().defined());
  w.set_requires_grad();
  double seen = 0;
  const auto looks = [&](Tensor t) {
    if (!rw::replaying()) seen = rw::sum(w * 2.0).item();
    return rw::sum(rw::square(t * w));
  };
  rw::backward(rw::checkpoint(looks, x));  // reads less the second time
  CHECK(seen == 10);
  CHECK(w.grad().item() == 2 * 5 * 4);
}

TEST_CASE("a checkpointed function that changes its input in place is refused") {
  Tensor w = leaf({3}), x = rw::full({2}, 2.0, rw::float64);
  const auto fn = [w](Tensor t) {
    t.fill(t.values<double>()[0] + 1);
    return rw::sum(t * w);
  };
  CHECK(contains(message_of([&] { rw::checkpoint(fn, x); }), "checkpoint: the function changed its input 0, shape [2], in place"));
  rw::backward(rw::checkpoint([&](Tensor t) { return fn(t.clone()); }, x));
  CHECK(w.grad().item() == 8);
}

TEST_CASE("what a checkpointed function passes through, or returns twice, keeps the order of additions: the same bits") {
  const Tensor c = rw::randn({64, 16}), x0 = rw::randn({64, 16}), w0 = rw::randn({64, 16});
  for (const bool of_a_leaf : {false, true}) {
    const auto gradients = [&](bool recompute) {
      Tensor x = x0.clone().set_requires_grad(), w = w0.clone().set_requires_grad();
      const Tensor h = of_a_leaf ? x : rw::tanh(x), before = h * c;
      const auto fn = [w](Tensor t) {
        const Tensor y = rw::exp(t * w);
        return std::vector{t, rw::tanh(t), w, y, y};
      };
      std::vector<Tensor> out = recompute ? rw::checkpoint(fn, h) : fn(h);
      CHECK(out[0].same(h));
      CHECK(out[3].same(out[4]));
      Tensor sum =
          before + out[0] * out[1] + rw::sigmoid(out[2]) * rw::square(out[3]) + out[4] * c + rw::exp(h) + rw::square(out[0]);
      out.clear();
      rw::backward(rw::sum(rw::square(sum)));
      return std::pair{rw::hash(x.grad()), rw::hash(w.grad())};
    };
    CHECK(gradients(true) == gradients(false));
  }
}

TEST_CASE("a flag that a checkpointed function branches on is noticed when it has changed") {
  bool hard = false;
  const auto fn = [&hard](Tensor t) {
    rw::depends_on(hard, "set_hard()");
    return rw::sum(hard ? rw::relu(t) : rw::tanh(t));
  };
  Tensor x = leaf({2});
  Tensor y = rw::checkpoint(fn, x), z = rw::checkpoint([&](Tensor t) { return rw::checkpoint(fn, t); }, x);
  hard = true;
  CHECK(contains(message_of([&] { rw::backward(y); }), "replay: set_hard() was called between forward and backward"));
  CHECK(contains(message_of([&] { rw::backward(z); }), "set_hard() was called"));
  hard = false;
  rw::backward(rw::checkpoint([&](Tensor t) { return rw::checkpoint(fn, t); }, x));
  CHECK(x.grad().defined());
}

TEST_CASE("handles that are dropped while a checkpoint runs again do not move the tape under it") {
  for (const bool by_another_thread : {false, true}) {
    Tensor x = leaf({2}), w = leaf({3}), z;
    const auto fn = [&](Tensor t) {
      if (rw::replaying()) {
        if (by_another_thread)
          std::thread([&] { z = Tensor(); }).join();
        else
          z = Tensor();
      }
      return rw::square(t * w);
    };
    const Tensor y = rw::checkpoint(fn, x);
    z = rw::exp(y);  // above the checkpoint on the tape
    rw::backward(rw::sum(y));
    CHECK(x.grad().item() == 2 * 2 * 9);
    CHECK(w.grad().item() == 2 * 3 * 4);
  }
}

TEST_CASE("a thread that ends lets go what others have dropped, closures and all") {
  const std::size_t before = live();
  {
    Tensor kept;
    std::atomic<bool> made{false}, dropped{false};
    std::thread thread([&] {
      Tensor x = leaf({2}), h = rw::exp(x);
      kept = rw::checkpoint([h](Tensor t) { return t * h; }, x);  // the closure holds a value of the same tape
      h = Tensor();
      made = true;
      while (!dropped) std::this_thread::yield();
    });
    while (!made) std::this_thread::yield();
    kept = Tensor();
    dropped = true;
    thread.join();
  }
  CHECK(live() == before);
}

TEST_CASE("weights that have changed places before a checkpoint runs again are noticed, and one that is left out") {
  Tensor x = leaf({2}), v = leaf({3}), w = leaf({4});
  Tensor one = rw::checkpoint([&](Tensor t) { return rw::sum(rw::square(t * v) * w); }, x);
  std::swap(v, w);
  CHECK(contains(message_of([&] { rw::backward(one); }), "was not read in the first run"));
  bool both = true;
  Tensor two = rw::checkpoint([&](Tensor t) { return both ? rw::sum(t * v * w) : rw::sum(t * v); }, x);
  both = false;
  CHECK(contains(message_of([&] { rw::backward(two); }), "input 1 of mul, which gets a gradient, was read in the first run"));
}

TEST_CASE("a captured tensor that has been computed anew before a checkpoint runs again is noticed") {
  Tensor w = leaf({2}), x = leaf({3}), h = w * 2.0;
  // A recurrent cell that captures its state by reference, which is the next state by then.
  h = rw::checkpoint([&h](Tensor t) { return rw::tanh(t * h); }, x);
  CHECK(contains(message_of([&] { rw::backward(h); }), "input 1 of mul, shape [1], was computed elsewhere"));
  Tensor memory = w * 3.0;
  Tensor y = rw::checkpoint([&memory](Tensor t) { return rw::square(t * memory); }, x);
  memory = w * 4.0;
  CHECK(contains(message_of([&] { rw::backward(y); }), "was computed elsewhere, and was not read in the first run"));
}

TEST_CASE("parameters and buffers that get no gradient are noticed when they change before a checkpoint runs again") {
  const rw::memory::CategoryScope parameter(rw::Category::parameter);
  Tensor x = leaf({2}), frozen = rw::full({1}, 3, rw::float64);
  Tensor y = rw::checkpoint([frozen](Tensor t) { return rw::square(t * frozen); }, x);
  frozen.fill(4);
  CHECK(contains(message_of([&] { rw::backward(y); }), "input 1 of mul, shape [1], was modified in place after forward read it"));
}

TEST_CASE("a function that changes a weight before it reads it would do so in every run, and is refused") {
  Tensor x = leaf({2}), w = leaf({3});
  Tensor y = rw::checkpoint(
      [w](Tensor t) {
        Tensor v = w.detach();
        v.mutate<double>()[0] *= 0.5;
        return rw::square(t * w);
      },
      x);
  CHECK(contains(message_of([&] { rw::backward(y); }), "is changed in place by what is recomputed, and existed before"));
}

TEST_CASE("a replay does not move state that is older, and may use scratch of its own") {
  Tensor x = leaf({2}), state = rw::zeros({1}, rw::float64);
  const auto fn = [&](bool careful) {
    return rw::checkpoint(
        [&, careful](Tensor t) {
          if (!careful || !rw::replaying()) state.fill(state.item() + 1);
          Tensor scratch = rw::zeros({1}, rw::float64);
          scratch.fill(3);
          return rw::square(t * scratch);
        },
        x);
  };
  rw::backward(fn(true));
  CHECK(state.item() == 1);
  CHECK(x.grad().item() == doctest::Approx(2 * 9 * 2));
  CHECK(contains(message_of([&] { rw::backward(fn(false)); }), "a tensor float64 [1], is changed in place by what is recomputed"));
  CHECK(state.item() == 2);
}

TEST_CASE("an input that is frozen before a checkpoint runs again is noticed, captured or not") {
  Tensor x = leaf({2}), w = leaf({3});
  Tensor one = rw::checkpoint([w](Tensor t) { return rw::sum(t * w); }, x);
  x.set_requires_grad(false);
  CHECK(contains(message_of([&] { rw::backward(one); }), "input 0 of mul, shape [1], was frozen"));
  Tensor two = rw::checkpoint([w](Tensor t) { return rw::sum(t * w); }, w);
  w.set_requires_grad(false);
  CHECK(contains(message_of([&] { rw::backward(two); }), "was frozen after forward read it"));
}

TEST_CASE("element-wise functions have derivatives beyond the second: a loss may hold second derivatives") {
  using Function = Tensor (*)(Tensor);
  const Function functions[] = {rw::exp, rw::log, rw::sqrt, rw::tanh, rw::sigmoid, rw::silu, rw::gelu, rw::hardswish, rw::square};
  for (const Function fn : functions) {
    const auto second = [fn](std::vector<Tensor> in) {       // u'' of u = f(f(x)^2 / 2 + 1 / 2)
      const rw::GradModeScope record(rw::GradMode::record);  // finite differences come without
      const Tensor x = in[0].requires_grad() ? in[0] : in[0].detach().set_requires_grad();
      Tensor u = fn(rw::affine(rw::square(fn(x)), 0.5, 0.5));
      Tensor slope = rw::grad(rw::sum(u), {x}, {.create_graph = true})[0];
      return rw::grad(rw::sum(slope), {x}, {.create_graph = true})[0];
    };
    const rw::GradcheckResult r =
        rw::gradcheck(second, {rw::from({0.3, 0.7, 1.2}, {3})}, {.tolerance = 1e-4, .second_order = true});
    CHECK_MESSAGE(r.ok, r.message);
  }
}

TEST_CASE("arithmetic with numbers on either side") {
  const Tensor x = rw::from({2.0, 4.0}, {2}).set_requires_grad();
  CHECK((1.0 + x).to_vector<double>() == std::vector<double>{3, 5});
  CHECK((1.0 - x).to_vector<double>() == std::vector<double>{-1, -3});
  CHECK((x / 3.0).to_vector<double>() == std::vector<double>{2.0 / 3, 4.0 / 3});
  const Tensor y = 1.0 / x;
  CHECK(y.to_vector<double>() == std::vector<double>{0.5, 0.25});
  rw::backward(rw::sum(y));
  CHECK(x.grad().to_vector<double>() == std::vector<double>{-0.25, -0.0625});
}

TEST_CASE("an op that is given too few inputs says how many it takes") {
  const rewind::OpDecl* mul = nullptr;
  for (const rewind::OpDecl* op : rewind::all_ops())
    if (std::string_view(op->name) == "mul") mul = op;
  REQUIRE(mul != nullptr);
  CHECK(contains(message_of([&] {
                   Tensor in[] = {rw::ones({2})}, out;
                   rw::apply(*mul, in, nullptr, {&out, 1});
                 }),
                 "mul: takes 2 inputs (a, b), got 1"));
}
