#include <doctest/doctest.h>

#include <rewind/core/kernels/check.h>
#include <rewind/core/kernels/pointwise.h>
#include <rewind/core/kernels/update.h>
#include <rewind/core/parallel.h>
#include <rewind/core/random.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

using namespace rewind;
using namespace rewind::kernels;

namespace {

template <class T>
std::vector<T> normal(std::int64_t n, std::uint64_t seed, T stddev = T{1}) {
  std::vector<T> v(static_cast<std::size_t>(n));
  random::fill_normal(v.data(), n, T{0}, stddev, seed, 0);
  return v;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), sizeof(T) * a.size()) == 0);
}

// Runs f() -> vector at 1 to 4 threads and checks that the bits agree.
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

// Distance in units of the last place of `exact` rounded to float; tiny results count in units of the smallest normal's.
double ulps(float got, double exact) {
  const double size = std::fmax(std::fabs(exact), 0x1p-126);
  return std::fabs(static_cast<double>(got) - exact) / std::ldexp(1.0, std::ilogb(size) - 23);
}

double reference(Unary op, double x) {
  switch (op) {
    case Unary::neg: return -x;
    case Unary::exp: return std::exp(x);
    case Unary::log: return std::log(x);
    case Unary::sqrt: return std::sqrt(x);
    case Unary::tanh: return std::tanh(x);
    case Unary::sigmoid: return 1 / (1 + std::exp(-x));
    case Unary::relu: return x > 0 ? x : 0;
    case Unary::relu6: return std::fmin(std::fmax(x, 0), 6);
    case Unary::silu: return x / (1 + std::exp(-x));
    case Unary::hardswish: return x * std::fmin(std::fmax(x + 3, 0), 6) / 6;
    case Unary::hardsigmoid: return std::fmin(std::fmax(x + 3, 0), 6) / 6;
    case Unary::gelu: return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    case Unary::square: return x * x;
    case Unary::abs: return std::fabs(x);
  }
  return 0;
}

constexpr bool needs_positive(Unary op) { return op == Unary::log || op == Unary::sqrt; }

double reference_binary(Binary op, double a, double b) {
  switch (op) {
    case Binary::add: return a + b;
    case Binary::sub: return a - b;
    case Binary::mul: return a * b;
    case Binary::div: return a / b;
  }
  return 0;
}

using Extents = std::vector<std::int64_t>;

template <class T>
void check_broadcast(const Extents& a_extent, const Extents& b_extent) {
  const auto numel = [](const Extents& e) {
    std::int64_t n = 1;
    for (const std::int64_t v : e) n *= v;
    return n;
  };
  Extents out(std::max(a_extent.size(), b_extent.size()));
  const auto at = [&](const Extents& e, std::size_t axis) {  // aligned right
    const std::size_t missing = out.size() - e.size();
    return axis < missing ? std::int64_t{1} : e[axis - missing];
  };
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = at(a_extent, i) == 1 ? at(b_extent, i) : at(a_extent, i);
  const auto a = normal<T>(numel(a_extent), 1);
  const auto b = normal<T>(numel(b_extent), 2);
  for (const Binary op : {Binary::add, Binary::sub, Binary::mul, Binary::div}) {
    std::vector<T> y(static_cast<std::size_t>(numel(out)));
    binary(op, a.data(), a_extent.data(), static_cast<int>(a_extent.size()), b.data(), b_extent.data(),
           static_cast<int>(b_extent.size()), y.data());
    bool all = true;
    for (std::int64_t i = 0; i < numel(out); ++i) {
      std::int64_t rest = i, ia = 0, ib = 0, sa = 1, sb = 1;
      for (std::size_t axis = out.size(); axis-- > 0;) {
        const std::int64_t p = rest % out[axis];
        rest /= out[axis];
        if (at(a_extent, axis) > 1) ia += p * sa;
        if (at(b_extent, axis) > 1) ib += p * sb;
        sa *= at(a_extent, axis);
        sb *= at(b_extent, axis);
      }
      all = all && y[static_cast<std::size_t>(i)] ==
                       static_cast<T>(reference_binary(op, static_cast<double>(a[static_cast<std::size_t>(ia)]),
                                                       static_cast<double>(b[static_cast<std::size_t>(ib)])));
    }
    CHECK(all);
    if (numel(out) == numel(a_extent)) {  // a's buffer may be donated
      auto in_place = a;
      binary(op, in_place.data(), a_extent.data(), static_cast<int>(a_extent.size()), b.data(), b_extent.data(),
             static_cast<int>(b_extent.size()), in_place.data());
      CHECK(same_bits(in_place, y));
    }
    if (numel(out) == numel(b_extent)) {
      auto in_place = b;
      binary(op, a.data(), a_extent.data(), static_cast<int>(a_extent.size()), in_place.data(), b_extent.data(),
             static_cast<int>(b_extent.size()), in_place.data());
      CHECK(same_bits(in_place, y));
    }
  }
}

}  // namespace

