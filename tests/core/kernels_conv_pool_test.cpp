// A convolution with its activation and pool in one pass against the three by themselves, in double.

#include <rewind/core/kernels/conv_pool.h>
#include <rewind/core/kernels/pool.h>
#include <rewind/core/parallel.h>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

using namespace rewind::kernels;
using std::int64_t;

namespace {

std::mt19937 generator{11};  // NOLINT: the same shapes in every run

int64_t pick(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }

template <class T>
std::vector<T> randoms(int64_t n) {
  std::vector<T> v(static_cast<std::size_t>(n));
  std::normal_distribution<double> normal;
  for (T& x : v) x = static_cast<T>(normal(generator));
  return v;
}

template <class T>
std::vector<double> doubles(const std::vector<T>& v) {
  return {v.begin(), v.end()};
}

/// Relative to the largest value, at least 1.
template <class T>
double distance(const std::vector<T>& got, const std::vector<double>& want) {
  REQUIRE(got.size() == want.size());
  double most = 0, scale = 1;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double d = std::abs(static_cast<double>(got[i]) - want[i]);
    if (!(d <= most)) most = d;
    scale = std::max(scale, std::abs(want[i]));
  }
  return most / scale;
}

template <class T>
struct Result {
  std::vector<T> y, dx, dw, dbias;
  std::vector<std::int32_t> argmax;
};

/// By the kernels, on some threads.
template <class T>
Result<T> run(const ConvPoolShape& s, const std::vector<T>& x, const std::vector<T>& w, const std::vector<T>& bias,
              const std::vector<T>& g, int threads) {
  const int before = rewind::parallel::threads();
  rewind::parallel::set_threads(threads);
  const auto memory = [](std::size_t bytes) { return std::vector<std::max_align_t>(bytes / sizeof(std::max_align_t) + 1); };
  Result<T> r{std::vector<T>(g.size()), std::vector<T>(x.size()), std::vector<T>(w.size()), std::vector<T>(bias.size()),
              std::vector<std::int32_t>(g.size())};
  auto workspace = memory(conv_pool_forward_workspace<T>(s));
  conv_pool_forward<T>(s, x.data(), w.data(), bias.data(), r.y.data(), r.argmax.data(), workspace.data());
  if (conv_pool_backward_covers<T>(s)) {
    workspace = memory(conv_pool_backward_workspace<T>(s, true));
    conv_pool_backward<T>(s, g.data(), r.argmax.data(), x.data(), w.data(), r.dx.data(), r.dw.data(), r.dbias.data(),
                          workspace.data());
  }
  rewind::parallel::set_threads(before);
  return r;
}

template <class T>
void check(ConvShape c, WindowShape p, Activation activation) {
  p.n = c.n, p.h = c.out_h(), p.w = c.out_w(), p.c = c.o;
  const ConvPoolShape s{c, p, activation};
  const int64_t made = c.n * c.out_h() * c.out_w() * c.o, maxima = p.n * p.out_h() * p.out_w() * p.c;
  const auto x = randoms<T>(c.n * c.h * c.w * c.c), w = randoms<T>(c.o * c.kh * c.kw * c.c), bias = randoms<T>(c.o),
             g = randoms<T>(maxima);
  const Result<T> r = run(s, x, w, bias, g, 1);
  for (const int threads : {2, 3}) {
    const Result<T> other = run(s, x, w, bias, g, threads);
    const auto same = [](const auto& a, const auto& b) { return std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0; };
    CHECK((same(r.y, other.y) && same(r.argmax, other.argmax) && same(r.dx, other.dx) && same(r.dw, other.dw) &&
           same(r.dbias, other.dbias)));
  }

  const auto dx = doubles(x), dw = doubles(w), dbias = doubles(bias);
  std::vector<double> z(static_cast<std::size_t>(made)), y(g.size());
  std::vector<double> workspace(static_cast<std::size_t>(
      std::max({conv2d_forward_workspace(c), conv2d_backward_input_workspace(c), conv2d_backward_weight_workspace(c)})));
  conv2d_forward<double>(c, dx.data(), dw.data(), dbias.data(), Activation::none, z.data(), workspace.data());
  max_pool2d_forward<double>(p, z.data(), y.data(), nullptr, activation);
  const double tolerance = sizeof(T) == 4 ? 2e-5 : 1e-12;
  CHECK(distance(r.y, y) < tolerance);

  // Where the kernel says that the maxima are, the convolution has such values; elsewhere the activation cuts them off.
  std::vector<double> dz(z.size());
  for (std::size_t i = 0; i < g.size(); ++i) {
    const auto channel = static_cast<int64_t>(i) % c.o, image = static_cast<int64_t>(i) / (maxima / c.n);
    if (r.argmax[i] < 0) {
      REQUIRE((r.y[i] == T(0) || r.y[i] == T(6)));
      continue;
    }
    const auto at = static_cast<std::size_t>((image * c.out_h() * c.out_w() + r.argmax[i]) * c.o + channel);
    REQUIRE(std::abs(static_cast<double>(r.y[i]) - z[at]) < tolerance * 50);
    dz[at] += static_cast<double>(g[i]);
  }
  if (!conv_pool_backward_covers<T>(s)) return;
  std::vector<double> want_x(x.size()), want_w(w.size()), want_bias(bias.size());
  conv2d_backward_input<double>(c, dz.data(), dw.data(), want_x.data(), workspace.data());
  conv2d_backward_weight<double>(c, dx.data(), dz.data(), want_w.data(), workspace.data());
  for (std::size_t i = 0; i < dz.size(); ++i) want_bias[i % bias.size()] += dz[i];
  CHECK(distance(r.dx, want_x) < tolerance);
  CHECK(distance(r.dw, want_w) < tolerance);
  CHECK(distance(r.dbias, want_bias) < tolerance);
}

}  // namespace

TEST_CASE_TEMPLATE("a convolution and its pool in one pass equal the two by themselves", T, float, double) {
  const WindowShape two{.kh = 2, .kw = 2, .sh = 2, .sw = 2};
  check<T>({.n = 9, .h = 28, .w = 28, .c = 1, .o = 6, .kh = 5, .kw = 5}, two, Activation::relu);  // LeNet's
  check<T>({.n = 9, .h = 12, .w = 12, .c = 6, .o = 16, .kh = 5, .kw = 5}, two, Activation::relu);
  check<T>({.n = 3, .h = 64, .w = 64, .c = 3, .o = 24, .kh = 3, .kw = 3, .ph = 1, .pw = 1}, two, Activation::relu);  // not in cache
  check<T>({.n = 2, .h = 8, .w = 8, .c = 32, .o = 32, .kh = 3, .kw = 3, .ph = 1, .pw = 1}, two, Activation::relu6);
  for (int i = 0; i < 60; ++i) {
    const int64_t k = pick(0, 2) == 0 ? 5 : 3;
    const ConvShape c{.n = pick(1, 6),
                      .h = pick(8, 20),
                      .w = pick(8, 24),
                      .c = pick(1, k == 3 ? 10 : 6),
                      .o = pick(1, 20),
                      .kh = k,
                      .kw = pick(1, 5),
                      .ph = pick(0, k / 2),
                      .pw = pick(0, 1)};
    const WindowShape other{.kh = pick(1, 3), .kw = pick(1, 3), .sh = pick(1, 3), .sw = pick(1, 3)};
    check<T>(c, pick(0, 2) > 0 ? two : other, static_cast<Activation>(pick(0, 2)));
  }
}
