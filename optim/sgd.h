#pragma once
// Stochastic gradient descent, plain and with momentum.

#include <rewind/optim/optimizer.h>

namespace rewind_lib::optim {

struct SGDOptions {
  double lr = 1e-3;
  double momentum = 0;  ///< 0: plain descent, without state
  double dampening = 0;
  double weight_decay = 0;  ///< times the parameter, added to the gradient (L2)
  bool nesterov = false;    ///< needs momentum and no dampening

  void check() const;
};

/// PyTorch's semantics, in which the learning rate multiplies the whole buffer (Sutskever et al. 2013 multiply the gradient
/// on its way in, so there a change of rate acts later):
///
///     d = g + weight_decay w
///     buffer = d in a parameter's first step, else momentum buffer + (1 - dampening) d
///     w -= lr buffer                 or, Nesterov: w -= lr (d + momentum buffer)
///
/// and w -= lr d without momentum. State: slot "momentum", one value an element, in groups with momentum > 0.
class SGD final : public OptimizerOf<SGDOptions> {
 public:
  explicit SGD(std::vector<Parameter> parameters, const SGDOptions& options = {});
  explicit SGD(std::vector<Tensor> tensors, const SGDOptions& options = {});

 private:
  std::span<const char* const> slots(int group) const override;
  void update(const Update& u) override;
};

}  // namespace rewind_lib::optim
