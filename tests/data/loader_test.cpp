#include <doctest/doctest.h>

#include <rewind/core/random.h>
#include <rewind/data/digits.h>
#include <rewind/data/loader.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <iterator>
#include <stdexcept>
#include <thread>
#include <vector>

using namespace rewind;
using data::Batch;
using data::DataLoader;

static_assert(std::input_iterator<DataLoader::Iterator>);
static_assert(std::sentinel_for<DataLoader::End, DataLoader::Iterator>);

namespace {

using Order = std::vector<std::int64_t>;

// n samples; x of sample i is [i, -i], y is i.
DataLoader numbers(std::int64_t n, const data::LoaderOptions& options) {
  Tensor x = empty({n, 2}), y = arange(n, int64);
  for (std::int64_t i = 0; i < n; ++i) {
    x.mutate<float>()[static_cast<std::size_t>(2 * i)] = static_cast<float>(i);
    x.mutate<float>()[static_cast<std::size_t>(2 * i + 1)] = static_cast<float>(-i);
  }
  return DataLoader{x, y, options};
}

void append(Order& order, const Batch& batch) {
  const auto y = batch.y.values<std::int64_t>();
  const auto x = batch.x.values<float>();
  REQUIRE(x.size() == 2 * y.size());
  for (std::size_t i = 0; i < y.size(); ++i) {
    REQUIRE(x[2 * i] == static_cast<float>(y[i]));
    REQUIRE(x[2 * i + 1] == static_cast<float>(-y[i]));
    order.push_back(y[i]);
  }
}

Order epoch(DataLoader& loader) {
  Order order;
  for (const Batch batch : loader) append(order, batch);
  return order;
}

Order counted(std::int64_t n) { return arange(n, int64).to_vector<std::int64_t>(); }

Order sorted(Order order) {
  std::ranges::sort(order);
  return order;
}

// Counts its reads; fails at one of them, or takes its time, if asked.
struct Counting final : data::Source {
  Layout layout() const override { return {.samples = 10, .x = {2}}; }
  void read(std::span<const std::int64_t> rows, const Batch& out) override {
    const int now = reads++;
    if (now == fail_at) throw std::runtime_error("the disk is on fire");
    if (slow) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    Tensor x = out.x, y = out.y;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      y.mutate<std::int64_t>()[i] = rows[i];
      x.mutate<float>()[2 * i] = static_cast<float>(rows[i]);
      x.mutate<float>()[2 * i + 1] = static_cast<float>(-rows[i]);
    }
  }

  std::atomic<int> reads = 0;
  int fail_at = -1;
  bool slow = false;
};

bool soon(const std::atomic<int>& count, int expected) {
  for (int i = 0; i < 5000 && count < expected; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  return count >= expected;
}

}  // namespace

TEST_CASE("an epoch gives every sample exactly once, the last batch short") {
  DataLoader loader = numbers(103, {.batch = 10, .shuffle = true, .seed = 3});
  CHECK(loader.samples() == 103);
  CHECK(loader.batches() == 11);
  for (int e = 0; e < 3; ++e) {
    Order order;
    std::int64_t batches = 0;
    for (auto [x, y] : loader) {
      CHECK(x.shape() == Shape{++batches < 11 ? 10 : 3, 2});
      CHECK(y.shape() == Shape{x.size(0)});
      CHECK(x.category() == Category::input);
      CHECK(y.category() == Category::input);
      append(order, {x, y});
    }
    CHECK(batches == 11);
    CHECK(sorted(order) == counted(103));
    CHECK(order != counted(103));
  }
}

TEST_CASE("without shuffle the order is that of the data") {
  DataLoader loader = numbers(25, {.batch = 10});
  for (int e = 0; e < 2; ++e) CHECK(epoch(loader) == counted(25));
}

TEST_CASE("drop_last leaves out a batch that is not full") {
  DataLoader loader = numbers(25, {.batch = 10, .drop_last = true});
  CHECK(loader.batches() == 2);
  CHECK(epoch(loader) == counted(20));
  CHECK(numbers(30, {.batch = 10, .drop_last = true}).batches() == 3);
}

