#pragma once
// Random numbers, counter-based: what a call produces depends on (seed, offset) alone, never on threads or on history.
// A replay restores the offset and gets the same numbers.

#include <cstdint>

namespace rewind_lib::random {

/// A position in the stream of one seed.
class Generator {
 public:
  explicit Generator(std::uint64_t seed = 0) : seed_(seed) {}

  std::uint64_t seed() const { return seed_; }
  /// Numbers (32-bit words) taken so far, rounded up to groups of 64 a call.
  std::uint64_t offset() const { return offset_; }
  void set_offset(std::uint64_t offset) { offset_ = offset; }
  /// Starts over at offset 0 of another stream.
  void reseed(std::uint64_t seed) { *this = Generator(seed); }
  /// Reserves n words: returns where they start and moves on.
  std::uint64_t take(std::uint64_t n) {
    const std::uint64_t at = offset_;
    offset_ += (n + 63) / 64 * 64;
    return at;
  }

 private:
  std::uint64_t seed_;
  std::uint64_t offset_ = 0;
};

/// The generator that tensors and dropout draw from: one for the process, seed 0 until seed() is called. It is not
/// locked; a thread of its own (a loader, say) owns its own Generator.
Generator& default_generator();
/// Reseeds the default generator.
void seed(std::uint64_t value);
/// Puts the default generator back, at its end, to where it was.
class GeneratorScope {
 public:
  GeneratorScope() : saved_(default_generator()) {}
  /// Meanwhile it goes on from `at`.
  explicit GeneratorScope(const Generator& at) : GeneratorScope() { default_generator() = at; }
  ~GeneratorScope() { default_generator() = saved_; }
  GeneratorScope(const GeneratorScope&) = delete;
  GeneratorScope& operator=(const GeneratorScope&) = delete;

 private:
  Generator saved_;
};

/// Words that n elements of T take: one for a float, two for a double. Bernoulli masks take one an element.
template <class T>
constexpr std::uint64_t words(std::int64_t n) {
  return static_cast<std::uint64_t>(n) * (sizeof(T) / 4);
}
/// Words that a permutation of n takes.
constexpr std::uint64_t permutation_words(std::int64_t n) { return 2 * static_cast<std::uint64_t>(n); }

// Each fills y[0, n) from `offset` (as take returned it) of the stream `seed`. T: float, double.

/// Uniform in [low, high).
template <class T>
void fill_uniform(T* y, std::int64_t n, T low, T high, std::uint64_t seed, std::uint64_t offset);
/// Normal (Box-Muller).
template <class T>
void fill_normal(T* y, std::int64_t n, T mean, T stddev, std::uint64_t seed, std::uint64_t offset);
/// A permutation of 0 .. n-1 (Fisher-Yates, one thread). T: int32, int64.
template <class T>
void fill_permutation(T* y, std::int64_t n, std::uint64_t seed, std::uint64_t offset);

}  // namespace rewind_lib::random
