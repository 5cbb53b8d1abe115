#pragma once
// What op files share with each other and with nobody else: epilogues, and ops that exist only as gradients of others.

#include <rewind/autograd/functional.h>
#include <rewind/autograd/op.h>
#include <rewind/core/kernels/activation.h>
#include <rewind/core/kernels/conv.h>
#include <rewind/core/kernels/window.h>

#include <bit>
#include <cmath>

namespace rewind_lib::ops {

constexpr kernels::Activation activation_of(Epilogue epilogue) {
  switch (epilogue) {
    case Epilogue::relu: return kernels::Activation::relu;
    case Epilogue::relu6: return kernels::Activation::relu6;
    case Epilogue::hardswish: return kernels::Activation::hardswish;
    case Epilogue::silu: return kernels::Activation::silu;
    case Epilogue::none: break;
  }
  return kernels::Activation::none;
}

/// The gradients that an op makes, as its outputs, in the order of the numbers that the op gives them: a bit for each.
struct WantedGradients {
  std::uint32_t bits;
  bool has(int which) const { return (bits & bit(which)) != 0; }
  int count() const { return std::popcount(bits); }
  int slot(int which) const { return std::popcount(bits & (bit(which) - 1)); }
  template <class T>
  T* out(const Forward& f, int which) const {
    return has(which) ? f.out<T>(slot(which)) : nullptr;
  }
};

/// Refuses what an op (`where`: " with a shortcut") cannot apply to its result, x being its input.
inline void check_epilogue(std::string_view op, Epilogue epilogue, const Shape& x, std::string_view where = {}) {
  if (kernels::goes_by_result(activation_of(epilogue))) return;
  const char* name = epilogue == Epilogue::hardswish ? "hardswish" : "silu";
  fail(str(op, where, ": ", name, " cannot be its epilogue, since the gradient needs what came before; call ", name,
           "() on the result (x is ", x, ")"));
}

/// The gradient before an epilogue from the gradient g after it, y being what the epilogue made. Takes over a buffer of
/// its arguments when they are moved in. (In unary.cpp.)
Tensor epilogue_gradient(Epilogue epilogue, Tensor y, Tensor g);

/// Sum over all leading axes of g^T x: g [..., O], x [..., I] -> [O, I]. (In linear.cpp.)
Tensor linear_backward_weight(Tensor g, Tensor x);

/// The shape of a convolution's result; throws where x, w and the options do not fit, and so does the next where a bias does not.
/// The gradients of x [N, H, W, C] and of w, from g, that of the result before its epilogue. (In conv2d.cpp.)
Shape check_convolution(const char* op, const Shape& x, const Shape& w, const ConvOptions& options);
kernels::ConvShape conv_geometry(const Shape& x, const Shape& w, const ConvOptions& options);
inline std::int64_t macs_of(const kernels::ConvShape& s) {
  return s.n * s.out_h() * s.out_w() * s.o * s.kh * s.kw * (s.c / s.groups);
}
void check_bias(const char* op, const Tensor& bias, const Shape& x, const Shape& w);
Tensor conv2d_backward_input(Tensor g, Tensor w, const ConvOptions& options, const Shape& x);
Tensor conv2d_backward_weight(Tensor g, Tensor x, const ConvOptions& options, const Shape& w);

/// The same of a pool, whose options are resolved: a stride of 0 stands for the kernel. (In pool.cpp.)
PoolOptions resolve(PoolOptions options);
Shape check_pool(const char* op, const Shape& x, const PoolOptions& options);
void check_positions(const char* op, const Tensor& positions, const Shape& y);
kernels::WindowShape pool_geometry(const Shape& x, const PoolOptions& options);
Tensor max_pool2d_backward(Tensor g, Tensor positions, const PoolOptions& options, const Shape& x);

/// For samples of ops with an epilogue: the first salt for which the values of make(salt), the epilogue's input, stay
/// away from its kinks.
template <class Make>
int salt_avoiding_kinks(Epilogue epilogue, Make make) {
  if (epilogue == Epilogue::none || epilogue == Epilogue::silu || DryLedger::active()) return 0;
  constexpr double margin = 1e-3;
  const double first = epilogue == Epilogue::hardswish ? -3 : 0;
  const double second = epilogue == Epilogue::relu ? first : first + 6;
  for (int salt = 0; salt < 1000; salt += 10) {
    const Tensor before = make(salt);
    bool clear = true;
    for (const double v : before.template values<double>()) clear &= std::abs(v - first) > margin && std::abs(v - second) > margin;
    if (clear) return salt;
  }
  REWIND_CHECK(!"a sample that stays away from kinks");
  return 0;
}

}  // namespace rewind_lib::ops
