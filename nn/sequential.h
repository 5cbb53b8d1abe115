#pragma once
// Sequential: modules one after the other; a chain that can be recomputed instead of remembered.

#include <rewind/autograd/schedule/recompute.h>
#include <rewind/nn/module.h>

#include <concepts>
#include <type_traits>

namespace rewind_lib::nn {

/// A link of a chain: a module, and the ReLU or ReLU6 after it where the module applies that itself. One pass over the data
/// instead of two, and the same bits.
struct Stage {
  Module* module;
  Fusible* fused = nullptr;      ///< the module, when it takes the activation over
  Module* activation = nullptr;  ///< the one taken over
  Epilogue then = Epilogue::none;

  Tensor operator()(Tensor x) const;
};

class Sequential : public Module {
 public:
  Sequential() = default;
  /// Takes over the modules; they are named 0, 1, 2, ...
  template <class... M>
    requires(std::derived_from<std::remove_cvref_t<M>, Module>&&...)
  explicit Sequential(M&&... modules) { (add(std::forward<M>(modules)), ...); }
  Sequential(Sequential&& other) noexcept;
  Sequential& operator=(Sequential&& other) noexcept;
  ~Sequential() override;

  /// Appends a module, under the next number or a name. Returns it.
  template <class M>
    requires(std::derived_from<M, Module> && !std::is_lvalue_reference_v<M>)
  M& add(M&& module) { return add(std::to_string(size()), std::move(module)); }
  template <class M>
    requires(std::derived_from<M, Module> && !std::is_lvalue_reference_v<M>)
  M& add(std::string name, M&& module) {
    auto* owned = new M(std::move(module));
    adopt(std::move(name), owned);
    return *owned;
  }

  int size() const { return static_cast<int>(children_.size()); }
  /// Throws Error when out of range.
  Module& operator[](int i) const;

  /// The stages of the chain: children, with nested Sequentials and blocks that are nothing but chains taken apart (unless they
  /// were told themselves what to recompute) and activations joined to what they follow.
  std::vector<Stage> stages() const;
  /// What the last recorded forward followed; empty when that kept everything.
  const std::vector<schedule::Action>& actions() const { return actions_; }

  Tensor forward(Tensor x) override;
  void describe(Fields& f) override;
  std::vector<Sequential*> chains() override;

 private:
  struct Child {
    std::string name;
    Module* module;  // owned
  };
  struct Life;
  class Run;
  friend class Module;
  friend class BudgetPlanner;
  void adopt(std::string name, Module* owned);
  void clear();
  void choose(Recompute how);
  void append_modules(std::vector<Module*>& all) const;

  std::vector<Child> children_;
  Recompute recompute_ = Recompute::vanilla();
  std::vector<schedule::Action> actions_;  // recompute_ for the number of stages that the chain had last
  int planned_for_ = -1;
  Life* life_ = nullptr;     // of the children, for backwards that will need them
  Tensor* probe_ = nullptr;  // where a planner wants to see the chain's input
};

}  // namespace rewind_lib::nn
