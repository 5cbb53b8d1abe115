#include <rewind/core/error.h>
#include <rewind/core/kernels/loop.h>
#include <rewind/core/kernels/philox.h>
#include <rewind/core/kernels/vector_math.h>
#include <rewind/core/random.h>

#include <cmath>

namespace rewind_lib::random {

using namespace kernels;

namespace {

// Calls body(words, first element, count) for every group of 64 / words_each elements.
template <class F>
void for_groups(std::int64_t n, int words_each, std::uint64_t seed, std::uint64_t offset, F body) {
  const std::int64_t group = philox_group / words_each;
  parallel::for_range(n, heavy_grain, [=](std::int64_t begin, std::int64_t end) {
    std::uint32_t word[philox_group];
    for (std::int64_t at = begin; at < end; at += group) {
      philox_fill(seed, offset + static_cast<std::uint64_t>(at * words_each), word);
      body(word, at, min_of(group, end - at));
    }
  });
}

// cos and sin of 2 pi w / 2^32, exact to a few ulp: quarter turns are taken off in integers.
struct Turn {
  float cos, sin;
};
REWIND_INLINE Turn turn(std::uint32_t w) {
  const std::uint32_t rounded = w + 0x20000000u, quadrant = rounded >> 30;
  const float x = static_cast<float>(static_cast<std::int32_t>((rounded & 0x3FFFFFFFu) - 0x20000000u)) *
                  1.46291807926715968e-9f;  // 2 pi / 2^32; x in [-pi/4, pi/4)
  const float z = x * x;
  const float s = ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z - 1.6666654611e-1f) * (z * x) + x;
  const float c = ((2.443315711809948e-5f * z - 1.388731625493765e-3f) * z + 4.166664568298827e-2f) * (z * z) - 0.5f * z + 1.f;
  const bool odd = (quadrant & 1u) != 0;
  const float a = odd ? s : c, b = odd ? c : s;
  return {((quadrant == 1u) | (quadrant == 2u)) ? -a : a, quadrant >= 2u ? -b : b};
}

}  // namespace

Generator& default_generator() {
  static Generator generator;
  return generator;
}

void seed(std::uint64_t value) { default_generator().reseed(value); }

template <>
void fill_uniform(float* y, std::int64_t n, float low, float high, std::uint64_t seed, std::uint64_t offset) {
  if (!std::isfinite(high - low)) fail(str("uniform: [", low, ", ", high, ") is wider than a float32 can say"));
  const float span = high - low, below = std::nextafter(high, low);
  for_groups(n, 1, seed, offset, [=](const std::uint32_t* word, std::int64_t at, std::int64_t count) {
    REWIND_INDEPENDENT
    for (std::int64_t j = 0; j < count; ++j) {
      const float v = low + philox_float(word[j]) * span;
      y[at + j] = v < high ? v : below;
    }
  });
}

template <>
void fill_uniform(double* y, std::int64_t n, double low, double high, std::uint64_t seed, std::uint64_t offset) {
  if (!std::isfinite(high - low)) fail(str("uniform: [", low, ", ", high, ") is wider than a float64 can say"));
  const double span = high - low, below = std::nextafter(high, low);
  for_groups(n, 2, seed, offset, [=](const std::uint32_t* word, std::int64_t at, std::int64_t count) {
    for (std::int64_t j = 0; j < count; ++j) {
      const double v = low + philox_double(word[j], word[32 + j]) * span;
      y[at + j] = v < high ? v : below;
    }
  });
}

template <>
void fill_normal(float* y, std::int64_t n, float mean, float stddev, std::uint64_t seed, std::uint64_t offset) {
  for_groups(n, 1, seed, offset, [=](const std::uint32_t* word, std::int64_t at, std::int64_t count) {
    float value[philox_group];
    REWIND_INDEPENDENT
    for (int j = 0; j < 32; ++j) {
      const float u = (static_cast<float>(word[j] >> 1) + 0.5f) * 0x1p-31f;  // in (0, 1]
      const float radius = math::sqrt(-2.f * math::log(u));
      const Turn t = turn(word[32 + j]);
      value[j] = mean + stddev * (radius * t.cos);
      value[32 + j] = mean + stddev * (radius * t.sin);
    }
    for (std::int64_t j = 0; j < count; ++j) y[at + j] = value[j];
  });
}

template <>
void fill_normal(double* y, std::int64_t n, double mean, double stddev, std::uint64_t seed, std::uint64_t offset) {
  for_groups(n, 2, seed, offset, [=](const std::uint32_t* word, std::int64_t at, std::int64_t count) {
    double value[philox_group / 2];
    for (int j = 0; j < 16; ++j) {
      const double u = philox_double(word[j], word[16 + j]) + 0x1p-54, v = philox_double(word[32 + j], word[48 + j]);
      const double radius = std::sqrt(-2 * std::log(u)), angle = 6.283185307179586477 * v;
      value[j] = mean + stddev * (radius * std::cos(angle));
      value[16 + j] = mean + stddev * (radius * std::sin(angle));
    }
    for (std::int64_t j = 0; j < count; ++j) y[at + j] = value[j];
  });
}

template <class T>
void fill_permutation(T* y, std::int64_t n, std::uint64_t seed, std::uint64_t offset) {
  for (std::int64_t i = 0; i < n; ++i) y[i] = static_cast<T>(i);
  std::uint32_t word[philox_group];
  for (std::int64_t i = 0; i + 1 < n; ++i) {
    if (i % 32 == 0) philox_fill(seed, offset + static_cast<std::uint64_t>(2 * i), word);
    // A 64-bit number times the count left, high half: uniform to within 2^-32 and better.
    const std::uint64_t left = static_cast<std::uint64_t>(n - i), high = word[i % 32], low = word[32 + i % 32];
    const std::uint64_t carry = (low * left) >> 32;
    const std::int64_t j = i + static_cast<std::int64_t>((high * left + carry) >> 32);
    const T swapped = y[i];
    y[i] = y[j];
    y[j] = swapped;
  }
}

template void fill_permutation(std::int32_t*, std::int64_t, std::uint64_t, std::uint64_t);
template void fill_permutation(std::int64_t*, std::int64_t, std::uint64_t, std::uint64_t);

}  // namespace rewind_lib::random
