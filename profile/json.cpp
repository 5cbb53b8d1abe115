#include <rewind/profile/profile.h>

#include <charconv>
#include <cmath>

namespace rewind_lib {
namespace {

/// Writes JSON from the outside to the inside: begin, key and value, end.
class Writer {
 public:
  Writer& begin(char bracket) {
    separate();
    out_ += bracket;
    first_ = true;
    return *this;
  }
  Writer& end(char bracket) {
    out_ += bracket;
    first_ = false;
    return *this;
  }
  Writer& key(std::string_view name) {
    separate();
    quote(name);
    out_ += ':';
    first_ = true;  // its value follows without a comma
    return *this;
  }
  Writer& value(std::string_view text) {
    separate();
    quote(text);
    return *this;
  }
  Writer& value(const char* text) { return value(std::string_view(text)); }
  Writer& value(bool b) {
    separate();
    out_ += b ? "true" : "false";
    return *this;
  }
  template <class T>
  requires std::is_arithmetic_v<T> Writer& value(T number) {
    separate();
    if constexpr (std::is_floating_point_v<T>)
      if (!std::isfinite(number)) {
        out_ += "null";
        return *this;
      }
    char text[40];
    out_.append(text, std::to_chars(text, text + sizeof text, number).ptr);
    return *this;
  }
  Writer& value(const Shape& shape) {
    begin('[');
    for (int i = 0; i < shape.rank(); ++i) value(shape[i]);
    return end(']');
  }
  template <class T>
  Writer& field(std::string_view name, const T& v) {
    return key(name).value(v);
  }
  void line() { out_ += '\n'; }
  std::string take() { return std::move(out_); }

 private:
  void separate() {
    if (!first_) out_ += ',';
    first_ = false;
  }
  void quote(std::string_view text) {
    out_ += '"';
    for (const char c : text) {
      if (c == '"' || c == '\\') {
        out_ += {'\\', c};
      } else if (static_cast<unsigned char>(c) < 0x20) {
        constexpr char hex[] = "0123456789abcdef";
        out_ += {'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15]};
      } else {
        out_ += c;
      }
    }
    out_ += '"';
  }

  std::string out_;
  bool first_ = true;
};

void write(Writer& w, const Energy& e) {
  w.begin('{').field("arithmetic_joules", e.arithmetic).field("dram_joules", e.dram).field("sram_joules", e.sram);
  w.field("instruction_joules", e.instructions).end('}');
}

void write_work(Writer& w, const Work& k) {
  w.field("calls", k.calls).field("macs", k.macs).field("flops", k.flops).field("bytes_read", k.bytes_read);
  w.field("bytes_written", k.bytes_written).field("intensity", k.intensity()).field("saved_bytes", k.saved_bytes);
  w.field("workspace_bytes", k.workspace_bytes).field("ms_median", 1e3 * k.median).field("ms_p95", 1e3 * k.p95);
  w.field("time_share", k.share).field("roofline_ms", 1e3 * k.roofline).field("of_roofline", k.of_roofline());
  write(w.key("energy"), k.energy);
}

void write(Writer& w, const memory::Usage& usage) {
  w.begin('{');
  for (int c = 0; c < category_count; ++c) w.field(name_of(static_cast<Category>(c)), usage.bytes[c]);
  w.field("total", usage.total).end('}');
}

void write_ops(Writer& w, const Profile& p) {
  for (const OpRecord& op : p.step.ops) {
    const auto flops = static_cast<double>(op.cost.flops), bytes = static_cast<double>(op.cost.bytes_read + op.cost.bytes_written);
    const double median = op.median(), roofline = p.machine.roofline(flops, bytes);
    w.begin('{').field("op", op.op).field("class", class_name(op.kind)).field("phase", name_of(op.phase));
    w.field("module", op.module).field("gradient_of", op.gradient_of).field("in", op.in).field("out", op.out);
    w.field("parameters", op.parameters).field("macs", op.cost.macs).field("flops", op.cost.flops);
    w.field("bytes_read", op.cost.bytes_read).field("bytes_written", op.cost.bytes_written);
    w.field("intensity", bytes > 0 ? flops / bytes : 0).field("saved_bytes", op.saved_bytes);
    w.field("workspace_bytes", op.workspace_bytes).field("ms_median", 1e3 * median).field("ms_p95", 1e3 * op.p95());
    w.field("roofline_ms", 1e3 * roofline).field("of_roofline", median > 0 ? roofline / median : 0).end('}');
    w.line();
  }
}

void write_memory(Writer& w, const MemoryProfile& m) {
  w.begin('{');
  write(w.key("predicted_peak_bytes"), m.plan.peak);
  write(w.key("measured_peak_bytes"), m.measured);
  write(w.key("at_peak_bytes"), m.plan.at_peak);
  w.key("optimizer_state_bytes").begin('{');
  for (const auto& s : m.state) w.field(s.slot, s.bytes);
  w.end('}').field("peak_op", m.plan.peak_op).field("peak_module", m.plan.peak_module);
  const PeakHolders& h = m.holders;
  w.key("holders").begin('{').field("op", h.op).field("module", h.module).field("phase", name_of(h.phase));
  write(w.key("live_bytes"), h.live);
  w.field("saved_bytes", h.saved_bytes)
      .field("running_bytes", h.running_bytes)
      .field("other_bytes", h.other_bytes)
      .key("saved")
      .begin('[');
  for (const SavedTensor& s : h.saved) {
    w.begin('{').field("op", s.op).field("module", s.module).field("shape", s.shape).field("dtype", name_of(s.dtype));
    w.field("category", name_of(s.category)).field("bytes", s.bytes).field("why", s.why).end('}');
    w.line();
  }
  w.end(']').end('}').end('}');
}

/// Ticks of 2^-10 microseconds. Such times are exact in binary, and so are their sums: whoever adds a begin and a duration finds
/// that what lies inside another ends no later than that.
constexpr double ticks_a_microsecond = 1024;
std::int64_t ticks(double seconds) { return std::llround(1e6 * ticks_a_microsecond * seconds); }

/// Chrome's trace events, of the kind with a begin and a duration.
class Trace {
 public:
  explicit Trace(Writer& w) : w_(w) {}
  /// Leaves the event open for args; times in microseconds.
  void begin(std::string_view name, std::string_view category, std::int64_t from, std::int64_t to) {
    w_.begin('{').field("name", name).field("cat", category).field("ph", "X").field("pid", 1).field("tid", 1);
    w_.field("ts", static_cast<double>(from) / ticks_a_microsecond)
        .field("dur", static_cast<double>(to - from) / ticks_a_microsecond)
        .key("args")
        .begin('{');
  }
  void end() {
    w_.end('}').end('}');
    w_.line();
  }

