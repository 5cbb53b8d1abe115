#include <doctest/doctest.h>

#include <rewind/core/kernels/copy.h>
#include <rewind/core/kernels/reduce.h>
#include <rewind/core/parallel.h>
#include <rewind/core/random.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

using namespace rewind;
using namespace rewind::kernels;

namespace {

using Extents = std::vector<std::int64_t>;

std::int64_t numel(const Extents& e) { return std::accumulate(e.begin(), e.end(), std::int64_t{1}, std::multiplies<>()); }
std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }

template <class T>
std::vector<T> normal(std::int64_t n, std::uint64_t seed) {
  std::vector<T> v(size(n));
  random::fill_normal(v.data(), n, T{1}, T{1}, seed, 0);
  return v;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), sizeof(T) * a.size()) == 0);
}

template <class F>
void check_threads(F f) {
  const int before = parallel::threads();
  parallel::set_threads(1);
  const auto one = f();
  for (int n = 2; n <= 4; ++n) {
    parallel::set_threads(n);
    CHECK(same_bits(one, f()));
  }
  parallel::set_threads(before);
}

// The output position of flat position i when `axes` are reduced.
std::int64_t reduced_position(const Extents& e, std::uint32_t axes, std::int64_t i) {
  std::int64_t out = 0, step = 1;
  for (std::size_t axis = e.size(); axis-- > 0;) {
    if (((axes >> axis) & 1u) == 0) {
      out += i % e[axis] * step;
      step *= e[axis];
    }
    i /= e[axis];
  }
  return out;
}

std::int64_t outputs(const Extents& e, std::uint32_t axes) {
  std::int64_t n = 1;
  for (std::size_t axis = 0; axis < e.size(); ++axis)
    if (((axes >> axis) & 1u) == 0) n *= e[axis];
  return n;
}

const Extents shapes[] = {{},
                          {1},
                          {5},
                          {100003},
                          {7, 5},
                          {300, 70},
                          {40000, 3},
                          {3, 40000},
                          {2000, 300},
                          {2, 3, 4},
                          {9, 100, 33},
                          {2, 3, 4, 5},
                          {1, 5, 1, 7},
                          {100, 7, 600},
                          {3, 1, 2, 1, 3, 2, 1, 2},
                          {2, 3, 2, 3, 2, 3, 2, 3},
                          {0, 4},
                          {4, 0},
                          {3, 2, 70000}};

}  // namespace

TEST_CASE_TEMPLATE("sums over every set of axes agree with a plain reference, for any number of threads", T, float, double) {
  for (const Extents& e : shapes) {
    const auto x = normal<T>(numel(e), 1);
    const int rank = static_cast<int>(e.size());
    for (std::uint32_t axes = 0; axes < (1u << rank); ++axes) {
      std::vector<double> exact(size(outputs(e, axes)));
      for (std::int64_t i = 0; i < numel(e); ++i)
        exact[size(reduced_position(e, axes, i))] += 0.5 * static_cast<double>(x[size(i)]);
      const auto run = [&] {
        std::vector<T> y(exact.size(), T{99});
        std::vector<double> scratch(size(sum_scratch(e.data(), rank, axes)));
        sum(x.data(), e.data(), rank, axes, static_cast<T>(0.5), y.data(), scratch.data());
        return y;
      };
      const auto y = run();
      double worst = 0;
      for (std::size_t i = 0; i < y.size(); ++i)
        worst = std::fmax(worst, std::fabs(static_cast<double>(y[i]) - exact[i]) / std::fmax(1, std::fabs(exact[i])));
      INFO("rank ", rank, ", ", numel(e), " elements, axes ", axes);
      CHECK(worst < (sizeof(T) == 4 ? 1e-5 : 1e-13));
      if (numel(e) > 10000) check_threads(run);
    }
  }
}

TEST_CASE("a long sum of floats stays accurate") {
  const std::int64_t n = 10000000;
  const std::vector<float> x(size(n), 0.1f);
  const std::int64_t extent[] = {n};
  std::vector<double> scratch(size(sum_scratch(extent, 1, 1)));
  float y = 0;
  sum(x.data(), extent, 1, 1, 1.f, &y, scratch.data());
  CHECK(static_cast<double>(y) == doctest::Approx(static_cast<double>(0.1f) * 1e7).epsilon(1e-6));
}

