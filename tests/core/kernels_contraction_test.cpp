// Products, convolutions and pools against naive loops in double.

#include <rewind/core/kernels/blas.h>
#include <rewind/core/kernels/conv.h>
#include <rewind/core/kernels/depthwise.h>
#include <rewind/core/kernels/gemm.h>
#include <rewind/core/kernels/microkernel.h>
#include <rewind/core/kernels/pool.h>
#include <rewind/core/kernels/winograd.h>
#include <rewind/core/parallel.h>

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "../threads.h"

using namespace rewind::kernels;
using std::int64_t;

namespace {

std::mt19937 generator{7};  // NOLINT: the same shapes in every run

int64_t pick(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }

template <class T>
std::vector<T> randoms(int64_t n) {
  std::vector<T> v(static_cast<std::size_t>(n));
  std::normal_distribution<double> normal;
  for (T& x : v) x = static_cast<T>(normal(generator));
  return v;
}

constexpr double tolerance(float) { return 2e-5; }
constexpr double tolerance(double) { return 1e-12; }

// Largest difference, in units of the reference's largest value (at least 1); infinite for a NaN.
template <class T>
double distance(const std::vector<T>& got, const std::vector<double>& want) {
  REQUIRE(got.size() == want.size());
  double scale = 1, most = 0;
  for (const double w : want) scale = std::max(scale, std::abs(w));
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double d = std::abs(static_cast<double>(got[i]) - want[i]);
    if (!(d <= most)) most = std::isnan(d) ? std::numeric_limits<double>::infinity() : d;
  }
  return most / scale;
}

// Memory that a kernel must fill itself: NaN before, and a guard behind that must survive.
template <class T>
struct Guarded {
  explicit Guarded(int64_t n) : size(n), data(static_cast<std::size_t>(n + guard), nan()) {}
  static T nan() { return std::numeric_limits<T>::quiet_NaN(); }
  T* get() { return data.data(); }
  std::vector<T> values() const { return {data.begin(), data.begin() + size}; }
  bool intact() const {
    return std::all_of(data.begin() + size, data.end(), [](T v) { return std::isnan(v); });
  }
  static constexpr int64_t guard = 64;
  int64_t size;
  std::vector<T> data;
};

// Runs kernel(output, workspace) at 1 to 4 threads, checks workspace bounds and that the bits agree, returns the output.
template <class T>
std::vector<T> run(int64_t output, const std::function<int64_t()>& workspace, const std::function<void(T*, T*)>& kernel) {
  std::vector<T> first;
  for (int n = 1; n <= 4; ++n) {
    const Threads threads(n);
    Guarded<T> out(output), scratch(workspace());
    kernel(out.get(), scratch.get());
    CHECK(out.intact());
    CHECK(scratch.intact());
    if (n == 1)
      first = out.values();
    else if (output > 0)
      CHECK(std::memcmp(first.data(), out.get(), sizeof(T) * first.size()) == 0);
  }
  return first;
}

double apply(Activation a, double v) {
  if (a != Activation::none) v = std::max(v, 0.0);
  return a == Activation::relu6 ? std::min(v, 6.0) : v;
}

Activation any_activation() { return static_cast<Activation>(pick(0, 2)); }

template <class T>
void check_gemm(GemmShape s, bool bias, Activation activation, bool accumulate) {
  const int64_t lda = s.lda != 0 ? s.lda : (s.transpose_a ? s.m : s.k);
  const int64_t ldb = s.ldb != 0 ? s.ldb : (s.transpose_b ? s.k : s.n);
  const int64_t ldc = s.ldc != 0 ? s.ldc : s.n;
  const int64_t rows_a = s.transpose_a ? s.k : s.m, rows_b = s.transpose_b ? s.n : s.k;
  const auto a = randoms<T>(rows_a * lda + s.stride_a * (s.batch - 1)), b = randoms<T>(rows_b * ldb + s.stride_b * (s.batch - 1));
  const auto add = randoms<T>(s.n), before = randoms<T>(s.m * ldc + s.stride_c * (s.batch - 1));
  std::vector<double> want(before.begin(), before.end());
  for (int64_t q = 0; q < s.batch; ++q)
    for (int64_t i = 0; i < s.m; ++i)
      for (int64_t j = 0; j < s.n; ++j) {
        double sum = 0;
        for (int64_t k = 0; k < s.k; ++k)
          sum += static_cast<double>(a[q * s.stride_a + (s.transpose_a ? k * lda + i : i * lda + k)]) *
                 static_cast<double>(b[q * s.stride_b + (s.transpose_b ? j * ldb + k : k * ldb + j)]);
        double& out = want[q * s.stride_c + i * ldc + j];
        out = apply(activation, sum + (bias ? static_cast<double>(add[j]) : 0) + (accumulate ? out : 0));
      }
  const auto got = run<T>(
      static_cast<int64_t>(before.size()), [&] { return gemm_workspace(s); },
      [&](T* c, T* w) {
        std::copy(before.begin(), before.end(), c);
        gemm<T>(s, a.data(), b.data(), c, w,
                {.bias = bias ? add.data() : nullptr, .activation = activation, .accumulate = accumulate});
      });
  CAPTURE(s.m);
  CAPTURE(s.n);
  CAPTURE(s.k);
  CAPTURE(s.batch);
  CAPTURE(s.transpose_a);
  CAPTURE(s.transpose_b);
  CHECK(distance(got, want) < tolerance(T()) * std::sqrt(static_cast<double>(s.k + 1)));
}

