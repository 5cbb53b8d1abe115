#pragma once
// Sequential: modules one after the other; a chain that can be recomputed instead of remembered.

#include <rewind/autograd/schedule/recompute.h>
#include <rewind/nn/stage.h>

#include <concepts>
#include <type_traits>

namespace rewind_lib::nn {

class Sequential : public Module {
 public:
  Sequential() = default;
  /// Takes over the modules; they are named 0, 1, 2, ... (A Sequential made of nothing but another one is that one, moved. To nest
  /// a single one, add() it.)
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

  /// Appends the children of another chain, under the next numbers; what that chain was told to recompute is not taken along. Not
  /// between a forward of it and a recomputing backward (Error).
  void extend(Sequential other);

  int size() const { return static_cast<int>(children_.size()); }
  /// Throws Error when out of range.
  Module& operator[](int i) const;

  /// The stages of the chain: children, with nested Sequentials and blocks that are nothing but chains taken apart (unless they
  /// were told themselves what to recompute) and activations joined to what they follow.
  const std::vector<Stage>& stages() const { return stages(false).all; }
  /// What the last recorded forward followed; empty without a strategy. (Under a budget, keeping everything is a list of Fall and
  /// B.)
  const std::vector<schedule::Action>& actions() const { return actions_; }

  Tensor forward(Tensor x) override;
  /// forward(), but with a normalisation at the very beginning, if p has one, done on load, and one at the very end left for
  /// the caller to settle(), together with what the caller adds. For blocks with a shortcut.
  Pending forward_pending(Pending p);
  /// Whether it takes a p with a normalisation.
  bool takes_pending() const;
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
  friend class Stage;
  friend class BudgetPlanner;
  void adopt(std::string name, Module* owned);
  void clear();
  void choose(Recompute how);
  void append_parts(std::vector<Part>& all, std::vector<Sequential*>& told) const;
  /// open: a last normalisation is left to the caller. Kept until a net changes.
  const ChainStages& stages(bool open) const;
  /// This chain and those whose children are stages of it. Kept until a net changes.
  const std::vector<Sequential*>& taken_apart();
  schedule::Value run(std::span<const Stage> chain, schedule::Value x, const Pending& given = {});

  std::vector<Child> children_;
  Recompute recompute_ = Recompute::vanilla();
  std::vector<schedule::Action> actions_;  // recompute_ for the number of stages that the chain had last
  int planned_for_ = -1;
  struct Grouped {
    Derived derived;
    ChainStages stages;
  };
  mutable Grouped grouped_[2];  // closed, open
  std::vector<Sequential*> taken_apart_;
  Derived taken_apart_again_;
  Life* life_ = nullptr;     // of the children, for backwards that will need them
  Tensor* probe_ = nullptr;  // where a planner wants to see the chain's input
};

}  // namespace rewind_lib::nn
