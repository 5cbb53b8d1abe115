#pragma once
// summary: what a net is made of and what a training step of it will take, from a dry run. No data is touched.

#include <rewind/nn/module.h>

#include <iosfwd>

namespace rewind_lib::nn {

/// One module. Numbers are its own, without its children's.
struct LayerSummary {
  std::string path;           ///< "features.0.0"; "" for the net itself
  std::string type;           ///< "Conv2d"
  int depth = 0;              ///< modules above it
  Shape output;               ///< of its last call; rank 0 when it was not called
  bool by_neighbour = false;  ///< the layer behind it computes it on load, or the one before it did before storing
  std::int64_t parameters = 0;
  std::int64_t buffers = 0;
  std::int64_t macs = 0;         ///< contractions only; 1 MAC = 2 FLOPs
  std::int64_t flops = 0;        ///< everything
  std::int64_t saved_bytes = 0;  ///< kept for backward when nothing is recomputed; what several keep counts at the first
};

struct Summary {
  std::vector<LayerSummary> layers;  ///< parents before children
  Shape input;
  std::int64_t parameters = 0;  ///< elements
  std::int64_t trainable = 0;   ///< of these, elements that require a gradient
  std::int64_t buffers = 0;     ///< elements
  std::int64_t parameter_bytes = 0;
  std::int64_t buffer_bytes = 0;
  std::int64_t input_bytes = 0;
  std::int64_t macs = 0;                ///< of forward
  std::int64_t flops = 0;               ///< of forward
  std::int64_t training_step_macs = 0;  ///< of forward and backward, without recompute
  std::int64_t activation_bytes_saved = 0;

  /// What an optimizer adds, from the bytes of the trainable parameters.
  struct State {
    std::int64_t sgd = 0, momentum = 0, adam = 0;
  } optimizer_state_bytes;
};

/// Runs the net forward and backward on shapes alone, in training mode, whatever recompute it was told. Afterwards
/// parameters, gradients, buffers, training modes and the random numbers are what they were. Works for modules of your own.
Summary summarize(Module& net, const Shape& input, DType dtype = float32);

/// A table, one line a module, and the totals. Modules deeper than `depth` are added to the one that they are in.
std::string to_string(const Summary& summary, int depth = 99);
std::ostream& operator<<(std::ostream& out, const Summary& summary);
/// "3,504,872"
std::string with_commas(std::int64_t n);

}  // namespace rewind_lib::nn
