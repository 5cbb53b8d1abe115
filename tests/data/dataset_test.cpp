#include <doctest/doctest.h>

#include <rewind/data/dataset.h>

#include <cmath>
#include <vector>

using namespace rewind;

namespace {

// Four images of 1x2 with two channels; the pixels count up.
data::Dataset small() {
  data::Dataset d;
  d.name = "small";
  d.classes = 4;
  d.shape = {4, 1, 2, 2};
  d.pixels = data::Bytes(16);
  for (std::size_t i = 0; i < 16; ++i) d.pixels.data()[i] = static_cast<std::uint8_t>(i);
  d.labels = arange(4, int64);
  return d;
}

using Floats = std::vector<float>;
using Labels = std::vector<std::int64_t>;

}  // namespace

TEST_CASE("a data set reads ranges and rows, scaled") {
  data::Dataset d = small();
  d.white = 2;
  const auto [x, y] = d.read(1, 2);
  CHECK(x.shape() == Shape{1, 1, 2, 2});
  CHECK(x.to_vector<float>() == Floats{2, 2.5f, 3, 3.5f});
  CHECK(y.to_vector<std::int64_t>() == Labels{1});

  const data::Batch out{empty({2, 1, 2, 2}), empty({2}, int64)};
  d.read(std::vector<std::int64_t>{3, 0}, out);
  CHECK(out.x.to_vector<float>() == Floats{6, 6.5f, 7, 7.5f, 0, 0.5f, 1, 1.5f});
  CHECK(out.y.to_vector<std::int64_t>() == Labels{3, 0});
}

TEST_CASE("slices share and selections copy") {
  const data::Dataset d = small(), slice = d.slice(2, 4), rows = slice.select(std::vector<std::int64_t>{1, 1});
  CHECK(slice.samples() == 2);
  CHECK(slice.pixels.data() == d.pixels.data() + 8);
  CHECK(slice.labels.shares_storage(d.labels));
  CHECK(rows.pixels.values()[0] == 12);
  CHECK(rows.pixels.values()[4] == 12);
  CHECK(rows.labels.to_vector<std::int64_t>() == Labels{3, 3});
  CHECK(rows.read().x.shape() == Shape{2, 1, 2, 2});
}

TEST_CASE("moments are those of every channel, and normalized makes them 0 and 1") {
  data::Dataset d = small();
  d.white = 10;
  const data::Moments m = d.moments();
  REQUIRE(m.mean.size() == 2);
  CHECK(m.mean[0] == doctest::Approx(0.7));
  CHECK(m.mean[1] == doctest::Approx(0.8));
  CHECK(m.stddev[0] == doctest::Approx(std::sqrt(21.0) / 10));

  const Tensor x = d.normalized(m).read().x;
  double sum[2] = {}, squares[2] = {};
  for (std::size_t i = 0; i < 16; ++i) {
    const double v = static_cast<double>(x.values<float>()[i]);
    sum[i % 2] += v;
    squares[i % 2] += v * v;
  }
  for (int c = 0; c < 2; ++c) {
    CHECK(std::abs(sum[c]) < 1e-5);
    CHECK(squares[c] == doctest::Approx(8));
  }
}

TEST_CASE("mistakes with data sets are named") {
  data::Dataset d = small();
  CHECK_THROWS_WITH_AS(d.read(3, 5), "data set 'small': samples [3, 5) do not lie in its 4", Error);
  CHECK_THROWS_WITH_AS(d.select(std::vector<std::int64_t>{4}), "data set 'small': samples [4, 5) do not lie in its 4", Error);
  CHECK_THROWS_WITH_AS(d.normalized({{0}, {1}}), doctest::Contains("have 2 channels, and were given 1 means"), Error);
  CHECK_THROWS_WITH_AS(d.normalized({{0, 0}, {1, 0}}), doctest::Contains("is to be positive, and is 0"), Error);
  data::Dataset by_hand = d;
  by_hand.normalization = {{0, 0, 0}, {1}};
  CHECK_THROWS_WITH_AS(by_hand.read(0, 1), doctest::Contains("were given 3 means and 1 standard deviations"), Error);
  CHECK_THROWS_WITH_AS(d.read(std::vector<std::int64_t>{0}, {empty({1, 4}), empty({1}, int64)}),
                       doctest::Contains("do not fit into x [1, 4]"), Error);
  CHECK_THROWS_WITH_AS(d.read(std::vector<std::int64_t>{-1}, d.read(0, 1)), doctest::Contains("there is no sample -1"), Error);
  d.shape = {4, 2, 2, 2};
  CHECK_THROWS_WITH_AS(d.read(), doctest::Contains("does not describe its 16 pixels"), Error);
  d = small();
  d.labels = empty({4}, int32);
  CHECK_THROWS_WITH_AS(d.read(), doctest::Contains("labels are to be int64 [4], and are int32 [4]"), Error);
  CHECK_THROWS_WITH_AS(data::Dataset{}.read(), doctest::Contains("does not describe its 0 pixels"), Error);

  const DryLedger dry;
  CHECK_THROWS_WITH_AS(data::Bytes(8), doctest::Contains("cannot be read in a dry run"), Error);
}
