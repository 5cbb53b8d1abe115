#pragma once
// Pools, channels last: x [N, H, W, C], y [N, OH, OW, C]. None needs a workspace.

#include <rewind/core/kernels/activation.h>
#include <rewind/core/kernels/window.h>

#include <cstdint>

namespace rewind_lib::kernels {

/// y and, for each of its elements, where the maximum is: row * W + column in its image, -1 when the window lies in the
/// padding altogether. The first of equals wins; NaN wins over numbers. argmax may be null (no gradient wanted). With an
/// activation, y is that of the maximum, and argmax -1 where it passes no gradient on.
template <class T>
void max_pool2d_forward(const WindowShape& shape, const T* x, T* y, std::int32_t* argmax, Activation activation = Activation::none);
/// One row of y of one image, whose pixels are `pitch` elements apart.
template <class T>
void max_pool2d_row(const WindowShape& shape, std::int64_t oh, const T* image, std::int64_t pitch, Activation activation, T* y,
                    std::int32_t* argmax);
template <class T>
void max_pool2d_backward(const WindowShape& shape, const T* dy, const std::int32_t* argmax, T* dx);
/// out[n, i, c] = x[n, argmax[n, i, c], c]: what the backward of max_pool2d_backward needs.
template <class T>
void max_pool2d_gather(const WindowShape& shape, const T* x, const std::int32_t* argmax, T* out);

/// Averages of windows; dilation must be 1, and every window must begin in the image or its padding. Divides by the positions in
/// the image and its padding (ph, pw), not by those in the extra rows and columns (eh, ew).
template <class T>
void avg_pool2d_forward(const WindowShape& shape, const T* x, T* y);
template <class T>
void avg_pool2d_backward(const WindowShape& shape, const T* dy, T* dx);

/// y[n, c] = mean over an image of x[n, pixels, c].
template <class T>
void global_avg_pool_forward(std::int64_t n, std::int64_t pixels, std::int64_t c, const T* x, T* y);
template <class T>
void global_avg_pool_backward(std::int64_t n, std::int64_t pixels, std::int64_t c, const T* dy, T* dx);

}  // namespace rewind_lib::kernels
