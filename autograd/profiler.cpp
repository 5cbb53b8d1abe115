#include <rewind/autograd/dry_run.h>
#include <rewind/autograd/profiler.h>
#include <rewind/autograd/tape.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <map>
#include <unordered_map>
#include <unordered_set>

namespace rewind_lib {

double detail::now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

namespace {

using detail::Entry;
using detail::now;
using detail::Tape;

bool is_activation(Category c) { return c != Category::parameter && c != Category::input; }

/// Counts the bytes of activations that the tape keeps and did not keep before.
class TapeWatch {
 public:
  /// Of an op that is about to be recorded.
  std::size_t next(const OpEvent& e) {
    if (!e.recorded) return 0;
    const Tape& tape = Tape::current();
    const Holder self{tape.entries().size(), tape.next_serial()};
    std::size_t bytes = 0;
    for (std::size_t i = 0; i < e.in.size(); ++i)
      if ((e.saves.inputs & bit(static_cast<int>(i))) != 0 && e.in[i].defined()) bytes += keep(e.in[i].impl().storage, self);
    for (std::size_t j = 0; j < e.out.size(); ++j)
      if ((e.saves.outputs & bit(static_cast<int>(j))) != 0) bytes += keep(e.out[j].impl().storage, self);
    last_ = self.serial;
    return bytes;
  }

  /// Of entries that came since, and not from ops: checkpoints.
  std::size_t others() {
    const auto entries = Tape::current().entries();
    std::size_t first = entries.size(), bytes = 0;
    while (first > 0 && entries[first - 1]->serial > last_) --first;
    for (std::size_t i = first; i < entries.size(); ++i) {
      const Entry& e = *entries[i];
      last_ = e.serial;
      if (!e.live) continue;
      for (const auto& slot : e.in) bytes += keep(slot.saved.storage, {i, e.serial});
      for (const auto& slot : e.out) bytes += keep(slot.saved.storage, {i, e.serial});
      if (e.op->held != nullptr)
        for (const Tensor& t : e.op->held(e.attr)) bytes += keep(t.impl().storage, {i, e.serial});
    }
    return bytes;
  }

 private:
  struct Holder {
    std::size_t index = 0;
    std::uint64_t serial = 0;
  };

  std::size_t keep(const Storage* s, Holder by) {
    if (s == nullptr || !is_activation(s->category)) return 0;
    const auto entries = Tape::current().entries();
    Holder& h = holders_[s];
    // The holder may be gone, and the address another storage's by now. Or it is the op that is about to be recorded.
    const bool held =
        h.serial == by.serial || (h.index < entries.size() && entries[h.index]->serial == h.serial && entries[h.index]->live);
    if (held) return 0;
    h = by;
    return s->bytes;
  }

  std::unordered_map<const Storage*, Holder> holders_;
  std::uint64_t last_ = Tape::current().next_serial() - 1;  // what is on the tape already is not this step's
};

/// Writes down what does not change from step to step.
class Describe final : public Observer {
 public:
  explicit Describe(std::vector<OpRecord>& ops) : ops_(ops) {}

 private:
  void before(const OpEvent&) override {
    const std::size_t bytes = tape_.others();
    if (!ops_.empty()) ops_.back().saved_bytes += bytes;
  }
  void after(const OpEvent& e) override {
    OpRecord r{e.op.name, e.op.kind, e.phase, e.module, e.gradient_of, e.cost(), {}, {}};
    if (!e.in.empty() && e.in[0].defined()) r.in = e.in[0].shape();
    if (e.specs.size() > 0) r.out = e.specs[0].shape;
    for (const Tensor& t : e.in)
      if (t.defined() && t.requires_grad() && t.category() == Category::parameter && read_[e.phase].insert(&t.impl()).second)
        r.parameters += t.numel();
    r.workspace_bytes = e.workspace_bytes;
    r.saved_bytes = tape_.next(e);
    if (e.op.kind == Kind::optimizer && !e.in.empty()) r.changes = &e.in[0].impl();
    ops_.push_back(std::move(r));
  }

  std::vector<OpRecord>& ops_;
  TapeWatch tape_;
  std::map<Phase, std::unordered_set<const detail::TensorImpl*>> read_;
};

/// Reads the clock around every op, its entry on the tape included, and does nothing else meanwhile.
class Stopwatch final : public Observer {
 public:
  struct Lap {
    const char* op;
    const char* module;
    double begin, end;
  };
  explicit Stopwatch(std::size_t expected) { laps.reserve(expected); }
  std::vector<Lap> laps;