TEST_CASE_TEMPLATE("expand repeats along the reduced axes", T, float, double) {
  for (const Extents& e : shapes) {
    const int rank = static_cast<int>(e.size());
    for (std::uint32_t axes = 0; axes < (1u << rank); ++axes) {
      const auto g = normal<T>(outputs(e, axes), 2);
      const auto run = [&] {
        std::vector<T> y(size(numel(e)));
        expand(g.data(), e.data(), rank, axes, T{2}, y.data());
        return y;
      };
      const auto y = run();
      bool all = true;
      for (std::int64_t i = 0; i < numel(e); ++i) all = all && y[size(i)] == 2 * g[size(reduced_position(e, axes, i))];
      CHECK(all);
      if (numel(e) > 10000) check_threads(run);
    }
  }
}

TEST_CASE_TEMPLATE("maxima come with the place of the first, for any axes and threads", T, float, double) {
  for (const Extents& e : shapes) {
    if (numel(e) == 0) continue;
    auto x = normal<T>(numel(e), 3);
    for (T& v : x) v = static_cast<T>(std::round(static_cast<double>(v) * 4));  // many ties
    if (x.size() > 50) x[50] = std::numeric_limits<T>::quiet_NaN();
    if (x.size() > 60) x[60] = -std::numeric_limits<T>::infinity();
    const int rank = static_cast<int>(e.size());
    for (std::uint32_t axes = 0; axes < (1u << rank); ++axes) {
      const std::int64_t n = outputs(e, axes);
      std::vector<std::int64_t> expected(size(n), -1);
      for (std::int64_t i = 0; i < numel(e); ++i) {
        std::int64_t& best = expected[size(reduced_position(e, axes, i))];
        if (best < 0 || x[size(i)] > x[size(best)] || (std::isnan(x[size(i)]) && !std::isnan(x[size(best)]))) best = i;
      }
      std::vector<T> y(size(n)), back(x.size());
      const auto run = [&] {
        std::vector<std::int64_t> index(size(n));
        kernels::max(x.data(), e.data(), rank, axes, y.data(), index.data());
        return index;
      };
      const auto index = run();
      INFO("rank ", rank, ", ", numel(e), " elements, axes ", axes);
      CHECK(index == expected);
      std::vector<T> gathered(size(n));
      gather(x.data(), index.data(), n, gathered.data());
      CHECK(same_bits(gathered, y));
      if (numel(e) > 10000) check_threads(run);
      scatter(y.data(), index.data(), n, back.data(), numel(e));
      for (const std::int64_t i : index) REQUIRE(std::memcmp(&back[size(i)], &x[size(i)], sizeof(T)) == 0);
    }
  }
  const auto x = normal<T>(6 * 35 * 4, 4);
  std::vector<std::int32_t> index(24);
  argmax(x.data(), 6, 35, 4, index.data());
  for (std::int64_t u = 0; u < 24; ++u) {
    std::int64_t best = 0;
    const auto at = [&](std::int64_t k) { return x[size((u / 4 * 35 + k) * 4 + u % 4)]; };
    for (std::int64_t k = 1; k < 35; ++k)
      if (at(k) > at(best)) best = k;
    CHECK(index[size(u)] == best);
  }
}

TEST_CASE_TEMPLATE("permute moves axes", T, float, double, std::int32_t, std::int64_t) {
  struct Case {
    Extents extent;
    std::vector<int> axes;
  };
  for (const Case& c : {Case{{}, {}}, Case{{5}, {0}}, Case{{37, 53}, {1, 0}}, Case{{300, 200}, {1, 0}}, Case{{2, 3, 4}, {2, 0, 1}},
                        Case{{4, 33, 17, 5}, {0, 3, 1, 2}}, Case{{4, 33, 17, 5}, {0, 2, 3, 1}}, Case{{4, 33, 17, 5}, {1, 0, 2, 3}},
                        Case{{4, 33, 17, 5}, {3, 2, 1, 0}}, Case{{2, 1, 3, 1, 4, 2, 3, 2}, {7, 3, 5, 0, 1, 6, 2, 4}},
                        Case{{20, 30, 40}, {0, 1, 2}}, Case{{3, 0, 2}, {1, 2, 0}}, Case{{16, 3, 100, 100}, {0, 2, 3, 1}}}) {
    const std::int64_t n = numel(c.extent);
    const int rank = static_cast<int>(c.extent.size());
    std::vector<T> x(size(n));
    std::iota(x.begin(), x.end(), T{0});
    const auto run = [&] {
      std::vector<T> y(x.size());
      permute(x.data(), c.extent.data(), rank, c.axes.data(), y.data());
      return y;
    };
    const auto y = run();
    bool all = true;
    for (std::int64_t i = 0; i < n; ++i) {
      std::int64_t position[8] = {}, rest = i, at = 0;
      for (int a = rank; a-- > 0;) {
        position[a] = rest % c.extent[size(a)];
        rest /= c.extent[size(a)];
      }
      for (int a = 0; a < rank; ++a) at = at * c.extent[size(c.axes[size(a)])] + position[c.axes[size(a)]];
      all = all && y[size(at)] == x[size(i)];
    }
    CHECK(all);
    check_threads(run);
  }
}