TEST_CASE("one batch may hold all samples, or one") {
  DataLoader all = numbers(5, {.batch = 100}), one = numbers(5, {.batch = 1});
  CHECK(all.batches() == 1);
  CHECK(one.batches() == 5);
  for (int e = 0; e < 2; ++e) {
    CHECK(epoch(all) == counted(5));
    CHECK(epoch(one) == counted(5));
  }
}

TEST_CASE("the order depends on seed and epoch, and on nothing else") {
  const auto run = [](std::uint64_t seed) {
    DataLoader loader = numbers(200, {.batch = 16, .shuffle = true, .seed = seed});
    return std::vector<Order>{epoch(loader), epoch(loader), epoch(loader)};
  };
  const auto first = run(1);
  CHECK(run(1) == first);
  CHECK(run(2) != first);
  CHECK(first[0] != first[1]);
  CHECK(first[1] != first[2]);

  DataLoader broken_off = numbers(200, {.batch = 16, .shuffle = true, .seed = 1});
  for (auto [x, y] : broken_off) break;
  CHECK(broken_off.epoch() == 1);
  CHECK(epoch(broken_off) == first[1]);

  DataLoader resumed = numbers(200, {.batch = 50, .shuffle = true, .seed = 1});
  resumed.set_epoch(2);
  CHECK(epoch(resumed) == first[2]);

  const std::uint64_t drawn = random::default_generator().offset();
  CHECK(epoch(resumed) != first[2]);
  CHECK(random::default_generator().offset() == drawn);
}

TEST_CASE("a loader of a data set gives what the data set reads") {
  const auto [train, test] = data::digits();
  const data::Dataset normalized = test.normalized(train.moments());
  DataLoader loader{normalized, {.batch = 50}};
  std::int64_t at = 0;
  for (auto [x, y] : loader) {
    const auto [x_expected, y_expected] = normalized.read(at, at + x.size(0));
    CHECK(x.to_vector<float>() == x_expected.to_vector<float>());
    CHECK(y.to_vector<std::int64_t>() == y_expected.to_vector<std::int64_t>());
    at += x.size(0);
  }
  CHECK(at == 360);
}

TEST_CASE("tensors of any dtype and rank can be loaded") {
  DataLoader loader{arange(6, int32), view_as(arange(24, float64), {6, 2, 2}), {.batch = 4}};
  std::vector<std::int32_t> xs;
  std::vector<double> ys;
  for (auto [x, y] : loader) {
    CHECK(y.shape() == Shape{x.size(0), 2, 2});
    std::ranges::copy(x.values<std::int32_t>(), std::back_inserter(xs));
    std::ranges::copy(y.values<double>(), std::back_inserter(ys));
  }
  CHECK(xs == std::vector<std::int32_t>{0, 1, 2, 3, 4, 5});
  CHECK(ys == arange(24, float64).to_vector<double>());
}

TEST_CASE("the next batch is prepared while the current one is in use") {
  Counting source;
  DataLoader loader{source, {.batch = 2}};
  CHECK(source.reads == 0);
  int batches = 0;
  for (auto [x, y] : loader) {
    ++batches;
    CHECK(soon(source.reads, std::min(batches + 1, 5)));
    // And no further: there are two batches, and one of them is here.
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    CHECK(source.reads == std::min(batches + 1, 5));
  }
  CHECK(source.reads == 5);
}

TEST_CASE("memory is taken up front and stays the same, over epochs and for any timing") {
  const memory::Usage before = memory::live();
  {
    Counting source;
    DataLoader loader{source, {.batch = 3, .shuffle = true}};
    const memory::Usage now = memory::live();
    CHECK(now[Category::input] - before[Category::input] == 2 * 3 * (2 * 4 + 8) + 10 * 8);
    CHECK(now.total - before.total == now[Category::input] - before[Category::input]);
    const memory::Scope scope;
    for (int e = 0; e < 6; ++e) {
      source.slow = e % 2 == 1;
      for (auto [x, y] : loader) CHECK(memory::live() == now);
      CHECK(memory::live() == now);
    }
    for (auto [x, y] : loader) break;
    CHECK(memory::live() == now);
    CHECK(scope.peak() == now);
  }
  CHECK(memory::live() == before);
}

