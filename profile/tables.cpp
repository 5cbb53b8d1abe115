#include <rewind/nn/summary.h>
#include <rewind/profile/profile.h>

#include <algorithm>
#include <cstdio>
#include <numeric>
#include <ostream>

namespace rewind_lib {
namespace {

using nn::with_commas;

template <class... T>
std::string print(const char* format, T... values) {
  char text[400];
  std::snprintf(text, sizeof text, format, values...);
  return text;
}

std::string ms(double seconds) { return seconds > 0 ? print("%.3f", 1e3 * seconds) : "-"; }
std::string percent(double share) { return print("%.2f", 100 * share); }
std::string mega(std::int64_t n) { return n == 0 ? "-" : print("%.2f", 1e-6 * static_cast<double>(n)); }
std::string bytes(std::size_t n) { return n == 0 ? "-" : memory::human(n); }
std::string rate(double amount, double seconds) { return seconds > 0 ? print("%.1f", 1e-9 * amount / seconds) : "-"; }
std::string intensity(const Work& w) { return w.bytes() > 0 ? print("%.2f", w.intensity()) : "-"; }
std::string of_roofline(const Work& w) { return w.roofline > 0 ? print("%.0f %%", 100 * w.of_roofline()) : "-"; }
std::string published(double value) { return value < 0 ? "-" : print("%.2f", value); }

/// Lines of cells; the first `left` columns begin at the left, the others end at the right.
class Table {
 public:
  Table(std::string title, std::vector<std::string> heads, std::size_t left = 1)
      : title_(std::move(title)), left_(left), lines_{std::move(heads)} {}
  void add(std::vector<std::string> cells) {
    REWIND_CHECK(cells.size() == lines_[0].size());
    lines_.push_back(std::move(cells));
  }
  std::string text() const {
    std::vector<std::size_t> width(lines_[0].size());
    for (const auto& line : lines_)
      for (std::size_t c = 0; c < line.size(); ++c) width[c] = std::max(width[c], line[c].size());
    const std::string rule(std::accumulate(width.begin(), width.end(), 2 * (width.size() - 1)), '-');
    std::string out = "\n" + title_ + "\n" + rule + "\n";
    for (std::size_t i = 0; i < lines_.size(); ++i) {
      std::string row;
      for (std::size_t c = 0; c < lines_[i].size(); ++c) {
        const std::string pad(width[c] - lines_[i][c].size(), ' ');
        row += (c > 0 ? "  " : "") + (c < left_ ? lines_[i][c] + pad : pad + lines_[i][c]);
      }
      out += row.substr(0, row.find_last_not_of(' ') + 1) + "\n";
      if (i == 0) out += rule + "\n";
    }
    return out;
  }

