#include <doctest/doctest.h>

#include <rewind/core/kernels/loss.h>
#include <rewind/core/kernels/norm.h>
#include <rewind/core/parallel.h>
#include <rewind/core/random.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

using namespace rewind;
using namespace rewind::kernels;

namespace {

using Doubles = std::vector<double>;

template <class T>
std::vector<T> normal(std::int64_t n, std::uint64_t seed, T mean = T{0}, T stddev = T{1}) {
  std::vector<T> v(static_cast<std::size_t>(n));
  random::fill_normal(v.data(), n, mean, stddev, seed, 0);
  return v;
}

template <class T>
Doubles wide(const std::vector<T>& v) {
  return Doubles(v.begin(), v.end());
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), sizeof(T) * a.size()) == 0);
}

// Largest difference, over the larger of 1 and the size of what is expected.
template <class T>
double worst(const std::vector<T>& got, const Doubles& expected) {
  REQUIRE(got.size() == expected.size());
  double w = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double d = std::fabs(static_cast<double>(got[i]) - expected[i]) / std::fmax(1, std::fabs(expected[i]));
    w = d <= w ? w : d;  // NaN counts
  }
  return w;
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

double act(Activation a, double z) {
  if (a == Activation::none) return z;
  const double y = std::fmax(z, 0);
  return a == Activation::relu6 ? std::fmin(y, 6) : y;
}
double act_slope(Activation a, double z) {
  if (a == Activation::none) return 1;
  return z > 0 && (a == Activation::relu || z < 6) ? 1 : 0;
}

template <class T>
struct BatchNorm {
  std::int64_t rows, channels;
  std::vector<T> x, g, gamma, beta, mean, var, rstd;
  Doubles scratch;

  BatchNorm(std::int64_t r, std::int64_t c, T offset = T{1})
      : rows(r),
        channels(c),
        x(normal<T>(r * c, 1, offset, T{2})),
        g(normal<T>(r * c, 2)),
        gamma(normal<T>(c, 3, T{2})),
        beta(normal<T>(c, 4, T{1})),
        mean(gamma.size()),
        var(mean),
        rstd(mean),
        scratch(static_cast<std::size_t>(batch_norm_scratch(r, c))) {
    batch_norm_statistics(x.data(), rows, channels, mean.data(), var.data(), scratch.data());
    reciprocal_std(var.data(), channels, 1e-5, rstd.data());
  }
  std::size_t at(std::int64_t r, std::int64_t c) const { return static_cast<std::size_t>(r * channels + c); }

  std::vector<T> forward(Activation a) const {
    std::vector<T> y(x.size());
    batch_norm_forward(x.data(), rows, channels, mean.data(), rstd.data(), gamma.data(), beta.data(), a, y.data());
    return y;
  }
  struct Gradients {
    std::vector<T> dx, dgamma, dbeta;
  };
  Gradients backward(Activation a, bool batch_statistics) {
    Gradients d{std::vector<T>(x.size()), std::vector<T>(gamma.size()), std::vector<T>(gamma.size())};
    batch_norm_backward(x.data(), rows, channels, mean.data(), rstd.data(), gamma.data(), beta.data(), a, batch_statistics,
                        g.data(), d.dx.data(), d.dgamma.data(), d.dbeta.data(), scratch.data());
    return d;
  }
};

constexpr std::pair<std::int64_t, std::int64_t> shapes[] = {{1, 1},      {7, 3},      {200, 24},  {5000, 1},  {1003, 33}, {65, 300},
                                                            {129, 1100}, {4001, 144}, {50000, 7}, {21, 9001}, {3, 40000}};
constexpr Activation activations[] = {Activation::none, Activation::relu, Activation::relu6};

}  // namespace

TEST_CASE_TEMPLATE("batch statistics agree with a two-pass reference, far from zero too", T, float, double) {
  const double eps = sizeof(T) == 4 ? 1e-5 : 1e-13;
  for (const auto& [rows, channels] : shapes)
    for (const T offset : {T{0}, T{1000}}) {
      const BatchNorm<T> b(rows, channels, offset);
      Doubles mean, var;
      for (std::int64_t c = 0; c < channels; ++c) {
        double m = 0, v = 0;
        for (std::int64_t r = 0; r < rows; ++r) m += static_cast<double>(b.x[b.at(r, c)]);
        m /= static_cast<double>(rows);
        for (std::int64_t r = 0; r < rows; ++r) v += std::pow(static_cast<double>(b.x[b.at(r, c)]) - m, 2);
        mean.push_back(m);
        var.push_back(v / static_cast<double>(rows));
      }
      const std::int64_t tall = rows, wide = channels;  // clang 14 cannot capture bindings
      INFO(tall, " x ", wide, " around ", static_cast<double>(offset));
      CHECK(worst(b.mean, mean) < eps);
      CHECK(worst(b.var, var) < eps);
    }
}

