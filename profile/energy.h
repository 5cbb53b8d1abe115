#pragma once
// What operations cost in energy: an estimate from counts, by a published table.

#include <rewind/autograd/op.h>

namespace rewind_lib {

/// Picojoules in a 45 nm process at 0.9 V: M. Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC
/// 2014, figure 1.1.9; words of memory as S. Han et al. tabulate them from it ("Learning both weights and connections", NIPS 2015,
/// figure 1). Adds and multiplies are the arithmetic alone.
struct EnergyTable {
  double int8_add = 0.03, int32_add = 0.1;
  double int8_multiply = 0.2, int32_multiply = 3.1;
  double float16_add = 0.4, float32_add = 0.9;
  double float16_multiply = 1.1, float32_multiply = 3.7;
  double register_word = 1, sram_word = 5, dram_word = 640;  ///< 32 bits; the SRAM has 8 KB
  double instruction = 70;                                   ///< all of it: fetch, decode, registers, control
};

/// Joules of some work.
struct Energy {
  double arithmetic = 0;    ///< a MAC is a multiplication and an addition, any other FLOP an addition, all in float32
  double dram = 0;          ///< every tensor that an op reads or writes goes through DRAM once; what it reads again is not counted
  double sram = 0;          ///< the same bytes, once, were they all in an 8 KB SRAM; no operands fetched for each MAC
  double instructions = 0;  ///< one for each MAC and each other FLOP, as on a processor without vectors; arithmetic included

  Energy& operator+=(const Energy& other);
};

/// The words that say so, for tables and pages.
extern const char* const energy_assumptions;

/// What an op's work costs. cost.bytes_* must be filled in.
Energy estimate_energy(const Cost& cost, const EnergyTable& table = {});

}  // namespace rewind_lib
