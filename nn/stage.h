#pragma once
// Stages: what a chain runs one after the other, and what recomputing counts. A stage is a module, joined to what it takes
// over from its neighbours.

#include <rewind/nn/fusing.h>
#include <rewind/nn/module.h>

#include <optional>
#include <variant>

namespace rewind_lib::nn {

class BatchNorm2d;
class MaxPool2d;
struct ChainStages;

/// A module of a chain that is taken apart, and the chains around it that were told themselves what to recompute, outermost first.
struct Part {
  Module* module;
  std::vector<Sequential*> told;
};

/// A batch norm, and the activation behind it, that a neighbour does.
struct Normalisation {
  BatchNorm2d* norm = nullptr;
  Module* activation = nullptr;             ///< or nullptr
  Epilogue then = Epilogue::none;           ///< what the activation does
  const GivesStatistics* before = nullptr;  ///< the convolution whose bias comes back here; or nullptr

  /// x, with this still to be done.
  Pending left(schedule::Value x) const;
  Tensor done(schedule::Value x) const;
};

class Stage {
 public:
  /// given: a normalisation of the chain's input that the chain's caller left to do; for a first stage that takes_pending(). Its x,
  /// mean and var are those of x.
  schedule::Value operator()(schedule::Value x, const Pending& given = {}) const;
  const char* path() const;
  bool takes_pending() const;

  /// The stages of a chain of these parts. open: the caller does a normalisation at the very end.
  static ChainStages group(const std::vector<Part>& parts, bool open);

 private:
  /// A module by itself, with the ReLU or ReLU6 after it, where it applies that itself, and a maximum pool behind that.
  struct Plain {
    Module* module = nullptr;
    TakesActivation* applies = nullptr;  // the module, if it can; and what it takes over, or nullptr:
    Module* activation = nullptr;
    Epilogue then = Epilogue::none;
    TakesPool* pooling = nullptr;  // the same of a pool
    MaxPool2d* pool = nullptr;

    schedule::Value run(schedule::Value x, const Pending&) const;
    /// What the module makes of x before the pool; throws Error where the pool does not fit that, as the pool by itself would.
    Shape unpooled(const Shape& x) const;
  };
  /// A module that only takes a normalisation over.
  struct OnLoad {
    Normalisation before;
    Module* module;
    TakesNormalisation* loads;

    schedule::Value run(schedule::Value x, const Pending&) const;
  };
  /// Who follows a stage that can give statistics: they are made when the norm trains, or the block asks for them.
  struct Next {
    const BatchNorm2d* norm = nullptr;
    const TakesStatistics* block = nullptr;

    bool wants_statistics() const;
  };
  struct Convolution {
    std::optional<Normalisation> before;  // done on load
    Module* module;
    GivesStatistics* convolution;
    Next next;
    std::optional<Normalisation> after;  // done at the end, because no convolution follows

    schedule::Value run(schedule::Value x, const Pending& given) const;
  };
  struct Block {
    Module* module;
    TakesStatistics* block;
    Next next;
    std::optional<Normalisation> after;

    schedule::Value run(schedule::Value x, const Pending&) const;
  };
  /// A chain that was told itself what to recompute, of these stages.
  struct Nested {
    Sequential* module;
    std::vector<Stage> inside;

    schedule::Value run(schedule::Value x, const Pending& given) const;
  };
  using Kind = std::variant<Plain, OnLoad, Convolution, Block, Nested>;
  class Grouping;
  explicit Stage(Kind kind) : kind_(std::move(kind)) {}

  Kind kind_;
};

struct ChainStages {
  std::vector<Stage> all;
  std::optional<Normalisation> left;  ///< to the caller
};

}  // namespace rewind_lib::nn