// ---- convolutions ----

struct Sums {
  std::vector<double> y, dx, dw;
};

// Every pair (pixel of y, pixel of x) that a tap joins, for all three passes at once.
template <class T>
Sums convolve(const ConvShape& s, const std::vector<T>& x, const std::vector<T>& w, const std::vector<T>& dy) {
  Sums r{std::vector<double>(dy.size()), std::vector<double>(x.size()), std::vector<double>(w.size())};
  const int64_t c = s.c / s.groups, o = s.o / s.groups;
  for (int64_t n = 0; n < s.n; ++n)
    for (int64_t i = 0; i < s.out_h(); ++i)
      for (int64_t j = 0; j < s.out_w(); ++j)
        for (int64_t kh = 0; kh < s.kh; ++kh)
          for (int64_t kw = 0; kw < s.kw; ++kw) {
            const int64_t ih = i * s.sh - s.ph + kh * s.dh, iw = j * s.sw - s.pw + kw * s.dw;
            if (ih < 0 || ih >= s.h || iw < 0 || iw >= s.w) continue;
            for (int64_t oc = 0; oc < s.o; ++oc)
              for (int64_t ic = 0; ic < c; ++ic) {
                const int64_t at_y = ((n * s.out_h() + i) * s.out_w() + j) * s.o + oc;
                const int64_t at_x = ((n * s.h + ih) * s.w + iw) * s.c + oc / o * c + ic;
                const int64_t at_w = ((oc * s.kh + kh) * s.kw + kw) * c + ic;
                r.y[at_y] += static_cast<double>(x[at_x]) * static_cast<double>(w[at_w]);
                r.dx[at_x] += static_cast<double>(dy[at_y]) * static_cast<double>(w[at_w]);
                r.dw[at_w] += static_cast<double>(dy[at_y]) * static_cast<double>(x[at_x]);
              }
          }
  return r;
}

template <class T>
void check_conv(const ConvShape& s) {
  const int64_t outputs = s.n * s.out_h() * s.out_w() * s.o;
  const auto x = randoms<T>(s.n * s.h * s.w * s.c), w = randoms<T>(s.o * s.kh * s.kw * (s.c / s.groups));
  const auto dy = randoms<T>(outputs), bias = randoms<T>(s.o);
  Sums want = convolve(s, x, w, dy);
  const bool with_bias = pick(0, 1) == 1;
  const Activation activation = any_activation();
  for (int64_t i = 0; i < outputs; ++i)
    want.y[i] = apply(activation, want.y[i] + (with_bias ? static_cast<double>(bias[i % s.o]) : 0));
  CAPTURE(s.n);
  CAPTURE(s.h);
  CAPTURE(s.w);
  CAPTURE(s.c);
  CAPTURE(s.o);
  CAPTURE(s.kh);
  CAPTURE(s.kw);
  CAPTURE(s.sh);
  CAPTURE(s.sw);
  CAPTURE(s.ph);
  CAPTURE(s.pw);
  CAPTURE(s.dh);
  CAPTURE(s.dw);
  CAPTURE(s.groups);
  const double close = 10 * tolerance(T());
  CHECK(distance(run<T>(
                     outputs, [&] { return conv2d_forward_workspace(s); },
                     [&](T* y, T* ws) {
                       conv2d_forward<T>(s, x.data(), w.data(), with_bias ? bias.data() : nullptr, activation, y, ws);
                     }),
                 want.y) < close);
  CHECK(distance(run<T>(
                     static_cast<int64_t>(x.size()), [&] { return conv2d_backward_input_workspace(s); },
                     [&](T* dx, T* ws) { conv2d_backward_input<T>(s, dy.data(), w.data(), dx, ws); }),
                 want.dx) < close);
  CHECK(distance(run<T>(
                     static_cast<int64_t>(w.size()), [&] { return conv2d_backward_weight_workspace(s); },
                     [&](T* dw, T* ws) { conv2d_backward_weight<T>(s, x.data(), dy.data(), dw, ws); }),
                 want.dw) < close);
}