TEST_CASE_TEMPLATE("binary operations broadcast as NumPy does, in place too", T, float, double) {
  const std::vector<std::pair<Extents, Extents>> cases = {{{7, 5}, {7, 5}},
                                                          {{7, 5}, {5}},
                                                          {{5}, {7, 5}},
                                                          {{7, 5}, {7, 1}},
                                                          {{7, 1}, {7, 5}},
                                                          {{7, 1}, {1, 5}},
                                                          {{7, 5}, {}},
                                                          {{}, {}},
                                                          {{1, 1}, {3}},
                                                          {{1000, 3}, {3}},
                                                          {{3}, {1000, 3}},
                                                          {{401, 33}, {1, 33}},
                                                          {{2, 3, 4, 5}, {3, 1, 5}},
                                                          {{2, 1, 4, 1}, {1, 3, 1, 5}},
                                                          {{2, 1, 3, 1, 2, 1, 3, 1}, {2, 2, 1, 2, 1, 2, 1, 2}},
                                                          {{3, 40000}, {3, 1}},
                                                          {{3, 40000}, {40000}},
                                                          {{0, 5}, {5}},
                                                          {{70001}, {1}},
                                                          {{1}, {70001}},
                                                          {{65, 1, 31}, {65, 9, 1}}};
  for (const auto& [a, b] : cases) check_broadcast<T>(a, b);
}

TEST_CASE("float functions are within a few units of the last place") {
  struct Range {
    Unary op;
    double low, high, bound;
  };
  for (const Range r : {Range{Unary::exp, -103, 88.7, 2}, Range{Unary::log, 1e-30, 10, 2}, Range{Unary::log, 0.5, 2, 2},
                        Range{Unary::tanh, -10, 10, 3}, Range{Unary::tanh, -0.7, 0.7, 3}, Range{Unary::sigmoid, -80, 80, 4},
                        Range{Unary::silu, -80, 80, 4}, Range{Unary::gelu, -12, 12, 6}, Range{Unary::gelu, -1, 1, 6},
                        Range{Unary::sqrt, 0, 100, 0.51}}) {
    const std::int64_t n = 300007;
    std::vector<float> x(static_cast<std::size_t>(n)), y(x.size());
    for (std::int64_t i = 0; i < n; ++i)
      x[static_cast<std::size_t>(i)] =
          static_cast<float>(r.low + (r.high - r.low) * static_cast<double>(i) / static_cast<double>(n - 1));
    unary(r.op, x.data(), y.data(), n);
    double worst = 0;
    for (std::size_t i = 0; i < x.size(); ++i) worst = std::fmax(worst, ulps(y[i], reference(r.op, static_cast<double>(x[i]))));
    INFO("op ", static_cast<int>(r.op), " on [", r.low, ", ", r.high, "]");
    CHECK(worst <= r.bound);
  }
}

TEST_CASE("float functions treat infinities, zeros, denormals and NaN as libm does") {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::nanf(""), tiny = 1e-42f;
  std::vector<float> x = {inf, -inf, 0.f, -0.f, nan, tiny, -1.f, 89.f, -104.f, 3e38f, -3e38f};
  for (const Unary op : {Unary::exp, Unary::log, Unary::tanh, Unary::sigmoid, Unary::sqrt, Unary::relu, Unary::relu6}) {
    std::vector<float> y(x.size());
    unary(op, x.data(), y.data(), static_cast<std::int64_t>(x.size()));
    for (std::size_t i = 0; i < x.size(); ++i) {
      const float expected = std::isnan(x[i]) ? nan : static_cast<float>(reference(op, static_cast<double>(x[i])));
      INFO("op ", static_cast<int>(op), " of ", x[i], " is ", y[i], ", expected ", expected);
      if (std::isnan(expected))
        CHECK(std::isnan(y[i]));
      else
        CHECK((y[i] == expected || ulps(y[i], static_cast<double>(expected)) < 4));
    }
  }
}