TEST_CASE("a batch that is held is never overwritten") {
  DataLoader loader = numbers(40, {.batch = 4, .shuffle = true});
  const Order expected = epoch(loader);
  loader.set_epoch(0);
  const std::size_t before = memory::live().total, batch = 4 * (2 * 4 + 8);

  std::vector<Batch> held;
  for (const Batch b : loader) held.push_back(b);
  CHECK(memory::live().total == before + 8 * batch);
  Order order;
  for (const Batch& b : held) append(order, b);
  CHECK(order == expected);
  CHECK(epoch(loader) != expected);
  order.clear();
  for (const Batch& b : held) append(order, b);
  CHECK(order == expected);
  held.clear();
  CHECK(memory::live().total == before);

  // A view keeps the memory under it, and labels alone do not keep the images.
  loader.set_epoch(0);
  Tensor row, labels;
  for (auto [x, y] : loader) {
    if (!row.defined()) row = view_rows(x, 0, 1);
    labels = y;
  }
  CHECK(row.values<float>()[0] == static_cast<float>(expected[0]));
  CHECK(labels.values<std::int64_t>()[3] == expected[39]);
  CHECK(memory::live().total < before + 2 * batch);
}

TEST_CASE("writing to a batch changes neither the data nor later batches") {
  DataLoader loader = numbers(12, {.batch = 4});
  for (auto [x, y] : loader) {
    x.fill(99);
    y.fill(-1);
    x.set_requires_grad();
  }
  CHECK(epoch(loader) == counted(12));
  for (auto [x, y] : loader) CHECK_FALSE(x.requires_grad());
}

TEST_CASE("a refilled batch has another version, so that stale saves are noticed") {
  DataLoader loader = numbers(12, {.batch = 4});
  const Storage* first = nullptr;
  std::uint32_t version = 0;
  int batches = 0;
  for (auto [x, y] : loader) {
    if (++batches == 1) {
      first = x.impl().storage;
      version = first->version;
    } else if (batches == 3) {
      REQUIRE(x.impl().storage == first);
      CHECK(first->version > version);
    }
  }
}

TEST_CASE("loops may be left, and loaders moved and destroyed, at any time") {
  Counting source;
  source.slow = true;
  for (int steps = 0; steps <= 5; ++steps) {
    DataLoader loader{source, {.batch = 2}};
    int left = steps;
    for (auto [x, y] : loader)
      if (left-- == 0) break;
    if (steps % 2 == 0) continue;  // destroyed while the next batch is being read
    CHECK(epoch(loader) == counted(10));
  }

  DataLoader loader{source, {.batch = 2}};
  Order order;
  auto at = loader.begin();
  append(order, *at);
  DataLoader moved = std::move(loader);
  for (++at; at != moved.end(); ++at) append(order, *at);
  CHECK(order == counted(10));
  CHECK_THROWS_WITH_AS(loader.batches(), doctest::Contains("was moved from"), Error);
  loader = DataLoader{source, {.batch = 5}};
  loader = std::move(moved);
  CHECK(loader.batches() == 5);
  CHECK(epoch(loader) == counted(10));
}

TEST_CASE("what a source throws reaches the loop, and the loader works on") {
  for (int fail_at = 0; fail_at < 5; ++fail_at) {
    Counting source;
    source.fail_at = fail_at;
    DataLoader loader{source, {.batch = 2}};
    int seen = 0;
    const auto loop = [&] {
      for (auto [x, y] : loader) ++seen;
    };
    CHECK_THROWS_WITH_AS(loop(), "the disk is on fire", std::runtime_error);
    CHECK(seen == fail_at);
    CHECK(epoch(loader) == counted(10));
  }
  // Thrown for a batch that nobody waits for any more.
  Counting source;
  source.fail_at = 1;
  DataLoader loader{source, {.batch = 2}};
  for (auto [x, y] : loader) break;
  CHECK(epoch(loader) == counted(10));
}