ConvShape any_conv() {
  const int64_t groups = pick(0, 2) == 0 ? pick(2, 4) : 1;
  ConvShape s{.n = pick(1, 3),
              .h = pick(1, 12),
              .w = pick(1, 12),
              .c = groups * pick(1, 20),
              .o = groups * pick(1, 40),
              .kh = pick(1, 5),
              .kw = pick(1, 5),
              .sh = pick(1, 3),
              .sw = pick(1, 3),
              .ph = pick(0, 4),
              .pw = pick(0, 4),
              .dh = pick(1, 3),
              .dw = pick(1, 3),
              .groups = groups};
  return s;
}

template <class T>
void check_depthwise(const WindowShape& s) {
  const ConvShape grouped{.n = s.n,
                          .h = s.h,
                          .w = s.w,
                          .c = s.c,
                          .o = s.c,
                          .kh = s.kh,
                          .kw = s.kw,
                          .sh = s.sh,
                          .sw = s.sw,
                          .ph = s.ph,
                          .pw = s.pw,
                          .dh = s.dh,
                          .dw = s.dw,
                          .groups = s.c};
  const int64_t outputs = s.n * s.out_h() * s.out_w() * s.c, taps = s.kh * s.kw;
  const auto x = randoms<T>(s.n * s.h * s.w * s.c), w = randoms<T>(taps * s.c), dy = randoms<T>(outputs), bias = randoms<T>(s.c);
  std::vector<T> by_channel(w.size());  // [C, KH, KW, 1]
  for (int64_t t = 0; t < taps; ++t)
    for (int64_t c = 0; c < s.c; ++c) by_channel[c * taps + t] = w[t * s.c + c];
  Sums want = convolve(grouped, x, by_channel, dy);
  std::vector<double> dw(want.dw.size());
  for (int64_t t = 0; t < taps; ++t)
    for (int64_t c = 0; c < s.c; ++c) dw[t * s.c + c] = want.dw[c * taps + t];
  const bool with_bias = pick(0, 1) == 1;
  const Activation activation = any_activation();
  for (int64_t i = 0; i < outputs; ++i)
    want.y[i] = apply(activation, want.y[i] + (with_bias ? static_cast<double>(bias[i % s.c]) : 0));
  CAPTURE(s.n);
  CAPTURE(s.h);
  CAPTURE(s.w);
  CAPTURE(s.c);
  CAPTURE(s.kh);
  CAPTURE(s.kw);
  CAPTURE(s.sh);
  CAPTURE(s.sw);
  CAPTURE(s.ph);
  CAPTURE(s.pw);
  CAPTURE(s.dh);
  CAPTURE(s.dw);
  const auto none = [] { return int64_t{0}; };
  const auto sums = [&] { return depthwise_backward_weight_workspace(s); };
  const double close = 10 * tolerance(T());
  CHECK(distance(run<T>(outputs, none,
                        [&](T* y, T*) {
                          depthwise_forward<T>(s, x.data(), w.data(), with_bias ? bias.data() : nullptr, activation, y);
                        }),
                 want.y) < close);
  const auto got_dx =
      run<T>(static_cast<int64_t>(x.size()), none, [&](T* dx, T*) { depthwise_backward_input<T>(s, dy.data(), w.data(), dx); });
  const auto got_dw = run<T>(static_cast<int64_t>(w.size()), sums,
                             [&](T* out, T* ws) { depthwise_backward_weight<T>(s, x.data(), dy.data(), out, ws); });
  CHECK(distance(got_dx, want.dx) < close);
  CHECK(distance(got_dw, dw) < close);
  const auto both = run<T>(static_cast<int64_t>(x.size() + w.size()), sums, [&](T* out, T* ws) {
    depthwise_backward<T>(s, x.data(), dy.data(), w.data(), out, out + x.size(), ws);
  });
  CHECK(std::equal(got_dx.begin(), got_dx.end(), both.begin()));
  CHECK(std::equal(got_dw.begin(), got_dw.end(), both.begin() + static_cast<std::ptrdiff_t>(x.size())));
}

}  // namespace

