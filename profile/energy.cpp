#include <rewind/profile/energy.h>

namespace rewind_lib {

const char* const energy_assumptions =
    "From counts, by the table of Horowitz (ISSCC 2014; 45 nm, 0.9 V): a float32 multiplication 3.7 pJ, an addition 0.9 pJ, a "
    "32-bit "
    "word from DRAM 640 pJ, from an 8 KB SRAM 5 pJ, a whole instruction about 70 pJ. A MAC is one of each; any other FLOP counts "
    "as an addition. DRAM: each op reads its inputs and writes its outputs once, and no cache helps. SRAM: all of it lies in the "
    "smallest cache. Instructions: one for each MAC and each other FLOP, without vectors. Today's processes take less; the ratios "
    "are what to look at.";

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
