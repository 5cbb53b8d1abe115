#pragma once
// How kernels walk over memory: the loop pragma, fixed pieces, sums and maxima in lanes.

#include <rewind/core/kernels/vector.h>
#include <rewind/core/parallel.h>

#include <cstdint>
#include <cstring>
#include <utility>

// Says that iterations are independent, as they are in element-wise loops, in place or not: vectorise without a check.
#if defined(__clang__)
#define REWIND_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define REWIND_INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace rewind_lib::kernels {

/// Elements of work with an exponential or the like in it that a piece should hold.
inline constexpr std::int64_t heavy_grain = 8192;

/// Pieces of a reduction, at most: one partial result each fits on the stack.
inline constexpr std::int64_t max_pieces = 64;

/// For n >= 0.
constexpr std::int64_t ceil_div(std::int64_t n, std::int64_t by) { return (n + by - 1) / by; }
constexpr std::int64_t round_up(std::int64_t n, std::int64_t to) { return ceil_div(n, to) * to; }
constexpr std::int64_t min_of(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
constexpr std::int64_t max_of(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

/// The grain that cuts n into at most max_pieces pieces of at least `least`.
constexpr std::int64_t reduction_grain(std::int64_t n, std::int64_t least) { return max_of(ceil_div(n, max_pieces), least); }

/// The grain, a multiple of `unit`, that cuts n into an even number of nearly equal pieces of about `least`: a short last piece, or
/// an odd one, would leave threads waiting.
constexpr std::int64_t even_grain(std::int64_t n, std::int64_t least, std::int64_t unit) {
  std::int64_t pieces = parallel::pieces(n, least);
  if (pieces < 2) return max_of(1, n);
  pieces += pieces % 2;
  return round_up(ceil_div(n, pieces), unit);
}

/// f(i) for every i in [0, n), vectorised, in parallel pieces of about `grain`.
template <class F>
void for_each(std::int64_t n, std::int64_t grain, F f) {
  parallel::for_range(n, even_grain(n, grain, 64), [f](std::int64_t begin, std::int64_t end) {
    const F g = f;
    REWIND_INDEPENDENT
    for (std::int64_t i = begin; i < end; ++i) g(i);
  });
}

/// Half of a vector, from lane `from` on.
template <class T, int from, class V, int... lane>
auto half_of(V v, std::integer_sequence<int, lane...>) {
  return __builtin_shufflevector(v, v, (from + lane)...);
}

/// The lanes of a vector brought together by op, in halves.
template <class T, class V, class Op>
T fold_lanes(V v, Op op) {
  constexpr int half = static_cast<int>(sizeof(V) / sizeof(T)) / 2;
  if constexpr (half == 1) {
    return op(v[0], v[1]);
  } else {
    using Lanes = std::make_integer_sequence<int, half>;
    return fold_lanes<T>(op(half_of<T, 0>(v, Lanes{}), half_of<T, half>(v, Lanes{})), op);
  }
}

/// Of each part of `part` lanes: every other run of `run` lanes of a, then of b, beginning with run `from`.
template <int run, int part, int from, class V, int... lane>
V alternate_runs(V a, V b, std::integer_sequence<int, lane...>) {
  constexpr auto source = [](int to) {
    const int place = to % part, half = part / 2, of_b = place >= half ? sizeof...(lane) : 0;
    return of_b + to - place + (place % half / run * 2 + from) * run + place % run;
  };
  return __builtin_shufflevector(a, b, source(lane)...);
}

/// Lane i of the result is v[i]'s lanes brought together by op: pairs of neighbours in all of them at once, which takes a fraction
/// of what one after the other does. Leaves v in disorder.
template <class T, int left = lanes<T>, class Op>
[[gnu::always_inline]] inline Vector<T> fold_all(Vector<T> (&v)[lanes<T>], Op op) {
  if constexpr (left == 1) {
    return v[0];
  } else {
    // Within 16 bytes first, then across: shuffles of either kind are cheaper than any that do both.
    constexpr int w = lanes<T>, small = 16 / static_cast<int>(sizeof(T));
    constexpr bool within = left > w / small;
    constexpr int run = within ? 1 : small, part = within ? small : w;
    using Lanes = std::make_integer_sequence<int, w>;
#pragma GCC unroll 8
    for (int i = 0; i < left / 2; ++i)
      v[i] = op(alternate_runs<run, part, 0>(v[2 * i], v[2 * i + 1], Lanes{}),
                alternate_runs<run, part, 1>(v[2 * i], v[2 * i + 1], Lanes{}));
    return fold_all<T, left / 2>(v, op);
  }
}

/// The larger of each lane; a NaN on either side wins.
template <class V>
V larger(V a, V b) {
  return ((b <= a) | (a != a)) ? a : b;
}

/// Sum of the terms at [0, n): in lanes of T within blocks, in doubles across them. vector_term(i) is the vector of terms
/// from i on, term(i) the one at i.
template <class T, class VectorTerm, class Term>
double lane_sum(std::int64_t n, VectorTerm vector_term, Term term) {
  using V = Vector<T>;
  constexpr std::int64_t w = lanes<T>, block = 64 * w;
  double total = 0;
  std::int64_t i = 0;
  while (n - i >= 4 * w) {
    const std::int64_t end = i + min_of(block, (n - i) / (4 * w) * (4 * w));
    V s0 = {}, s1 = {}, s2 = {}, s3 = {};
    for (; i < end; i += 4 * w) {
      s0 += vector_term(i);
      s1 += vector_term(i + w);
      s2 += vector_term(i + 2 * w);
      s3 += vector_term(i + 3 * w);
    }
    total += static_cast<double>(fold_lanes<T>((s0 + s1) + (s2 + s3), [](auto a, auto b) { return a + b; }));
  }
  for (; i < n; ++i) total += static_cast<double>(term(i));
  return total;
}

/// Sum of x[0, n).
template <class T>
double lane_sum(const T* x, std::int64_t n) {
  return lane_sum<T>(
      n, [x](std::int64_t i) { return load<Vector<T>>(x + i); }, [x](std::int64_t i) { return x[i]; });
}

/// Largest of x[0, n), n > 0; NaN if there is one.
template <class T>
T lane_max(const T* x, std::int64_t n) {
  using V = Vector<T>;
  constexpr std::int64_t w = lanes<T>;
  T best = x[0];
  std::int64_t i = 0;
  if (n >= 2 * w) {
    V m0 = load<V>(x), m1 = load<V>(x + w);
    for (i = 2 * w; i + 2 * w <= n; i += 2 * w) {
      m0 = larger(m0, load<V>(x + i));
      m1 = larger(m1, load<V>(x + i + w));
    }
    best = fold_lanes<T>(larger(m0, m1), [](auto a, auto b) { return larger(a, b); });
  }
  for (; i < n; ++i)
    if (!(x[i] <= best) && best == best) best = x[i];
  return best;
}

/// out[n] = sum of the pieces' partial[n], in order.
template <class T>
void add_partials(std::int64_t n, std::int64_t pieces, const T* partials, T* out) {
  parallel::for_range(n, max_of(512, parallel::light_grain / max_of(1, pieces)), [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) out[i] = partials[i];
    for (std::int64_t p = 1; p < pieces; ++p) {
      const T* from = partials + p * n;
      REWIND_INDEPENDENT
      for (std::int64_t i = begin; i < end; ++i) out[i] += from[i];
    }
  });
}

}  // namespace rewind_lib::kernels
