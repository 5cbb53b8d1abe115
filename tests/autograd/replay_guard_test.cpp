// The replay guard: a function that does not compute the same again is caught, with the op that differs.

#include <rewind/autograd/backward.h>
#include <rewind/autograd/checkpoint.h>
#include <rewind/autograd/functional.h>
#include <rewind/autograd/schedule/execute.h>

#include <doctest/doctest.h>

#include <string>

namespace rw = rewind;
using rw::Tensor;

namespace {

Tensor input() { return rw::randn({5}).set_requires_grad(); }

/// Three stages; the second adds something else every time that it runs.
class Drifting final : public rw::schedule::Stages {
 public:
  explicit Drifting(bool drift) : drift_(drift) {}
  rw::schedule::Value run(int l, rw::schedule::Value a) override {
    if (l == 2) return {rw::affine(std::move(a.x), 1, drift_ ? ++runs_ : 1)};
    return {rw::dropout(rw::tanh(std::move(a.x)), 0.5)};
  }

 private:
  bool drift_;
  int runs_ = 0;
};

Tensor scheduled(bool drift, const Tensor& x) {
  return rw::sum(rw::schedule::execute(new Drifting(drift), rw::schedule::parse("Fck1 Fck2 Fall3 B3 Fall2 B2 Fall1 B1"), {x}).x);
}

}  // namespace

TEST_CASE("a list without its backward is refused") {
  const auto refused = [](const char* list, const char* why) {
    CHECK_THROWS_WITH_AS(rw::schedule::execute(new Drifting(false), rw::schedule::parse(list), {input()}), doctest::Contains(why),
                         rw::Error);
  };
  refused("Fck1 Fall2", "is missing");
  refused("Fck1 Fall2 B2", "is missing");
  refused("Fck1 Fck2 B2 B1", "B2 comes without Fall2");
  refused("Fck1 Fck2 Fall3 B3 Fall2 B2 B2 Fall1 B1", "B2 follows B2, out of order");
  refused("Fck1 Fck2 Fall3 B3 Fall4 B4", "there is no stage 4");
  refused("Fck1 Fall2 Fall3 B3 Fck1 B2 Fall1 B1", "Fck1 comes before B2");
  refused("Fck1 Fck2 Fall3 B3 Fall2 B2 Fck2 Fall1 B1", "Fck2 comes after B2");
  refused("Fck1 Fck2 Fall3 Fall3 B3 Fall2 B2 Fall1 B1", "each stage must run once");
  refused("Fck1 Fck2 Fall3 B3 Fall3 Fall2 B2 Fall1 B1", "Fall3 runs a stage again that was recorded");
}

TEST_CASE("a recomputed function that computes other values is caught, with the op named") {
  const rw::ReplayGuard guard;
  int runs = 0;
  const auto drifting = [&runs](Tensor h) { return rw::exp(rw::affine(rw::tanh(std::move(h)), 1, ++runs)); };
  Tensor y = rw::sum(rw::checkpoint(drifting, input()));
  CHECK_THROWS_WITH_AS(rw::backward(y),
                       doctest::Contains("replay: affine computed other values than the first time, output 0 of shape [5]"),
                       rw::Error);
  CHECK_THROWS_WITH_AS(rw::backward(scheduled(true, input())), doctest::Contains("replay: affine computed other values"),
                       rw::Error);
}

TEST_CASE("a recomputed function that ends early, or ran nothing at first, is caught") {
  const rw::ReplayGuard guard;
  int runs = 0;
  Tensor y = rw::checkpoint(
      [&runs](Tensor h) {
        h = rw::tanh(std::move(h));
        return ++runs == 1 ? rw::exp(std::move(h)) : h;
      },
      input());
  CHECK_THROWS_WITH_AS(rw::backward(rw::sum(y)), doctest::Contains("the function ended where the first run had exp"), rw::Error);
  const Tensor x = input();
  y = rw::checkpoint([&](Tensor h) { return ++runs == 3 ? rw::add(h, x) : rw::exp(rw::add(std::move(h), x)); }, input());
  CHECK_THROWS_WITH_AS(rw::backward(rw::sum(y)), doctest::Contains("replay: exp ran, where the first run had ended"), rw::Error);
}

TEST_CASE("a recomputed function that runs other ops is caught") {
  const rw::ReplayGuard guard;
  int runs = 0;
  Tensor y =
      rw::sum(rw::checkpoint([&runs](Tensor h) { return runs++ == 0 ? rw::tanh(std::move(h)) : rw::exp(std::move(h)); }, input()));
  CHECK_THROWS_WITH_AS(rw::backward(y), doctest::Contains("replay: exp ran, where the first run had tanh"), rw::Error);
}

TEST_CASE("deterministic functions pass the guard, with dropout, nested, and in schedules") {
  const rw::ReplayGuard guard;
  const auto inner = [](Tensor h) { return rw::dropout(rw::exp(std::move(h)), 0.3); };
  const auto outer = [&](Tensor h) { return rw::tanh(rw::checkpoint(inner, rw::sigmoid(std::move(h)))); };
  CHECK_NOTHROW(rw::backward(rw::sum(rw::checkpoint(outer, input()))));
  CHECK_NOTHROW(rw::backward(scheduled(false, input())));
}

TEST_CASE("without the guard nothing is compared") {
  int runs = 0;
  CHECK_NOTHROW(rw::backward(rw::sum(rw::checkpoint([&runs](Tensor h) { return rw::affine(std::move(h), ++runs, 0); }, input()))));
}