TEST_CASE_TEMPLATE("batch norm with its activation agrees with a plain reference, forward and backward", T, float, double) {
  const double eps = sizeof(T) == 4 ? 2e-5 : 1e-11;
  for (const auto& [rows, channels] : shapes)
    for (const Activation a : activations)
      for (const bool batch : {true, false}) {
        BatchNorm<T> b(rows, channels);
        const auto y = b.forward(a);
        const auto d = b.backward(a, batch);
        Doubles ey(y.size()), edx(y.size()), edgamma, edbeta;
        const double m = static_cast<double>(rows);
        for (std::int64_t c = 0; c < channels; ++c) {
          const auto i = static_cast<std::size_t>(c);
          const double mean = static_cast<double>(b.mean[i]), rstd = static_cast<double>(b.rstd[i]);
          const double gamma = static_cast<double>(b.gamma[i]), beta = static_cast<double>(b.beta[i]);
          double s1 = 0, s2 = 0;
          const auto dz = [&](std::int64_t r) {
            const double xhat = (static_cast<double>(b.x[b.at(r, c)]) - mean) * rstd;
            // The kernel's own z decides at the kink, so the reference takes the mask from its output.
            const double out = static_cast<double>(y[b.at(r, c)]);
            ey[b.at(r, c)] = act(a, xhat * gamma + beta);
            return static_cast<double>(b.g[b.at(r, c)]) * act_slope(a, a == Activation::none ? 1 : out);
          };
          const auto xhat = [&](std::int64_t r) { return (static_cast<double>(b.x[b.at(r, c)]) - mean) * rstd; };
          for (std::int64_t r = 0; r < rows; ++r) {
            s1 += dz(r);
            s2 += dz(r) * xhat(r);
          }
          edbeta.push_back(s1);
          edgamma.push_back(s2);
          for (std::int64_t r = 0; r < rows; ++r)
            edx[b.at(r, c)] = gamma * rstd * (batch ? dz(r) - s1 / m - xhat(r) * s2 / m : dz(r));
        }
        const std::int64_t tall = rows, wide = channels;
        INFO(tall, " x ", wide, ", activation ", static_cast<int>(a), batch ? ", batch" : ", running");
        CHECK(worst(y, ey) < eps);
        if (rows > 1) CHECK(worst(d.dx, edx) < eps);
        CHECK(worst(d.dgamma, edgamma) < eps);
        CHECK(worst(d.dbeta, edbeta) < eps);
      }
}

TEST_CASE_TEMPLATE("batch norm in place gives the bits of out of place, for any number of threads", T, float, double) {
  for (const auto& [rows, channels] : shapes) {
    BatchNorm<T> b(rows, channels);
    const auto y = b.forward(Activation::relu6);
    const auto d = b.backward(Activation::relu6, true);
    auto z = b.x;
    batch_norm_forward(z.data(), rows, channels, b.mean.data(), b.rstd.data(), b.gamma.data(), b.beta.data(), Activation::relu6,
                       z.data());
    CHECK(same_bits(z, y));
    for (const bool into_g : {true, false}) {
      auto x = b.x, g = b.g, dgamma = b.gamma, dbeta = b.gamma;
      T* dx = into_g ? g.data() : x.data();
      batch_norm_backward(x.data(), rows, channels, b.mean.data(), b.rstd.data(), b.gamma.data(), b.beta.data(), Activation::relu6,
                          true, g.data(), dx, dgamma.data(), dbeta.data(), b.scratch.data());
      CHECK(same_bits(into_g ? g : x, d.dx));
      CHECK(same_bits(dgamma, d.dgamma));
      CHECK(same_bits(dbeta, d.dbeta));
    }
    const auto r = rows;
    const auto c = channels;
    check_threads([&] { return BatchNorm<T>(r, c).var; });
    check_threads([&] { return BatchNorm<T>(r, c).forward(Activation::relu); });
    check_threads([&] {
      auto all = BatchNorm<T>(r, c).backward(Activation::relu6, true);
      all.dx.insert(all.dx.end(), all.dgamma.begin(), all.dgamma.end());
      all.dx.insert(all.dx.end(), all.dbeta.begin(), all.dbeta.end());
      return all.dx;
    });
  }
}

