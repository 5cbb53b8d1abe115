#pragma once
// What a module can do for its neighbours in a chain, so that a tensor is passed over once instead of several times. Sequential
// asks for it when it groups its modules into stages (nn/stage.h); a module of your own may offer it, too.

#include <rewind/autograd/fused.h>
#include <rewind/autograd/schedule/execute.h>

namespace rewind_lib::nn {

/// Applies a relu to its result while that is in cache: asked to, where a ReLU or ReLU6 follows. The same bits.
class TakesActivation {
 public:
  virtual Tensor forward(Tensor x, Epilogue then) = 0;

 protected:
  ~TakesActivation() = default;
};

/// Takes over the maximum pool behind its relu, or behind itself, so that its own result, which is larger, need not be: asked
/// to, where a MaxPool2d follows.
class TakesPool {
 public:
  virtual Tensor forward(Tensor x, Epilogue then, const PoolOptions& pool) = 0;
  /// The shape that forward() alone makes of x.
  virtual Shape unpooled(const Shape& x) const = 0;

 protected:
  ~TakesPool() = default;
};

// And where a convolution meets a batch norm (docs/decisions/0009-fusion-by-statistics.md):

/// Takes its input with a normalisation still to be done, which it does on load.
class TakesNormalisation {
 public:
  /// Whether it can, as it is set up.
  virtual bool can_fuse() const = 0;
  /// forward(the value of p).
  virtual Tensor load(Pending p) = 0;

 protected:
  ~TakesNormalisation() = default;
};

/// Does that, and gives its output raw, with the statistics that the next normalisation needs.
class GivesStatistics {
 public:
  virtual bool can_fuse() const = 0;
  /// y = forward(the value of p) (+ residual, in the shape of y), without bias_left(), and y's mean and variance when `statistics`.
  virtual schedule::Value pass(Pending p, bool statistics, Tensor residual) = 0;
  /// The bias [C] that forward() would add; may be undefined. pass() leaves it out, since the normalisation that follows cancels
  /// it.
  virtual const Tensor& bias_left() const = 0;

 protected:
  ~GivesStatistics() = default;
};

/// Begins with a normalisation of its input, whose statistics the module before gives it, where that is GivesStatistics or
/// another of these; and gives those of its own output.
class TakesStatistics {
 public:
  virtual bool can_fuse() const = 0;
  /// Whether it is of use to hand it statistics: in training.
  virtual bool wants_statistics() const = 0;
  /// y = forward(x), with its own mean and variance when `statistics`.
  virtual schedule::Value pass(schedule::Value x, bool statistics) = 0;

 protected:
  ~TakesStatistics() = default;
};

}  // namespace rewind_lib::nn
