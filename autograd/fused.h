#pragma once
// Convolutions that pass normalisations on as statistics (docs/decisions/0009-fusion-by-statistics.md): what nn uses where
// a convolution meets a batch norm.
//
// A chain hands a Pending from layer to layer. A convolution turns it into the raw y and y's statistics; the batch norm
// that follows only writes its parameters down beside them, an activation only its name; the next convolution does the
// work while it loads. Where a chain ends, settle() does it.

#include <rewind/autograd/functional.h>

namespace rewind_lib {

/// The value epilogue((x - mean) / sqrt(var + eps) gamma + beta), still to be computed; x itself when mean is undefined.
/// mean, var, gamma, beta [C]; gamma and beta may be undefined for 1 and 0. Batch statistics carry gradients, running ones
/// (evaluation) are constants.
struct Pending {
  Tensor x;
  Tensor mean = {}, var = {}, gamma = {}, beta = {};
  double eps = 1e-5;
  Epilogue epilogue = Epilogue::none;

  /// Whether anything is still to be done.
  bool any() const { return mean.defined(); }
};

struct FusedConvOptions {
  Pair stride = 1, padding = 0;
  bool statistics = true;  ///< mean and biased variance of y are wanted: a batch norm follows, in training
};
struct FusedConvResult {
  Tensor y, mean, var;  ///< y [N, OH, OW, O]; mean and var [O], undefined without statistics
};

/// y = conv(value of x, w) (+ residual, in the shape of y). w [O, KH, KW, C], or [KH, KW, C] for a depthwise convolution.
/// First derivatives only.
FusedConvResult fused_conv2d(Pending x, Tensor w, FusedConvOptions options = {}, Tensor residual = {});
/// Whether fused_conv2d has kernels for weights of this shape: any [O, KH, KW, C]; [3, 3, C] and [5, 5, C] at strides 1
/// and 2. No groups, no dilation.
bool fused_conv2d_covers(const Shape& w, const FusedConvOptions& options);

/// The value of p: the end of a chain.
Tensor settle(Pending p);
/// epilogue(normalised + value of the shortcut), in one pass; the shortcut, of p's shape, may be pending or not. p's own epilogue
/// must be none, relu or relu6.
Tensor settle(Pending p, Pending shortcut);

/// Moves running statistics in place as batch_norm() does, from the statistics of a batch of `rows` values a channel; not
/// in a replay.
void move_running_statistics(Tensor mean, Tensor var, Tensor running_mean, Tensor running_var, std::int64_t rows,
                             double momentum = 0.1);

}  // namespace rewind_lib
