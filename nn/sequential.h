#pragma once
// Sequential: modules one after the other; a chain that can be recomputed instead of remembered.

#include <rewind/nn/module.h>

#include <concepts>
#include <type_traits>

namespace rewind_lib::nn {

/// How a chain trades memory for time. Gradients are the same to the last bit with every choice.
class Recompute {
 public:
  /// Keep every activation.
  static Recompute vanilla() { return Recompute(Kind::vanilla, 0); }
  /// k segments of nearly equal length; each keeps its input only and runs again in backward, but the last one.
  static Recompute segments(int k) { return Recompute(Kind::segments, k); }
  /// As many segments as the square root of the number of stages (Chen et al. 2016, section 4.1).
  static Recompute sqrt() { return Recompute(Kind::sqrt, 0); }
  /// "vanilla", "sqrt" or "segments:4", as programs take it on the command line. Throws Error on anything else.
  static Recompute parse(std::string_view text);

  /// The number of segments for a chain of n stages; 1 keeps everything. Throws Error when there are more than stages.
  int segment_count(int stages) const;
  bool keeps_everything() const { return kind_ == Kind::vanilla; }

 private:
  enum class Kind : std::uint8_t { vanilla, segments, sqrt };
  Recompute(Kind kind, int count) : kind_(kind), count_(count) {}
  Kind kind_;
  int count_;
};

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

  /// Chooses what is kept for backward from the next forward on. Sequentials inside this one count with their own children
  /// as stages, so a net of nested Sequentials is one chain, unless they were told themselves what to keep.
  void recompute(Recompute how) { recompute_ = how; }
  /// The stages of the chain: children, with nested Sequentials taken apart and activations joined to what they follow.
  std::vector<Stage> stages() const;

  Tensor forward(Tensor x) override;
  void describe(Fields& f) override;

 private:
  struct Child {
    std::string name;
    Module* module;  // owned
  };
  void adopt(std::string name, Module* owned);
  void clear();
  void append_modules(std::vector<Module*>& all) const;

  std::vector<Child> children_;
  Recompute recompute_ = Recompute::vanilla();
};

}  // namespace rewind_lib::nn
