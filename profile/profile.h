#pragma once
// profile: what a training step of a net costs, op by op and module by module; what it holds; how fast it is; what it would
// take in energy; and against what the machine can do.
//
//   const rw::Profile p = rw::profile(net, x, adam);
//   std::cout << p;                                    // tables
//   std::ofstream("p.json") << rw::to_json(p);         // all of it
//   std::ofstream("trace.json") << rw::chrome_trace(p);  // for ui.perfetto.dev and speedscope.app

#include <rewind/autograd/dry_run.h>
#include <rewind/autograd/profiler.h>
#include <rewind/data/loader.h>
#include <rewind/nn/module.h>
#include <rewind/optim/optimizer.h>
#include <rewind/profile/energy.h>
#include <rewind/profile/machine.h>

#include <iosfwd>
#include <type_traits>

namespace rewind_lib {

struct ProfileOptions {
  int steps = 10;                      ///< timed; as many again run in between without being watched
  int warmup = 2;                      ///< before them
  Tensor target = {};                  ///< labels for cross_entropy, [N]; for the loss that there is when none is given
  int latency_runs = 100;              ///< at batch 1; 0: no latencies
  bool throughput = true;              ///< against the batch size: 1, 2, 4, ... up to that of the input
  data::DataLoader* loader = nullptr;  ///< an epoch of it is timed, with its own targets
};

/// Some ops of a step, added up.
struct Work {
  std::int64_t calls = 0, macs = 0, flops = 0, bytes_read = 0, bytes_written = 0;
  std::size_t saved_bytes = 0;      ///< kept for backward, by the op that made the tape keep them
  std::size_t workspace_bytes = 0;  ///< of the op that takes most
  double median = 0, p95 = 0;       ///< seconds a step
  double share = 0;                 ///< of the wall clock of those timed steps that took no longer than the median; shares add up
  double roofline = 0;              ///< seconds: for each op the least that the machine allows, added up
  Energy energy = {};

  std::int64_t bytes() const { return bytes_read + bytes_written; }
  /// FLOPs a byte.
  double intensity() const { return bytes() > 0 ? static_cast<double>(flops) / static_cast<double>(bytes()) : 0; }
  /// Roofline time by measured time. More than 1 where what is read lies in a cache (the roof is that of main memory), and where
  /// Winograd's transform multiplies less often than is counted (FLOPs are those of the direct convolution).
  double of_roofline() const { return median > 0 ? roofline / median : 0; }
};

/// A class of operators, as Ivanov et al. (2021, table 1) divide them.
struct ClassRow {
  Kind kind;
  Work work;
  double flops_share = 0, bytes_share = 0;  ///< of all ops
  /// Percent of FLOPs and run time that they found for a transformer encoder layer in PyTorch, as lectures quote it; < 0 for
  /// the classes that they do not have.
  double published_flops = -1, published_time = -1;
};
/// "tensor contraction", "statistical normalisation", "element-wise", ...
const char* class_name(Kind kind);

/// All ops of one name in one phase.
struct OpRow {
  const char* op;
  Kind kind;
  Phase phase;
  Work work;
};

inline constexpr int phase_count = 4;

/// A module's own ops, without its children's; an optimizer's update counts at the module that has the parameter.
struct ModuleRow {
  std::string path;  ///< "" for the net itself, and for what runs outside it
  std::string type;
  int depth = 0;
  std::int64_t parameters = 0;  ///< elements; shared ones at their first holder
  Work phase[phase_count];
};

struct MemoryProfile {
  DryRun plan;             ///< of a step, on shapes alone
  memory::Usage measured;  ///< the peak of a real one
  std::vector<optim::SlotBytes> state;
  PeakHolders holders;
};

struct Latency {
  int runs = 0;
  double median = 0, p95 = 0, p99 = 0;  ///< seconds for one sample, evaluation, nothing recorded
};

struct Throughput {
  std::int64_t batch;
  double inference;     ///< samples a second, evaluation, nothing recorded
  double training = 0;  ///< samples a second of whole steps; 0 where not measured (at batch 1, unless that is the input's)
};

struct EpochTime {
  std::int64_t batches = 0, samples = 0;
  double seconds = 0;  ///< wall clock, data included
  double waiting = 0;  ///< of these, for data
};

struct Profile {
  Machine machine;
  Shape input;
  std::int64_t parameters = 0;  ///< elements
  bool fused = true;            ///< Module::fusing of the net
  OpProfile step;               ///< each op
  Work total;
  std::vector<ClassRow> classes;   ///< that occur or are published, in the order of Kind
  std::vector<OpRow> ops;          ///< the slowest first
  std::vector<ModuleRow> modules;  ///< all of them, parents before children
  MemoryProfile memory;
  Latency latency;
  std::vector<Throughput> throughput;
  EpochTime epoch;
};

namespace detail {
struct LossCall {
  Tensor (*call)(void* loss, Tensor output) = nullptr;
  void* loss = nullptr;
};
Profile profile(nn::Module& net, const Tensor& input, optim::Optimizer& optimizer, LossCall loss, const ProfileOptions& options);
}  // namespace detail

/// Profiles training steps of `net` on `input` [N, ...] with `optimizer`. The loss is cross_entropy for an output [N, C], with
/// options.target or else with made-up labels; for other outputs backward begins with ones. Runs warmup + 1 + 2 * steps
/// steps and one more for the peak, beside dry runs, then what the options ask for. Afterwards parameters, buffers, gradients,
/// optimizer state, training modes and random numbers are as before (not the gradients of leaves that the net reads and does not
/// describe()). Call it between steps: a tape recorded before does not survive. Throws Error for an undefined or empty input,
/// inside a dry run, when an option is out of range, when a parameter or buffer was made in a dry run, and when the steps differ
/// from each other.
inline Profile profile(nn::Module& net, const Tensor& input, optim::Optimizer& optimizer, const ProfileOptions& options = {}) {
  return detail::profile(net, input, optimizer, {}, options);
}
/// The same with a loss of your own, loss(output) -> Tensor. Training throughput is then that of the whole batch only, and
/// options.loader an Error.
template <class Loss>
  requires std::is_invocable_r_v<Tensor, Loss&, Tensor> Profile profile(nn::Module& net, const Tensor& input,
                                                                        optim::Optimizer& optimizer, Loss&& loss,
                                                                        const ProfileOptions& options = {}) {
    using F = std::remove_reference_t<Loss>;
    return detail::profile(net, input, optimizer,
                           {[](void* f, Tensor y) -> Tensor { return (*static_cast<F*>(f))(std::move(y)); },
                            const_cast<void*>(static_cast<const void*>(&loss))},
                           options);
  }

/// Tables for a terminal. Of ops and saved tensors at most `rows`, the largest; modules down to `depth`, deeper ones added up.
std::string to_string(const Profile& profile, int rows = 20, int depth = 2);
std::ostream& operator<<(std::ostream& out, const Profile& profile);

/// All of it as JSON. Times are in milliseconds where a key begins with ms_ or ends in _ms, in nanoseconds in overhead_ns_per_op,
/// else in seconds; bytes and counts are whole numbers.
std::string to_json(const Profile& profile);

/// The step whose time is the median, as Chrome's trace events: the step, its phases, modules by path and ops, one in the other,
/// with each op's numbers.
std::string chrome_trace(const Profile& profile);

}  // namespace rewind_lib
