#pragma once
// What op files share with each other and with nobody else: epilogues, and ops that exist only as gradients of others.

#include <rewind/autograd/functional.h>
#include <rewind/autograd/op.h>
#include <rewind/core/kernels/activation.h>

#include <cmath>

namespace rewind_lib::ops {

constexpr kernels::Activation activation_of(Epilogue epilogue) {
  switch (epilogue) {
    case Epilogue::relu: return kernels::Activation::relu;
    case Epilogue::relu6: return kernels::Activation::relu6;
    case Epilogue::none: break;
  }
  return kernels::Activation::none;
}

/// The gradient before an epilogue from the gradient g after it, y being what the epilogue made. Takes over a buffer of
/// its arguments when they are moved in. (In unary.cpp.)
Tensor epilogue_gradient(Epilogue epilogue, Tensor y, Tensor g);

/// Sum over all leading axes of g^T x: g [..., O], x [..., I] -> [O, I]. (In linear.cpp.)
Tensor linear_backward_weight(Tensor g, Tensor x);

/// For samples of ops with an epilogue: the first salt for which the values of make(salt), the epilogue's input, stay
/// away from its kinks.
template <class Make>
int salt_avoiding_kinks(Epilogue epilogue, Make make) {
  if (epilogue == Epilogue::none || DryLedger::active()) return 0;
  constexpr double margin = 1e-3;
  for (int salt = 0; salt < 1000; salt += 10) {
    const Tensor before = make(salt);
    bool clear = true;
    for (const double v : before.template values<double>())
      clear &= std::abs(v) > margin && (epilogue == Epilogue::relu || std::abs(v - 6) > margin);
    if (clear) return salt;
  }
  REWIND_CHECK(!"a sample that stays away from kinks");
  return 0;
}

}  // namespace rewind_lib::ops
