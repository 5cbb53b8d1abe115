// Shapes, dtypes and tensors.

#include <rewind/core/random.h>
#include <rewind/core/tensor.h>

#include <doctest/doctest.h>

#include <cmath>
#include <sstream>
#include <thread>

namespace rw = rewind;
using rw::Shape;
using rw::Tensor;

namespace {

template <class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const rw::Error& e) {
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("shapes hold up to eight axes, count elements and print") {
  CHECK(Shape{}.numel() == 1);
  CHECK(Shape{2, 3, 4}.numel() == 24);
  CHECK(Shape{2, 0}.numel() == 0);
  CHECK(rw::str(Shape{2, 3}) == "[2, 3]");
  CHECK(Shape{2, 3}[-1] == 3);
  CHECK(Shape{1, 1, 1, 1, 1, 1, 1, 1}.rank() == 8);
  CHECK_THROWS_WITH_AS((Shape{1, 1, 1, 1, 1, 1, 1, 1, 1}), doctest::Contains("at most 8 axes"), rw::Error);
  CHECK_THROWS_WITH_AS((Shape{2, -1}), doctest::Contains("must not be negative"), rw::Error);
  CHECK_THROWS_WITH_AS((Shape{2, 3}[2]), doctest::Contains("axes go from -2 to 1"), rw::Error);
  CHECK_THROWS_WITH_AS((Shape{}[0]), doctest::Contains("has no axes"), rw::Error);
}

TEST_CASE("shapes broadcast as in NumPy") {
  CHECK(rw::broadcast({2, 1}, {3}, "op") == Shape{2, 3});
  CHECK(rw::broadcast({}, {3}, "op") == Shape{3});
  CHECK(rw::broadcast({0, 1}, {1, 5}, "op") == Shape{0, 5});
  CHECK_THROWS_WITH_AS(rw::broadcast({2, 3}, {4}, "op"), doctest::Contains("op: shapes [2, 3] and [4] do not broadcast"),
                       rw::Error);
}

TEST_CASE("factories fill, and spans go in and out") {
  CHECK(rw::zeros({2, 2}).to_vector<float>() == std::vector<float>(4, 0));
  CHECK(rw::full({3}, 2.5, rw::float64).to_vector<double>() == std::vector<double>(3, 2.5));
  CHECK(rw::arange(4, rw::int64).to_vector<std::int64_t>() == std::vector<std::int64_t>{0, 1, 2, 3});
  CHECK(rw::scalar(7).item<int>() == 7);
  CHECK(rw::from<float>({1, 2, 3, 4, 5, 6}, {2, 3}).size(1) == 3);
  CHECK_THROWS_WITH_AS(rw::from<float>({1, 2, 3}, {2, 2}), doctest::Contains("3 elements do not fill shape [2, 2]"), rw::Error);
  CHECK_THROWS_WITH_AS(rw::empty({std::int64_t{1} << 40, std::int64_t{1} << 40}),
                       doctest::Contains("more bytes than can be addressed"), rw::Error);
  CHECK(rw::Shape({std::int64_t{1} << 32, std::int64_t{1} << 32}).numel_or_none() == -1);
  CHECK(rw::Shape({0, std::int64_t{1} << 40, std::int64_t{1} << 40}).numel_or_none() == 0);
  CHECK_THROWS_AS(rw::view_as(rw::zeros({0}), {std::int64_t{1} << 32, std::int64_t{1} << 32}), rw::Error);
  CHECK_THROWS_WITH_AS(rw::zeros({std::int64_t{1} << 62}), doctest::Contains("more bytes than can be addressed"), rw::Error);
  rw::Shape grown{1, 1};
  grown.set(0, std::int64_t{1} << 31);
  grown.set(1, std::int64_t{1} << 31);
  CHECK_THROWS_WITH_AS(rw::empty(grown), doctest::Contains("more bytes than can be addressed"), rw::Error);
  CHECK_THROWS_WITH_AS(rw::uniform({2}, 1, 0), doctest::Contains("low must not be above high"), rw::Error);
  const std::int64_t large = (std::int64_t{1} << 53) + 1;
  CHECK(rw::from<std::int64_t>({large}, {}).item<std::int64_t>() == large);
}

TEST_CASE("data is 64-byte aligned, empty tensors too") {
  for (std::int64_t n : {0, 1, 7, 1000, 100000}) {
    const Tensor t = rw::empty({n});
    CHECK(reinterpret_cast<std::uintptr_t>(t.values<float>().data()) % 64 == 0);
  }
}

TEST_CASE("reading as another type, or an undefined tensor, is an error that says so") {
  const Tensor t = rw::zeros({2});
  CHECK(message_of([&] { static_cast<void>(t.values<double>()); }).find("is float32 but its elements were asked for as float64") !=
        std::string::npos);
  CHECK(message_of([&] { static_cast<void>(t.item()); }).find("one element, this one has shape [2]") != std::string::npos);
  CHECK(message_of([] { static_cast<void>(Tensor().shape()); }).find("undefined") != std::string::npos);
}

TEST_CASE("views share memory; clones and conversions do not") {
  Tensor t = rw::arange(12);
  Tensor m = rw::view_as(t, {3, 4}), row = rw::view_rows(m, 1, 2);
  row.mutate<float>()[0] = 100;
  CHECK(t.values<float>()[4] == 100);
  CHECK(row.shape() == Shape{1, 4});
  CHECK(row.shares_storage(t));
  Tensor c = m.clone();
  c.fill(0);
  CHECK(t.values<float>()[4] == 100);
  CHECK(m.to(rw::int32).to_vector<std::int32_t>()[4] == 100);
  CHECK_THROWS_WITH_AS(rw::view_as(t, {5}), doctest::Contains("does not have the 12 elements"), rw::Error);
  CHECK_THROWS_WITH_AS(rw::view_rows(m, 2, 4), doctest::Contains("rows [2, 4) do not lie in shape [3, 4]"), rw::Error);
}

TEST_CASE("copying a handle copies no data; identity and memory are told apart") {
  Tensor a = rw::zeros({3}), b = a, d = a.detach();
  CHECK(a.same(b));
  CHECK_FALSE(a.same(d));
  CHECK(a.shares_storage(d));
  Tensor moved = std::move(b);
  CHECK_FALSE(b.defined());
  CHECK(moved.same(a));
}

TEST_CASE("handles are counted from any thread") {
  const rw::Tensor x = rw::ones({2});
  std::vector<rw::Tensor> before(3, x);
  {
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t)
      threads.emplace_back([x] {
        for (int i = 0; i < 20000; ++i) const rw::Tensor copy = x, view = copy.detach();
      });
    for (std::thread& t : threads) t.join();
  }
  CHECK(!x.impl().refs.one());
  before.clear();
  CHECK(x.impl().refs.one());
  CHECK(x.impl().storage->refs.one());
}

