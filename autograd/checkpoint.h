#pragma once
// checkpoint(fn, inputs...): keeps the inputs and forgets everything that fn computes; backward runs fn again.

#include <rewind/core/tensor.h>

namespace rewind_lib {

namespace detail {
/// A function of tensors, type-erased.
class Closure {
 public:
  virtual ~Closure() = default;
  virtual std::vector<Tensor> call(std::vector<Tensor> inputs) = 0;
};
/// Takes over the closure.
std::vector<Tensor> run_checkpoint(Closure* closure, std::vector<Tensor> inputs);

template <class F, std::size_t... I>
auto call_with(F& fn, std::vector<Tensor>& inputs, std::index_sequence<I...>) {
  return fn(std::move(inputs[I])...);
}
}  // namespace detail

/// Runs fn(inputs...) without recording and keeps only the inputs; during backward fn runs again, recorded this time, and
/// its piece of tape is swept at once. Gradients are the same to the last bit: random numbers are replayed, and ops that change
/// tensors in place (running statistics that fn captured) are left out of the replay. It is an error when a parameter or buffer
/// that fn has read was changed, replaced or frozen before backward, or a computed tensor that it captured was replaced; when fn
/// reads a tensor with a gradient that it did not read the first time (one that was unfrozen, or that it makes), or not one that it
/// did; when a flag has changed that fn told depends_on() of; when fn changes an input in place, and when its replay changes a
/// tensor that is older (see replaying()).
///
/// fn takes as many Tensors as there are inputs and returns a Tensor or a std::vector<Tensor>. It may be called nested and
/// may use parameters and other tensors that it captured; it must stay callable until backward: it is copied, or moved, and a
/// variable that cannot be copied, such as a module, is referred to and has to live that long. It must compute the same again
/// when called with the same inputs. Its result cannot be differentiated twice (create_graph throws Error). At most 32 inputs, and
/// gradients for the first 32 results (Error).
template <class F, class... T>
  requires(std::is_same_v<std::decay_t<T>, Tensor>&&...)
auto checkpoint(F&& fn, T&&... inputs) {
  using Function = std::decay_t<F>;
  using Held = std::conditional_t<std::is_lvalue_reference_v<F> && !std::is_copy_constructible_v<Function>, Function&, Function>;
  using Result = std::invoke_result_t<Function&, std::decay_t<T>...>;
  static_assert(std::is_same_v<Result, Tensor> || std::is_same_v<Result, std::vector<Tensor>>,
                "checkpoint: the function must return a Tensor or a std::vector<Tensor>");
  class Call final : public detail::Closure {
   public:
    explicit Call(F&& f) : fn_(std::forward<F>(f)) {}
    std::vector<Tensor> call(std::vector<Tensor> in) override {
      if constexpr (std::is_same_v<Result, Tensor>) {
        std::vector<Tensor> out;
        out.push_back(detail::call_with(fn_, in, std::index_sequence_for<T...>{}));
        return out;
      } else {
        return detail::call_with(fn_, in, std::index_sequence_for<T...>{});
      }
    }

   private:
    Held fn_;
  };
  std::vector<Tensor> in;
  in.reserve(sizeof...(T));
  (in.push_back(std::forward<T>(inputs)), ...);
  std::vector<Tensor> out = detail::run_checkpoint(new Call(std::forward<F>(fn)), std::move(in));
  if constexpr (std::is_same_v<Result, Tensor>)
    return std::move(out[0]);
  else
    return out;
}

/// While alive, every value that is computed again during backward on this thread is compared with what the first run made
/// of it, by a hash of all its bits; the first op that differs throws Error with its module path. For functions first run
/// under the guard. Costs a pass over every such value, and eight bytes each.
class ReplayGuard {
 public:
  ReplayGuard();
  ~ReplayGuard();
  ReplayGuard(const ReplayGuard&) = delete;
  ReplayGuard& operator=(const ReplayGuard&) = delete;

 private:
  bool saved_;
};

}  // namespace rewind_lib
