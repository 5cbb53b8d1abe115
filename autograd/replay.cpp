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

static std::string describe(int input, const OpDecl& op, const char* module, const Shape& shape) {
  return str("input ", input, " of ", op.name, module[0] != 0 ? str(" in module ", module) : "", ", shape ", shape);
}

static bool same_value(const ValueRef& a, const ValueRef& b) {
  return a.recorder == b.recorder && a.serial == b.serial && a.output == b.output;
}

bool RunLog::Read::is(const Tensor& t, bool needs) const {
  if (needs != needed) return false;
  if (!needed) return tensor.impl().storage == t.impl().storage;
  return tensor.defined() ? tensor.same(t) : same_value(value, t.impl().value);
}

/// Whether a tensor that is read is more than a value on the way: neither made in a run without history, nor a constant that nobody
/// knows by name.
static bool matters(const Tensor& t, bool needs) {
  if (!t.defined()) return false;
  return needs ? t.impl().value.recorder != &Forgotten::instance() : t.category() == Category::parameter;
}

bool RunLog::is_given(const Tensor& t, bool needs) const {
  const TensorImpl& impl = t.impl();
  return std::ranges::any_of(given_, [&](const Given& g) {
    if (!needs) return g.storage == impl.storage;
    return t.is_leaf() ? g.leaf == &impl : g.value.recorder != nullptr && same_value(g.value, impl.value);
  });
}

void RunLog::check_reads() const {
  for (const Read& r : reads_) {
    if (!r.tensor.defined()) continue;
    const bool frozen = r.needed && !r.tensor.requires_grad();
    if (frozen || r.tensor.impl().storage->version != r.version)
      fail(str("backward: ", describe(r.input, *r.op, r.module, r.tensor.shape()), ", was ",
               frozen ? "frozen" : "modified in place",
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

RunLog::Write::Write(RunLog& log, std::span<const Tensor* const> inputs) : log_(log) {
  for (const Tensor* t : inputs)
    if (t->defined()) log.given_.push_back({t->is_leaf() ? &t->impl() : nullptr, t->impl().value, t->impl().storage});
  if (context().check_replays && !DryLedger::active()) {
    log.guarded_ = true;
    scope_.emplace(static_cast<Observer&>(*this));
  }
  context().watches.push_back(this);
}

void RunLog::Write::after(const OpEvent& event) {
  if (event.op.mutates == 0) log_.notes_.push_back({&event.op, hash_of(event)});
}

void RunLog::Write::reads(const OpDecl& op, std::span<const Tensor> in, std::uint32_t needs) {
  if (op.mutates != 0) return;  // a replay leaves it out
  for (std::size_t i = 0; i < in.size(); ++i) {
    const bool needed = (needs & bit(static_cast<int>(i))) != 0;
    if (!matters(in[i], needed)) continue;
    const bool computed = needed && !in[i].is_leaf(), given = log_.is_given(in[i], needed);
    if (given && (computed || !needed)) continue;
    log_.reads_.push_back({computed ? Tensor() : in[i], in[i].impl().value, in[i].impl().storage->version, needed,
                           static_cast<int>(i), &op, location().module, given, false});
  }
}

RunLog::Compare::Compare(RunLog& log) : log_(log), own_(Tape::current().next_serial()) {
  for (Read& r : log.reads_) r.seen = false;
  if (log.guarded_ && !DryLedger::active()) scope_.emplace(static_cast<Observer&>(*this));
  context().watches.push_back(this);
}

void RunLog::Compare::reads(const OpDecl& op, std::span<const Tensor> in, std::uint32_t needs) {
  for (std::size_t i = 0; i < in.size(); ++i) {
    const Tensor& t = in[i];
    const bool needed = (needs & bit(static_cast<int>(i))) != 0;
    if (!matters(t, needed) || log_.is_given(t, needed)) continue;
    const ValueRef& value = t.impl().value;
    const bool computed = needed && !t.is_leaf();
    if (computed && value.recorder == &Tape::current() && value.serial >= own_) continue;  // by this run
    std::size_t at = next_read_;
    while (at < log_.reads_.size() && !log_.reads_[at].is(t, needed)) ++at;
    const auto what = [&] { return str("replay: ", describe(static_cast<int>(i), op, location().module, t.shape())); };
    if (at == log_.reads_.size())
      fail(str(what(),
               computed
                   ? ", was computed elsewhere, and was not read in the first run: another stage left it beside the chain, or a "
                     "tensor that was captured has been computed anew. What is recomputed has to read the same tensors every "
                     "time: give it along as an input, or detach() it."
                   : ", was not read in the first run, or not with a gradient as now. What is recomputed has to read the "
                     "same parameters every time, in the same order: replace or unfreeze them after backward, and make none in "
                     "there."));
    Read& read = log_.reads_[at];
    if (!computed && t.impl().storage->version != read.version)
      fail(str(what(),
               ", was modified in place by what is recomputed itself, which would do so again. Do it outside, or where "
               "!replaying() and after it was read."));
    read.seen = true;
    next_read_ = at + 1;
  }
}

void RunLog::Compare::finish() const {
  for (const Read& r : log_.reads_) {
    const auto same = [&](const Read& other) {
      return other.seen && other.needed == r.needed &&
             (r.tensor.defined() ? other.tensor.defined() && other.tensor.same(r.tensor) : same_value(other.value, r.value));
    };
    if (r.needed && !r.given && !r.seen && std::ranges::none_of(log_.reads_, same))
      fail(str(
          "replay: input ", r.input, " of ", r.op->name, r.module[0] != 0 ? str(" in module ", r.module) : "",
          ", which gets a gradient, was read in the first run and not in the second. What is recomputed has to compute the same "
          "every time; what it only looks at belongs under NoGrad."));
  }
  if (scope_ && next_ != log_.notes_.size())
    fail(str("replay: the function ended where the first run had ", log_.notes_[next_].op->name,
             ". A function that is recomputed must run the same ops every time."));
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