TEST_CASE_TEMPLATE("slice takes a box and paste puts it back", T, float, double, std::int32_t, std::int64_t) {
  struct Case {
    Extents extent, start, count;
  };
  for (const Case& c : {Case{{}, {}, {}}, Case{{9}, {2}, {5}}, Case{{7, 5}, {0, 0}, {7, 5}}, Case{{7, 5}, {2, 0}, {3, 5}},
                        Case{{7, 5}, {2, 1}, {3, 2}}, Case{{4, 5, 6}, {0, 1, 0}, {4, 3, 6}}, Case{{4, 5, 6}, {1, 0, 2}, {2, 5, 1}},
                        Case{{3, 1, 4, 2, 3, 1, 2, 2}, {1, 0, 1, 0, 1, 0, 0, 1}, {2, 1, 3, 2, 2, 1, 2, 1}},
                        Case{{2, 100000}, {0, 7}, {2, 99000}}, Case{{5, 4}, {1, 1}, {0, 2}}}) {
    const int rank = static_cast<int>(c.extent.size());
    const std::int64_t n = numel(c.extent), m = numel(c.count);
    std::vector<T> x(size(n)), part(size(m)), back(size(n)), expected(size(n), T{9}), taken;
    std::iota(x.begin(), x.end(), T{0});
    for (std::int64_t i = 0; i < n; ++i) {
      std::int64_t rest = i;
      bool inside = true;
      for (int a = rank; a-- > 0;) {
        const std::int64_t p = rest % c.extent[size(a)];
        rest /= c.extent[size(a)];
        inside = inside && p >= c.start[size(a)] && p < c.start[size(a)] + c.count[size(a)];
      }
      if (!inside) continue;
      taken.push_back(x[size(i)]);
      expected[size(i)] = x[size(i)];
    }
    slice(x.data(), c.extent.data(), rank, c.start.data(), c.count.data(), part.data());
    CHECK(part == taken);
    paste(part.data(), c.extent.data(), rank, c.start.data(), c.count.data(), T{9}, back.data());
    CHECK(back == expected);
  }
}

TEST_CASE("pieces are joined along an axis and taken apart again") {
  const std::int64_t outer = 3, inner = 5, extents[] = {2, 4, 1};
  std::vector<double> y(size(outer * 7 * inner), -1);
  std::int64_t offset = 0;
  for (const std::int64_t e : extents) {
    std::vector<double> x(size(outer * e * inner)), back(x.size());
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<double>(offset * 1000) + static_cast<double>(i);
    copy_rows(x.data(), e * inner, y.data() + offset * inner, 7 * inner, outer, e * inner);
    copy_rows(y.data() + offset * inner, 7 * inner, back.data(), e * inner, outer, e * inner);
    CHECK(back == x);
    offset += e;
  }
  for (const double v : y) CHECK(v >= 0);
}

TEST_CASE("casts convert and saturate") {
  const float x[] = {1.9f, -1.9f, 3e9f, -3e9f, std::nanf(""), 1e20f, -1e20f};
  std::int32_t narrow[7];
  std::int64_t broad[7];
  cast(x, narrow, 7);
  cast(x, broad, 7);
  CHECK(narrow[0] == 1);
  CHECK(narrow[1] == -1);
  CHECK(narrow[2] == 2147483647);
  CHECK(narrow[3] == -2147483647 - 1);
  CHECK(narrow[4] == 0);
  CHECK(broad[2] == 3000000000);
  CHECK(broad[4] == 0);
  CHECK(broad[5] == std::numeric_limits<std::int64_t>::max());
  CHECK(broad[6] == std::numeric_limits<std::int64_t>::min());
  double d[7];
  cast(x, d, 7);
  CHECK(d[0] == static_cast<double>(1.9f));
  float f[7];
  cast(d, f, 4);
  CHECK(f[1] == -1.9f);
  cast(narrow, f, 2);
  CHECK(f[0] == 1.f);
}
