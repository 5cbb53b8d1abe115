#include <rewind/autograd/schedule/chain.h>
#include <rewind/core/error.h>

#include <cmath>

namespace rewind_lib::schedule {

double Chain::cost() const {
  double sum = 0;
  for (const Stage& stage : stages) sum += stage.u_f + stage.u_b;
  return sum;
}

std::string Chain::name(int l) const {
  return (*this)[l].name.empty() ? str("stage ", l) : str("stage ", l, " (", (*this)[l].name, ")");
}

void Chain::check() const {
  if (stages.empty()) fail("schedule: the chain has no stages");
  if (input < 0) fail(str("schedule: the chain's input has ", input, " bytes"));
  for (int l = 1; l <= n(); ++l) {
    const Stage& stage = (*this)[l];
    if (stage.w_a < 0 || stage.w_tape < 0 || stage.o_f < 0 || stage.o_b < 0)
      fail(str("schedule: ", name(l), " has a negative size: w_a ", stage.w_a, ", w_tape ", stage.w_tape, ", o_f ", stage.o_f,
               ", o_b ", stage.o_b));
    if (!std::isfinite(stage.u_f) || !std::isfinite(stage.u_b) || stage.u_f < 0 || stage.u_b < 0)
      fail(str("schedule: ", name(l), " has a cost that is negative or not finite: u_f ", stage.u_f, ", u_b ", stage.u_b));
  }
}

}  // namespace rewind_lib::schedule