TEST_CASE("running statistics move by momentum, the variance unbiased") {
  double mean[] = {1}, var[] = {2}, running_mean[] = {3}, running_var[] = {4};
  update_running(mean, var, 5, 1, 0.1, running_mean, running_var);
  CHECK(running_mean[0] == doctest::Approx(0.9 * 3 + 0.1 * 1));
  CHECK(running_var[0] == doctest::Approx(0.9 * 4 + 0.1 * 2 * 5 / 4));
}

TEST_CASE_TEMPLATE("layer norm agrees with a plain reference, in place and for any number of threads", T, float, double) {
  const double eps = sizeof(T) == 4 ? 3e-5 : 1e-11;
  for (const auto& [rows, columns] : shapes) {
    const auto n = static_cast<std::size_t>(rows * columns), w = static_cast<std::size_t>(columns);
    const auto x = normal<T>(rows * columns, 1, T{1}, T{2}), g = normal<T>(rows * columns, 2), gamma = normal<T>(columns, 3),
               beta = normal<T>(columns, 4);
    std::vector<T> y(n), mean(static_cast<std::size_t>(rows)), rstd(mean), dx(n), dgamma(w), dbeta(w);
    layer_norm_forward(x.data(), rows, columns, gamma.data(), beta.data(), 1e-2, y.data(), mean.data(), rstd.data());
    Doubles scratch(static_cast<std::size_t>(layer_norm_scratch(rows, columns)));
    layer_norm_backward(x.data(), rows, columns, mean.data(), rstd.data(), gamma.data(), g.data(), dx.data(), dgamma.data(),
                        dbeta.data(), scratch.data());
    Doubles ey(n), edx(n), edgamma(w), edbeta(w);
    for (std::size_t r = 0; r < static_cast<std::size_t>(rows); ++r) {
      double m = 0, v = 0, s1 = 0, s2 = 0;
      for (std::size_t c = 0; c < w; ++c) m += static_cast<double>(x[r * w + c]) / static_cast<double>(w);
      for (std::size_t c = 0; c < w; ++c) v += std::pow(static_cast<double>(x[r * w + c]) - m, 2) / static_cast<double>(w);
      const double rs = 1 / std::sqrt(v + 1e-2);
      for (std::size_t c = 0; c < w; ++c) {
        const double xhat = (static_cast<double>(x[r * w + c]) - m) * rs, gi = static_cast<double>(g[r * w + c]);
        ey[r * w + c] = xhat * static_cast<double>(gamma[c]) + static_cast<double>(beta[c]);
        s1 += gi * static_cast<double>(gamma[c]) / static_cast<double>(w);
        s2 += gi * static_cast<double>(gamma[c]) * xhat / static_cast<double>(w);
        edgamma[c] += gi * xhat;
        edbeta[c] += gi;
      }
      for (std::size_t c = 0; c < w; ++c)
        edx[r * w + c] = rs * (static_cast<double>(g[r * w + c]) * static_cast<double>(gamma[c]) - s1 -
                               (static_cast<double>(x[r * w + c]) - m) * rs * s2);
    }
    const std::int64_t tall = rows, wide = columns;
    INFO(tall, " x ", wide);
    CHECK(worst(y, ey) < eps);
    CHECK(worst(dx, edx) < eps);
    CHECK(worst(dgamma, edgamma) < eps);
    CHECK(worst(dbeta, edbeta) < eps);
    auto z = x;
    layer_norm_forward(z.data(), rows, columns, gamma.data(), beta.data(), 1e-2, z.data(), mean.data(), rstd.data());
    CHECK(same_bits(z, y));
    z = g;
    layer_norm_backward(x.data(), rows, columns, mean.data(), rstd.data(), gamma.data(), z.data(), z.data(), dgamma.data(),
                        dbeta.data(), scratch.data());
    CHECK(same_bits(z, dx));
    const auto r = rows;
    const auto c = columns;
    check_threads([&] {
      layer_norm_backward(x.data(), r, c, mean.data(), rstd.data(), gamma.data(), g.data(), dx.data(), dgamma.data(), dbeta.data(),
                          scratch.data());
      return dgamma;
    });
    // without gamma and beta
    layer_norm_forward<T>(x.data(), rows, columns, nullptr, nullptr, 1e-2, y.data(), nullptr, nullptr);
    for (std::size_t i = 0; i < n; ++i)
      ey[i] = (static_cast<double>(x[i]) - static_cast<double>(mean[i / w])) * static_cast<double>(rstd[i / w]);
    CHECK(worst(y, ey) < eps);
  }
}

