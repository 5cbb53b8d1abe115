#pragma once
// The activations that kernels can apply while a result is still in registers or cache.

#include <cstdint>

namespace rewind_lib::kernels {

enum class Activation : std::uint8_t { none, relu, relu6 };

/// max(v, 0), clipped at 6 for relu6; NaN stays NaN.
template <class T>
inline T activate(Activation activation, T v) {
  if (activation == Activation::none) return v;
  v = v < T(0) ? T(0) : v;
  if (activation == Activation::relu6) v = v > T(6) ? T(6) : v;
  return v;
}

}  // namespace rewind_lib::kernels
