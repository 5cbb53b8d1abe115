#pragma once
// Element-wise kernels. T: float, double. An output may be the same buffer as an input of the same extents (not partly
// overlapping); the result has the same bits as with separate buffers, and for any number of threads.

#include <cstdint>

namespace rewind_lib::kernels {

enum class Binary : std::uint8_t { add, sub, mul, div };

/// y[i] = a[i] op b[i].
template <class T>
void binary(Binary op, const T* a, const T* b, T* y, std::int64_t n);
/// y = a op b with NumPy's broadcasting: extents align at the right and are equal or 1 (the caller has checked). Ranks
/// up to 8. y has the broadcast extents, row-major.
template <class T>
void binary(Binary op, const T* a, const std::int64_t* a_extent, int a_rank, const T* b, const std::int64_t* b_extent, int b_rank,
            T* y);

enum class Unary : std::uint8_t {
  neg,
  exp,
  log,
  sqrt,
  tanh,
  sigmoid,
  relu,
  relu6,
  silu,
  hardswish,
  hardsigmoid,
  gelu,
  square,
  abs
};  // gelu: the exact form, x Phi(x)
inline constexpr int unary_count = 14;

/// Whether the derivative is expressed in the output y = f(x) (s below is y) or in the input (s is x).
constexpr bool saves_output(Unary u) {
  switch (u) {
    case Unary::exp:
    case Unary::sqrt:
    case Unary::tanh:
    case Unary::sigmoid:
    case Unary::relu:
    case Unary::relu6: return true;
    default: return false;
  }
}
/// Whether the derivative depends on s at all: s may be null where it does not.
constexpr bool saves_nothing(Unary u) { return u == Unary::neg; }

/// y = f(x).
template <class T>
void unary(Unary op, const T* x, T* y, std::int64_t n);
/// r = g d(s), where d(s) = f'(x).
template <class T>
void unary_first(Unary op, const T* s, const T* g, T* r, std::int64_t n);
/// r = g d'(s), the derivative of d by s.
template <class T>
void unary_second(Unary op, const T* s, const T* g, T* r, std::int64_t n);

/// y = a x + b.
template <class T>
void affine(T a, const T* x, T b, T* y, std::int64_t n);
/// y = v. T: also int32, int64.
template <class T>
void fill(T* y, T v, std::int64_t n);

/// y = x mask / (1 - p), mask = 0 with probability p: made from (seed, offset) for each element, so that the same call
/// on the gradient is the backward. Takes n words of the stream; `offset` is a multiple of 64 (random::Generator::take).
/// p = 1 gives zeros.
template <class T>
void dropout(const T* x, T* y, std::int64_t n, double p, std::uint64_t seed, std::uint64_t offset);

}  // namespace rewind_lib::kernels
