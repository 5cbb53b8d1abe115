#pragma once
// What the layers of a net cost in a step, as an observer sees it.

#include "progress.h"

#include <map>

namespace support {

/// FLOPs, bytes and seconds of every op meanwhile, by the path of the layer that called it; a net's own ops are under "".
struct LayerCosts : rewind::Observer {
  struct Layer {
    std::int64_t flops = 0;  ///< forward
    std::int64_t bytes = 0;  ///< moved, forward and backward
    double forward = 0, backward = 0;
  };
  std::map<std::string, Layer> layers;

  void before(const rewind::OpEvent&) override { start_ = Clock::now(); }
  void after(const rewind::OpEvent& event) override {
    const double seconds = seconds_since(start_);
    Layer& layer = layers[event.module];
    const rewind::Cost cost = event.cost();
    const bool forward = event.phase == rewind::Phase::forward;
    (forward ? layer.forward : layer.backward) += seconds;
    if (forward) layer.flops += cost.flops;
    layer.bytes += cost.bytes_read + cost.bytes_written;
  }

 private:
  Clock::time_point start_;
};

}  // namespace support
