#pragma once
// Learning-rate schedules: pure functions from the step, counted from 0, to a factor of the learning rate that each group of
// an optimizer was given.
//
//     const auto schedule = optim::warmup({.steps = 500}, optim::Cosine{.steps = 9500});
//     ...
//     adam.follow(schedule);   // before step()
//     adam.step();
//
// A schedule of your own is any type with `double at(std::int64_t step) const`.

#include <rewind/core/namespace.h>

#include <cstdint>

namespace rewind_lib::optim {

/// factor^(step / every), rounded down: PyTorch's StepLR.
struct StepDecay {
  std::int64_t every = 1;
  double factor = 0.1;
  /// This and the others throw Error when the step is negative or a length is below 1.
  double at(std::int64_t step) const;
};

/// From 1 down to `end` along half a cosine in `steps` steps, and `end` from then on (Loshchilov and Hutter 2017, without
/// restarts): end + (1 - end) (1 + cos(pi step / steps)) / 2.
struct Cosine {
  std::int64_t steps = 1;
  double end = 0;
  double at(std::int64_t step) const;
};

/// From `start` to `end` in a straight line in `steps` steps, and `end` from then on: PyTorch's LinearLR. With `start` 0 the
/// first step moves nothing.
struct Linear {
  std::int64_t steps = 1;
  double start = 1.0 / 3;
  double end = 1;
  double at(std::int64_t step) const;
};

/// `first` for `steps` steps, then `second`, counted from its own beginning.
template <class First, class Second>
struct Sequence {
  First first;
  std::int64_t steps;
  Second second;
  double at(std::int64_t step) const { return step < steps ? first.at(step) : second.at(step - steps); }
};

/// A ramp, and what comes after it.
template <class Then>
Sequence<Linear, Then> warmup(const Linear& ramp, const Then& then) {
  return {ramp, ramp.steps, then};
}

}  // namespace rewind_lib::optim
