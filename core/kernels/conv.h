#pragma once
// Dense and grouped convolutions, channels last: x [N, H, W, C], weight [O, KH, KW, C/groups], y [N, OH, OW, O].
// Workspaces as in gemm.h: bounded by tiles per thread and some partial sums of a
// small weight's gradient, never an im2col of the batch.

#include <rewind/core/kernels/activation.h>
#include <rewind/core/kernels/window.h>

#include <cstdint>

namespace rewind_lib::kernels {

/// groups divides c and o. Strides, dilations and the kernel are at least 1.
struct ConvShape {
  std::int64_t n = 0, h = 0, w = 0, c = 0, o = 0;
  std::int64_t kh = 1, kw = 1;
  std::int64_t sh = 1, sw = 1;
  std::int64_t ph = 0, pw = 0;
  std::int64_t dh = 1, dw = 1;
  std::int64_t groups = 1;

  constexpr std::int64_t out_h() const { return window_positions(h, kh, sh, ph, dh); }
  constexpr std::int64_t out_w() const { return window_positions(w, kw, sw, pw, dw); }
};

/// 1x1 at stride 1: a product of matrices.
constexpr bool is_pointwise(const ConvShape& s) {
  return s.kh == 1 && s.kw == 1 && s.sh == 1 && s.sw == 1 && s.ph == 0 && s.pw == 0 && s.groups == 1;
}

/// y = activation(x * weight + bias[O]); bias may be null.
std::int64_t conv2d_forward_workspace(const ConvShape& shape);
template <class T>
void conv2d_forward(const ConvShape& shape, const T* x, const T* weight, const T* bias, Activation activation, T* y, T* workspace);

/// dx [N, H, W, C] from dy [N, OH, OW, O].
std::int64_t conv2d_backward_input_workspace(const ConvShape& shape);
template <class T>
void conv2d_backward_input(const ConvShape& shape, const T* dy, const T* weight, T* dx, T* workspace);

/// dweight [O, KH, KW, C/groups]. The gradient of the bias is the sum of dy over all but its last axis.
std::int64_t conv2d_backward_weight_workspace(const ConvShape& shape);
template <class T>
void conv2d_backward_weight(const ConvShape& shape, const T* x, const T* dy, T* dweight, T* workspace);

}  // namespace rewind_lib::kernels
