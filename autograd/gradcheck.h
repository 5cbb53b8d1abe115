#pragma once
// Gradient checks for users' functions and ops: the tape's gradient against central finite differences, in float64.

#include <rewind/autograd/op.h>

namespace rewind_lib {

struct GradcheckOptions {
  double step = 1e-5;         ///< of the central difference
  double tolerance = 1e-6;    ///< |analytic - numeric| <= tolerance * max(1, |analytic|, |numeric|)
  bool second_order = false;  ///< also check the gradient of the gradient
};

struct GradcheckResult {
  bool ok = true;
  double worst = 0;     ///< the largest error found, relative as in `tolerance`
  std::string message;  ///< where it is and both numbers, when !ok
  explicit operator bool() const { return ok; }
};

namespace detail {
/// A reference to something callable with std::vector<Tensor> that returns one.
struct FunctionRef {
  void* object;
  std::vector<Tensor> (*call)(void* object, std::vector<Tensor> inputs);
};
GradcheckResult gradcheck(FunctionRef f, const std::vector<Tensor>& inputs, GradcheckOptions options);
}  // namespace detail

/// Checks f, which takes a std::vector<Tensor> and returns a Tensor or a std::vector<Tensor>, at `inputs`. Outputs are
/// projected on a fixed random direction. Inputs marked requires_grad are checked, all float64 ones when none is marked.
/// Throws Error when a checked input is not float64.
template <class F>
GradcheckResult gradcheck(F&& f, const std::vector<Tensor>& inputs, GradcheckOptions options = {}) {
  const auto call = [](void* object, std::vector<Tensor> in) -> std::vector<Tensor> {
    auto& fn = *static_cast<std::remove_reference_t<F>*>(object);
    if constexpr (std::is_same_v<decltype(fn(in)), Tensor>)
      return {fn(std::move(in))};
    else
      return fn(std::move(in));
  };
  return detail::gradcheck({const_cast<void*>(static_cast<const void*>(&f)), call}, inputs, options);
}

/// Checks an op at one call of it.
GradcheckResult gradcheck(const OpDecl& op, const std::vector<Tensor>& inputs, const void* attr, GradcheckOptions options = {});

/// What check_op() found: empty when the op keeps its contract.
struct OpReport {
  int samples = 0;
  int errors = 0;
  std::vector<std::string> problems;
};
/// Runs everything that the registry test runs on an op's own samples: gradients in float64, the same bits with and
/// without donation, the same bits recomputed, saves declared and used, shapes known in advance, errors thrown with the
/// message that they should have. For ops declared outside the library too: check_op(decl_of<MyOp>).
OpReport check_op(const OpDecl& op);

}  // namespace rewind_lib