 private:
  std::string title_;
  std::size_t left_;
  std::vector<std::vector<std::string>> lines_;
};

std::string header(const Profile& p) {
  const Machine& m = p.machine;
  return str(
      "A training step, input ", p.input, ", ", with_commas(p.parameters), " parameters, ", p.fused ? "fused" : "unfused", "\n",
      print("%d cores, %d thread%s: %.1f GFLOP/s and %.1f GB/s measured, ridge point %.1f FLOPs a byte; 1 MAC = 2 FLOPs\n", m.cores,
            m.threads, m.threads == 1 ? "" : "s", 1e-9 * m.flops, 1e-9 * m.bytes_per_second, m.ridge()),
      print("%zu ops in %.2f ms (p95 %.2f; %.2f when nobody watches): ops %.2f %%, framework overhead %.2f %%, %.0f ns an op\n",
            p.step.ops.size(), 1e3 * percentile(p.step.step_seconds, 0.5), 1e3 * percentile(p.step.step_seconds, 0.95),
            1e3 * percentile(p.step.plain_seconds, 0.5), 100 * p.total.share, 100 * (1 - p.total.share),
            p.step.overhead_ns_per_op()));
}

std::string classes(const Profile& p) {
  Table t("Where the time goes, by class of operator, in %; beside it PyTorch and a transformer (Ivanov et al. 2021)",
          {"class", "calls", "FLOPs", "bytes", "time", "theirs: FLOPs", "time", "ms", "p95", "GFLOP/s", "GB/s", "FLOPs/B",
           "of roofline"});
  const auto row = [&](const char* name, const Work& w, double flops, double moved, const ClassRow* c) {
    t.add({name, with_commas(w.calls), percent(flops), percent(moved), percent(w.share), published(c ? c->published_flops : -1),
           published(c ? c->published_time : -1), ms(w.median), ms(w.p95), rate(static_cast<double>(w.flops), w.median),
           rate(static_cast<double>(w.bytes()), w.median), intensity(w), of_roofline(w)});
  };
  for (const ClassRow& c : p.classes) row(class_name(c.kind), c.work, c.flops_share, c.bytes_share, &c);
  row("all ops", p.total, 1, 1, nullptr);
  t.add({"framework overhead", "", "", "", percent(1 - p.total.share), "", "",
         ms(1e-9 * p.step.overhead_ns_per_op() * static_cast<double>(p.step.ops.size())), "", "", "", "", ""});
  return t.text();
}

std::string ops(const Profile& p, std::size_t rows) {
  Table t(str("Ops, the slowest ", std::min(rows, p.ops.size()), " of ", p.ops.size()),
          {"op", "phase", "class", "calls", "ms", "p95", "time %", "MMACs", "MFLOPs", "read MB", "written MB", "FLOPs/B",
           "roofline ms", "of roofline", "saved", "workspace"},
          3);
  for (std::size_t i = 0; i < std::min(rows, p.ops.size()); ++i) {
    const OpRow& r = p.ops[i];
    const Work& w = r.work;
    t.add({r.op, name_of(r.phase), name_of(r.kind), with_commas(w.calls), ms(w.median), ms(w.p95), percent(w.share), mega(w.macs),
           mega(w.flops), mega(w.bytes_read), mega(w.bytes_written), intensity(w), ms(w.roofline), of_roofline(w),
           bytes(w.saved_bytes), bytes(w.workspace_bytes)});
  }
  return t.text();
}

/// What two lots of ops take together.
void add(Work& to, const Work& w) {
  to.macs += w.macs;
  to.flops += w.flops;
  to.bytes_read += w.bytes_read;
  to.bytes_written += w.bytes_written;
  to.saved_bytes += w.saved_bytes;
  to.workspace_bytes = std::max(to.workspace_bytes, w.workspace_bytes);
  to.median += w.median;
  to.roofline += w.roofline;
}

/// Rows down to a depth; what is below is added to the last one above it that is shown.
std::vector<ModuleRow> fold(const std::vector<ModuleRow>& modules, int depth) {
  std::vector<ModuleRow> rows;
  for (const ModuleRow& m : modules) {
    const bool below = m.depth > depth && !rows.empty();
    if (!below) {
      rows.push_back(m);
      continue;
    }
    ModuleRow& to = rows.back();
    to.parameters += m.parameters;
    for (int k = 0; k < phase_count; ++k) add(to.phase[k], m.phase[k]);
  }
  return rows;
}

std::string modules(const Profile& p, int depth) {
  Table t(str("Modules down to level ", depth, ", each without the modules in it, those of level ", depth,
              " with them; times in ms\nMedians of a step, by phase; added up they come out a little below its own"),
          {"module", "parameters", "forward MACs", "MFLOPs", "moved MB", "FLOPs/B", "forward", "backward", "recompute", "optimizer",
           "roofline", "of roofline", "saved", "workspace"});
  for (const ModuleRow& m : fold(p.modules, depth)) {
    Work all;
    for (const Work& w : m.phase) add(all, w);
    const auto at = [&](Phase phase) -> const Work& { return m.phase[static_cast<int>(phase)]; };
    t.add({std::string(static_cast<std::size_t>(2 * m.depth), ' ') + (m.path.empty() ? m.type : m.path + ": " + m.type),
           m.parameters == 0 ? "-" : with_commas(m.parameters),
           at(Phase::forward).macs == 0 ? "-" : with_commas(at(Phase::forward).macs), mega(all.flops), mega(all.bytes()),
           intensity(all), ms(at(Phase::forward).median), ms(at(Phase::backward).median), ms(at(Phase::recompute).median),
           ms(at(Phase::optimizer).median), ms(all.roofline), of_roofline(all), bytes(all.saved_bytes),
           bytes(all.workspace_bytes)});
  }
  return t.text();
}

std::string memory_tables(const Profile& p, std::size_t rows) {
  const MemoryProfile& m = p.memory;
  Table t("Memory of a step", {"", "predicted peak", "measured peak", "at the peak"});
  for (int c = 0; c < category_count; ++c) {
    t.add({name_of(static_cast<Category>(c)), bytes(m.plan.peak.bytes[c]), bytes(m.measured.bytes[c]),
           bytes(m.plan.at_peak.bytes[c])});
    if (static_cast<Category>(c) == Category::optimizer_state)
      for (const auto& s : m.state) t.add({str("  ", s.slot), "", bytes(s.bytes), ""});
  }
  t.add({"total", bytes(m.plan.peak.total), bytes(m.measured.total), bytes(m.plan.peak.total)});
  std::string text = t.text();

  const PeakHolders& h = m.holders;
  std::vector<SavedTensor> saved;
  for (const SavedTensor& s : h.saved)
    if (s.category == Category::activation && s.bytes > 0) saved.push_back(s);
  std::ranges::stable_sort(saved, std::greater(), &SavedTensor::bytes);
  Table who(str("Who holds the peak: when ", h.op, h.module[0] != 0 ? str(" in ", h.module) : "", " (", name_of(h.phase),
                ") begins, ", memory::human(h.live[Category::activation]), " of activations; saved for backward ",
                memory::human(h.saved_bytes), " in ", saved.size(), saved.size() == 1 ? " tensor" : " tensors",
                ", in use by this op ", memory::human(h.running_bytes), ", others ", memory::human(h.other_bytes)),
            {"saved for", "in module", "shape", "why", "bytes"}, 4);
  for (std::size_t i = 0; i < std::min(rows, saved.size()); ++i)
    who.add(
        {saved[i].op, saved[i].module[0] == 0 ? "-" : saved[i].module, str(saved[i].shape), saved[i].why, bytes(saved[i].bytes)});
  return text + who.text();
}

std::string times(const Profile& p) {
  std::string text;
  if (p.latency.runs > 0)
    text += print("\nLatency at batch 1, evaluation: median %.3f ms, p95 %.3f, p99 %.3f (%d runs)\n", 1e3 * p.latency.median,
                  1e3 * p.latency.p95, 1e3 * p.latency.p99, p.latency.runs);
  if (!p.throughput.empty()) {
    Table t("Throughput, samples a second", {"batch", "inference", "training"});
    for (const Throughput& r : p.throughput)
      t.add({with_commas(r.batch), print("%.1f", r.inference), r.training > 0 ? print("%.1f", r.training) : "-"});
    text += t.text();
  }
  if (p.epoch.batches > 0)
    text +=
        print("\nAn epoch with its data: %.3f s for %lld samples in %lld batches (%.1f a second), %.3f s of it waiting for data\n",
              p.epoch.seconds, static_cast<long long>(p.epoch.samples), static_cast<long long>(p.epoch.batches),
              static_cast<double>(p.epoch.samples) / p.epoch.seconds, p.epoch.waiting);
  return text;
}

std::string energy(const Profile& p) {
  Table t("Energy of a step, estimated, in mJ", {"class", "arithmetic", "movement, DRAM", "movement, SRAM", "scalar instructions"});
  const auto row = [&](const char* name, const Energy& e) {
    t.add({name, print("%.3f", 1e3 * e.arithmetic), print("%.3f", 1e3 * e.dram), print("%.3f", 1e3 * e.sram),
           print("%.3f", 1e3 * e.instructions)});
  };
  for (const ClassRow& c : p.classes) row(class_name(c.kind), c.work.energy);
  row("all", p.total.energy);
  std::string text = t.text();
  for (std::string_view rest = energy_assumptions; !rest.empty();) {
    const std::size_t end = rest.size() <= 130 ? rest.size() : rest.rfind(' ', 130);
    text += std::string(rest.substr(0, end)) + "\n";
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  return text;
}

}  // namespace

std::string to_string(const Profile& p, int rows, int depth) {
  const auto most = static_cast<std::size_t>(std::max(rows, 0));
  return header(p) + classes(p) + ops(p, most) + modules(p, depth) + memory_tables(p, most) + times(p) + energy(p);
}

std::ostream& operator<<(std::ostream& out, const Profile& profile) { return out << to_string(profile); }

}  // namespace rewind_lib
