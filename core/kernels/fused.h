#pragma once
// Convolutions, channels last, that take their input with its normalisation still to be done and hand on the statistics
// of their output: y = conv(act((x - mean) / sqrt(var + eps) gamma + beta), w) (+ residual), mean(y), var(y). Normalising
// and activating happens while a tile of x is loaded, the statistics are summed while the tile of y is in cache.
//
// The statistics are outputs with gradients of their own, so the gradient that reaches y is
// G = g + g_mean / M + 2 g_var (y - mean) / M, M being the values a channel; it is assembled while it is loaded.
//
// Covered: depthwise 3x3 and 5x5 at strides 1 and 2, and any dense convolution without groups and dilation. T: float,
// double. Same bits for any number of threads. Workspaces are in bytes and may hold anything on entry.

#include <rewind/core/kernels/activation.h>
#include <rewind/core/kernels/conv.h>

#include <cstddef>
#include <cstdint>

namespace rewind_lib::kernels {

struct FusedShape {
  ConvShape conv;          ///< depthwise: o = groups = c
  bool depthwise = false;  ///< w is [KH, KW, C], else [O, KH, KW, C]
  bool pending = false;    ///< x is still to be normalised
  bool statistics = true;  ///< mean and var of y are wanted (backward: have gradients)
  bool dx = true;          ///< backward: the gradient of x is wanted
  bool dw = true;          ///< backward: the gradient of w is wanted
  bool residual = false;   ///< backward: that of a residual is wanted, which is G
  bool add = false;        ///< backward: something is added to the gradient of x; pointwise convolutions only

  std::int64_t rows() const { return conv.n * conv.out_h() * conv.out_w(); }
};

constexpr bool is_pointwise(const FusedShape& s) { return !s.depthwise && is_pointwise(s.conv); }

/// Whether there are kernels for a shape.
constexpr bool fused_covers(const FusedShape& s) {
  const ConvShape& c = s.conv;
  if (c.dh != 1 || c.dw != 1) return false;
  if (!s.depthwise) return c.groups == 1;
  return c.kh == c.kw && (c.kh == 3 || c.kh == 5) && c.sh == c.sw && (c.sh == 1 || c.sh == 2);
}

/// An input that is still to be normalised; as it is when mean is null. gamma and beta may be null (1 and 0).
template <class T>
struct FusedInput {
  const T* x = nullptr;                                                        ///< [N, H, W, C]
  const T *mean = nullptr, *var = nullptr, *gamma = nullptr, *beta = nullptr;  ///< [C]
  double eps = 0;
  Activation activation = Activation::none;
};

/// What reaches y: g [N, OH, OW, O], and, with statistics, what reaches mean and var [O].
template <class T>
struct FusedGradient {
  const T* g = nullptr;
  const T *y = nullptr, *mean = nullptr;  ///< as the forward made them
  const T *g_mean = nullptr, *g_var = nullptr;
};

/// The gradients of a normalisation, [C] each; each may be null.
template <class T>
struct NormGradient {
  T *gamma = nullptr, *beta = nullptr, *mean = nullptr, *var = nullptr;
  bool any() const { return gamma != nullptr || beta != nullptr || mean != nullptr || var != nullptr; }
};

/// What is wanted: each may be null, but the normalisation's need x.
template <class T>
struct FusedResult {
  T* x = nullptr;  ///< [N, H, W, C]
  T* w = nullptr;  ///< as w
  NormGradient<T> norm{};
  T* residual = nullptr;   ///< G itself, as y; may be the buffer of g
  const T* add = nullptr;  ///< as x: added to the gradient of x, whose buffer it may be
};

template <class T>
std::size_t fused_forward_workspace(const FusedShape& shape);
/// residual [N, OH, OW, O] may be null; mean and var [O] are null without statistics.
template <class T>
void fused_forward(const FusedShape& shape, const FusedInput<T>& in, const T* w, const T* residual, T* y, T* mean, T* var,
                   void* workspace);

template <class T>
std::size_t fused_backward_workspace(const FusedShape& shape);
template <class T>
void fused_backward(const FusedShape& shape, const FusedInput<T>& in, const T* w, const FusedGradient<T>& gradient,
                    const FusedResult<T>& out, void* workspace);

/// G itself [rows, channels], the gradient of a residual. out may be the buffer of g.
template <class T>
std::size_t assemble_gradient_workspace(std::int64_t channels);
template <class T>
void assemble_gradient(std::int64_t rows, std::int64_t channels, const FusedGradient<T>& gradient, T* out, void* workspace);

/// The end of a chain: z = act((x - mean) / sqrt(var + eps) gamma + beta + shortcut), over [rows, channels]; the shortcut may
/// be missing (x null), or itself still to be normalised. z may be the buffer of x or of shortcut.x.
template <class T>
std::size_t settle_forward_workspace(std::int64_t channels);
template <class T>
void settle_forward(std::int64_t rows, std::int64_t channels, const FusedInput<T>& in, const FusedInput<T>& shortcut, T* z,
                    void* workspace);

/// z: what the forward made, where it had a shortcut and an activation; else null. dx may be the buffer of g; dshortcut
/// (the gradient before the activation) may be null.
template <class T>
std::size_t settle_backward_workspace(std::int64_t rows, std::int64_t channels);
template <class T>
void settle_backward(std::int64_t rows, std::int64_t channels, const FusedInput<T>& in, const T* z, const T* g, T* dx, T* dshortcut,
                     const NormGradient<T>& norm, void* workspace);

}  // namespace rewind_lib::kernels