TEST_CASE_TEMPLATE("softmax and log_softmax agree with a plain reference, forward and backward", T, float, double) {
  const double eps = sizeof(T) == 4 ? 1e-5 : 1e-13;
  for (const auto& [rows, classes] : shapes) {
    const auto n = static_cast<std::size_t>(rows * classes), w = static_cast<std::size_t>(classes);
    auto x = normal<T>(rows * classes, 1, T{0}, T{5});
    x[0] += T{40};
    const auto g = normal<T>(rows * classes, 2);
    std::vector<T> p(n), lp(n), dp(n), dlp(n);
    softmax(x.data(), rows, classes, p.data());
    log_softmax(x.data(), rows, classes, lp.data());
    softmax_backward(p.data(), g.data(), rows, classes, dp.data());
    log_softmax_backward(lp.data(), g.data(), rows, classes, dlp.data());
    Doubles ep(n), elp(n), edp(n), edlp(n);
    for (std::size_t r = 0; r < static_cast<std::size_t>(rows); ++r) {
      double m = -1e300;
      long double sum = 0, dot = 0, total = 0;  // of up to 40000 terms
      for (std::size_t c = 0; c < w; ++c) m = std::fmax(m, static_cast<double>(x[r * w + c]));
      for (std::size_t c = 0; c < w; ++c) sum += std::exp(static_cast<double>(x[r * w + c]) - m);
      for (std::size_t c = 0; c < w; ++c) {
        elp[r * w + c] = static_cast<double>(x[r * w + c]) - m - static_cast<double>(std::log(sum));
        ep[r * w + c] = std::exp(elp[r * w + c]);
        dot += ep[r * w + c] * static_cast<double>(g[r * w + c]);
        total += static_cast<double>(g[r * w + c]);
      }
      for (std::size_t c = 0; c < w; ++c) {
        edp[r * w + c] = ep[r * w + c] * (static_cast<double>(g[r * w + c]) - static_cast<double>(dot));
        edlp[r * w + c] = static_cast<double>(g[r * w + c]) - ep[r * w + c] * static_cast<double>(total);
      }
    }
    CHECK(worst(p, ep) < eps);
    CHECK(worst(lp, elp) < eps);
    CHECK(worst(dp, edp) < eps);
    CHECK(worst(dlp, edlp) < eps);
    auto z = x;
    softmax(z.data(), rows, classes, z.data());
    CHECK(same_bits(z, p));
    z = x;
    log_softmax(z.data(), rows, classes, z.data());
    CHECK(same_bits(z, lp));
    z = g;
    log_softmax_backward(lp.data(), z.data(), rows, classes, z.data());
    CHECK(same_bits(z, dlp));
    z = p;
    softmax_backward(z.data(), g.data(), rows, classes, z.data());
    CHECK(same_bits(z, dp));
  }
}

TEST_CASE_TEMPLATE("cross entropy agrees with PyTorch's definition, label smoothing included", T, float, double) {
  const double eps = sizeof(T) == 4 ? 1e-5 : 1e-12;
  for (const auto& [rows, classes] : shapes)
    for (const double smoothing : {0.0, 0.1}) {
      const auto n = static_cast<std::size_t>(rows * classes), w = static_cast<std::size_t>(classes);
      const auto x = normal<T>(rows * classes, 1, T{3}, T{5});
      std::vector<std::int64_t> labels(static_cast<std::size_t>(rows));
      for (std::size_t r = 0; r < labels.size(); ++r) labels[r] = static_cast<std::int64_t>((r * 7 + 3) % w);
      const std::vector<std::int32_t> narrow(labels.begin(), labels.end());
      CHECK(first_bad_label(labels.data(), rows, classes) == -1);
      std::vector<T> loss(labels.size()), lse(loss), rest(loss), loss32(loss), lse32(loss), dx(n);
      cross_entropy_forward(x.data(), labels.data(), rows, classes, smoothing, loss.data(), lse.data(), rest.data());
      cross_entropy_forward(x.data(), narrow.data(), rows, classes, smoothing, loss32.data(), lse32.data(), rest.data());
      CHECK(same_bits(loss, loss32));
      const T g = T{3};
      const T scale = static_cast<T>(1 / static_cast<double>(rows));
      cross_entropy_backward(x.data(), labels.data(), lse.data(), rest.data(), rows, classes, smoothing, &g, scale, dx.data());
      Doubles eloss, edx(n);
      for (std::size_t r = 0; r < labels.size(); ++r) {
        double sum = 0, mean = 0;
        for (std::size_t c = 0; c < w; ++c) {
          sum += std::exp(static_cast<double>(x[r * w + c]));
          mean += static_cast<double>(x[r * w + c]) / static_cast<double>(w);
        }
        const auto label = static_cast<std::size_t>(labels[r]);
        eloss.push_back((1 - smoothing) * (std::log(sum) - static_cast<double>(x[r * w + label])) +
                        smoothing * (std::log(sum) - mean));
        for (std::size_t c = 0; c < w; ++c) {
          const double target = smoothing / static_cast<double>(w) + (c == label ? 1 - smoothing : 0);
          edx[r * w + c] = (std::exp(static_cast<double>(x[r * w + c])) / sum - target) * 3 / static_cast<double>(rows);
        }
      }
      CHECK(worst(loss, eloss) < eps);
      CHECK(worst(dx, edx) < eps);
      auto z = x;
      cross_entropy_backward(z.data(), labels.data(), lse.data(), rest.data(), rows, classes, smoothing, &g, scale, z.data());
      CHECK(same_bits(z, dx));
      const auto r = rows;
      const auto c = classes;
      check_threads([&] {
        cross_entropy_forward(x.data(), labels.data(), r, c, smoothing, loss.data(), lse.data(), rest.data());
        return loss;
      });
    }
}

