#include <rewind/core/random.h>
#include <rewind/nn/init.h>

#include <cmath>

namespace rewind_lib::nn::init {
namespace {

template <class Fill>
void fill_random(Tensor& w, const char* name, Fill fill) {
  if (!is_float(w.dtype())) fail(str(name, ": needs a float tensor, got ", w.dtype(), " ", w.shape()));
  visit_float(w.dtype(), [&](auto zero) {
    using T = decltype(zero);
    random::Generator& generator = random::default_generator();
    const std::uint64_t offset = generator.take(random::words<T>(w.numel()));
    if (!DryLedger::active()) fill(w.mutate<T>().data(), w.numel(), generator.seed(), offset);
  });
}

double he_deviation(const Tensor& w, Mode mode, Nonlinearity after) {
  const Fans f = fans(w.shape());
  return gain(after) / std::sqrt(static_cast<double>(mode == Mode::fan_in ? f.in : f.out));
}

double glorot_deviation(const Tensor& w, Nonlinearity after) {
  const Fans f = fans(w.shape());
  return gain(after) * std::sqrt(2.0 / static_cast<double>(f.in + f.out));
}

// A uniform distribution on [-a, a) has standard deviation a / sqrt(3).
void uniform_of_deviation(Tensor w, double deviation) {
  const double a = std::sqrt(3.0) * deviation;
  uniform(std::move(w), -a, a);
}

}  // namespace

Fans fans(const Shape& w) {
  switch (w.rank()) {
    case 2: return {w[1], w[0]};
    case 3: return {w[0] * w[1], w[0] * w[1]};
    case 4: return {w[1] * w[2] * w[3], w[0] * w[1] * w[2]};
    default: fail(str("init: a weight is [out, in], [O, KH, KW, C] or [KH, KW, C]; shape ", w, " has no fan-in"));
  }
}

double gain(Nonlinearity after) {
  switch (after) {
    case Nonlinearity::tanh: return 5.0 / 3.0;
    case Nonlinearity::relu: return std::sqrt(2.0);
    case Nonlinearity::linear:
    case Nonlinearity::sigmoid: break;
  }
  return 1;
}

void constant(Tensor w, double value) { w.fill(value); }

void normal(Tensor w, double mean, double stddev) {
  fill_random(w, "init::normal", [=]<class T>(T* y, std::int64_t n, std::uint64_t seed, std::uint64_t offset) {
    random::fill_normal(y, n, static_cast<T>(mean), static_cast<T>(stddev), seed, offset);
  });
}

void uniform(Tensor w, double low, double high) {
  if (!(low <= high)) fail(str("init::uniform: low must not be above high, got ", low, " and ", high));
  fill_random(w, "init::uniform", [=]<class T>(T* y, std::int64_t n, std::uint64_t seed, std::uint64_t offset) {
    random::fill_uniform(y, n, static_cast<T>(low), static_cast<T>(high), seed, offset);
  });
}

void kaiming_normal(Tensor w, Mode mode, Nonlinearity after) { normal(w, 0, he_deviation(w, mode, after)); }
void kaiming_uniform(Tensor w, Mode mode, Nonlinearity after) { uniform_of_deviation(w, he_deviation(w, mode, after)); }
void xavier_normal(Tensor w, Nonlinearity after) { normal(w, 0, glorot_deviation(w, after)); }
void xavier_uniform(Tensor w, Nonlinearity after) { uniform_of_deviation(w, glorot_deviation(w, after)); }

}  // namespace rewind_lib::nn::init
