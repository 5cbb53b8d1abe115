#pragma once
// The ops, as functions. Tensors are taken by value: move in what you no longer need (h = relu(std::move(h))).
// Images are [N, H, W, C] (channels last). Every function throws Error naming itself and the shapes when they do not fit.

#include <rewind/core/tensor.h>

namespace rewind_lib {

// --- element-wise; binary ones broadcast as in NumPy --------------------------------------------------------------
Tensor add(Tensor a, Tensor b);
Tensor sub(Tensor a, Tensor b);
Tensor mul(Tensor a, Tensor b);
Tensor div(Tensor a, Tensor b);
inline Tensor operator+(Tensor a, Tensor b) { return add(std::move(a), std::move(b)); }
inline Tensor operator-(Tensor a, Tensor b) { return sub(std::move(a), std::move(b)); }
inline Tensor operator*(Tensor a, Tensor b) { return mul(std::move(a), std::move(b)); }
inline Tensor operator/(Tensor a, Tensor b) { return div(std::move(a), std::move(b)); }
/// scale * x + shift.
Tensor affine(Tensor x, double scale, double shift);
inline Tensor operator*(double a, Tensor x) { return affine(std::move(x), a, 0); }
inline Tensor operator*(Tensor x, double a) { return affine(std::move(x), a, 0); }
inline Tensor operator+(Tensor x, double b) { return affine(std::move(x), 1, b); }
inline Tensor operator+(double a, Tensor x) { return affine(std::move(x), 1, a); }
inline Tensor operator-(Tensor x, double b) { return affine(std::move(x), 1, -b); }
inline Tensor operator-(double a, Tensor x) { return affine(std::move(x), -1, a); }
Tensor operator/(Tensor x, double b);
Tensor operator/(double a, Tensor x);

Tensor neg(Tensor x);
inline Tensor operator-(Tensor x) { return neg(std::move(x)); }
Tensor exp(Tensor x);
Tensor log(Tensor x);
Tensor sqrt(Tensor x);
Tensor square(Tensor x);
Tensor abs(Tensor x);
Tensor tanh(Tensor x);
Tensor sigmoid(Tensor x);
Tensor relu(Tensor x);
/// min(max(x, 0), 6).
Tensor relu6(Tensor x);
/// x sigmoid(x).
Tensor silu(Tensor x);
/// x relu6(x + 3) / 6, and relu6(x + 3) / 6 (Howard et al. 2019).
Tensor hardswish(Tensor x);
Tensor hardsigmoid(Tensor x);
/// x Phi(x), exact.
Tensor gelu(Tensor x);
/// Zeroes each element with probability p, whatever it is, NaN too, and scales the others by 1 / (1 - p). Draws from the default
/// generator; a replay draws the same mask. x itself when p is 0.
Tensor dropout(Tensor x, double p);

// --- contractions ------------------------------------------------------------------------------------------------
/// op(a) op(b), where op transposes the last two axes on request. [M, K] x [K, N], or [..., M, K] x [..., K, N] with the
/// same leading axes, or a batched a with a plain [K, N] b.
Tensor matmul(Tensor a, Tensor b, bool transpose_a = false, bool transpose_b = false);

/// An activation that is done along with something else. Contractions and batch_norm() apply `relu` or `relu6` to their result
/// while it is in cache; the others need more than the result for their gradient, and only what is Pending (autograd/fused.h) has
/// that.
enum class Epilogue : std::uint8_t { none, relu, relu6, hardswish, silu };

/// x w^T + bias. x [..., in], w [out, in], bias [out] or undefined.
Tensor linear(Tensor x, Tensor w, Tensor bias = {}, Epilogue epilogue = Epilogue::none);

/// Height and width.
struct Pair {
  int h, w;
  constexpr Pair(int both) : h(both), w(both) {}
  constexpr Pair(int height, int width) : h(height), w(width) {}
};

struct ConvOptions {
  Pair stride = 1, padding = 0, dilation = 1;
  int groups = 1;
  Epilogue epilogue = Epilogue::none;
};
/// x [N, H, W, C], w [O, KH, KW, C / groups], bias [O] or undefined -> [N, OH, OW, O]. 3x3 windows at stride 1 with an even height
/// and width of the result, between channels in multiples of 16, go by Winograd's transform (docs/decisions/0015): its rounding is
/// about twice that of the direct sum, relative to the largest values in the 4x4 pixels around, and what is not finite makes all of
/// these NaN. In backward, too, a gradient that is not finite may reach neighbours that it does not belong to.
Tensor conv2d(Tensor x, Tensor w, Tensor bias = {}, ConvOptions options = {});
/// The shape of its result.
Shape conv2d_shape(const Shape& x, const Shape& w, const ConvOptions& options);

struct DepthwiseOptions {
  Pair stride = 1, padding = 0, dilation = 1;
};
/// A filter a channel. x [N, H, W, C], w [KH, KW, C], bias [C] or undefined -> [N, OH, OW, C].
Tensor depthwise_conv2d(Tensor x, Tensor w, Tensor bias = {}, DepthwiseOptions options = {});

// --- reductions --------------------------------------------------------------------------------------------------
/// Over the given axes (negative ones count from the end), or over all when none are given.
Tensor sum(Tensor x, std::vector<int> axes = {}, bool keep_axes = false);
Tensor mean(Tensor x, std::vector<int> axes = {}, bool keep_axes = false);
/// The gradient goes to the first of equal elements.
Tensor max(Tensor x, std::vector<int> axes = {}, bool keep_axes = false);
/// Position of the maximum along one axis; int64, no gradient.
Tensor argmax(Tensor x, int axis = -1);
/// Sums x down to a shape that broadcasts to its own; and its transpose, NumPy's broadcast_to. x itself when it has that shape.
Tensor sum_to(Tensor x, Shape shape);
Tensor broadcast_to(Tensor x, Shape shape);

// --- normalisation -----------------------------------------------------------------------------------------------
/// Over all axes but the last: act((x - mean) / sqrt(var + eps) gamma + beta). gamma, beta [C], or undefined for 1 and 0.
struct BatchNormOptions {
  double eps = 1e-5;
  double momentum = 0.1;  ///< running = (1 - momentum) running + momentum batch
  Epilogue epilogue = Epilogue::none;
};
/// With the batch's own statistics (Ioffe and Szegedy 2015). running_mean and running_var, when defined, move in place,
/// the variance with the unbiased estimate as PyTorch does; not in a replay.
Tensor batch_norm(Tensor x, Tensor gamma, Tensor beta, Tensor running_mean, Tensor running_var, BatchNormOptions options = {});
/// With given statistics: the evaluation form.
Tensor batch_norm_inference(Tensor x, Tensor gamma, Tensor beta, Tensor mean, Tensor var, BatchNormOptions options = {});
/// Over the last axis (Ba et al. 2016).
Tensor layer_norm(Tensor x, Tensor gamma, Tensor beta, double eps = 1e-5);

// --- softmax and losses ------------------------------------------------------------------------------------------
Tensor softmax(Tensor x, int axis = -1);
Tensor log_softmax(Tensor x, int axis = -1);
/// Mean over rows of -log softmax(logits)[label]. logits [rows, classes]; labels [rows], int32 or int64. With label
/// smoothing s the target is (1 - s) one-hot + s / classes (Szegedy et al. 2016). A label out of range throws.
Tensor cross_entropy(Tensor logits, Tensor labels, double label_smoothing = 0);
/// Mean of (prediction - target)^2.
Tensor mse(Tensor prediction, Tensor target);

// --- pooling, [N, H, W, C] ---------------------------------------------------------------------------------------
struct PoolOptions {
  Pair kernel = 2;
  Pair stride = 0;  ///< 0: the kernel
  Pair padding = 0;
  /// Also the window that reaches over the bottom or right edge of the padded image, if it starts inside: PyTorch's ceil_mode.
  /// What it sees there is not part of the maximum or the average.
  bool ceil = false;
};
Tensor max_pool2d(Tensor x, PoolOptions options = {});
/// The shape of its result.
Shape max_pool2d_shape(const Shape& x, const PoolOptions& options);
/// max_pool2d(conv2d(x, w, bias, conv), pool) without the convolution's result in between: what nn uses where a MaxPool2d follows
/// a Conv2d, with or without a ReLU. Backward keeps x, w and where the maxima were.
Tensor conv2d_max_pool(Tensor x, Tensor w, Tensor bias, ConvOptions conv, PoolOptions pool);
/// Padding counts as zeros, in the divisor too; what a ceil window sees beyond it does not.
Tensor avg_pool2d(Tensor x, PoolOptions options = {});
/// [N, H, W, C] -> [N, C].
Tensor global_avg_pool(Tensor x);

// --- data movement -----------------------------------------------------------------------------------------------
/// A view, or x itself when it has that shape. One extent may be -1 and is worked out.
Tensor reshape(Tensor x, std::span<const std::int64_t> shape);
inline Tensor reshape(Tensor x, std::initializer_list<std::int64_t> shape) {
  return reshape(std::move(x), std::span(shape.begin(), shape.size()));
}
inline Tensor reshape(Tensor x, const Shape& shape) { return reshape(std::move(x), std::span(shape.begin(), shape.end())); }
/// Axis i of the result is axis axes[i] of x.
Tensor permute(Tensor x, std::span<const int> axes);
inline Tensor permute(Tensor x, std::initializer_list<int> axes) {
  return permute(std::move(x), std::span(axes.begin(), axes.size()));
}
Tensor concat(std::vector<Tensor> xs, int axis);
Tensor concat(Tensor a, Tensor b, int axis);
/// Elements [begin, end) of an axis; negative positions count from the end. A view along the leading axis, else a copy.
Tensor slice(Tensor x, int axis, std::int64_t begin, std::int64_t end);
/// Adds (before, after) elements of `value` on each axis.
Tensor pad(Tensor x, std::vector<std::pair<std::int64_t, std::int64_t>> widths, double value = 0);

}  // namespace rewind_lib