TEST_CASE_TEMPLATE("a NaN or an infinite logit spoils its own row's loss and no other; minus infinity is a class left out", T,
                   float, double) {
  const std::int64_t rows = 20, classes = 37;  // whole vectors, and columns left over
  constexpr T infinity = std::numeric_limits<T>::infinity();
  auto x = normal<T>(rows * classes, 1);
  const std::vector<std::int64_t> labels(20, 5);
  std::vector<T> before(20), loss(20), lse_before(20), lse(20), rest(20), y(x.size());
  cross_entropy_forward(x.data(), labels.data(), rows, classes, 0, before.data(), lse_before.data(), rest.data());
  for (const std::int64_t column : {std::int64_t{2}, classes - 1})
    for (const T bad : {std::numeric_limits<T>::quiet_NaN(), infinity, -infinity}) {
      auto z = x;
      z[static_cast<std::size_t>(7 * classes + column)] = bad;
      cross_entropy_forward(z.data(), labels.data(), rows, classes, 0, loss.data(), lse.data(), rest.data());
      log_softmax(z.data(), rows, classes, y.data());
      double left = 0;  // the sum of exponentials of the classes that are left
      for (std::int64_t c = 0; c < classes; ++c)
        if (c != column) left += std::exp(static_cast<double>(x[static_cast<std::size_t>(7 * classes + c)]));
      for (std::size_t r = 0; r < loss.size(); ++r) {
        const T at_label = y[r * static_cast<std::size_t>(classes) + 5];
        if (r != 7) {
          CHECK(loss[r] == before[r]);
          CHECK(lse[r] == lse_before[r]);
          CHECK(at_label == doctest::Approx(-static_cast<double>(loss[r])));
        } else if (bad == -infinity) {
          CHECK(static_cast<double>(lse[r]) == doctest::Approx(std::log(left)));
          CHECK(at_label == doctest::Approx(-static_cast<double>(loss[r])));
        } else {
          CHECK(std::isnan(loss[r]));
          CHECK(std::isnan(lse[r]));
          CHECK(std::isnan(at_label));
        }
      }
    }
}

TEST_CASE("labels out of range are found, the first of them") {
  const std::int64_t labels[] = {0, 9, 10, -1};
  CHECK(first_bad_label(labels, 4, 11) == 3);
  CHECK(first_bad_label(labels, 4, 10) == 2);
  CHECK(first_bad_label(labels, 2, 10) == -1);
}

TEST_CASE_TEMPLATE("mean squared error agrees with a plain reference", T, float, double) {
  const std::int64_t n = 100003;
  const auto a = normal<T>(n, 1), b = normal<T>(n, 2);
  double exact = 0;
  for (std::size_t i = 0; i < a.size(); ++i) exact += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
  exact /= static_cast<double>(n);
  CHECK(static_cast<double>(mse_forward(a.data(), b.data(), n)) == doctest::Approx(exact).epsilon(1e-6));
  check_threads([&] { return std::vector<T>{mse_forward(a.data(), b.data(), n)}; });
  std::vector<T> da(a.size());
  mse_backward(a.data(), b.data(), n, T{2}, da.data());
  CHECK(static_cast<double>(da[7]) ==
        doctest::Approx(4 * (static_cast<double>(a[7]) - static_cast<double>(b[7])) / static_cast<double>(n)).epsilon(1e-5));
  auto z = a;
  mse_backward(z.data(), b.data(), n, T{2}, z.data());
  CHECK(same_bits(z, da));
}
