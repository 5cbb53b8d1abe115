#pragma once
// Adam, and AdamW.

#include <rewind/optim/optimizer.h>

namespace rewind_lib::optim {

struct AdamOptions {
  double lr = 1e-3;
  double beta1 = 0.9, beta2 = 0.999;  ///< in [0, 1)
  double eps = 1e-8;
  double weight_decay = 0;  ///< times the parameter, added to the gradient (L2)
  /// The order of computation at the end of the paper's section 2, which corrects the learning rate instead of the moments:
  /// equal but for rounding.
  bool efficient_order = false;

  void check() const;
};

/// Kingma and Ba 2015, "Adam: A Method for Stochastic Optimization", Algorithm 1:
///
///     m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2
///     w -= lr m_hat / (sqrt(v_hat) + eps),   m_hat = m / (1 - beta1^t),   v_hat = v / (1 - beta2^t)
///
/// t counts the updates of each parameter from 1. State: slots "m" and "v", one value an element each.
class Adam final : public OptimizerOf<AdamOptions> {
 public:
  explicit Adam(std::vector<Parameter> parameters, const AdamOptions& options = {});
  explicit Adam(std::vector<Tensor> tensors, const AdamOptions& options = {});

 private:
  std::span<const char* const> slots(int group) const override;
  void update(const Update& u) override;
};

struct AdamWOptions {
  double lr = 1e-3;
  double beta1 = 0.9, beta2 = 0.999;  ///< in [0, 1)
  double eps = 1e-8;
  double weight_decay = 1e-2;  ///< times the learning rate, off the parameter itself

  void check() const;
};

/// Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", as PyTorch has it: w -= lr weight_decay w, then Adam's
/// step on g alone. State as Adam's.
class AdamW final : public OptimizerOf<AdamWOptions> {
 public:
  explicit AdamW(std::vector<Parameter> parameters, const AdamWOptions& options = {});
  explicit AdamW(std::vector<Tensor> tensors, const AdamWOptions& options = {});

 private:
  std::span<const char* const> slots(int group) const override;
  void update(const Update& u) override;
};

}  // namespace rewind_lib::optim