TEST_CASE_TEMPLATE("a product of any layout equals the naive one", T, float, double) {
  for (int i = 0; i < 60; ++i) {
    GemmShape s{
        .m = pick(0, 70), .n = pick(1, 70), .k = pick(0, 70), .transpose_a = pick(0, 1) == 1, .transpose_b = pick(0, 1) == 1};
    if (pick(0, 1) == 1) {
      s.lda = (s.transpose_a ? s.m : s.k) + pick(1, 5);
      s.ldb = (s.transpose_b ? s.k : s.n) + pick(0, 5);
      s.ldc = s.n + pick(0, 5);
      s.ldb += s.ldb == 0 ? 1 : 0;
    }
    s.batch = pick(0, 3) == 0 ? pick(1, 4) : 1;
    if (s.batch > 1) {
      s.stride_a = pick(0, 1) * 80 * 80;
      s.stride_b = pick(0, 1) * 80 * 80;
      s.stride_c = 80 * 80;
    }
    check_gemm<T>(s, pick(0, 1) == 1, any_activation(), pick(0, 1) == 1);
  }
}

TEST_CASE_TEMPLATE("products that are cut into tiles have the same bits for any number of threads", T, float, double) {
  check_gemm<T>({.m = 1500, .n = 40, .k = 17, .transpose_b = true}, true, Activation::relu6, false);
  check_gemm<T>({.m = 1501, .n = 17, .k = 40}, false, Activation::none, true);
  check_gemm<T>({.m = 60, .n = 1025, .k = 1024}, false, Activation::none, false);
  for (const int n : {5, 6, 11, 12, 23, 24, 56})  // with a vector and a half at the end, or a part of that
    for (const bool transposed : {false, true})
      check_gemm<T>({.m = 130, .n = n, .k = 300, .transpose_a = transposed}, transposed, Activation::relu6, !transposed);
  check_gemm<T>({.m = 24, .n = 33, .k = 3001, .transpose_a = true}, true, Activation::relu, true);
  check_gemm<T>({.m = 130, .n = 70, .k = 801, .transpose_a = true}, false, Activation::none, false);
  check_gemm<T>({.m = 5, .n = 1000, .k = 300, .transpose_b = true}, true, Activation::none, false);
  check_gemm<T>({.m = 1, .n = 1000, .k = 300, .transpose_b = true}, false, Activation::none, false);
  check_gemm<T>({.m = 200, .n = 210, .k = 220, .transpose_a = true, .transpose_b = true}, false, Activation::none, false);
  check_gemm<T>({.m = 30, .n = 31, .k = 32, .transpose_b = true, .batch = 40, .stride_a = 960, .stride_b = 992, .stride_c = 930},
                false, Activation::none, true);
  check_gemm<T>({.m = 1, .n = 1, .k = 100000, .transpose_a = true}, false, Activation::none, false);
}

TEST_CASE_TEMPLATE("products of all proportions, in tiles by rows and by columns, equal naive loops", T, float, double) {
  for (int i = 0; i < 40; ++i) {
    GemmShape s{.m = pick(30, 300), .n = pick(10, 300), .k = pick(30, 300)};
    s.transpose_a = pick(0, 1) == 1, s.transpose_b = pick(0, 1) == 1;
    s.lda = (s.transpose_a ? s.m : s.k) + pick(0, 3), s.ldb = (s.transpose_b ? s.k : s.n) + pick(0, 3), s.ldc = s.n + pick(0, 3);
    check_gemm<T>(s, pick(0, 1) == 1, any_activation(), pick(0, 1) == 1);
  }
  check_gemm<T>({.m = 300, .n = 650, .k = 500, .transpose_b = true}, true, Activation::relu, true);  // of several tiles either way
  check_gemm<T>({.m = 600, .n = 300, .k = 70}, true, Activation::relu6, true);
}

TEST_CASE_TEMPLATE("some rows against many of a transposed matrix are made turned", T, float, double) {
  for (int i = 0; i < 20; ++i) {
    GemmShape s{.m = pick(32, 50), .n = 0, .k = pick(120, 200), .transpose_b = true};
    s.n = pick(6 * s.m, 6 * s.m + 90);
    s.lda = s.k + pick(0, 3), s.ldb = s.k + pick(0, 3), s.ldc = s.n + pick(0, 3);
    check_gemm<T>(s, pick(0, 1) == 1, any_activation(), pick(0, 1) == 1);
  }
  check_gemm<T>({.m = 290, .n = 2900, .k = 291, .transpose_b = true}, true, Activation::relu, true);  // of several tiles either way
  check_gemm<T>({.m = 40, .n = 410, .k = 1000, .transpose_b = true}, true, Activation::none, false);  // too deep: cut
}

