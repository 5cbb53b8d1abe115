#include <rewind/autograd/backward.h>
#include <rewind/autograd/grad_mode.h>
#include <rewind/autograd/observer.h>
#include <rewind/autograd/replay.h>
#include <rewind/core/random.h>
#include <rewind/nn/plan.h>
#include <rewind/nn/summary.h>

#include <algorithm>
#include <array>
#include <optional>
#include <ostream>

namespace rewind_lib::nn {
namespace {

/// Everything that a dry run of a net might change, put back at the end.
class Unchanged {
 public:
  explicit Unchanged(Module& net) : modes_(net) {
    for (Parameter& p : net.parameters()) {
      Tensor grad = p.value.grad();
      p.value.set_grad({});
      gradients_.emplace_back(std::move(p.value), std::move(grad));
    }
  }
  ~Unchanged() {
    for (auto& [value, grad] : gradients_) value.set_grad(std::move(grad));
  }
  Unchanged(const Unchanged&) = delete;
  Unchanged& operator=(const Unchanged&) = delete;

 private:
  ModeScope modes_;
  std::vector<std::pair<Tensor, Tensor>> gradients_;
  random::GeneratorScope generator_;
};

/// Lists the modules, and what each holds itself: a tensor that several hold counts at the first.
class Inventory final : public ModuleVisitor, Fields {
 public:
  explicit Inventory(Summary& summary) : summary_(summary) {}
  std::vector<Module*> modules;  // of summary.layers

  void visit(const std::string& path, Module& module) override {
    summary_.layers.push_back({.path = path, .type = module.type(), .depth = depth_of(path)});
    modules.push_back(&module);
    module.describe(*this);
  }

 private:
  bool is_new(const Tensor& t) {
    if (!t.defined() || std::ranges::any_of(seen_, [&](const Tensor& s) { return s.same(t); })) return false;
    seen_.push_back(t);
    return true;
  }
  void parameter(std::string_view, Tensor& t) override {
    if (!is_new(t)) return;
    summary_.layers.back().parameters += t.numel();
    summary_.parameters += t.numel();
    summary_.parameter_bytes += static_cast<std::int64_t>(t.bytes());
    if (!t.requires_grad()) return;
    summary_.trainable += t.numel();
    const auto bytes = static_cast<std::int64_t>(t.bytes());
    summary_.optimizer_state_bytes.momentum += bytes;
    summary_.optimizer_state_bytes.adam += 2 * bytes;
  }
  void buffer(std::string_view, Tensor& t) override {
    if (!is_new(t)) return;
    summary_.layers.back().buffers += t.numel();
    summary_.buffers += t.numel();
    summary_.buffer_bytes += static_cast<std::int64_t>(t.bytes());
  }
  void child(std::string_view, Module&) override {}

  Summary& summary_;
  std::vector<Tensor> seen_;
};

/// Watches the dry run: output shapes from modules, costs and saved tensors from ops.
class Watch final : public Observer, public ModuleObserver {
 public:
  Watch(Summary& summary, const std::vector<Module*>& modules) : summary_(summary), modules_(modules), scope_(*this) {}

  /// Fills in the containers that a chain passes by: their output is that of their last child.
  void finish() {
    auto& rows = summary_.layers;
    for (std::size_t i = rows.size(); i-- > 1;)
      for (std::size_t up = i; up-- > 0;)
        if (rows[up].depth < rows[i].depth) {
          if (rows[up].output.rank() == 0) rows[up].output = rows[i].output;
          break;
        }
    for (const LayerSummary& row : rows) {
      summary_.macs += row.macs;
      summary_.flops += row.flops;
      summary_.activation_bytes_saved += row.saved_bytes;
    }
    summary_.training_step_macs += summary_.macs;
  }

 private:
  void returned(Module& module, const Shape& output, bool by_neighbour) override {
    if (replaying()) return;
    const auto at = std::ranges::find(modules_, &module);
    if (at == modules_.end()) return;
    LayerSummary& row = summary_.layers[static_cast<std::size_t>(at - modules_.begin())];
    row.output = output;
    row.by_neighbour = by_neighbour;
  }

  void after(const OpEvent& event) override {
    const Cost cost = event.cost();
    const std::int64_t macs = event.op.kind == Kind::contraction ? cost.macs : 0;
    if (event.phase == Phase::backward) summary_.training_step_macs += macs;
    if (event.phase != Phase::forward) return;
    LayerSummary& row = row_of(event.module);
    row.macs += macs;
    row.flops += cost.flops;

    for (std::size_t i = 0; i < event.in.size(); ++i)
      if ((event.saves.inputs & bit(static_cast<int>(i))) != 0 && event.in[i].defined()) keep(row, event.in[i]);
    for (std::size_t j = 0; j < event.out.size(); ++j)
      if ((event.saves.outputs & bit(static_cast<int>(j))) != 0) keep(row, event.out[j]);
  }

  // Held from here on, as the tape holds it, so that no other tensor gets its place in memory.
  void keep(LayerSummary& row, const Tensor& t) {
    if (t.category() == Category::parameter || t.category() == Category::input) return;
    if (std::ranges::any_of(kept_, [&](const Tensor& k) { return k.shares_storage(t); })) return;
    kept_.push_back(t.detach());
    row.saved_bytes += static_cast<std::int64_t>(t.impl().storage->bytes);
  }

