#pragma once
// Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a random number is a pure
// function of (seed, counter), so any element can be made again, by any thread, without what came before it.
//
// Numbers are laid out in groups of 64: group k uses the sixteen counters 16 k .. 16 k + 15, and its number j is word
// j / 16 of counter j % 16. That is the order in which sixteen lanes make them.

#include <rewind/core/kernels/vector.h>

#include <cstdint>

namespace rewind_lib::kernels {

struct Philox {
  std::uint32_t word[4];
};

inline constexpr std::uint32_t philox_m0 = 0xD2511F53u, philox_m1 = 0xCD9E8D57u;
inline constexpr std::uint32_t philox_w0 = 0x9E3779B9u, philox_w1 = 0xBB67AE85u;

/// The four words of one 128-bit counter under a 64-bit key; the function of the paper.
constexpr Philox philox(Philox c, std::uint32_t key0, std::uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{philox_m0} * c.word[0], p1 = std::uint64_t{philox_m1} * c.word[2];
    c = {{static_cast<std::uint32_t>(p1 >> 32) ^ c.word[1] ^ key0, static_cast<std::uint32_t>(p1),
          static_cast<std::uint32_t>(p0 >> 32) ^ c.word[3] ^ key1, static_cast<std::uint32_t>(p0)}};
    key0 += philox_w0;
    key1 += philox_w1;
  }
  return c;
}

/// Numbers in a group. Offsets into a stream are multiples of it.
inline constexpr std::int64_t philox_group = 64;

/// The group of 64 numbers at `offset` (a multiple of 64) of the stream `seed`. Same words as philox(), sixteen at once.
inline void philox_fill(std::uint64_t seed, std::uint64_t offset, std::uint32_t (&out)[philox_group]) {
  // Words sit in 64-bit lanes, so that one multiplication gives both halves of a product and nothing is shuffled.
  using V = VectorOf<std::uint64_t, 64>::type;
  const V low = V{} + 0xFFFFFFFFu;
  const std::uint64_t first = offset / 4;
  V c0[2], c1[2], c2[2], c3[2];
  for (std::uint64_t h = 0; h < 2; ++h) {
    c0[h] = ((first & 0xFFFFFFFFu) + 8 * h) + V{0, 1, 2, 3, 4, 5, 6, 7};  // first is a multiple of 16: no carry
    c1[h] = V{} + (first >> 32);
    c2[h] = c3[h] = V{};
  }
  std::uint32_t key0 = static_cast<std::uint32_t>(seed), key1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int h = 0; h < 2; ++h) {
      const V p0 = c0[h] * philox_m0, p1 = c2[h] * philox_m1;
      c0[h] = (p1 >> 32) ^ c1[h] ^ key0;
      c2[h] = (p0 >> 32) ^ c3[h] ^ key1;
      c1[h] = p1 & low;
      c3[h] = p0 & low;
    }
    key0 += philox_w0;
    key1 += philox_w1;
  }
  const auto put = [&out](int word, const V(&c)[2]) {
    using Narrow = VectorOf<std::uint32_t, 32>::type;
    for (int h = 0; h < 2; ++h) {
      const Narrow n = __builtin_convertvector(c[h], Narrow);
      __builtin_memcpy(out + 16 * word + 8 * h, &n, sizeof n);
    }
  };
  put(0, c0);
  put(1, c1);
  put(2, c2);
  put(3, c3);
}

/// A word to a float in [0, 1), 24 bits.
constexpr float philox_float(std::uint32_t w) { return static_cast<float>(w >> 8) * 0x1p-24f; }
/// Two words to a double in [0, 1), 53 bits.
constexpr double philox_double(std::uint32_t high, std::uint32_t low) {
  return static_cast<double>(((std::uint64_t{high} << 32) | low) >> 11) * 0x1p-53;
}

}  // namespace rewind_lib::kernels
