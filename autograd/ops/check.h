#pragma once
// Checks that many ops make of their inputs, with errors that name the op and the shapes.

#include <rewind/autograd/grad_mode.h>
#include <rewind/autograd/op.h>

namespace rewind_lib::ops {

/// All inputs are floating point and of one dtype. Those whose bits are set in `optional` may be undefined.
inline DType check_floats(std::string_view op, Inputs in, std::uint32_t optional = 0) {
  for (std::size_t i = 0; i < in.size(); ++i) {
    if (!in[i].defined()) {
      if ((optional & bit(static_cast<int>(i))) != 0) continue;
      fail(str(op, ": input ", i, " is undefined (default-constructed or moved from)"));
    }
    if (!is_float(in[i].dtype()))
      fail(str(op, ": needs float32 or float64, but input ", i, " is ", in[i].dtype(), " ", in[i].shape()));
    if (in[i].dtype() != in[0].dtype())
      fail(str(op, ": inputs must have one dtype, but input 0 is ", in[0].dtype(), " ", in[0].shape(), " and input ", i, " is ",
               in[i].dtype(), " ", in[i].shape(), "; convert one with to()"));
  }
  return in[0].dtype();
}

/// Rows of a tensor as a matrix whose columns are its last axis.
inline std::int64_t rows_of(const Shape& x) {
  std::int64_t rows = 1;
  for (int i = 0; i < x.rank() - 1; ++i) rows *= x[i];
  return rows;
}

/// x can be normalised by channels, which are its last axis: with statistics of its own, or with others, where it may be empty.
inline void check_matrix(std::string_view op, const Shape& x, bool statistics) {
  if (x.rank() < 2 || (statistics && x.numel() == 0))
    fail(str(op, ": x must be [..., channels] with at least two axes", statistics ? " and one element" : "", ", not ", x));
}
inline void check_eps(std::string_view op, double eps, const Shape& x) {
  if (!(eps >= 0)) fail(str(op, ": eps must not be negative, got ", eps, " (x ", x, ")"));
}

/// An optional input has one element a channel, which is the last axis of x.
inline void check_channels(std::string_view op, const char* what, const Tensor& t, const Shape& x) {
  if (t.defined() && !(t.shape() == Shape{x[-1]}))
    fail(str(op, ": ", what, " must have shape [", x[-1], "], one element a channel of x ", x, ", not ", t.shape()));
}

/// x, of an op that has nothing to do. Under NoGrad it comes without its history, as any other result.
inline Tensor as_it_is(Tensor x) { return grad_mode() == GradMode::off && x.requires_grad() ? x.detach() : x; }

/// What a product saves of its factors, inputs 0 and 1: for the gradient of each the other.
inline std::uint32_t other_factors(std::uint32_t needs) { return ((needs & bit(0)) << 1) | ((needs & bit(1)) >> 1); }

/// FLOPs of `per_element` operations on every element of output 0.
inline Cost pointwise_cost(const Specs& out, std::int64_t per_element) { return {.flops = per_element * out[0].shape.numel()}; }

}  // namespace rewind_lib::ops