TEST_CASE_TEMPLATE("every unary function has its value and both derivatives", T, float, double) {
  const std::int64_t n = 1003;
  const double tolerance = sizeof(T) == 4 ? 2e-6 : 1e-13;
  for (int u = 0; u < unary_count; ++u) {
    const Unary op = static_cast<Unary>(u);
    auto x = normal<T>(n, 3, T{3});
    const auto g = normal<T>(n, 4);
    if (needs_positive(op))
      for (T& v : x) v = std::fabs(v) + T{0.125};
    std::vector<T> y(x.size()), r(x.size()), r2(x.size());
    unary(op, x.data(), y.data(), n);
    const auto& s = saves_output(op) ? y : x;
    unary_first(op, s.data(), g.data(), r.data(), n);
    unary_second(op, s.data(), g.data(), r2.data(), n);
    const auto f = [&](double v) { return reference(op, v); };
    double worst = 0, worst_first = 0, worst_second = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double v = static_cast<double>(x[i]), w = static_cast<double>(g[i]);
      bool kink = false;
      for (const double at : {0.0, 6.0, 3.0, -3.0}) kink = kink || std::fabs(v - at) < 0.02;
      worst = std::fmax(worst, std::fabs(static_cast<double>(y[i]) - f(v)) / std::fmax(1, std::fabs(f(v))));
      if (kink) continue;
      const double h = 1e-3;
      const double d1 = (8 * (f(v + h) - f(v - h)) - (f(v + 2 * h) - f(v - 2 * h))) / (12 * h);
      worst_first = std::fmax(worst_first, std::fabs(static_cast<double>(r[i]) - w * d1) / std::fmax(1, std::fabs(w * d1)));
      // d(f(x))/dx = d'(s) s'(x): with s = y, f'' = d'(y) f'(x)
      const double d2 = (-f(v + 2 * h) + 16 * f(v + h) - 30 * f(v) + 16 * f(v - h) - f(v - 2 * h)) / (12 * h * h);
      const double expected = saves_output(op) ? (d1 == 0 ? 0 : w * d2 / d1) : w * d2;
      if (saves_output(op) && std::fabs(d1) < 1e-2) continue;
      worst_second = std::fmax(worst_second, std::fabs(static_cast<double>(r2[i]) - expected) / std::fmax(1, std::fabs(expected)));
    }
    INFO("op ", u);
    CHECK(worst < tolerance);
    CHECK(worst_first < std::fmax(tolerance, 1e-8));
    CHECK(worst_second < 2e-4);
  }
}

TEST_CASE_TEMPLATE("pointwise kernels in place give the bits of out of place, for any number of threads", T, float, double) {
  for (const std::int64_t n : {1, 15, 1003, 70001}) {
    auto x = normal<T>(n, 5, T{2});
    const auto g = normal<T>(n, 6);
    for (int u = 0; u < unary_count; ++u) {
      const Unary op = static_cast<Unary>(u);
      std::vector<T> y(x.size()), r(x.size()), r2(x.size());
      unary(op, x.data(), y.data(), n);
      unary_first(op, x.data(), g.data(), r.data(), n);
      unary_second(op, x.data(), g.data(), r2.data(), n);
      auto z = x;
      unary(op, z.data(), z.data(), n);
      CHECK(same_bits(z, y));
      z = x;
      unary_first(op, z.data(), g.data(), z.data(), n);
      CHECK(same_bits(z, r));
      z = g;
      unary_first(op, x.data(), z.data(), z.data(), n);
      CHECK(same_bits(z, r));
      z = g;
      unary_second(op, x.data(), z.data(), z.data(), n);
      CHECK(same_bits(z, r2));
      check_threads([&] {
        std::vector<T> v(x.size());
        unary(op, x.data(), v.data(), n);
        return v;
      });
    }
    std::vector<T> y(x.size());
    affine(T{2}, x.data(), T{3}, y.data(), n);
    auto z = x;
    affine(T{2}, z.data(), T{3}, z.data(), n);
    CHECK(same_bits(z, y));
    CHECK(y[0] == doctest::Approx(static_cast<double>(x[0]) * 2 + 3));
    binary(Binary::sub, x.data(), x.data(), y.data(), n);
    CHECK(y == std::vector<T>(x.size(), T{0}));
    fill(y.data(), T{7}, n);
    CHECK(y == std::vector<T>(x.size(), T{7}));
  }
}

namespace {

// The problem of the optimizer vectors: f(w) = 1/2 sum a (w - b)^2.
template <class Step>
void check_optimizer(Step step, int steps, const double (&expected)[3]) {
  const double a[] = {1, 10, 0.1}, b[] = {1, -2, 0.5};
  double w[] = {0, 0, 3}, g[3];
  for (int t = 1; t <= steps; ++t) {
    for (int i = 0; i < 3; ++i) g[i] = a[i] * (w[i] - b[i]);
    step(w, g, t);
  }
  for (int i = 0; i < 3; ++i) CHECK(std::fabs(w[i] - expected[i]) < 1e-12);
}

}  // namespace