TEST_CASE_TEMPLATE("few rows against a transposed matrix are dot products", T, float, double) {
  for (int i = 0; i < 60; ++i) {
    GemmShape s{.m = pick(1, vector_bytes == 64 ? 64 : 8), .n = pick(1, 200), .k = pick(16, 200), .transpose_b = true};
    s.lda = s.k + pick(0, 3), s.ldb = s.k + pick(0, 3), s.ldc = s.n + pick(0, 3);
    REQUIRE(dots_pay(s.m, s.k) == own_microkernel);
    check_gemm<T>(s, pick(0, 1) == 1, any_activation(), pick(0, 1) == 1);
  }
  check_gemm<T>({.m = 60, .n = 131, .k = 517, .transpose_b = true}, true, Activation::relu6, false);  // deep, and cut
  check_gemm<T>({.m = 2, .n = 9, .k = 30, .transpose_b = true, .batch = 5, .stride_a = 60, .stride_b = 270, .stride_c = 18}, true,
                Activation::relu, false);
  check_gemm<T>({.m = 3, .n = 5, .k = 20, .transpose_b = true, .batch = 7, .stride_a = 60, .stride_b = 0, .stride_c = 15}, false,
                Activation::none, true);
}

// The last vector of a row overlaps the one before it.
TEST_CASE_TEMPLATE("a dot product is infinite where an element is, and NaN only from NaN", T, float, double) {
  const T infinity = std::numeric_limits<T>::infinity();
  const GemmShape s{.m = 2, .n = 3, .k = 33, .transpose_b = true};
  for (int64_t at = 0; at < s.k; ++at) {
    std::vector<T> a(66, T(1)), b(99, T(1)), c(6), workspace(static_cast<std::size_t>(gemm_workspace(s)));
    a[static_cast<std::size_t>(at)] = infinity;
    b[static_cast<std::size_t>(s.k + at)] = infinity;
    gemm<T>(s, a.data(), b.data(), c.data(), workspace.data());
    CHECK(c == std::vector<T>{infinity, infinity, infinity, T(33), infinity, T(33)});
  }
}

TEST_CASE("BLAS is asked for one thread and tells what it is") {
  const BlasInfo info = blas_info();
  CHECK(std::string(info.config).size() > 0);
  CHECK(std::string(info.core).size() > 0);
  CHECK((std::string(info.threading) == "serial" || std::string(info.threading) == "pthread" ||
         std::string(info.threading) == "openmp"));
  const auto a = randoms<double>(300 * 300);
  std::vector<double> first(300 * 300), again(300 * 300);
  for (int n = 1; n <= 3; ++n) {
    const Threads threads(n);
    auto& out = n == 1 ? first : again;
    blas_gemm<double>(false, true, 300, 300, 300, a.data(), 300, a.data(), 300, 0.0, out.data(), 300);
    if (n > 1) CHECK(first == again);
  }
}

TEST_CASE_TEMPLATE("convolutions of any shape equal naive loops, forward and backward", T, float, double) {
  for (int i = 0; i < 60; ++i) check_conv<T>(any_conv());
}

TEST_CASE_TEMPLATE("convolutions that take the special paths equal naive loops", T, float, double) {
  check_conv<T>({.n = 2, .h = 30, .w = 31, .c = 7, .o = 19});                     // pointwise
  check_conv<T>({.n = 2, .h = 15, .w = 16, .c = 33, .o = 20, .sh = 2, .sw = 2});  // 1x1, stride 2
  check_conv<T>({.n = 3, .h = 16, .w = 16, .c = 16, .o = 16, .kh = 3, .kw = 3, .ph = 1, .pw = 1});
  check_conv<T>({.n = 1, .h = 20, .w = 20, .c = 3, .o = 32, .kh = 3, .kw = 3, .sh = 2, .sw = 2, .ph = 1, .pw = 1});
  check_conv<T>({.n = 1, .h = 6, .w = 5, .c = 300, .o = 70, .kh = 3, .kw = 3, .ph = 1, .pw = 1});   // taps in turns
  check_conv<T>({.n = 1, .h = 4, .w = 4, .c = 130, .o = 130, .kh = 3, .kw = 3, .ph = 1, .pw = 1});  // weight is cut
  check_conv<T>({.n = 2, .h = 9, .w = 8, .c = 64, .o = 128, .kh = 3, .kw = 3, .ph = 1, .pw = 1, .groups = 2});
  check_conv<T>({.n = 1, .h = 9, .w = 9, .c = 2, .o = 3, .kh = 3, .kw = 3, .sh = 4, .sw = 4, .dh = 2, .dw = 6});
  check_conv<T>({.n = 4, .h = 12, .w = 12, .c = 6, .o = 16, .kh = 5, .kw = 5});  // few channels
  check_conv<T>({.n = 1, .h = 40, .w = 17, .c = 5, .o = 7, .kh = 5, .kw = 3, .sh = 2, .sw = 1, .ph = 2, .pw = 1});
  check_conv<T>({.n = 3, .h = 28, .w = 28, .c = 1, .o = 6, .kh = 5, .kw = 5});
}