 private:
  void entering(const OpDecl&) override { begin_ = now(); }
  void after(const OpEvent& e) override { laps.push_back({e.op.name, e.module, begin_, begin_}); }
  void left(const OpDecl&) override { laps.back().end = now(); }
  double begin_ = 0;
};

void expect_the_same(const std::vector<OpRecord>& ops, const std::vector<Stopwatch::Lap>& laps) {
  constexpr const char* what_to_do =
      "; a profile needs a step that runs the same ops every time: switch off what chooses at random";
  for (std::size_t i = 0; i < std::min(ops.size(), laps.size()); ++i)
    if (std::string_view(ops[i].op) != laps[i].op || std::string_view(ops[i].module) != laps[i].module)
      fail(str("profile: op ", i, " of the step was ", ops[i].op, " in module '", ops[i].module, "' and then ", laps[i].op,
               " in module '", laps[i].module, "'", what_to_do));
  if (ops.size() != laps.size()) fail(str("profile: the step ran ", ops.size(), " ops and then ", laps.size(), what_to_do));
}

/// What one reading of the clock takes: some 25 ns, as much as a small op.
double reading_seconds() {
  std::vector<double> seconds;
  for (int i = 0; i < 101; ++i) {
    const double begin = now();
    seconds.push_back(now() - begin);
  }
  return percentile(std::move(seconds), 0.5);
}

std::vector<double> seconds_of(const std::vector<Span>& runs) {
  std::vector<double> seconds;
  for (const Span& s : runs) seconds.push_back(s.seconds());
  return seconds;
}

/// Why the tape keeps a tensor, asked of the op's declaration: which gradients call for it.
std::string reason(const Entry& e, std::string text, std::size_t number, std::uint32_t Saves::*list) {
  if (e.op->saves == nullptr) return text + ", to run it again";
  std::string gradients;
  int count = 0;
  for (std::size_t i = 0; i < e.in.size(); ++i) {
    if (!e.in[i].needs) continue;
    const Saves saves = e.op->saves(e.attr, bit(static_cast<int>(i)));
    if ((saves.*list & bit(static_cast<int>(number))) == 0) continue;
    const Tensor& leaf = e.in[i].leaf;
    const bool parameter = leaf.defined() && leaf.category() == Category::parameter;
    gradients += str(count++ == 0 ? "" : ", ", e.op->input_name(static_cast<int>(i)), parameter ? " (a parameter)" : "");
  }
  if (count == 0) return text + (e.remakes ? ", to make the output again" : ", for its gradients");
  return str(text, ", for the gradient", count == 1 ? " of " : "s of ", gradients);
}

/// Watches for the op before which most is held; in a second run, looks at who holds it.
class FindPeak final : public Observer {
 public:
  std::size_t most = 0;
  std::int64_t at = -1;
  PeakHolders* look = nullptr;
  std::int64_t seen = 0;

