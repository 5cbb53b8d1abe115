#pragma once
// A convolution, an activation and a maximum pool, y = pool(act(x * w + bias)), without the convolution's result in between.
// Channels last: x [N, H, W, C], w [O, KH, KW, C / groups], bias [O] or null, y [N, PH, PW, O].
//
// Images that fit the cache go through it one by one. Backward, only the maxima have a gradient: each adds its window of x to dw,
// and its filter to its window of dx, which for a small kernel is a few vectors; of 2x2 pixels three cost nothing.

#include <rewind/core/kernels/conv.h>
#include <rewind/core/kernels/window.h>

#include <cstddef>
#include <cstdint>

namespace rewind_lib::kernels {

/// The pool's extents are those of the convolution's result.
struct ConvPoolShape {
  ConvShape conv;
  WindowShape pool;
  Activation activation = Activation::none;
};

/// Bytes. Any shape, but one that does not fit the cache takes its convolution's result as workspace.
template <class T>
std::size_t conv_pool_forward_workspace(const ConvPoolShape& shape);
/// argmax: as max_pool2d_forward makes it, of the convolution's result.
template <class T>
void conv_pool_forward(const ConvPoolShape& shape, const T* x, const T* w, const T* bias, T* y, std::int32_t* argmax,
                       void* workspace);

/// Whether there is a backward of its own: kernels of 3 or 5 rows at stride 1 over few channels.
template <class T>
bool conv_pool_backward_covers(const ConvPoolShape& shape);
template <class T>
std::size_t conv_pool_backward_workspace(const ConvPoolShape& shape, bool dx);
/// dw and dbias from the gradient g of y, and dx unless that is null; else w may be null, too.
template <class T>
void conv_pool_backward(const ConvPoolShape& shape, const T* g, const std::int32_t* argmax, const T* x, const T* w, T* dx, T* dw,
                        T* dbias, void* workspace);

}  // namespace rewind_lib::kernels
