#pragma once
// Sequential: modules one after the other; a chain that can be recomputed instead of remembered.

#include <rewind/autograd/schedule/recompute.h>
#include <rewind/nn/module.h>

#include <concepts>
#include <type_traits>

namespace rewind_lib::nn {

class BatchNorm2d;
class MaxPool2d;

/// A link of a chain: a module, and what it does for its neighbours. Either the ReLU or ReLU6 after it, where the module
/// applies that itself: one pass over the data instead of two, and the same bits. Or the maximum pool behind that. Or, where a
/// convolution meets a batch norm, normalisations and activations (Hardswish and SiLU, too) on load.
struct Stage {
  Module* module = nullptr;
  Fusible* fused = nullptr;      ///< the module, when it takes the activation over
  Module* activation = nullptr;  ///< the one taken over
  Epilogue then = Epilogue::none;
  Pooling* pooling = nullptr;  ///< the module, when it takes over
  MaxPool2d* pool = nullptr;   ///< this one

  Passing* convolution = nullptr;  ///< the module, when it passes statistics; or
  Normalising* block = nullptr;    ///< the module, when it does that and begins with a normalisation; or
  Loading* loading = nullptr;      ///< the module, when it only takes a normalisation over
  BatchNorm2d* before = nullptr;   ///< what is done on load, with `then_before`,
  Passing* left_by = nullptr;      ///< and with the bias that this one has left
  Module* activation_before = nullptr;
  Epilogue then_before = Epilogue::none;
  BatchNorm2d* after = nullptr;       ///< what is done at the end, with `activation` and `then`, because no convolution follows
  BatchNorm2d* wanted_by = nullptr;   ///< statistics are made when this one trains, or
  Normalising* wanted_too = nullptr;  ///< when this one asks for them

  Sequential* nested = nullptr;  ///< one that was told itself what to recompute, of these stages
  std::vector<Stage> inside = {};

  /// given: a normalisation of the chain's input that the chain's caller left to do; for the first stage only. Its x, mean and var
  /// are those of x.
  schedule::Activation operator()(schedule::Activation x, const Pending& given = {}) const;
  /// The module, with its activation and pool.
  Tensor compute(Tensor x) const;
  /// What the module makes of x before the pool; throws Error where the pool does not fit that, as the pool by itself would.
  Shape unpooled(const Shape& x) const;
  /// What is to be done with `x` on load.
  Pending load(schedule::Activation x, const Pending& given = {}) const;
  const char* path() const;
};

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

  /// Appends the children of another chain, under the next numbers.
  void extend(Sequential other);

  int size() const { return static_cast<int>(children_.size()); }
  /// Throws Error when out of range.
  Module& operator[](int i) const;

  /// The stages of the chain: children, with nested Sequentials and blocks that are nothing but chains taken apart (unless they
  /// were told themselves what to recompute) and activations joined to what they follow.
  const std::vector<Stage>& stages() const { return stages(false); }
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
  friend struct Stage;
  friend class BudgetPlanner;
  void adopt(std::string name, Module* owned);
  void clear();
  void choose(Recompute how);
  struct Part;
  void append_parts(std::vector<Part>& all, std::vector<Sequential*>& told) const;
  /// open: a last normalisation is a stage without a module, left to the caller. Kept until a net changes.
  const std::vector<Stage>& stages(bool open) const;
  std::vector<Stage> group(bool open) const;
  /// This chain and those whose children are stages of it. Kept until a net changes.
  const std::vector<Sequential*>& taken_apart();
  schedule::Activation run(std::span<const Stage> chain, schedule::Activation x, const Pending& given = {});

  std::vector<Child> children_;
  Recompute recompute_ = Recompute::vanilla();
  std::vector<schedule::Action> actions_;  // recompute_ for the number of stages that the chain had last
  int planned_for_ = -1;
  struct Grouped {
    std::uint64_t version = 0;  // of all nets
    std::vector<Stage> stages;
  };
  mutable Grouped grouped_[2];  // closed, open
  std::vector<Sequential*> taken_apart_;
  std::uint64_t taken_apart_version_ = 0;  // of all nets
  Life* life_ = nullptr;                   // of the children, for backwards that will need them
  Tensor* probe_ = nullptr;                // where a planner wants to see the chain's input
};

}  // namespace rewind_lib::nn