 private:
  Writer& w_;
};

/// The first `parts` parts of a path; all of it when it has fewer.
std::string_view head_of(std::string_view path, int parts) {
  std::size_t at = 0;
  for (; parts > 0 && at != path.npos; --parts) at = path.find('.', at == 0 ? 0 : at + 1);
  return path.substr(0, at);
}

}  // namespace

std::string to_json(const Profile& p) {
  Writer w;
  const Machine& m = p.machine;
  w.begin('{').key("machine").begin('{').field("cores", m.cores).field("threads", m.threads).field("flops_per_second", m.flops);
  w.field("bytes_per_second", m.bytes_per_second).field("ridge_flops_per_byte", m.ridge()).field("flops_per_mac", 2).end('}');
  w.field("input", p.input).field("parameters", p.parameters).field("fused", p.fused);

  w.key("step").begin('{').field("ms_median", 1e3 * percentile(p.step.step_seconds, 0.5));
  w.field("ms_p95", 1e3 * percentile(p.step.step_seconds, 0.95)).field("steps", p.step.step_seconds.size());
  w.field("ms_median_unwatched", 1e3 * percentile(p.step.plain_seconds, 0.5)).field("coverage", p.step.median_coverage());
  w.field("overhead_share", 1 - p.total.share).field("overhead_ns_per_op", p.step.overhead_ns_per_op()).key("all_ops").begin('{');
  write_work(w, p.total);
  w.end('}').end('}');

  w.key("classes").begin('[');
  for (const ClassRow& c : p.classes) {
    w.begin('{').field("class", class_name(c.kind)).field("flops_share", c.flops_share).field("bytes_share", c.bytes_share);
    if (c.published_flops >= 0)
      w.field("published_flops_share", c.published_flops / 100).field("published_time_share", c.published_time / 100);
    write_work(w, c.work);
    w.end('}');
    w.line();
  }
  w.end(']').key("op_totals").begin('[');
  for (const OpRow& r : p.ops) {
    w.begin('{').field("op", r.op).field("class", class_name(r.kind)).field("phase", name_of(r.phase));
    write_work(w, r.work);
    w.end('}');
    w.line();
  }
  w.end(']').key("ops").begin('[');
  write_ops(w, p);
  w.end(']').key("modules").begin('[');
  for (const ModuleRow& r : p.modules) {
    w.begin('{').field("module", r.path).field("type", r.type).field("depth", r.depth).field("parameters", r.parameters);
    for (int k = 0; k < phase_count; ++k) {
      if (r.phase[k].calls == 0) continue;
      w.key(name_of(static_cast<Phase>(k))).begin('{');
      write_work(w, r.phase[k]);
      w.end('}');
    }
    w.end('}');
    w.line();
  }
  w.end(']').key("memory");
  write_memory(w, p.memory);

  if (p.latency.runs > 0) {
    w.key("latency").begin('{').field("batch", 1).field("runs", p.latency.runs).field("ms_median", 1e3 * p.latency.median);
    w.field("ms_p95", 1e3 * p.latency.p95).field("ms_p99", 1e3 * p.latency.p99).end('}');
  }
  w.key("throughput").begin('[');
  for (const Throughput& t : p.throughput) {
    w.begin('{').field("batch", t.batch).field("inference_per_second", t.inference);
    if (t.training > 0) w.field("training_per_second", t.training);
    w.end('}');
  }
  w.end(']');
  if (p.epoch.batches > 0) {
    w.key("epoch").begin('{').field("seconds", p.epoch.seconds).field("waiting_seconds", p.epoch.waiting);
    w.field("batches", p.epoch.batches).field("samples", p.epoch.samples).end('}');
  }
  w.field("energy_assumptions", energy_assumptions).end('}');
  w.line();
  return w.take();
}

std::string chrome_trace(const Profile& p) {
  if (p.step.step_seconds.empty()) fail("chrome_trace: this profile holds no step; profile() makes one");
  const std::vector<OpRecord>& ops = p.step.ops;
  // The step of the median, and not a mean of steps: what is shown has happened.
  const double median = percentile(p.step.step_seconds, 0.5);
  std::size_t step = 0;
  while (p.step.step_seconds[step] != median) ++step;
  const auto from = [&](std::size_t i) { return ticks(ops[i].runs[step].begin); };
  const auto to = [&](std::size_t i) { return ticks(ops[i].runs[step].end); };

  Writer w;
  Trace trace(w);
  w.begin('{').field("displayTimeUnit", "ms").key("traceEvents").begin('[');
  w.line();
  for (const auto& [what, name] : {std::pair{"process_name", "rewind"}, {"thread_name", "a training step"}}) {
    w.begin('{').field("name", what).field("ph", "M").field("pid", 1).field("tid", 1);
    w.key("args").begin('{').field("name", name).end('}').end('}').line();
  }
  trace.begin("step", "step", 0, ticks(median));
  w.field("input", p.input);
  trace.end();

  // Events that hold others come before them. Runs of ops that share a phase, and in it the same head of a path, are one event.
  const auto nest = [&](const auto& self, std::size_t first, std::size_t last, int parts) -> void {
    for (std::size_t i = first; i < last;) {
      const std::string_view head = head_of(ops[i].module, parts), shorter = head_of(ops[i].module, parts - 1);
      if (head.empty() || head.size() == shorter.size()) {  // its own op, no module further down
        const OpRecord& op = ops[i];
        trace.begin(op.op, class_name(op.kind), from(i), to(i));
        w.field("module", op.module).field("class", class_name(op.kind)).field("phase", name_of(op.phase)).field("out", op.out);
        w.field("macs", op.cost.macs).field("flops", op.cost.flops).field("bytes_read", op.cost.bytes_read);
        w.field("bytes_written", op.cost.bytes_written).field("saved_bytes", op.saved_bytes);
        w.field("workspace_bytes", op.workspace_bytes);
        trace.end();
        ++i;
        continue;
      }
      std::size_t end = i + 1;
      while (end < last && head_of(ops[end].module, parts) == head && ops[end].module[0] != 0) ++end;
      trace.begin(head, "module", from(i), to(end - 1));
      trace.end();
      self(self, i, end, parts + 1);
      i = end;
    }
  };
  for (std::size_t i = 0; i < ops.size();) {
    std::size_t end = i + 1;
    while (end < ops.size() && ops[end].phase == ops[i].phase) ++end;
    trace.begin(name_of(ops[i].phase), "phase", from(i), to(end - 1));
    trace.end();
    nest(nest, i, end, 1);
    i = end;
  }
  w.end(']').end('}');
  w.line();
  return w.take();
}

}  // namespace rewind_lib
