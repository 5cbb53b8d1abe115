#pragma once
// Functions of one number, written so that loops over them vectorise: float versions are polynomials without branches
// (mostly after Moshier's Cephes; within 3 ulp, the normal distribution within 6; tested), double versions call libm.
// Infinities and NaN behave as in libm.

#include <rewind/core/kernels/vector.h>

#include <bit>
#include <cmath>
#include <cstdint>

namespace rewind_lib::kernels::math {

#define REWIND_INLINE [[gnu::always_inline]] inline

/// F is float, or a vector of floats, for loops whose registers the compiler would not make do with.
template <class F>
struct BitsOf {
  using type = typename VectorOf<std::uint32_t, sizeof(F)>::type;
};
template <>
struct BitsOf<float> {
  using type = std::uint32_t;
};

/// exp(x) = mantissa 2^exponent.
template <class F>
struct SplitExp {
  F mantissa;
  typename BitsOf<F>::type biased;  // the exponent, in two's complement, + 127 in the low bits: as a float has it, once shifted to
                                    // its place
};
constexpr float exp_magic = 12582912.f + 127.f;  // 1.5 * 2^23: adding it rounds to an integer, left in the low bits; and the bias
template <class F>
REWIND_INLINE SplitExp<F> split_exp(F x) {
  const F shifted = x * 1.44269504088896341f + exp_magic;
  const F n = shifted - exp_magic;
  const F r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  // (exp(r) - 1 - r) / r^2 at Chebyshev's nodes of |r| <= log(2) / 2: relative error of exp 1.0e-8.
  F p = r * 1.3926213466e-3f + 8.3632029716e-3f;
  p = p * r + 4.1666554438e-2f;
  p = p * r + 1.6666576846e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.f;
  return {p * r + 1.f, std::bit_cast<typename BitsOf<F>::type>(shifted)};
}

REWIND_INLINE float exp(float x) {
  x = x > 89.f ? 89.f : x;
  x = x < -105.f ? -105.f : x;
  const SplitExp<float> s = split_exp(x);
  // 2^k in two factors, so that overflow and gradual underflow come out right.
  const std::uint32_t k = s.biased - std::bit_cast<std::uint32_t>(exp_magic);
  const auto u1 = static_cast<std::uint32_t>(static_cast<std::int32_t>(k) >> 1), u2 = k - u1;
  return (s.mantissa * std::bit_cast<float>((u1 + 127u) << 23)) * std::bit_cast<float>((u2 + 127u) << 23);
}
REWIND_INLINE double exp(double x) { return std::exp(x); }

/// exp(x) for x that is at most about 0, as behind the subtraction of a maximum: nothing overflows, and what would be below the
/// normal numbers is 0.
template <class F>
REWIND_INLINE F exp_of_difference(F x) {
  const SplitExp<F> s = split_exp(x);
  const F y = s.mantissa * std::bit_cast<F>(s.biased << 23);
  return x < -87.f ? F{} : y;
}
REWIND_INLINE double exp_of_difference(double x) { return std::exp(x); }
REWIND_INLINE Vector<double> exp_of_difference(Vector<double> x) {
  for (int i = 0; i < lanes<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

REWIND_INLINE float log(float x) {
  const bool tiny = x < 0x1p-126f;
  const float scaled = x * 0x1p25f;
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(tiny ? scaled : x);
  // m in [sqrt(1/2), sqrt(2)), x = m 2^e
  const std::uint32_t shifted = bits - 0x3F3504F3u;
  const std::int32_t exponent = (static_cast<std::int32_t>(shifted) >> 23) - (tiny ? 25 : 0);
  const float e = static_cast<float>(exponent);
  const float m = std::bit_cast<float>((shifted & 0x007FFFFFu) + 0x3F3504F3u) - 1.f;
  const float z = m * m;
  float p = 7.0376836292e-2f;
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  float y = p * (m * z);
  y = y - e * 2.12194440e-4f;
  y = y - 0.5f * z;
  float r = (m + y) + e * 0.693359375f;
  constexpr float infinity = __builtin_inff();
  r = x == infinity ? infinity : r;
  r = x == 0.f ? -infinity : r;
  return x >= 0.f ? r : __builtin_nanf("");
}
REWIND_INLINE double log(double x) { return std::log(x); }

REWIND_INLINE float tanh(float x) {
  const float a = __builtin_fabsf(x), z = x * x;
  float p = -5.70498872745e-3f;
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const float small = p * (z * x) + x;
  const float large = 1.f - 2.f / (exp(2.f * a) + 1.f);
  return a < 0.625f ? small : __builtin_copysignf(large, x);
}
REWIND_INLINE double tanh(double x) { return std::tanh(x); }

template <class T>
REWIND_INLINE T sigmoid(T x) {
  return T{1} / (T{1} + exp(-x));
}

REWIND_INLINE float sqrt(float x) { return __builtin_sqrtf(x); }
REWIND_INLINE double sqrt(double x) { return __builtin_sqrt(x); }

/// The normal distribution: density(x) = exp(-x^2 / 2) / sqrt(2 pi) and its integral from -infinity.
template <class T>
struct Normal {
  T density, cumulative;
};
REWIND_INLINE Normal<float> normal(float x) {
  float a = __builtin_fabsf(x);
  a = a > 15.f ? 15.f : a;
  // exp(-a^2 / 2) with a^2 split, since rounding it would cost relative accuracy: high^2 is exact.
  const float high = std::bit_cast<float>(std::bit_cast<std::uint32_t>(a) & 0xFFFFF000u);
  const float d = (high - a) * (high + a) * 0.5f;
  const float correction = 1.f + d * (1.f + d * (0.5f + d * (0.166666667f + d * 0.0416666667f)));
  const float e = exp(high * high * -0.5f) * correction;
  // Phi(-a) = exp(-a^2 / 2) t P(t), t = 1 / (1 + 0.35 a); P is a Chebyshev fit, relative error 2e-8.
  const float t = 1.f / (1.f + 0.35f * a);
  float p = 0.02214889338f;
  p = p * t - 0.1228893892f;
  p = p * t + 0.2673986393f;
  p = p * t - 0.2644952415f;
  p = p * t + 0.09863280947f;
  p = p * t - 0.04232286233f;
  p = p * t + 0.0526426318f;
  p = p * t + 0.08699111591f;
  p = p * t + 0.1226390008f;
  p = p * t + 0.1396245074f;
  p = p * t + 0.1396298977f;
  const float tail = e * (t * p);
  return {e * 0.398942280401f, x < 0.f ? tail : 1.f - tail};
}
REWIND_INLINE Normal<double> normal(double x) {
  return {std::exp(-0.5 * x * x) * 0.39894228040143267794, 0.5 * std::erfc(x * -0.70710678118654752440)};
}

}  // namespace rewind_lib::kernels::math
