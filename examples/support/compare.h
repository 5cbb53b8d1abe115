#pragma once
// What compare_checkpointing compares, and how it shows it.

#include "digits_net.h"
#include "progress.h"

#include <rewind/autograd/dry_run.h>
#include <rewind/nn/describe_chain.h>

#include <memory>

namespace support::compare {

namespace rw = rewind;

struct Task {
  std::string model = "digits", optimizer = "momentum";
  int depth = 0;                     ///< 0: what the net has by default
  std::int64_t batch = 0, size = 0;  // 0: what suits the model
  bool plain = false;                // without fusion
};

/// The net with its weights from seed 1, and one batch.
class Net {
 public:
  explicit Net(const Task& task);
  /// One forward and backward; the loss, which a dry run must not read.
  rw::Tensor forward_backward();
  std::string described() const;
  /// What every record says about the run.
  nlohmann::json about(int threads, std::size_t program_bytes) const;

  rw::nn::Sequential chain;
  rw::data::Batch batch;

 private:
  Task task_;
};

/// Parameters and buffers as they are now, to start from again.
class Weights {
 public:
  explicit Weights(rw::nn::Module& net);
  void restore();

 private:
  std::vector<rw::Parameter> tensors_;
  std::vector<rw::Tensor> copies_;
};

struct Result {
  std::string strategy;
  rw::DryRun plan;         // of one step
  rw::memory::Usage peak;  // measured
  std::size_t process_bytes = 0;
  double loss = 0;
  std::uint64_t gradient_hash = 0;
  std::vector<rw::schedule::Action> actions;  // empty: everything is kept
  std::vector<double> step_ms;

  double median_ms() const;
  /// FLOPs run a second time, by those of a step that recomputes nothing.
  double recomputed() const;
};

/// The chain as the planner sees it, what each strategy does on it, and the least time for every amount of memory.
struct Picture {
  rw::schedule::Chain chain;
  std::string costs;
  // Beside the chain: parameters, gradients and state, the loss and the optimizer. Counted in the frontier.
  std::int64_t beside_bytes = 0;
  double beside_seconds = 0;
  nlohmann::json frontier;  // [{"bytes", "seconds"}]
};

std::unique_ptr<rw::optim::Optimizer> make_optimizer(const std::string& name, std::vector<rw::Parameter> parameters);
/// Of all gradients, in order.
std::uint64_t hash_gradients(rw::nn::Module& net);
/// The most memory that the process has had, in bytes.
std::size_t peak_resident();

Picture picture(Net& net, const std::vector<Result>& results);
void print(const std::vector<Result>& results);
void print(const Picture& picture);
nlohmann::json to_json(const std::vector<Result>& results, const nlohmann::json& about);
void write_report(const std::string& path, const std::vector<Result>& results, const Picture& picture, const nlohmann::json& list,
                  const nlohmann::json& about);
/// Throws InternalError unless every strategy has the same loss and gradients, and the peak that was predicted.
void assert_equal(const std::vector<Result>& results);

}  // namespace support::compare
