#include <rewind/profile/energy.h>

namespace rewind_lib {

const char* const energy_assumptions =
    "From counts, by the table of Horowitz (ISSCC 2014; 45 nm, 0.9 V; memory as Han et al. 2015 have it), in pJ: an addition int8 "
    "0.03, int32 0.1, "
    "float16 0.4, float32 0.9; a multiplication int8 0.2, int32 3.1, float16 1.1, float32 3.7; a 32-bit word from a "
    "register 1, from an 8 KB SRAM 5, from DRAM 640; a whole instruction about 70. All is float32 here. A MAC is a "
    "multiplication and an addition, any other FLOP an addition. Two cases of movement, "
    "in which each op reads its inputs and writes its outputs once: all in DRAM, and all in the smallest cache, SRAM. What an op "
    "reads again, a convolution above all, counts in neither. Instructions: one for each MAC and "
    "each other FLOP, without vectors. Today's processes take less; the ratios are what to look at.";

Energy& Energy::operator+=(const Energy& other) {
  arithmetic += other.arithmetic;
  dram += other.dram;
  sram += other.sram;
  instructions += other.instructions;
  return *this;
}

Energy estimate_energy(const Cost& cost, const EnergyTable& table) {
  constexpr double pico = 1e-12;
  const auto macs = static_cast<double>(cost.macs), others = static_cast<double>(cost.flops) - 2 * macs;
  const double words = static_cast<double>(cost.bytes_read + cost.bytes_written) / 4;
  return {.arithmetic = pico * (macs * (table.float32_multiply + table.float32_add) + others * table.float32_add),
          .dram = pico * words * table.dram_word,
          .sram = pico * words * table.sram_word,
          .instructions = pico * (macs + others) * table.instruction};
}

}  // namespace rewind_lib