  LayerSummary& row_of(const char* path) {  // paths are interned
    for (std::size_t i = 0; i < modules_.size(); ++i)
      if (modules_[i]->path() == path) return summary_.layers[i];
    return summary_.layers.front();
  }

  Summary& summary_;
  const std::vector<Module*>& modules_;
  std::vector<Tensor> kept_;
  ObserverScope scope_;
};

std::string or_dash(std::int64_t n) { return n == 0 ? "-" : with_commas(n); }

std::string bytes_text(std::int64_t n) { return memory::human(static_cast<std::size_t>(n)); }

}  // namespace

Summary summarize(Module& net, const Shape& input, DType dtype) {
  Summary summary{.input = input};
  Inventory inventory(summary);
  for_each_module(net, inventory);

  const Unchanged unchanged(net);
  std::optional<ShapesOnly> dry;
  if (!DryLedger::active()) dry.emplace();
  const GradModeScope record(GradMode::record);
  // A checkpointed function donates what it would keep if it were recorded. What is kept does not depend on donation.
  const NoDonation separate;
  const BudgetPlanner::Rest no_plans;  // what is saved does not depend on one, and this is not the step to make one for
  net.train();
  Watch watch(summary, inventory.modules);
  Tensor x;
  {
    const memory::CategoryScope scope(Category::input);
    x = empty(input, dtype);
  }
  summary.input_bytes = static_cast<std::int64_t>(x.bytes());
  const detail::TrialTape tape;
  Tensor y = net(std::move(x));
  if (y.requires_grad()) {
    std::array outputs{std::move(y)}, gradients{empty(outputs[0].shape(), outputs[0].dtype())};
    tape.backward(outputs, gradients, true);
    for (Parameter& p : net.parameters()) p.value.set_grad({});  // they are dry and must not outlive the dry run
  }
  watch.finish();
  return summary;
}

std::string to_string(const Summary& summary, int depth) {
  struct Line {
    std::string cells[5];
  };
  std::vector<Line> lines{{{"Module", "Output", "Parameters", "MACs", "Saved"}}};
  const auto& layers = summary.layers;
  bool any_by_neighbour = false;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    LayerSummary row = layers[i];
    if (row.depth > depth) continue;
    if (row.depth == depth)
      for (std::size_t below = i + 1; below < layers.size() && layers[below].depth > depth; ++below) {
        row.parameters += layers[below].parameters;
        row.macs += layers[below].macs;
        row.saved_bytes += layers[below].saved_bytes;
      }
    const std::string name = row.path.substr(row.path.rfind('.') + 1);
    any_by_neighbour |= row.by_neighbour;
    lines.push_back({{std::string(static_cast<std::size_t>(2 * row.depth), ' ') + (name.empty() ? "" : name + ": ") + row.type +
                          (row.by_neighbour ? " *" : ""),
                      row.output.rank() == 0 ? "-" : str(row.output), or_dash(row.parameters), or_dash(row.macs),
                      row.saved_bytes == 0 ? "-" : bytes_text(row.saved_bytes)}});
  }

  std::size_t width[5] = {};
  for (const Line& line : lines)
    for (int c = 0; c < 5; ++c) width[c] = std::max(width[c], line.cells[c].size());
  std::string out;
  const std::string rule(width[0] + width[1] + width[2] + width[3] + width[4] + 8, '-');
  for (std::size_t i = 0; i < lines.size(); ++i) {
    for (int c = 0; c < 5; ++c) {
      const std::string pad(width[c] - lines[i].cells[c].size(), ' ');
      out += c == 0 ? lines[i].cells[c] + pad : c == 1 ? "  " + lines[i].cells[c] + pad : "  " + pad + lines[i].cells[c];
    }
    out += '\n';
    if (i == 0) out += rule + '\n';
  }
  const auto& state = summary.optimizer_state_bytes;
  if (any_by_neighbour)
    out += "* fused: computed by the next layer as it loads, or by the one before as it stores; with fuse(false) only ReLUs are\n";
  out += rule + '\n';
  out += str("Parameters                ", with_commas(summary.parameters), " (", with_commas(summary.trainable), " trainable), ",
             bytes_text(summary.parameter_bytes), "\n");
  out += str("Buffers                   ", with_commas(summary.buffers), ", ", bytes_text(summary.buffer_bytes), "\n");
  out += str("Forward                   ", with_commas(summary.macs), " MACs, ", with_commas(summary.flops), " FLOPs\n");
  out += str("Forward and backward      ", with_commas(summary.training_step_macs), " MACs\n");
  out += str("Input                     ", summary.input, ", ", bytes_text(summary.input_bytes), "\n");
  out += str("Saved for backward        ", bytes_text(summary.activation_bytes_saved), "\n");
  out += str("Optimizer state would add ", bytes_text(state.sgd), " for SGD, ", bytes_text(state.momentum), " with momentum, ",
             bytes_text(state.adam), " for Adam\n");
  return out;
}

std::ostream& operator<<(std::ostream& out, const Summary& summary) { return out << to_string(summary); }

std::string with_commas(std::int64_t n) {
  std::string digits = std::to_string(n);
  for (std::ptrdiff_t at = static_cast<std::ptrdiff_t>(digits.size()) - 3; at > (n < 0 ? 1 : 0); at -= 3)
    digits.insert(static_cast<std::size_t>(at), 1, ',');
  return digits;
}

}  // namespace rewind_lib::nn