TEST_CASE_TEMPLATE("convolutions by Winograd's transform equal naive loops", T, float, double) {
  const auto check = [](int64_t n, int64_t h, int64_t w, int64_t c, int64_t o, int64_t ph, int64_t pw) {
    const ConvShape s{.n = n, .h = h, .w = w, .c = c, .o = o, .kh = 3, .kw = 3, .ph = ph, .pw = pw};
    CHECK(winograd::covers(s) == own_microkernel);
    check_conv<T>(s);
  };
  check(2, 8, 8, 32, 64, 1, 1);
  check(1, 38, 36, 64, 32, 1, 1);
  check(1, 2, 202, 96, 96, 1, 1);  // 101 tiles in chunks of 51 and 50
  check(2, 80, 80, 80, 80, 1, 1);  // the last tile of lines is smaller, and its chunk larger
  check(5, 2, 6, 96, 32, 1, 1);    // images smaller than a tile of lines
  check(2, 8, 10, 32, 32, 0, 0);
  check(1, 6, 8, 32, 32, 2, 1);
  check(3, 4, 6, 160, 64, 1, 1);
  check(2, 8, 6, 16, 48, 1, 1);    // half a panel
  check(3, 4, 6, 160, 160, 1, 1);  // dw in blocks of outputs
  check(2, 4, 4, 288, 512, 1, 1);  // outputs in passes
}

// The transform adds before it multiplies. Errors, root mean square, beside those of the direct sum (for images of an odd size,
// which go by it).
TEST_CASE("Winograd's transform in float loses at most a bit beside the direct sum") {
  struct Errors {
    double y, dx, dw;
  };
  const auto errors = [](int64_t side, int64_t channels) {
    const ConvShape s{.n = 2, .h = side, .w = side, .c = channels, .o = channels, .kh = 3, .kw = 3, .ph = 1, .pw = 1};
    const int64_t images = s.n * side * side * channels, weights = channels * 9 * channels;
    const auto x = randoms<float>(images), w = randoms<float>(weights), dy = randoms<float>(images);
    const Sums exact = convolve(s, x, w, dy);
    const auto error = [](const std::vector<float>& got, const std::vector<double>& want) {
      double squares = 0;
      for (std::size_t i = 0; i < got.size(); ++i) squares += std::pow(static_cast<double>(got[i]) - want[i], 2);
      return std::sqrt(squares / static_cast<double>(got.size()));
    };
    return Errors{
        error(run<float>(
                  images, [&] { return conv2d_forward_workspace(s); },
                  [&](float* y, float* ws) { conv2d_forward<float>(s, x.data(), w.data(), nullptr, Activation::none, y, ws); }),
              exact.y),
        error(run<float>(
                  images, [&] { return conv2d_backward_input_workspace(s); },
                  [&](float* dx, float* ws) { conv2d_backward_input<float>(s, dy.data(), w.data(), dx, ws); }),
              exact.dx),
        error(run<float>(
                  weights, [&] { return conv2d_backward_weight_workspace(s); },
                  [&](float* dw, float* ws) { conv2d_backward_weight<float>(s, x.data(), dy.data(), dw, ws); }),
              exact.dw)};
  };
  for (const int64_t channels : {16, 32, 128}) {
    const Errors direct = errors(9, channels), transformed = errors(10, channels);
    MESSAGE(channels, " channels: y ", direct.y, " and by the transform ", transformed.y, ", dx ", direct.dx, " and ",
            transformed.dx, ", dw ", direct.dw, " and ", transformed.dw);
    CHECK(transformed.y < 2 * direct.y);
    CHECK(transformed.dx < 2 * direct.dx);
    CHECK(transformed.dw < 2 * direct.dw);
  }
}

TEST_CASE_TEMPLATE("an empty batch gives empty results and a zero weight gradient", T, float, double) {
  check_conv<T>({.n = 0, .h = 8, .w = 8, .c = 3, .o = 4});
  check_conv<T>({.n = 0, .h = 8, .w = 8, .c = 3, .o = 4, .kh = 3, .kw = 3});
  check_conv<T>({.n = 1, .h = 2, .w = 2, .c = 3, .o = 4, .kh = 3, .kw = 3});  // the window does not fit
  check_depthwise<T>({.n = 0, .h = 8, .w = 8, .c = 3, .kh = 3, .kw = 3});
  check_depthwise<T>({.n = 1, .h = 2, .w = 2, .c = 3, .kh = 3, .kw = 3});
}

