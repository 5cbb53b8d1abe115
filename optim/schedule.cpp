#include <rewind/core/error.h>
#include <rewind/optim/schedule.h>

#include <cmath>
#include <numbers>

namespace rewind_lib::optim {
namespace {

void check(const char* schedule, const char* what, std::int64_t length, std::int64_t step) {
  if (length < 1) fail(str(schedule, ": ", what, " must be at least 1, got ", length));
  if (step < 0) fail(str(schedule, ": steps count from 0, got ", step));
}

double fraction(std::int64_t step, std::int64_t steps) { return static_cast<double>(step) / static_cast<double>(steps); }

}  // namespace

double StepDecay::at(std::int64_t step) const {
  check("StepDecay", "every", every, step);
  const std::int64_t decays = step / every;
  return std::pow(factor, static_cast<double>(decays));
}

double Cosine::at(std::int64_t step) const {
  check("Cosine", "steps", steps, step);
  return step >= steps ? end : end + (1 - end) * (1 + std::cos(std::numbers::pi * fraction(step, steps))) / 2;
}

double Linear::at(std::int64_t step) const {
  check("Linear", "steps", steps, step);
  return step >= steps ? end : start + (end - start) * fraction(step, steps);
}

}  // namespace rewind_lib::optim