 private:
  void before(const OpEvent& e) override {
    const std::int64_t index = seen++;
    if (look == nullptr) {
      const std::size_t total = memory::live().total;
      if (total <= most) return;
      most = total;
      at = index;
    } else if (index == at) {
      *look = {e.op.name, e.module, e.phase, memory::live(), saved_tensors()};
      std::unordered_set<const Storage*> kept;
      for (const Entry* entry : Tape::current().entries()) {
        if (!entry->live) continue;
        for (const auto& slot : entry->in) kept.insert(slot.saved.storage);
        for (const auto& slot : entry->out) kept.insert(slot.saved.storage);
        if (entry->op->held != nullptr)
          for (const Tensor& t : entry->op->held(entry->attr)) kept.insert(t.impl().storage);
      }
      for (const SavedTensor& s : look->saved)
        if (s.category == Category::activation) look->saved_bytes += s.bytes;
      const auto count = [&](const Tensor& t) {
        if (t.defined() && t.category() == Category::activation && kept.insert(t.impl().storage).second)
          look->running_bytes += t.impl().storage->bytes;
      };
      for (const Tensor& t : e.in) count(t);
      for (const Tensor& t : e.out) count(t);
      look->other_bytes = look->live[Category::activation] - look->saved_bytes - look->running_bytes;
    }
  }
};

}  // namespace

double percentile(std::vector<double> values, double p) {
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  std::ranges::sort(values);
  const auto rank = static_cast<std::size_t>(std::ceil(p * static_cast<double>(values.size())));
  return values[std::clamp<std::size_t>(rank, 1, values.size()) - 1];
}

double OpRecord::median() const { return percentile(seconds_of(runs), 0.5); }
double OpRecord::p95() const { return percentile(seconds_of(runs), 0.95); }

double OpProfile::coverage(std::size_t step) const {
  double sum = 0;
  for (const OpRecord& r : ops) sum += r.runs.at(step).seconds();
  return sum / step_seconds.at(step);
}

double OpProfile::median_coverage() const {
  std::vector<double> all;
  for (std::size_t s = 0; s < step_seconds.size(); ++s) all.push_back(coverage(s));
  return percentile(std::move(all), 0.5);
}

double OpProfile::overhead_ns_per_op() const {
  std::vector<double> rest;
  for (std::size_t s = 0; s < step_seconds.size(); ++s) rest.push_back((1 - coverage(s)) * step_seconds[s]);
  return 1e9 * percentile(std::move(rest), 0.5) / static_cast<double>(ops.size());
}

OpProfile detail::profile_ops(void (*call)(void*), void* f, int steps, int warmup) {
  if (steps < 1) fail(str("profile: needs at least one step to time, got steps = ", steps));
  if (warmup < 0) fail(str("profile: the steps to warm up must not be negative, got warmup = ", warmup));
  if (DryLedger::active()) fail("profile: measures, and nothing runs in a dry run; call it outside");
  OpProfile p;
  for (int i = 0; i < warmup; ++i) call(f);
  {
    Describe describe(p.ops);
    const ObserverScope scope(describe);
    call(f);
  }
  if (p.ops.empty()) fail("profile: the step ran no op on this thread");
  const double reading = reading_seconds();
  for (int i = 0; i < steps; ++i) {
    Stopwatch watch(p.ops.size());
    double begin, end;
    {
      const ObserverScope scope(watch);
      begin = now();
      call(f);
      end = now();
    }
    expect_the_same(p.ops, watch.laps);
    double last = 0;
    std::size_t readings = 0;
    const auto without_readings = [&](double time) {
      return last = std::max(last, time - begin - reading * static_cast<double>(++readings));
    };
    for (std::size_t k = 0; k < p.ops.size(); ++k) {
      const double from = without_readings(watch.laps[k].begin);
      p.ops[k].runs.push_back({from, without_readings(watch.laps[k].end)});
    }
    p.step_seconds.push_back(without_readings(end));
    begin = now();
    call(f);
    p.plain_seconds.push_back(now() - begin);
  }
  return p;
}

std::vector<SavedTensor> saved_tensors() {
  std::vector<SavedTensor> list;
  std::unordered_set<const Storage*> seen;
  for (const Entry* e : Tape::current().entries()) {
    if (!e->live) continue;
    const auto add = [&](const Storage& s, const Shape& shape, DType dtype, std::string why) {
      if (is_stale(s)) return;
      const bool first = seen.insert(&s).second;
      list.push_back({e->op->name, e->module, std::move(why), shape, dtype, s.category, first ? s.bytes : 0});
    };
    for (std::size_t i = 0; i < e->in.size(); ++i)
      if (const auto& slot = e->in[i]; slot.saved.storage != nullptr)
        add(*slot.saved.storage, slot.shape, slot.dtype, reason(*e, e->op->input_name(static_cast<int>(i)), i, &Saves::inputs));
    for (std::size_t j = 0; j < e->out.size(); ++j)
      if (const auto& slot = e->out[j]; slot.saved.storage != nullptr)
        add(*slot.saved.storage, slot.shape, slot.dtype, reason(*e, e->op->output_name(static_cast<int>(j)), j, &Saves::outputs));
    if (e->op->held != nullptr)
      for (const Tensor& t : e->op->held(e->attr))
        add(*t.impl().storage, t.shape(), t.dtype(), "a checkpoint, to run what comes after it again");
  }
  return list;
}

PeakHolders detail::peak_holders(void (*call)(void*), void* f) {
  PeakHolders holders;
  FindPeak find;
  for (int run = 0; run < 2; ++run) {
    static_cast<void>(rewind_lib::dry_run([&] {
      const ObserverScope scope(find);
      call(f);
    }));
    find.look = &holders;
    find.seen = 0;
  }
  return holders;
}

}  // namespace rewind_lib
