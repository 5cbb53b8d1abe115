#pragma once
// Planning for a net: the schedule for a budget.

#include <rewind/autograd/schedule/frontier.h>
#include <rewind/nn/sequential.h>

namespace rewind_lib::nn {

/// The chain that recompute() works on: the module itself when it is a Sequential, else the one of two stages or more below it with
/// the most modules inside; nullptr when there is none.
Sequential* largest_chain(Module& module);

/// What was decided for a budget.
struct BudgetPlan {
  schedule::Chain chain;
  schedule::Schedule schedule;
  Costs costs = Costs::counted;  ///< where the chain's costs come from: counted, too, in a dry run, and without room to measure
  std::size_t reserve = 0;       ///< room for the loss: twice the output, and 64 KiB
};

/// Finds the fastest schedule whose dry-run peak is within the budget, for the sizes at hand.
class BudgetPlanner {
 public:
  explicit BudgetPlanner(Budget budget) : budget_(budget) {}
  /// Before a forward of `root`: has its chain follow the plan for this input, making one where there is none yet.
  void prepare(Module& root, const Tensor& x);
  /// Before a forward of `root` that is a replay: as the last plan for this input has it, whatever was planned for others since.
  void recall(Module& root, const Tensor& x);
  /// The chain that it planned for last, if it is still below root and was told nothing since, keeps everything again.
  void let_go(Module& root);

  /// While alive, nothing is planned on this thread: nets with a budget keep everything.
  class Rest {
   public:
    Rest() : before_(std::exchange(resting_, true)) {}
    ~Rest() { resting_ = before_; }
    Rest(const Rest&) = delete;
    Rest& operator=(const Rest&) = delete;

   private:
    bool before_;
  };

 private:
  class Settings;
  class LetGo;
  class Search;
  struct Entry {
    Shape shape;
    DType dtype;
    std::uint64_t settings;  // of the modules and parameters
    bool requires_grad;
    std::size_t live;  // when it was planned
    BudgetPlan plan;
    bool is_for(const Tensor& x, std::uint64_t s, std::size_t stages) const {
      return shape == x.shape() && dtype == x.dtype() && settings == s && requires_grad == x.requires_grad() &&
             plan.chain.stages.size() == stages;
    }
  };

  Budget budget_;
  static thread_local bool resting_;
  bool planning_ = false;
  Sequential* chain_ = nullptr;  // that it planned for last; it may be gone
  std::vector<Entry> plans_;
};

}  // namespace rewind_lib::nn
