#pragma once
// The activations that kernels can apply while a value is still in registers or cache.

#include <cstdint>

namespace rewind_lib::kernels {

/// Up to relu6, the result is enough for the gradient, and products, norms and pools can apply them to theirs. The others need what
/// they are applied to: where a normalisation is done on load (fused.h).
enum class Activation : std::uint8_t { none, relu, relu6, hardswish, silu };
constexpr bool goes_by_result(Activation a) { return a <= Activation::relu6; }

/// Of those that go by the result: max(v, 0), clipped at 6 for relu6; NaN stays NaN.
template <class T>
inline T activate(Activation activation, T v) {
  if (activation == Activation::none) return v;
  v = v < T(0) ? T(0) : v;
  if (activation == Activation::relu6) v = v > T(6) ? T(6) : v;
  return v;
}

}  // namespace rewind_lib::kernels