TEST_CASE("optimizer updates reproduce PyTorch's values after ten steps") {
  check_optimizer([](double* w, double* g, int) { sgd(w, g, 3, 0.05, 0); }, 10,
                  {0.4012630607616211, -1.998046875, 2.877775326164429});
  double buffer[3] = {1e300, 1e300, 1e300};  // the first step does not read it
  MomentumOptions mo{.lr = 0.05, .momentum = 0.9};
  check_optimizer([&](double* w, double* g, int t) { momentum(w, g, buffer, 3, mo, t); }, 10,
                  {1.310922910669629, -1.824550464, 2.504929593865632});
  mo.nesterov = true;
  mo.weight_decay = 0.01;
  check_optimizer([&](double* w, double* g, int t) { momentum(w, g, buffer, 3, mo, t); }, 10,
                  {1.2540257332148363, -2.030626366096413, 2.382084286626541});
  const AdamOptions ao{.lr = 0.1};
  const double after_adam[] = {0.9237508393802448, -0.9754131642926388, 2.0180319480271462};
  double m[3] = {}, v[3] = {};
  check_optimizer([&](double* w, double* g, int t) { adam(w, g, m, v, 3, ao, t); }, 10, after_adam);
  double m2[3] = {}, v2[3] = {};
  check_optimizer([&](double* w, double* g, int t) { adam_efficient(w, g, m2, v2, 3, ao, t); }, 10, after_adam);
  double m3[3] = {}, v3[3] = {};
  check_optimizer([&](double* w, double* g, int t) { adam(w, g, m3, v3, 3, ao, t); }, 1,
                  {0.09999999900000002, -0.09999999995, 2.900000004});
  double m4[3] = {}, v4[3] = {};
  const AdamOptions decayed{.lr = 0.1, .weight_decay = 0.01};
  check_optimizer([&](double* w, double* g, int t) { adamw(w, g, m4, v4, 3, decayed, t); }, 10,
                  {0.9198131303955015, -0.9710780272231081, 1.9932831013316794});
}

TEST_CASE_TEMPLATE("updates and sums of squares have the same bits for any number of threads", T, float, double) {
  const std::int64_t n = 200003;
  const auto g = normal<T>(n, 8);
  check_threads([&] {
    auto w = normal<T>(n, 9), m = std::vector<T>(w.size()), v = m;
    for (int t = 1; t <= 3; ++t) adam(w.data(), g.data(), m.data(), v.data(), n, {}, t);
    return w;
  });
  check_threads([&] { return std::vector<double>{sum_of_squares(g.data(), n)}; });
  double exact = 0;
  for (const T v : g) exact += static_cast<double>(v) * static_cast<double>(v);
  CHECK(sum_of_squares(g.data(), n) == doctest::Approx(exact).epsilon(sizeof(T) == 4 ? 1e-6 : 1e-13));
}

TEST_CASE_TEMPLATE("the first element that is not finite is found", T, float, double) {
  const std::int64_t n = 150001;
  auto x = normal<T>(n, 10);
  CHECK(first_non_finite(x.data(), n) == -1);
  CHECK(first_non_finite(x.data(), 0) == -1);
  x[140000] = std::numeric_limits<T>::infinity();
  x[150000] = std::numeric_limits<T>::quiet_NaN();
  CHECK(first_non_finite(x.data(), n) == 140000);
  x[77777] = -std::numeric_limits<T>::quiet_NaN();
  x[5] = std::numeric_limits<T>::max();
  x[6] = std::numeric_limits<T>::denorm_min();
  CHECK(first_non_finite(x.data(), n) == 77777);
}

TEST_CASE("the hash depends on every bit and on the order, not on threads") {
  std::vector<float> x = normal<float>(100003, 11);
  const auto bytes = static_cast<std::int64_t>(sizeof(float) * x.size());
  check_threads([&] { return std::vector<std::uint64_t>{hash(x.data(), bytes)}; });
  const std::uint64_t before = hash(x.data(), bytes);
  for (const std::size_t i : {std::size_t{0}, std::size_t{50000}, x.size() - 1}) {
    auto y = x;
    std::uint32_t bits;
    std::memcpy(&bits, &y[i], 4);
    bits ^= 1u;
    std::memcpy(&y[i], &bits, 4);
    CHECK(hash(y.data(), bytes) != before);
  }
  auto y = x;
  std::swap(y[16], y[32]);
  CHECK(hash(y.data(), bytes) != before);
  std::swap_ranges(y.begin(), y.begin() + 32768, y.begin() + 32768);
  CHECK(hash(y.data(), bytes) != before);
  const std::vector<float> zeros(64);
  CHECK(hash(zeros.data(), 128) != hash(zeros.data(), 132));
}