TEST_CASE_TEMPLATE("depthwise equals grouped convolution", T, float, double) {
  for (const int64_t kernel : {3, 5})
    for (const int64_t stride : {1, 2})
      for (const int64_t padding : {0, 1, 2, 5})
        for (const int64_t size : {5, 6, 13})
          check_depthwise<T>({.n = pick(1, 2),
                              .h = size,
                              .w = size + pick(0, 2),
                              .c = pick(1, 70),
                              .kh = kernel,
                              .kw = kernel,
                              .sh = stride,
                              .sw = stride,
                              .ph = padding,
                              .pw = padding});
  for (int i = 0; i < 40; ++i)
    check_depthwise<T>({.n = pick(1, 3),
                        .h = pick(1, 12),
                        .w = pick(1, 12),
                        .c = pick(1, 40),
                        .kh = pick(1, 7),
                        .kw = pick(1, 6),
                        .sh = pick(1, 3),
                        .sw = pick(1, 3),
                        .ph = pick(0, 3),
                        .pw = pick(0, 3),
                        .dh = pick(1, 3),
                        .dw = pick(1, 2)});
  for (const int64_t stride : {1, 2})  // several pieces
    check_depthwise<T>({.n = 3, .h = 28, .w = 28, .c = 96, .kh = 3, .kw = 3, .sh = stride, .sw = stride, .ph = 1, .pw = 1});
}

TEST_CASE_TEMPLATE("max pool takes the first maximum, and its gradient goes there", T, float, double) {
  for (int i = 0; i < 40; ++i) {
    const WindowShape s{.n = pick(0, 3),
                        .h = pick(1, 12),
                        .w = pick(1, 12),
                        .c = pick(1, 80),
                        .kh = pick(1, 4),
                        .kw = pick(1, 4),
                        .sh = pick(1, 3),
                        .sw = pick(1, 3),
                        .ph = pick(0, 2),
                        .pw = pick(0, 2),
                        .dh = pick(1, 2),
                        .dw = pick(1, 2)};
    auto x = randoms<T>(s.n * s.h * s.w * s.c);
    for (T& v : x) v = std::round(v * 2);  // ties
    const int64_t outputs = s.n * s.out_h() * s.out_w() * s.c;
    const auto dy = randoms<T>(outputs);
    std::vector<double> want(static_cast<std::size_t>(outputs)), want_dx(x.size());
    std::vector<std::int32_t> where(want.size(), -1), argmax(want.size(), -7);
    for (int64_t q = 0; q < outputs; ++q) {
      const int64_t c = q % s.c, ow = q / s.c % s.out_w(), oh = q / s.c / s.out_w() % s.out_h(),
                    n = q / s.c / s.out_w() / s.out_h();
      want[q] = -std::numeric_limits<double>::infinity();
      for (int64_t kh = 0; kh < s.kh; ++kh)
        for (int64_t kw = 0; kw < s.kw; ++kw) {
          const int64_t ih = oh * s.sh - s.ph + kh * s.dh, iw = ow * s.sw - s.pw + kw * s.dw;
          if (ih < 0 || ih >= s.h || iw < 0 || iw >= s.w) continue;
          const auto v = static_cast<double>(x[((n * s.h + ih) * s.w + iw) * s.c + c]);
          if (v > want[q]) {
            want[q] = v;
            where[q] = static_cast<std::int32_t>(ih * s.w + iw);
          }
        }
      if (where[q] >= 0) want_dx[(n * s.h * s.w + where[q]) * s.c + c] += static_cast<double>(dy[q]);
    }
    const auto none = [] { return int64_t{0}; };
    const auto got = run<T>(outputs, none, [&](T* y, T*) { max_pool2d_forward<T>(s, x.data(), y, argmax.data()); });
    CHECK(std::equal(got.begin(), got.end(), want.begin(), [](T a, double b) { return static_cast<double>(a) == b; }));
    CHECK(argmax == where);
    CHECK(distance(run<T>(static_cast<int64_t>(x.size()), none,
                          [&](T* dx, T*) { max_pool2d_backward<T>(s, dy.data(), argmax.data(), dx); }),
                   want_dx) < tolerance(T()));
    const auto taken = run<T>(outputs, none, [&](T* out, T*) { max_pool2d_gather<T>(s, x.data(), argmax.data(), out); });
    for (int64_t q = 0; q < outputs; ++q) CHECK(taken[q] == (where[q] >= 0 ? got[q] : T(0)));
  }
}