TEST_CASE("printing cuts long axes in the middle") {
  CHECK(rw::to_string(rw::from<float>({1, 2.5, -3}, {3})) == "float32 [3] [1, 2.5, -3]");
  CHECK(rw::to_string(rw::arange(20, rw::int32)) == "int32 [20] [0, 1, 2, ..., 17, 18, 19]");
  CHECK(rw::to_string(rw::scalar(2)) == "float32 [] 2");
  CHECK(rw::to_string(Tensor()) == "undefined");
  CHECK(rw::to_string(rw::zeros({2, 0})) == "float32 [2, 0] []");
  std::ostringstream out;
  out << rw::zeros({1, 2});
  CHECK(out.str() == "float32 [1, 2] [[0, 0]]");
}

TEST_CASE("copy_from converts and checks shapes") {
  Tensor t = rw::zeros({2});
  t.copy_from(rw::from<double>({1.5, 2.5}, {2}));
  CHECK(t.to_vector<float>() == std::vector<float>{1.5, 2.5});
  CHECK_THROWS_WITH_AS(t.copy_from(rw::zeros({3})), doctest::Contains("shapes differ"), rw::Error);
}

TEST_CASE("random tensors depend on the seed alone") {
  rw::random::seed(3);
  const auto a = rw::randn({1000}).to_vector<float>();
  const auto next = rw::randn({1000}).to_vector<float>();
  rw::random::seed(3);
  CHECK(rw::randn({1000}).to_vector<float>() == a);
  CHECK(next != a);
  const auto u = rw::uniform({1000}, -1, 3).to_vector<float>();
  for (float v : u) CHECK((v >= -1 && v < 3));
  CHECK_THROWS_WITH_AS(rw::randn({2}, rw::int32), doctest::Contains("needs a float dtype"), rw::Error);
}

TEST_CASE("a range that cannot be is refused") {
  CHECK_THROWS_WITH_AS(rw::uniform({2}, 1, -1), doctest::Contains("low must not be above high"), rw::Error);
  CHECK_THROWS_WITH_AS(rw::uniform({2}, -3e38, 3e38), doctest::Contains("wider than a float32 can say"), rw::Error);
  CHECK_NOTHROW(rw::uniform({2}, -3e38, 3e38, rw::float64));
  rw::Shape shape{2, 3};
  CHECK_THROWS_WITH_AS(shape.set(0, -1), doctest::Contains("must not be negative, got -1"), rw::Error);
}

TEST_CASE("only float leaves can require gradients") {
  CHECK_THROWS_WITH_AS(rw::zeros({2}, rw::int64).set_requires_grad(), doctest::Contains("only float tensors"), rw::Error);
  Tensor t = rw::zeros({2});
  CHECK_THROWS_WITH_AS(t.set_grad(rw::zeros({3})), doctest::Contains("the gradient is float32 [3]"), rw::Error);
}

TEST_CASE("our own bugs read differently from user mistakes") {
  CHECK_THROWS_WITH_AS(REWIND_CHECK(1 == 2), doctest::Contains("This is a bug in Rewind, not in your program"), rw::InternalError);
}
