#pragma once
// What the machine can do: the two roofs under which every op stands (Williams, Waterman and Patterson 2009).

namespace rewind_lib {

struct Machine {
  int cores = 0;                ///< that the system offers
  int threads = 0;              ///< that parallel loops use; the rates are theirs
  double flops = 0;             ///< float32 FLOP/s, measured: multiply-adds in registers. 1 MAC = 2 FLOPs
  double bytes_per_second = 0;  ///< measured: STREAM's triad on arrays far larger than the caches, stored past them if faster

  /// FLOPs a byte at which the roofs meet: below it memory is the limit, above it arithmetic.
  double ridge() const { return flops / bytes_per_second; }
  /// The least time for so much work, in seconds.
  double roofline(double work_flops, double work_bytes) const {
    const double compute = work_flops / flops, memory = work_bytes / bytes_per_second;
    return compute > memory ? compute : memory;
  }
};

/// This machine, measured in about a third of a second when it is first asked for with this number of threads.
Machine machine();
/// Measures again. Another program may have held a core the first time, and halved a rate: of each, the larger is kept.
Machine machine_again();

}  // namespace rewind_lib
