#include <doctest/doctest.h>

#include <rewind/core/kernels/philox.h>
#include <rewind/core/kernels/pointwise.h>
#include <rewind/core/parallel.h>
#include <rewind/core/random.h>

#include <cmath>
#include <cstring>
#include <vector>

using namespace rewind;
namespace k = rewind::kernels;

namespace {

void check_words(k::Philox counter, std::uint32_t key0, std::uint32_t key1, k::Philox expected) {
  const k::Philox out = k::philox(counter, key0, key1);
  for (int i = 0; i < 4; ++i) CHECK(out.word[i] == expected.word[i]);
}

template <class T>
struct Moments {
  double mean = 0, var = 0, fourth = 0;
  explicit Moments(const std::vector<T>& v) {
    for (const T x : v) mean += static_cast<double>(x);
    mean /= static_cast<double>(v.size());
    for (const T x : v) {
      const double d = static_cast<double>(x) - mean;
      var += d * d;
      fourth += d * d * d * d;
    }
    var /= static_cast<double>(v.size());
    fourth /= static_cast<double>(v.size());
  }
};

}  // namespace

TEST_CASE("Philox 4x32-10 gives the known answers of Random123") {
  check_words({{0, 0, 0, 0}}, 0, 0, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}});
  const std::uint32_t f = 0xffffffffu;
  check_words({{f, f, f, f}}, f, f, {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}});
  check_words({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0,
              {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}});
}

TEST_CASE("sixteen counters at once are the same words as one at a time") {
  const std::uint64_t seed = 0x0123456789abcdefu, offset = (std::uint64_t{1} << 40) + 128;
  std::uint32_t word[64];
  k::philox_fill(seed, offset, word);
  for (std::uint32_t j = 0; j < 64; ++j) {
    const std::uint64_t counter = offset / 4 + j % 16;
    const k::Philox one = k::philox({{static_cast<std::uint32_t>(counter), static_cast<std::uint32_t>(counter >> 32), 0, 0}},
                                    static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32));
    CHECK(word[j] == one.word[j / 16]);
  }
}

TEST_CASE("a generator hands out groups of 64 and can be set back") {
  random::Generator g(7);
  CHECK(g.take(1) == 0);
  CHECK(g.take(64) == 64);
  CHECK(g.take(65) == 128);
  CHECK(g.offset() == 256);
  g.set_offset(64);
  CHECK(g.take(0) == 64);
  CHECK(g.offset() == 64);
  random::seed(5);
  CHECK(random::default_generator().seed() == 5);
  CHECK(random::default_generator().offset() == 0);
}

TEST_CASE_TEMPLATE("uniform and normal numbers have their moments", T, float, double) {
  const std::int64_t n = 400001;
  std::vector<T> v(static_cast<std::size_t>(n));
  random::fill_uniform(v.data(), n, T{-1}, T{3}, 1, 0);
  for (const T x : v) REQUIRE((x >= T{-1} && x < T{3}));
  const Moments<T> u(v);
  CHECK(u.mean == doctest::Approx(1).epsilon(0.01));
  CHECK(u.var == doctest::Approx(16.0 / 12).epsilon(0.01));
  random::fill_normal(v.data(), n, T{2}, T{3}, 1, 64);
  const Moments<T> normal(v);
  CHECK(normal.mean == doctest::Approx(2).epsilon(0.01));
  CHECK(normal.var == doctest::Approx(9).epsilon(0.01));
  CHECK(normal.fourth == doctest::Approx(3 * 81).epsilon(0.02));
  // sine and cosine parts of a Box-Muller pair are not correlated
  double product = 0;
  std::int64_t pairs = 0;
  const std::int64_t half = sizeof(T) == 4 ? 32 : 16;
  for (std::int64_t at = 0; at + 2 * half <= n; at += 2 * half)
    for (std::int64_t j = 0; j < half; ++j, ++pairs)
      product += (static_cast<double>(v[static_cast<std::size_t>(at + j)]) - 2) *
                 (static_cast<double>(v[static_cast<std::size_t>(at + half + j)]) - 2);
  CHECK(std::fabs(product / static_cast<double>(pairs) / 9) < 0.01);
}

TEST_CASE("a permutation holds every number once and is about uniform") {
  const std::int64_t n = 1000;
  std::vector<std::int64_t> p(static_cast<std::size_t>(n));
  random::fill_permutation(p.data(), n, 3, 0);
  std::vector<int> seen(p.size());
  for (const std::int64_t i : p) ++seen[static_cast<std::size_t>(i)];
  for (const int s : seen) CHECK(s == 1);
  std::vector<std::int32_t> q(5);
  int counts[5][5] = {};
  for (std::uint64_t trial = 0; trial < 20000; ++trial) {
    random::fill_permutation(q.data(), 5, trial, 64);
    for (int i = 0; i < 5; ++i) ++counts[i][q[static_cast<std::size_t>(i)]];
  }
  for (const auto& row : counts)
    for (const int c : row) CHECK(std::abs(c - 4000) < 300);
  random::fill_permutation(q.data(), 0, 0, 0);
  random::fill_permutation(q.data(), 1, 0, 0);
  CHECK(q[0] == 0);
}

TEST_CASE_TEMPLATE("random fills have the same bits for any number of threads", T, float, double) {
  const std::int64_t n = 70003;
  const int before = parallel::threads();
  std::vector<T> first[3];
  for (int threads = 1; threads <= 4; ++threads) {
    parallel::set_threads(threads);
    std::vector<T> v[3];
    for (auto& x : v) x.resize(static_cast<std::size_t>(n));
    random::fill_uniform(v[0].data(), n, T{0}, T{1}, 9, 128);
    random::fill_normal(v[1].data(), n, T{0}, T{1}, 9, 128);
    k::dropout(v[0].data(), v[2].data(), n, 0.3, 9, 128);
    for (int i = 0; i < 3; ++i) {
      if (threads == 1) first[i] = v[i];
      CHECK(std::memcmp(first[i].data(), v[i].data(), sizeof(T) * v[i].size()) == 0);
    }
  }
  parallel::set_threads(before);
}

TEST_CASE_TEMPLATE("dropout drops a share p, scales the rest, and gives its mask again", T, float, double) {
  const std::int64_t n = 100001;
  std::vector<T> x(static_cast<std::size_t>(n), T{1}), y(x.size()), again(x.size(), T{2});
  k::dropout(x.data(), y.data(), n, 0.25, 11, 64);
  std::int64_t zeros = 0;
  for (const T v : y) {
    REQUIRE((v == T{0} || v == static_cast<T>(1 / 0.75)));
    zeros += v == T{0};
  }
  CHECK(std::fabs(static_cast<double>(zeros) / static_cast<double>(n) - 0.25) < 0.01);
  k::dropout(again.data(), again.data(), n, 0.25, 11, 64);  // in place, as the backward does
  for (std::size_t i = 0; i < y.size(); ++i) REQUIRE(again[i] == y[i] * 2);
  k::dropout(x.data(), y.data(), n, 0.0, 11, 64);
  CHECK(y == x);
  k::dropout(x.data(), y.data(), n, 1.0, 11, 64);
  CHECK(y == std::vector<T>(x.size(), T{0}));
}
