#include <rewind/autograd/dry_run.h>
#include <rewind/core/random.h>

#include <algorithm>
#include <cstdio>

namespace rewind_lib {
namespace {

class Tally final : public Observer {
 public:
  explicit Tally(DryRun& run) : run_(run) {}

 private:
  void after(const OpEvent& event) override {
    auto at = std::ranges::find_if(run_.ops, [&](const OpTotal& t) { return t.op == event.op.name && t.phase == event.phase; });
    if (at == run_.ops.end()) at = run_.ops.insert(at, {event.op.name, event.op.kind, event.phase});
    const Cost cost = event.cost();
    const std::int64_t bytes = cost.bytes_read + cost.bytes_written;
    ++at->count;
    at->flops += cost.flops;
    at->macs += cost.macs;
    at->bytes_moved += bytes;
    run_.flops += cost.flops;
    run_.macs += cost.macs;
    run_.bytes_moved += bytes;
  }
  DryRun& run_;
};

}  // namespace

DryRun detail::dry_run(void (*call)(void*), void* f) {
  if (DryLedger::active()) fail("dry_run: a dry run is already going on on this thread; dry runs do not nest");
  DryRun run;
  const DryLedger ledger;
  const random::GeneratorScope generator;
  Tally tally(run);
  const ObserverScope scope(tally);
  run.before = memory::live();
  memory::start_timeline();
  call(f);
  run.timeline = memory::stop_timeline();
  run.peak = memory::peak();
  run.at_peak = memory::at_peak();
  run.after = memory::live();
  const auto top =
      std::ranges::find_if(run.timeline, [&](const memory::Event& e) { return e.total == run.peak.total && e.delta > 0; });
  if (top != run.timeline.end()) {
    run.peak_op = top->op;
    run.peak_module = top->module;
  }
  return run;
}

std::int64_t DryRun::flops_in(Phase phase) const {
  std::int64_t sum = 0;
  for (const OpTotal& t : ops)
    if (t.phase == phase) sum += t.flops;
  return sum;
}

std::string DryRun::report() const {
  char line[160];
  std::string text;
  const auto print = [&](const char* format, auto... values) {
    std::snprintf(line, sizeof line, format, values...);
    text += line;
  };
  print("%-16s %12s %12s %12s %12s\n", "memory", "before", "own peak", "at the peak", "after");
  const auto row = [&](const char* name, std::size_t a, std::size_t b, std::size_t c, std::size_t d) {
    print("%-16s %12s %12s %12s %12s\n", name, memory::human(a).c_str(), memory::human(b).c_str(), memory::human(c).c_str(),
          memory::human(d).c_str());
  };
  for (int c = 0; c < category_count; ++c)
    row(name_of(static_cast<Category>(c)), before.bytes[c], peak.bytes[c], at_peak.bytes[c], after.bytes[c]);
  row("total", before.total, peak.total, peak.total, after.total);
  text += str("the peak is at ", peak_op.empty() ? "no op" : peak_op, peak_module.empty() ? "" : " in ", peak_module, "\n\n");
  print("%-28s %-10s %8s %12s %12s\n", "op", "phase", "calls", "GFLOP", "moved");
  for (const OpTotal& t : ops)
    print("%-28s %-10s %8lld %12.3f %12s\n", t.op, name_of(t.phase), static_cast<long long>(t.count),
          static_cast<double>(t.flops) * 1e-9, memory::human(static_cast<std::size_t>(t.bytes_moved)).c_str());
  print("%-28s %-10s %8s %12.3f %12s\n", "total", "", "", static_cast<double>(flops) * 1e-9,
        memory::human(static_cast<std::size_t>(bytes_moved)).c_str());
  return text;
}

}  // namespace rewind_lib