TEST_CASE("out of memory at any allocation leaves a loader that works") {
  const memory::Usage before = memory::live();
  int failures = 0;
  for (std::uint64_t n = 1; n < 100; ++n) {
    Counting source;
    bool failed = false;
    try {
      memory::fail_at(n);
      DataLoader loader{source, {.batch = 2}};
      std::vector<Batch> held;
      try {
        for (const Batch b : loader) held.push_back(b);
      } catch (const OutOfMemory& e) {
        CHECK(std::string(e.what()).find("DataLoader needs") != std::string::npos);
        failed = true;
      }
      if (failed) {
        held.clear();
        CHECK(epoch(loader) == counted(10));
      }
    } catch (const OutOfMemory&) {
      failed = true;
    }
    memory::fail_at(0);
    CHECK(memory::live() == before);
    if (!failed) break;
    ++failures;
  }
  CHECK(failures == 5 + 2 * 3);  // the order and two batches up front, three batches for those that are held
}

TEST_CASE("dry runs take batches of the right shapes and count no epochs") {
  DataLoader real = numbers(10, {.batch = 4, .shuffle = true});
  const Order first = epoch(real);
  real.set_epoch(0);
  const memory::Usage before = memory::live();
  {
    const DryLedger dry;
    std::vector<Batch> held;
    for (const Batch b : real) held.push_back(b);
    CHECK(held[2].x.shape() == Shape{2, 2});
    CHECK(real.epoch() == 0);

    DataLoader made_dry{empty({10, 2}), empty({10}, int64), {.batch = 4, .shuffle = true}};
    std::int64_t rows = 0;
    for (auto [x, y] : made_dry) rows += x.size(0);
    CHECK(rows == 10);
  }
  CHECK(epoch(real) == first);
  CHECK(memory::live() == before);
}

TEST_CASE("a dry run of a loader that was made before reads nothing") {
  struct Empty final : data::Source {
    int reads = 0;
    Layout layout() const override { return {.samples = 10, .x = {2}}; }
    void read(std::span<const std::int64_t>, const Batch&) override { ++reads; }
  } source;
  DataLoader loader(source, {.batch = 4});
  for (const Batch& b : loader) CHECK(b.y.rank() == 1);
  CHECK(source.reads == 3);
  {
    const DryLedger dry;
    for (const Batch& b : loader) CHECK(b.x.size(1) == 2);
  }
  CHECK(source.reads == 3);
}

TEST_CASE("mistakes with loaders are named") {
  const Tensor x = zeros({10, 3}), y = zeros({10}, int64);
  CHECK_THROWS_WITH_AS((DataLoader{x, y, {.batch = 0}}), "DataLoader: batch is 0; it is to be at least 1", Error);
  CHECK_THROWS_WITH_AS((DataLoader{x, zeros({9})}), "DataLoader: x [10, 3] and y [9] are to agree in their first axis, the samples",
                       Error);
  CHECK_THROWS_WITH_AS((DataLoader{scalar(1), scalar(1)}), doctest::Contains("x [] and y [] are to agree"), Error);
  CHECK_THROWS_WITH_AS((DataLoader{zeros({0, 3}), zeros({0})}), "DataLoader: there are no samples", Error);
  CHECK_THROWS_WITH_AS((DataLoader{x, y, {.batch = 11, .drop_last = true}}), doctest::Contains("10 samples fill no batch of 11"),
                       Error);
  CHECK_THROWS_WITH_AS(DataLoader{data::Dataset{}}, doctest::Contains("does not describe its 0 pixels"), Error);

  DataLoader loader{x, y, {.batch = 5}};
  CHECK_THROWS_WITH_AS(loader.set_epoch(-1), doctest::Contains("epochs are counted from 0"), Error);
  auto outer = loader.begin();
  auto inner = loader.begin();
  CHECK_THROWS_WITH_AS(++outer, doctest::Contains("another loop over this loader has begun"), Error);
  ++inner;
  ++inner;
  CHECK(inner == loader.end());
  CHECK_THROWS_WITH_AS(++inner, doctest::Contains("this loop is over"), Error);
  CHECK_THROWS_WITH_AS(*inner, doctest::Contains("this loop is over"), Error);
}
