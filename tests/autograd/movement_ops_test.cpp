// reshape, permute, concat, slice and pad: which are views, that they undo each other, and errors.

#include <rewind/autograd/backward.h>
#include <rewind/autograd/functional.h>
#include <rewind/autograd/grad_mode.h>
#include <rewind/autograd/gradcheck.h>
#include <rewind/autograd/ops/sample.h>

#include <doctest/doctest.h>

#include <limits>

#include <string>
#include <vector>

namespace rw = rewind;
using rw::Shape;
using rw::Tensor;
using rw::ops::sample;
using Values = std::vector<double>;

namespace {

Tensor counting(const Shape& shape) { return rw::view_as(rw::arange(shape.numel(), rw::float64), shape); }
Values values(const Tensor& t) { return t.to_vector<double>(); }

double dot(const Tensor& a, const Tensor& b) { return rw::sum(rw::mul(a, b)).item(); }

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

TEST_CASE("reshape is a view and works out one extent") {
  const Tensor x = counting({2, 3, 4});
  const Tensor y = rw::reshape(x, {4, -1});
  CHECK(y.shape() == Shape{4, 6});
  CHECK(y.shares_storage(x));
  CHECK(values(y) == values(x));
  CHECK(rw::reshape(x, {-1}).shape() == Shape{24});
  CHECK(rw::reshape(rw::scalar(3), {1, -1}).shape() == Shape{1, 1});
  CHECK(rw::reshape(rw::arange(6, rw::int32), {2, 3}).dtype() == rw::int32);
  CHECK(rw::reshape(rw::zeros({0, 3}), {3, -1}).shape() == Shape{3, 0});
}

TEST_CASE("a slice of the leading axis is a view, of another a copy") {
  const Tensor x = counting({4, 3});
  const Tensor rows = rw::slice(x, 0, 1, 3);
  CHECK(rows.shares_storage(x));
  CHECK(values(rows) == Values{3, 4, 5, 6, 7, 8});
  const Tensor columns = rw::slice(x, 1, -2, -1);
  CHECK(!columns.shares_storage(x));
  CHECK(values(columns) == Values{1, 4, 7, 10});
  CHECK(rw::slice(x, 0, 2, 2).shape() == Shape{0, 3});
  // A view of a view adds up.
  CHECK(values(rw::slice(rw::reshape(rows, {3, 2}), 0, 1, 2)) == Values{5, 6});
}

TEST_CASE("views pass gradients on, and an op does not write into a buffer that a view still reads") {
  Tensor x = counting({4, 3});
  x.set_requires_grad();
  rw::backward(rw::sum(rw::square(rw::slice(rw::reshape(x, {6, 2}), 0, 1, 3))));
  CHECK(values(x.grad()) == Values{0, 0, 4, 6, 8, 10, 0, 0, 0, 0, 0, 0});

  const rw::NoGrad no_grad;
  Tensor base = counting({4}) + 1;
  const Tensor view = rw::reshape(base, {2, 2});
  const Tensor doubled = std::move(base) * 2.0;
  CHECK(values(view) == Values{1, 2, 3, 4});
  CHECK(values(doubled) == Values{2, 4, 6, 8});
}

TEST_CASE("the buffer under a view that outlived its tensor is not given to an output that is larger than the view") {
  const Tensor other = counting({20, 64});
  for (const bool last : {false, true}) {
    const auto row = [&] {
      Tensor table = counting({20, 64});
      return last ? rw::slice(std::move(table), 0, 19, 20) : rw::slice(std::move(table), 0, 0, 1);
    };
    const Tensor kept = row();
    const Values expected = values(other * kept);
    CHECK(values(other * row()) == expected);
    CHECK(values(row() * other) == expected);

    Tensor a = other.clone().set_requires_grad();  // and in backward, which reads what is saved: the view alone
    rw::backward(rw::sum(rw::mul(a, row())));
    CHECK(values(a.grad()) == values(rw::ones({20, 64}, rw::float64) * kept));
  }
}

TEST_CASE("permute moves axes, and the inverse permutation brings them back") {
  const Tensor x = counting({2, 3});
  CHECK(values(rw::permute(x, {1, 0})) == Values{0, 3, 1, 4, 2, 5});
  const Tensor y = sample({2, 3, 4, 5});
  const Tensor channels_first = rw::permute(y, {0, 3, 1, 2});
  CHECK(channels_first.shape() == Shape{2, 5, 3, 4});
  CHECK(values(rw::permute(channels_first, {0, 2, 3, 1})) == values(y));
}

TEST_CASE("concat puts tensors side by side and slice takes them apart") {
  const Tensor a = counting({2, 1}), b = counting({2, 2});
  const Tensor c = rw::concat({a, b}, 1);
  CHECK(values(c) == Values{0, 0, 1, 1, 2, 3});
  CHECK(values(rw::slice(c, 1, 0, 1)) == values(a));
  CHECK(values(rw::slice(c, -1, 1, 3)) == values(b));
  CHECK(values(rw::concat({a, a}, 0)) == Values{0, 1, 0, 1});
}

TEST_CASE("concat takes more tensors than one call of the op holds") {
  std::vector<Tensor> xs;
  Values expected;
  for (int i = 0; i < 1100; ++i) {
    xs.push_back(rw::full({1}, i, rw::float64));
    expected.push_back(i);
  }
  for (Tensor& x : xs) x.set_requires_grad();
  const Tensor y = rw::concat(xs, 0);
  CHECK(values(y) == expected);
  rw::backward(rw::sum(rw::square(y)));
  CHECK(xs[0].grad().item() == 0);
  CHECK(xs[40].grad().item() == 80);
  CHECK(xs[1099].grad().item() == 2198);
  xs[837] = rw::full({1, 1}, 0, rw::float64);
  says(message_of([&] { rw::concat(xs, 0); }), "input 837 is float64 [1, 1]");
}

TEST_CASE("a shape of no elements may have extents of any size") {
  const std::int64_t huge = std::int64_t{1} << 40;
  CHECK(rw::reshape(rw::zeros({0}), {huge, huge, 0}).numel() == 0);
  CHECK(rw::zeros({huge, huge, 0}).numel() == 0);
  CHECK(rw::zeros({0, huge, huge}).bytes() == 0);
}

TEST_CASE("reshape refuses shapes whose elements cannot be counted") {
  const std::int64_t large = std::int64_t{1} << 32;
  says(message_of([&] { rw::reshape(rw::zeros({0}), {large, large}); }), "has more than can be counted");
  says(message_of([&] { rw::reshape(rw::zeros({4}), {large, large, -1}); }), "cannot be divided");
}

TEST_CASE("pad refuses widths whose sum is no number") {
  const std::int64_t most = std::numeric_limits<std::int64_t>::max();
  says(message_of([&] {
         rw::pad(rw::ones({4}), {{most, most}});
       }),
       "widths (9223372036854775807, 9223372036854775807) are too many for shape [4]");
}

TEST_CASE("pad surrounds with a value, and is the transpose of slice") {
  CHECK(values(rw::pad(counting({2, 2}), {{1, 0}, {0, 1}}, 9)) == Values{9, 9, 9, 0, 1, 9, 2, 3, 9});
  const Tensor x = sample({3, 4}), y = sample({3, 7}, -1, 1, 1);
  CHECK(dot(rw::pad(x, {{0, 0}, {1, 2}}), y) == doctest::Approx(dot(x, rw::slice(y, 1, 1, 5))));
  CHECK(rw::pad(rw::arange(2, rw::int64), {{1, 1}}, -5).to_vector<std::int64_t>() == std::vector<std::int64_t>{-5, 0, 1, -5});
}

TEST_CASE("data movement can be differentiated twice") {
  const auto f = [](std::vector<Tensor> in) {
    Tensor t = rw::concat({rw::permute(in[0], {1, 0}), rw::square(rw::reshape(in[0], {3, 2}))}, 1);
    t = rw::pad(rw::slice(std::move(t), 1, 1, -1), {{1, 0}, {0, 2}}, 0.5);
    return rw::sum(rw::square(t) * t);
  };
  const rw::GradcheckResult r = rw::gradcheck(f, {sample({2, 3})}, {.second_order = true});
  CHECK_MESSAGE(r.ok, r.message);
}

TEST_CASE("data movement names itself and the shapes in errors") {
  const Tensor x = sample({2, 3});
  says(message_of([&] { rw::reshape(x, {4, 2}); }), "reshape: shape [2, 3] has 6 elements, [4, 2] has 8");
  says(message_of([&] { rw::reshape(x, {-1, -1}); }), "reshape: only one extent may be -1 (from shape [2, 3])");
  says(message_of([&] { rw::reshape(x, {-1, 4}); }), "the 6 elements of [2, 3] cannot be divided");
  says(message_of([&] { rw::reshape(x, {-2, 3}); }), "reshape: extent -2 makes no sense");
  says(message_of([&] { rw::permute(x, {0}); }), "permute: shape [2, 3] needs 2 axes, got 1");
  says(message_of([&] { rw::permute(x, {0, 0}); }), "permute: axis 0 of shape [2, 3] is given twice");
  says(message_of([&] { rw::slice(x, 1, 2, 4); }), "slice: elements [2, 4) of axis 1 do not lie in shape [2, 3]");
  says(message_of([&] { rw::slice(x, 2, 0, 1); }), "slice: axis 2 does not exist in shape [2, 3]");
  says(message_of([&] { rw::slice(x, 0, -3, 1); }), "slice: elements [-3, 1) of axis 0");
  says(message_of([&] { rw::pad(x, {{1, 1}}); }), "pad: shape [2, 3] needs 2 pairs of widths, got 1");
  says(message_of([&] { rw::pad(x, {{-1, 0}, {0, 0}}); }), "pad: widths must not be negative, got (-1, 0) for shape [2, 3]");
  says(message_of([&] { rw::concat({x, sample({2, 4})}, 0); }), "concat: tensors must agree");
  says(message_of([&] { rw::concat({}, 0); }), "concat: takes at least one tensor");
}
