#include <rewind/autograd/replay.h>

namespace rewind_lib::detail {
namespace {

// Stands on the tape for an input of a function that runs again; its output collects that input's gradient.
constexpr OpDecl input_decl = [] {
  OpDecl d{};
  d.name = "replay_input";
  d.kind = Kind::movement;
  d.differentiable = 1;
  return d;
}();

}  // namespace

TapeSegment::~TapeSegment() {
  for (std::size_t i = entry_of_.size(); i-- > 0;)
    if (entry_of_[i] != none) Tape::current().unpin(entry_of_[i]);
}

void TapeSegment::begin(std::span<Tensor> inputs, std::uint32_t needs) {
  Tape& tape = Tape::current();
  entry_of_.assign(inputs.size(), none);
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if ((needs & bit(static_cast<int>(i))) == 0) continue;
    const std::uint32_t entry = tape.size();
    tape.record(input_decl, nullptr, {}, inputs.subspan(i, 1), 0, {});
    tape.pin(entry);
    entry_of_[i] = entry;
  }
  first_ = tape.size();
}

std::vector<Tensor> TapeSegment::sweep(std::vector<Tensor> results, std::vector<Tensor> gradients) {
  Tape& tape = Tape::current();
  tape.sweep_segment(first_, std::move(results), std::move(gradients));
  std::vector<Tensor> of_inputs(entry_of_.size());
  for (std::size_t i = entry_of_.size(); i-- > 0;)
    if (entry_of_[i] != none) {
      of_inputs[i] = tape.take_gradient(entry_of_[i], 0);
      tape.unpin(std::exchange(entry_of_[i], none));
    }
  return of_inputs;
}

}  // namespace rewind_lib::detail
