#include <rewind/autograd/replay.h>

#include <algorithm>

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

// Of all outputs, in order. Ops that only change tensors in place have none, and are left out of replays.
static std::uint64_t hash_of(const OpEvent& event) {
  std::uint64_t h = 0;
  for (const Tensor& t : event.out) h = h * 0x9e3779b97f4a7c15 + hash(t);
  return h;
}

static std::string describe(int input, const OpDecl& op, const char* module, const Tensor& tensor) {
  return str("input ", input, " of ", op.name, module[0] != 0 ? str(" in module ", module) : "", ", shape ", tensor.shape());
}

void refuse_beside(const OpDecl& op, int input, const Tensor& tensor) {
  fail(str(
      op.name, ": input ", input, " ", tensor.shape(), location().module[0] != 0 ? str(", in module ", location().module) : "",
      ", was made by another stage or function that is recomputed, and came here beside its inputs. Its gradient would be lost, "
      "or be added in another order: give it along as an input, or detach() it"));
}

void RunLog::check_leaves() const {
  for (const Leaf& l : leaves_) {
    const bool frozen = !l.tensor.requires_grad();
    if (frozen || l.tensor.impl().storage->version != l.version)
      fail(str("backward: ", describe(l.input, *l.op, l.module, l.tensor), ", was ", frozen ? "frozen" : "modified in place",
               " after forward read it, and is to be read again: that part of the net is recomputed. Do it after backward."));
  }
}

static std::uint64_t next_run() {
  thread_local std::uint64_t last = 0;
  return ++last;
}

UnrecordedRun::UnrecordedRun(std::span<const Tensor* const> inputs) : run_(next_run()) {
  for (const Tensor* t : inputs)
    if (t->defined() && t->impl().value.recorder == &Forgotten::instance()) t->impl().value.serial = context().run;
}

RunLog::Write::Write(RunLog& log) : log_(log) {
  if (context().check_replays && !DryLedger::active()) scope_.emplace(static_cast<Observer&>(*this));
  context().watches.push_back(this);
}

void RunLog::Write::after(const OpEvent& event) {
  if (event.op.mutates == 0) log_.notes_.push_back({&event.op, hash_of(event)});
}

void RunLog::Write::reads(const OpDecl& op, std::span<const Tensor> in, std::uint32_t needs) {
  for (std::size_t i = 0; i < in.size(); ++i)
    if ((needs & bit(static_cast<int>(i))) != 0 && in[i].is_leaf())
      log_.leaves_.push_back({in[i], in[i].impl().storage->version, static_cast<int>(i), &op, location().module});
}

RunLog::Compare::Compare(const RunLog& log, std::optional<std::uint64_t> others) : log_(log), own_(Tape::current().next_serial()) {
  others_ = others.value_or(own_);
  if (!log.notes_.empty() && !DryLedger::active()) scope_.emplace(static_cast<Observer&>(*this));
  context().watches.push_back(this);
}

void RunLog::Compare::reads(const OpDecl& op, std::span<const Tensor> in, std::uint32_t needs) {
  const auto noted = [&](const Tensor& t) {
    if (next_leaf_ < log_.leaves_.size() && log_.leaves_[next_leaf_].tensor.same(t)) {  // as a rule they come in order
      ++next_leaf_;
      return true;
    }
    return std::ranges::any_of(log_.leaves_, [&](const Leaf& l) { return l.tensor.same(t); });
  };
  for (std::size_t i = 0; i < in.size(); ++i) {
    if ((needs & bit(static_cast<int>(i))) == 0) continue;
    const ValueRef& value = in[i].impl().value;
    if (value.recorder == &Tape::current() && value.serial >= others_ && value.serial < own_)
      refuse_beside(op, static_cast<int>(i), in[i]);
    if (in[i].is_leaf() && !noted(in[i]))
      fail(str("replay: ", describe(static_cast<int>(i), op, location().module, in[i]),
               ", was not read in the first run, or did not require a gradient then. What is recomputed has to read the same "
               "parameters every time: replace or unfreeze them after backward, and make none in there."));
  }
}

void RunLog::Compare::flag(bool on, const char* what) {
  if (next_flag_ < log_.flags_.size() && log_.flags_[next_flag_++] != on)
    fail(str("replay: ", what, " was called between forward and backward",
             location().module[0] != 0 ? str(", for module ", location().module) : "",
             ". What is recomputed has to run as it did the first time: call it after backward."));
}

void RunLog::Compare::after(const OpEvent& event) {
  const std::string where = str(event.op.name, event.module[0] != 0 ? str(" in module ", event.module) : "");
  if (next_ == log_.notes_.size() || log_.notes_[next_].op != &event.op)
    fail(str("replay: ", where, " ran, where the first run had ",
             next_ == log_.notes_.size() ? "ended" : log_.notes_[next_].op->name,
             ". A function that is recomputed must run the same ops every time."));
  if (hash_of(event) != log_.notes_[next_++].hash)
    fail(str("replay: ", where, " computed other values than the first time, output 0 of shape ", event.out[0].shape(),
             ". A function that is recomputed must be deterministic: look for state, time, or random numbers of its own."));
}

TapeSegment::~TapeSegment() {
  for (std::size_t i = entry_of_.size(); i-- > 0;)
    if (entry_of_[i] != none) Tape::current().unpin(entry_of_[i]);
}

std::uint32_t TapeSegment::place(std::span<Tensor> input) {
  Tape& tape = Tape::current();
  tape.record(input_decl, nullptr, {}, input, 0, {});
  const std::uint32_t entry = tape.size() - 1;
  tape.pin(entry);
  return entry;
}

void TapeSegment::begin(std::span<Tensor> inputs, std::uint32_t needs, const Vjp* v) {
  Tape& tape = Tape::current();
  inputs_ = inputs.size();
  entry_of_.assign(inputs_, none);
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const int input = static_cast<int>(i);
    if ((needs & bit(input)) == 0) continue;
    if (v == nullptr || !v->join(input, inputs[i])) entry_of_[i] = place(inputs.subspan(i, 1));
  }
  // What is below may be dropped meanwhile, but for what is held: the piece has to stay above something.
  if (std::ranges::all_of(entry_of_, [](std::uint32_t entry) { return entry == none; })) entry_of_.push_back(place({}));
  first_ = tape.size();
}

std::vector<Tensor> TapeSegment::sweep(std::vector<Tensor> results, std::vector<Tensor> gradients) {
  Tape& tape = Tape::current();
  tape.sweep_segment(first_, std::move(results), std::move(gradients));
  std::vector<Tensor> of_inputs(inputs_);
  for (std::size_t i = entry_of_.size(); i-- > 0;)
    if (entry_of_[i] != none) {
      if (i < inputs_) of_inputs[i] = tape.take_gradient(entry_of_[i], 0);
      tape.unpin(std::exchange(entry_of_[i], none));
    }
  return of_inputs;
}

// An entry of its own, so that the tape does not shrink below the floor when something there is dropped during the trial.
TrialTape::TrialTape() : floor_(TapeSegment::place({}) + 1) {}
TrialTape::~TrialTape() { Tape::current().unpin(floor_ - 1); }

}  // namespace rewind_lib::detail