TEST_CASE("max pool hands on NaN") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> x{1, 5, nan, 3};
  float y = 0;
  std::int32_t at = 0;
  max_pool2d_forward<float>({.n = 1, .h = 2, .w = 2, .c = 1, .kh = 2, .kw = 2}, x.data(), &y, &at);
  CHECK(std::isnan(y));
  CHECK(at == 2);
}

TEST_CASE_TEMPLATE("average pools equal naive means, forward and backward", T, float, double) {
  for (int i = 0; i < 60; ++i) {
    WindowShape s{.n = pick(0, 3),
                  .h = pick(1, 12),
                  .w = pick(1, 12),
                  .c = pick(1, 70),
                  .kh = pick(1, 4),
                  .kw = pick(1, 4),
                  .sh = pick(1, 3),
                  .sw = pick(1, 3),
                  .ph = pick(0, 2),
                  .pw = pick(0, 2)};
    // One more window, where it begins in the image or its padding.
    if (s.out_h() * s.sh < s.h + 2 * s.ph) s.eh = std::max<int64_t>(0, s.out_h() * s.sh + s.kh - s.h - 2 * s.ph);
    if (s.out_w() * s.sw < s.w + 2 * s.pw) s.ew = std::max<int64_t>(0, s.out_w() * s.sw + s.kw - s.w - 2 * s.pw);
    const auto x = randoms<T>(s.n * s.h * s.w * s.c);
    const int64_t outputs = s.n * s.out_h() * s.out_w() * s.c;
    const auto dy = randoms<T>(outputs);
    std::vector<double> want(static_cast<std::size_t>(outputs)), want_dx(x.size());
    for (int64_t q = 0; q < outputs; ++q) {
      const int64_t c = q % s.c, ow = q / s.c % s.out_w(), oh = q / s.c / s.out_w() % s.out_h(),
                    n = q / s.c / s.out_w() / s.out_h();
      std::vector<int64_t> seen;
      double divisor = 0;
      for (int64_t ih = oh * s.sh - s.ph; ih < oh * s.sh - s.ph + s.kh; ++ih)
        for (int64_t iw = ow * s.sw - s.pw; iw < ow * s.sw - s.pw + s.kw; ++iw) {
          if (ih < s.h + s.ph && iw < s.w + s.pw) ++divisor;
          if (ih >= 0 && ih < s.h && iw >= 0 && iw < s.w) seen.push_back(((n * s.h + ih) * s.w + iw) * s.c + c);
        }
      for (const int64_t at : seen) {
        want[q] += static_cast<double>(x[at]) / divisor;
        want_dx[at] += static_cast<double>(dy[q]) / divisor;
      }
    }
    const auto none = [] { return int64_t{0}; };
    CHECK(distance(run<T>(outputs, none, [&](T* y, T*) { avg_pool2d_forward<T>(s, x.data(), y); }), want) < tolerance(T()));
    CHECK(distance(run<T>(static_cast<int64_t>(x.size()), none, [&](T* dx, T*) { avg_pool2d_backward<T>(s, dy.data(), dx); }),
                   want_dx) < tolerance(T()));
  }
}

TEST_CASE_TEMPLATE("global average pool is the mean over an image", T, float, double) {
  for (const auto& [n, pixels, c] : {std::array<int64_t, 3>{0, 4, 3}, {2, 1, 5}, {3, 49, 33}, {2, 50, 700}, {1, 7, 1}}) {
    const auto x = randoms<T>(n * pixels * c), dy = randoms<T>(n * c);
    std::vector<double> want(static_cast<std::size_t>(n * c)), want_dx(x.size());
    for (int64_t i = 0; i < n * pixels * c; ++i) {
      const int64_t at = i / c / pixels * c + i % c;
      want[at] += static_cast<double>(x[i]) / static_cast<double>(pixels);
      want_dx[i] = static_cast<double>(dy[at]) / static_cast<double>(pixels);
    }
    const auto none = [] { return int64_t{0}; };
    CHECK(
        distance(run<T>(n * c, none, [&, a = n, p = pixels, q = c](T* y, T*) { global_avg_pool_forward<T>(a, p, q, x.data(), y); }),
                 want) < tolerance(T()));
    CHECK(distance(run<T>(static_cast<int64_t>(x.size()), none,
                          [&, a = n, p = pixels, q = c](T* dx, T*) { global_avg_pool_backward<T>(a, p, q, dy.data(), dx); }),
                   want_dx) < tolerance(T()));
  }
}
