#pragma once
// Optimizers: parameters in groups, state in named slots that are counted, one fused pass over a parameter a step.
//
//     optim::Adam adam{net.parameters(), {.lr = 1e-3}};
//     backward(std::move(loss));
//     adam.step();   // moves every parameter that has a gradient, and drops the gradients
//
// State is allocated by the first step() that finds a gradient for its parameter, not before: a network that is only
// summarised or dry-run takes no bytes for it, and neither does a frozen layer ever. To write an optimizer of your own,
// declare its update as an op (optim/sgd.cpp is the pattern) and derive from OptimizerOf.

#include <rewind/autograd/parameter.h>
#include <rewind/core/tensor.h>

#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

namespace rewind_lib::optim {

/// Bytes that one kind of state takes, over all parameters.
struct SlotBytes {
  const char* slot;
  std::size_t bytes;
};

/// What step() asks of an optimizer for one parameter.
struct Update {
  std::span<Tensor> in;  ///< the parameter, its gradient, then its slots in order
  int group;
  std::int64_t step;  ///< how often this parameter has moved, this time included: counts from 1
  double lr;
};

class Optimizer {
 public:
  static constexpr int max_slots = 2;

  virtual ~Optimizer() = default;
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  /// Moves every parameter that has a gradient, in order, and drops the gradient at once: after it none is left. Parameters
  /// without a gradient stay as they are and take no state. State that is missing is allocated before anything moves, so
  /// that OutOfMemory leaves parameters, gradients and step count untouched. From the second step on nothing is allocated.
  /// In a dry run the bytes are counted, and neither the parameters nor the step counts move.
  void step();
  /// Drops all gradients.
  void zero_grad();
  /// How often step() has run.
  std::int64_t steps() const { return steps_; }

  int groups() const { return static_cast<int>(rates_.size()); }
  /// The learning rate that the next step() takes for a group.
  double learning_rate(int group = 0) const { return rate(group).now; }
  /// For one group, or for all. Throws Error when lr is negative or not finite.
  void set_learning_rate(int group, double lr);
  void set_learning_rate(double lr);
  /// Every group's learning rate becomes `factor` times the one that it was last given (by its options or set_learning_rate).
  void scale_learning_rate(double factor);
  /// Sets the learning rates for the coming step by a schedule (schedule.h): scale_learning_rate(schedule.at(steps())).
  template <class Schedule>
  void follow(const Schedule& schedule) {
    scale_learning_rate(schedule.at(steps_));
  }

  /// Bytes of state held now; what the tracker counts as Category::optimizer_state for this optimizer.
  std::size_t state_bytes() const;
  /// The same by slot, such as {"m", n}, {"v", n}; in the order in which the slots first appear.
  std::vector<SlotBytes> state_bytes_by_slot() const;
  /// A handle on the state of a parameter; undefined before its first update. Throws Error when no parameter, or more than
  /// one, has that name, or when its group has no such slot.
  Tensor state(std::string_view parameter, std::string_view slot) const;
  /// How often a parameter has moved.
  std::int64_t updates(std::string_view parameter) const;

  /// To go on where another run stopped, with the same bits: what steps() was, and for each parameter what updates() was. Allocates
  /// the state of one that has moved, as zeros, to be filled: state("fc.weight", "m").copy_from(saved). Throws Error for negative
  /// counts, names as state() does, and in a dry run; OutOfMemory.
  void resume(std::int64_t steps);
  void resume(std::string_view parameter, std::int64_t updates);

  /// While alive, steps are on trial: at its end parameters, their gradients, the optimizer's state and step counts are as they
  /// were (and meanwhile the gradients are gone). Throws Error for parameters that were made in a dry run.
  class Trial;

 protected:
  /// `name` is a literal: the optimizer's name, for errors and for labelling its memory.
  explicit Optimizer(const char* name) : name_(name) {}
  /// Adds a group. Throws Error, and adds nothing, when there are no parameters, or when one is undefined, an integer tensor,
  /// computed (not a leaf), or already here.
  void add_parameters(std::vector<Parameter> parameters, double lr);
  /// Names tensors by their position: "0", "1", ... over all groups.
  std::vector<Parameter> name_by_position(std::vector<Tensor> tensors) const;

 private:
  struct Rate {
    double given, now;
  };
  struct Member {
    Parameter parameter;
    int group;
    std::int64_t updates = 0;
    bool ready = false;  // the state is here, and no dry run's
    Tensor slot[max_slots];
  };

  /// The names of the state that a group's parameters have, at most max_slots literals. All start as zeros.
  virtual std::span<const char* const> slots(int group) const = 0;
  /// Runs the op that moves one parameter.
  virtual void update(const Update& u) = 0;

  const Rate& rate(int group) const;
  const Member& find(std::string_view parameter) const;
  void check_resumes(std::int64_t count) const;
  void allocate(Member& member);
  void fetch_ahead(std::size_t i) const;

  const char* name_;
  std::vector<Member> members_;
  std::vector<Rate> rates_;
  std::int64_t steps_ = 0;
};

class Optimizer::Trial {
 public:
  explicit Trial(Optimizer& optimizer);
  ~Trial();
  Trial(const Trial&) = delete;
  Trial& operator=(const Trial&) = delete;

 private:
  struct Kept {
    std::int64_t updates = 0;
    std::vector<std::byte> value, slot[max_slots];
    Tensor gradient;
  };
  Optimizer& optimizer_;
  std::int64_t steps_;
  std::vector<Kept> members_;
};

/// An optimizer whose groups have options of the type O: an aggregate with a member `lr`, and check(), which throws Error.
template <class O>
class OptimizerOf : public Optimizer {
 public:
  using Options = O;
  /// Parameters that move with options of their own. Throws Error, and adds nothing, for what cannot be optimized.
  void add_group(std::vector<Parameter> parameters, const O& options) {
    options.check();
    options_.reserve(options_.size() + 1);
    add_parameters(std::move(parameters), options.lr);
    options_.push_back(options);
  }
  void add_group(std::vector<Tensor> tensors, const O& options) { add_group(name_by_position(std::move(tensors)), options); }
  /// As given; the learning rate that counts is learning_rate().
  const O& options(int group = 0) const {
    if (group < 0 || static_cast<std::size_t>(group) >= options_.size())
      fail(str("optimizer: there is no group ", group, " among its ", options_.size()));
    return options_[static_cast<std::size_t>(group)];
  }

 protected:
  using Optimizer::Optimizer;

 private:
  std::vector<O> options_;
};

}  // namespace rewind_lib::optim
