#include <rewind/core/kernels/check.h>

#include <rewind/core/kernels/loop.h>

#include <bit>
#include <type_traits>

namespace rewind_lib::kernels {
namespace {

template <class T>
auto magnitude_bits(T v) {
  using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  return static_cast<Bits>(std::bit_cast<Bits>(v) << 1);
}
template <class T>
inline constexpr auto infinity_bits = [] {
  if constexpr (sizeof(T) == 4)
    return std::uint32_t{0xFF000000u};
  else
    return std::uint64_t{0xFFE0000000000000u};
}();

// 32-bit counters vectorise with the comparison; a block stays far below their range.
template <class T>
std::int64_t count_block(const T* x, std::int64_t n) {
  decltype(magnitude_bits(T{})) bad = 0;
  for (std::int64_t i = 0; i < n; ++i) bad += magnitude_bits(x[i]) >= infinity_bits<T> ? 1u : 0u;
  return static_cast<std::int64_t>(bad);
}
constexpr std::int64_t block = 4096;

constexpr std::uint64_t mix_a = 0x9E3779B97F4A7C15u, mix_b = 0xC2B2AE3D27D4EB4Fu;

std::uint64_t finish(std::uint64_t h) {
  h ^= h >> 33;
  h *= 0xFF51AFD7ED558CCDu;
  h ^= h >> 33;
  h *= 0xC4CEB9FE1A85EC53u;
  return h ^ (h >> 33);
}

// Eight independent lanes of 64-bit words; every word is multiplied in, so that its place counts.
std::uint64_t hash_piece(const unsigned char* p, std::int64_t n) {
  std::uint64_t lane[8];
  for (std::uint64_t j = 0; j < 8; ++j) lane[j] = mix_a * (j + 1);
  std::int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    std::uint64_t word[8];
    std::memcpy(word, p + i, 64);
    for (int j = 0; j < 8; ++j) {
      lane[j] = (lane[j] ^ word[j]) * mix_b;
      lane[j] ^= lane[j] >> 29;
    }
  }
  std::uint64_t h = static_cast<std::uint64_t>(n);
  for (const std::uint64_t l : lane) h = finish(h ^ l) * mix_a;
  for (; i < n; i += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, p + i, static_cast<std::size_t>(min_of(8, n - i)));
    h = finish(h ^ word) * mix_a;
  }
  return finish(h);
}

}  // namespace

template <class T>
std::int64_t first_non_finite(const T* x, std::int64_t n) {
  std::int64_t part[max_pieces];
  const std::int64_t grain = reduction_grain(n, parallel::light_grain), pieces = parallel::pieces(n, grain);
  parallel::for_pieces(pieces, [&](std::int64_t piece, int) {
    const std::int64_t end = min_of(n, (piece + 1) * grain);
    part[piece] = -1;
    for (std::int64_t i = piece * grain; i < end && part[piece] < 0; i += block) {
      const std::int64_t stop = min_of(end, i + block);
      if (count_block(x + i, stop - i) == 0) continue;
      for (std::int64_t j = i; j < stop && part[piece] < 0; ++j)
        if (magnitude_bits(x[j]) >= infinity_bits<T>) part[piece] = j;
    }
  });
  for (std::int64_t k = 0; k < pieces; ++k)
    if (part[k] >= 0) return part[k];
  return -1;
}

std::uint64_t hash(const void* data, std::int64_t bytes) {
  const auto* p = static_cast<const unsigned char*>(data);
  std::uint64_t part[max_pieces];
  const std::int64_t grain = (reduction_grain(bytes, 4 * parallel::light_grain) + 63) / 64 * 64;
  const std::int64_t pieces = parallel::pieces(bytes, grain);
  parallel::for_pieces(
      pieces, [&](std::int64_t piece, int) { part[piece] = hash_piece(p + piece * grain, min_of(grain, bytes - piece * grain)); });
  std::uint64_t h = static_cast<std::uint64_t>(bytes);
  for (std::int64_t k = 0; k < pieces; ++k) h = finish(h ^ part[k]) * mix_a;
  return finish(h);
}

template std::int64_t first_non_finite(const float*, std::int64_t);
template std::int64_t first_non_finite(const double*, std::int64_t);

}  // namespace rewind_lib::kernels
