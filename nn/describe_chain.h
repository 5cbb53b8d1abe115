#pragma once
// A net's chain as planners see it: what each stage leaves, saves and costs.

#include <rewind/autograd/schedule/chain.h>
#include <rewind/autograd/schedule/recompute.h>
#include <rewind/nn/sequential.h>

namespace rewind_lib::nn {

/// Bytes as planners count them: chains subtract them.
inline std::int64_t bytes_of(std::size_t n) { return static_cast<std::int64_t>(n); }

/// Measures the chain on shapes alone: what each stage leaves, saves and takes while it runs, in the bytes that the tracker
/// counts, without the gradients of parameters that stay. `input` gives shape, dtype and whether it requires a gradient; its
/// data is not read. Costs are seconds: the least of two runs of each stage on random data, or counted, at 100 GFLOP/s and
/// 20 GB/s, whichever takes longer; inside a dry run they are counted. Gradients, statistics and random numbers are as
/// before.
schedule::Chain describe_chain(Sequential& net, const Tensor& input, Costs costs);

/// Times the stages that describe_chain() has described, in place of their counted costs.
void measure_costs(Sequential& net, const Tensor& input, schedule::Chain& chain);
/// The most that this takes beside what is live, in bytes.
std::size_t bytes_to_time(const schedule::Chain& chain);

}  // namespace rewind_lib::nn
