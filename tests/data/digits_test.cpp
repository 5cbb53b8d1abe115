#include <doctest/doctest.h>

#include <rewind/data/digits.h>

#include <algorithm>
#include <array>
#include <map>
#include <vector>

using namespace rewind;

namespace {

std::array<int, 10> histogram(const data::Dataset& d) {
  std::array<int, 10> count{};
  for (const std::int64_t label : d.labels.values<std::int64_t>()) ++count.at(static_cast<std::size_t>(label));
  return count;
}

std::vector<int> sample(const data::Dataset& d, std::int64_t i) {
  const auto pixels = d.pixels.values().subspan(static_cast<std::size_t>(i * 64), 64);
  std::vector<int> row(pixels.begin(), pixels.end());
  row.push_back(static_cast<int>(d.labels.values<std::int64_t>()[static_cast<std::size_t>(i)]));
  return row;
}

}  // namespace

TEST_CASE("the embedded digits are those of the UCI repository") {
  const data::Dataset all = data::all_digits();
  CHECK(all.shape == Shape{1797, 8, 8, 1});
  CHECK(all.classes == 10);
  CHECK(all.samples() == 1797);
  CHECK(histogram(all) == std::array<int, 10>{178, 182, 177, 183, 181, 182, 181, 179, 174, 180});

  // FNV-1a over the rows of digits.csv, 64 pixels and the label each; and the sum of all pixels.
  std::uint64_t hash = 0xcbf29ce484222325, sum = 0;
  for (std::int64_t i = 0; i < 1797; ++i) {
    const auto row = sample(all, i);
    for (const int v : row) hash = (hash ^ static_cast<std::uint64_t>(v)) * 0x100000001b3;
    for (std::size_t j = 0; j < 64; ++j) sum += static_cast<std::uint64_t>(row[j]);
  }
  CHECK(sum == 561718);
  CHECK(hash == 0x776869cce3795967);
  CHECK(std::ranges::max(all.pixels.values()) == 16);
}

TEST_CASE("digits splits into 1437 and 360 that together are all of them, the same each time") {
  const auto [train, test] = data::digits();
  CHECK(train.shape == Shape{1437, 8, 8, 1});
  CHECK(test.shape == Shape{360, 8, 8, 1});
  for (const int count : histogram(test)) CHECK(count >= 25);

  std::map<std::vector<int>, int> left;
  const data::Dataset all = data::all_digits();
  for (std::int64_t i = 0; i < 1797; ++i) ++left[sample(all, i)];
  for (const data::Dataset* part : {&train, &test})
    for (std::int64_t i = 0; i < part->samples(); ++i) --left[sample(*part, i)];
  CHECK(std::ranges::all_of(left, [](const auto& entry) { return entry.second == 0; }));

  const data::Split again = data::digits();
  CHECK(std::ranges::equal(again.test.pixels.values(), test.pixels.values()));
  std::uint64_t hash = 0xcbf29ce484222325;
  for (const std::int64_t label : test.labels.values<std::int64_t>())
    hash = (hash ^ static_cast<std::uint64_t>(label)) * 0x100000001b3;
  CHECK(hash == 9848209675928931838u);
}

TEST_CASE("digits read as float32 from 0 to 1 with int64 labels") {
  const data::Dataset test = data::digits().test;
  const auto [x, y] = test.read();
  CHECK(x.shape() == Shape{360, 8, 8, 1});
  CHECK(y.shape() == Shape{360});
  CHECK(x.category() == Category::input);
  CHECK(y.category() == Category::input);
  const auto v = x.values<float>();
  CHECK(std::ranges::min(v) == 0.f);
  CHECK(std::ranges::max(v) == 1.f);
  for (std::size_t i = 0; i < v.size(); ++i) REQUIRE(v[i] == static_cast<float>(test.pixels.data()[i]) / 16);
}

TEST_CASE("what a data set takes is counted as input and given back") {
  const memory::Usage before = memory::live();
  {
    const data::Split split = data::digits();
    const memory::Usage now = memory::live();
    CHECK(now[Category::input] - before[Category::input] == 1797 * (64 + 8));
    CHECK(now.total - before.total == 1797 * (64 + 8));
    const data::Dataset copy = split.train, part = split.train.slice(10, 20);
    CHECK(memory::live() == now);
  }
  CHECK(memory::live() == before);
}
