#pragma once
// Depthwise convolutions, channels last: x [N, H, W, C], weight [KH, KW, C], y [N, OH, OW, C]. Vectors run over
// channels; 3x3 and 5x5 at strides 1 and 2 without dilation have paths of their own. Workspaces as in gemm.h.

#include <rewind/core/kernels/activation.h>
#include <rewind/core/kernels/window.h>

#include <cstdint>

namespace rewind_lib::kernels {

/// y = activation(x * weight + bias[C]); bias may be null. Needs no workspace.
template <class T>
void depthwise_forward(const WindowShape& shape, const T* x, const T* weight, const T* bias, Activation activation, T* y);

/// dx [N, H, W, C] from dy [N, OH, OW, C]. Needs no workspace.
template <class T>
void depthwise_backward_input(const WindowShape& shape, const T* dy, const T* weight, T* dx);

/// dweight [KH, KW, C].
std::int64_t depthwise_backward_weight_workspace(const WindowShape& shape);
template <class T>
void depthwise_backward_weight(const WindowShape& shape, const T* x, const T* dy, T* dweight, T* workspace);

/// Both gradients in one pass, the same bits as the two above; the workspace of depthwise_backward_weight.
template <class T>
void depthwise_backward(const WindowShape& shape, const T* x, const T* dy, const T* weight, T* dx, T* dweight, T* workspace);

}  // namespace rewind_lib::kernels
