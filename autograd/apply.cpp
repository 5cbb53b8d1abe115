// The choke point: every op of every phase runs through apply().

#include <rewind/autograd/op.h>
#include <rewind/autograd/tape.h>
#include <rewind/core/fetch.h>
#include <rewind/core/kernels/check.h>

#include <algorithm>
#include <cstddef>
#include <new>

namespace rewind_lib {

using detail::Context;
using detail::context;

// Without a destructor, since static objects may run ops in theirs, when a thread's own objects are gone. Only what its lists hold
// is given back then.
Context& detail::context() {
  struct Room {
    alignas(Context) std::byte bytes[sizeof(Context)];
    bool made;
  };
  struct AtEnd {
    Context* context;
    ~AtEnd() {
      context->observers = {};
      context->watches = {};
    }
  };
  thread_local Room room;
  if (!room.made) [[unlikely]] {
    room.made = true;
    thread_local const AtEnd at_end{new (room.bytes) Context};
  }
  return *std::launder(reinterpret_cast<Context*>(room.bytes));
}

GradMode grad_mode() { return context().mode; }
GradModeScope::GradModeScope(GradMode mode) : saved_(std::exchange(context().mode, mode)) {}
GradModeScope::~GradModeScope() { context().mode = saved_; }
bool replaying() { return location().replay != 0; }
void depends_on(bool flag, const char* what) {
  for (detail::RunWatch* w : context().watches) w->flag(flag, what);
}

NoDonation::NoDonation() : saved_(std::exchange(context().donate, false)) {}
NoDonation::~NoDonation() { context().donate = saved_; }

ObserverScope::ObserverScope(Observer& observer) : observer_(observer) { context().observers.push_back(&observer); }
ObserverScope::~ObserverScope() {
  std::vector<Observer*>& all = context().observers;
  const auto last = std::ranges::find(all.rbegin(), all.rend(), &observer_);  // not the last one, when scopes end out of order
  if (last != all.rend()) all.erase(std::next(last).base());
}

const char* name_of(Kind kind) {
  constexpr const char* names[] = {"contraction",   "normalisation", "element-wise", "reduction",
                                   "data movement", "random",        "optimizer"};
  return names[static_cast<int>(kind)];
}

const char* name_of(Phase phase) {
  constexpr const char* names[] = {"forward", "backward", "recompute", "optimizer"};
  return names[static_cast<int>(phase)];
}

static std::string name_in(const char* names, int i, const char* what) {
  std::string_view rest = names == nullptr ? "" : names;
  for (int k = 0; !rest.empty(); ++k) {
    const std::size_t end = std::min(rest.find(", "), rest.size());
    if (k == i) return std::string(rest.substr(0, end));
    rest.remove_prefix(std::min(end + 2, rest.size()));
  }
  return str(what, " ", i);
}
std::string OpDecl::input_name(int i) const { return name_in(input_names, i, "input"); }
std::string OpDecl::output_name(int j) const { return name_in(output_names, j, "output"); }

Cost OpEvent::cost() const {
  Cost c = op.cost(in, specs, attr);
  if (c.bytes_read < 0) {
    c.bytes_read = 0;
    for (const Tensor& t : in)
      if (t.defined()) c.bytes_read += static_cast<std::int64_t>(t.bytes());
  }
  if (c.bytes_written < 0) {
    c.bytes_written = 0;
    for (const Spec& s : specs)
      if (s.view_offset < 0) c.bytes_written += s.shape.numel() * static_cast<std::int64_t>(size_of(s.dtype));
  }
  return c;
}

void NanGuard::after(const OpEvent& event) {
  if (DryLedger::active()) return;
  const auto look_at = [&](const Tensor& t, const char* what, std::size_t j) {
    if (!t.defined() || !is_float(t.dtype())) return;
    const std::int64_t at =
        visit_float(t.dtype(), [&](auto zero) { return kernels::first_non_finite(t.raw<decltype(zero)>(), t.numel()); });
    if (at < 0) return;
    const double value = visit_float(t.dtype(), [&](auto zero) { return static_cast<double>(t.raw<decltype(zero)>()[at]); });
    const bool gradient = event.gradient_of[0] != 0;
    fail(str("NaN guard: ",
             gradient ? str("the gradient of ", event.gradient_of, " (op ", event.op.name, ")") : str("op ", event.op.name),
             event.module[0] != 0 ? str(" in module ", event.module) : "", " made ", value, " at element ", at, " of its ", what,
             " ", j, ", shape ", t.shape(), " (", name_of(event.phase),
             "). Look at its inputs: a learning rate that is too high, the log of zero, or a "
             "division by zero."));
  };
  for (std::size_t j = 0; j < event.out.size(); ++j) look_at(event.out[j], "output", j);
  for (std::size_t i = 0; i < event.in.size(); ++i)
    if ((event.op.mutates & bit(static_cast<int>(i))) != 0) look_at(event.in[i], "input, changed in place,", i);
}

namespace {

[[noreturn, gnu::noinline]] void refuse_dry(const OpDecl& op, std::size_t i, const Tensor& t) {
  fail(str(
      op.name, ": input ", i, ", shape ", t.shape(), location().module[0] != 0 ? str(", in module ", location().module) : "",
      ", was made in a dry run, which is over: it has no elements. (summarize(), profile() and a budget's planning run a net on "
      "shapes alone.) Make what stays, such as a mask that is made once, where no dry run goes on: in a constructor."));
}

[[noreturn, gnu::noinline]] void refuse_outputs(const OpDecl& op, int made, std::size_t asked) {
  fail(str(op.name, ": makes ", made, " outputs, but the call has room for ", asked, "; call apply(declaration, in, attr, out)"));
}

Specs infer(const OpDecl& op, Inputs in, const void* attr) {
  try {
    return op.infer(in, attr);
  } catch (const Error& e) {
    if (location().module[0] == 0) throw;
    throw Error(str(e.what(), " (in module ", location().module, ")"));
  }
}

bool may_donate(const Tensor& t, const Spec& spec) {
  if (!t.defined()) return false;
  const detail::TensorImpl& impl = t.impl();
  return detail::owns_its_memory(t) && impl.dtype == spec.dtype &&
         impl.storage->bytes == static_cast<std::size_t>(spec.shape.numel()) * size_of(spec.dtype) &&
         !(impl.requires_grad && t.is_leaf());
}

/// Places an output in the buffer of the first donor that nobody else holds. The buffer then has two holders, so it is not donated
/// again.
bool take_over(Inputs in, std::uint32_t donors, const Spec& spec, Tensor& to) {
  for (std::size_t i = 0; i < in.size(); ++i)
    if ((donors & bit(static_cast<int>(i))) != 0 && may_donate(in[i], spec)) {
      in[i].impl().storage->refs.reset(2);  // may_donate: nobody else holds it
      to = Tensor::adopt(detail::new_impl(in[i].impl().storage, in[i].impl().offset, spec.shape, spec.dtype));
      to.set_category(memory::current_category());
      return true;
    }
  return false;
}

Tensor place_view(const OpDecl& op, const Tensor& base, const Spec& spec) {
  const auto offset = static_cast<std::size_t>(spec.view_offset);
  const std::size_t bytes = static_cast<std::size_t>(spec.shape.numel()) * size_of(spec.dtype);
  if (offset > base.bytes() || bytes > base.bytes() - offset)
    fail(str(op.name, ": its output ", spec.dtype, " ", spec.shape, ", a view from byte ", offset, " on, does not lie in input 0, ",
             base.dtype(), " ", base.shape()));
  Storage* s = base.impl().storage;
  retain(s);
  return Tensor::adopt(detail::new_impl(s, base.impl().offset + offset, spec.shape, spec.dtype));
}

/// Inputs that need a gradient, as a mask; refuses what has no history to give.
std::uint32_t needed_inputs(const OpDecl& op, Inputs in, GradMode mode) {
  std::uint32_t needs = 0;
  for (std::size_t i = 0; i < in.size(); ++i) {
    if (!in[i].defined() || !in[i].requires_grad()) continue;
    needs |= bit(static_cast<int>(i));
    const ValueRef& value = in[i].impl().value;
    if (value.recorder != &detail::Forgotten::instance()) continue;
    if (mode == GradMode::record)
      fail(str(op.name, ": input ", i, " ", in[i].shape(),
               " was made inside a checkpointed function and has no history; return it from that "
               "function, or detach() it"));
    if (mode == GradMode::track && value.serial != context().run)
      fail(str(op.name, ": input ", i, " ", in[i].shape(), location().module[0] != 0 ? str(", in module ", location().module) : "",
               ", was made by another stage or function that is recomputed, and came here beside its inputs. Its gradient would be "
               "lost: give it along as an input, or detach() it"));
  }
  return needs;
}

// What the tape keeps of a call, and which of the inputs to save it makes again instead. runs: as TensorImpl::remakes, of output 0.
struct Plan {
  Saves keeps;
  std::uint32_t remade = 0;
  std::uint8_t runs = 0;
};

constexpr std::uint8_t most_runs = 2;  // the longest chain of ops that are made again: each link runs once for every link after it

Plan plan_saves(const OpDecl& op, Inputs in, const void* attr, std::uint32_t needs, bool recording) {
  Plan p;
  std::uint8_t longest = 0;
  for (std::size_t i = 0; i < in.size(); ++i) {
    if ((needs & bit(static_cast<int>(i))) == 0) continue;
    const std::uint8_t runs = in[i].impl().remakes;
    if (runs == 0 || (recording && !detail::Tape::current().can_remake(in[i]))) continue;
    p.remade |= bit(static_cast<int>(i));
    longest = std::max(longest, runs);
  }
  if (op.remakes && longest < most_runs) {
    p.keeps.inputs = ~std::uint32_t{0};
    p.runs = static_cast<std::uint8_t>(longest + 1);
  } else {
    p.keeps = op.saves(attr, needs);
  }
  p.remade &= p.keeps.inputs;
  p.keeps.inputs &= ~p.remade;
  return p;
}

void place_outputs(const OpDecl& op, std::span<Tensor> in, const Specs& specs, std::uint32_t kept, std::span<Tensor> out) {
  const bool donate = context().donate;
  for (int j = 0; j < specs.size(); ++j) {
    const Spec& spec = specs[j];
    Tensor& to = out[static_cast<std::size_t>(j)];
    if (spec.view_offset >= 0) {
      to = place_view(op, in[0], spec);
      continue;
    }
    const std::uint32_t donors = donate ? (spec.takes | (j == 0 ? op.donates : 0)) & ~kept : 0;
    if (donors == 0 || !take_over(in, donors, spec, to)) to = empty(spec.shape, spec.dtype);
  }
}

/// What a kernel asks for beside its inputs and outputs.
class Workspace {
 public:
  Workspace(const OpDecl& op, Inputs in, const Specs& specs, const void* attr)
      : bytes_(op.workspace == nullptr ? 0 : op.workspace(in, specs, attr)) {
    if (bytes_ > 0) storage_ = new_storage(bytes_, Category::workspace);
  }
  ~Workspace() { let_go(); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  std::size_t bytes() const { return bytes_; }
  std::byte* data() const { return storage_ == nullptr ? nullptr : storage_->data; }
  bool held() const { return storage_ != nullptr; }
  void let_go() {
    if (storage_ != nullptr) release(std::exchange(storage_, nullptr));
  }

 private:
  std::size_t bytes_;
  Storage* storage_ = nullptr;
};

void compute(const OpDecl& op, std::span<Tensor> in, const void* attr, std::span<Tensor> out, const Workspace& workspace) {
  op.forward(Forward(in, out, workspace.data()), attr);
  if (op.mutates == 0) return;
  for (std::size_t i = 0; i < in.size(); ++i)
    if ((op.mutates & bit(static_cast<int>(i))) != 0 && in[i].defined()) ++in[i].impl().storage->version;
}

/// In a first run inside a checkpoint: differentiable, and no history.
void mark_forgotten(const OpDecl& op, std::span<Tensor> out) {
  for (std::size_t j = 0; j < out.size(); ++j)
    if ((op.differentiable & bit(static_cast<int>(j))) != 0 && is_float(out[j].dtype())) {
      out[j].impl().requires_grad = true;
      out[j].impl().value.recorder = &detail::Forgotten::instance();
      out[j].impl().value.serial = context().run;
    }
}

}  // namespace

void apply(const OpDecl& op, std::span<Tensor> in, const void* attr, std::span<Tensor> out) {
  Context& c = context();
  if (in.size() < op.named_inputs)
    fail(str(op.name, ": takes ", op.named_inputs, " inputs (", op.input_names, "), got ", in.size(),
             "; for one that is left out give an undefined tensor"));
  if (in.size() > most_tensors) fail(str(op.name, ": an op takes at most ", most_tensors, " inputs, got ", in.size()));
  if (op.mutates != 0) {
    if (!out.empty()) fail(str(op.name, ": an op that changes its inputs in place has no outputs: a replay leaves it out"));
    // A replay has no side effects: what the first run changed in place stays changed once.
    if (location().replay != 0) return;
  }

  for (Observer* o : c.observers) o->entering(op);
  for (const Tensor& t : in)
    if (t.defined()) detail::fetch(t.impl().storage, sizeof(Storage));
  const LocationScope label(&Location::op, op.name);
  const Specs specs = infer(op, in, attr);
  const bool dry = DryLedger::active();
  if (!dry)
    for (std::size_t i = 0; i < in.size(); ++i)
      if (in[i].defined() && in[i].impl().storage->dry != 0) refuse_dry(op, i, in[i]);
  if (static_cast<std::size_t>(specs.size()) != out.size()) refuse_outputs(op, specs.size(), out.size());

  const std::uint32_t needs = c.mode == GradMode::off || op.differentiable == 0 ? 0 : needed_inputs(op, in, c.mode);
  if (op.mutates != 0 && needs != 0)
    fail(str(op.name, ": changes its inputs in place and cannot be recorded; call it under NoGrad"));
  const bool recording = needs != 0 && c.mode == GradMode::record;
  const Plan plan = needs == 0 || op.saves == nullptr ? Plan{} : plan_saves(op, in, attr, needs, recording);
  place_outputs(op, in, specs, recording ? plan.keeps.inputs : 0, out);
  {
    Workspace workspace(op, in, specs, attr);
    const Phase phase = op.kind == Kind::optimizer ? Phase::optimizer : c.phase;
    const OpEvent event{op,        attr,      in, specs, out, workspace.bytes(), phase, location().module, c.gradient_of,
                        recording, plan.keeps};
    for (Observer* o : c.observers) o->before(event);
    if (!dry) compute(op, in, attr, out, workspace);
    if (workspace.held()) {
      // Kernels that need one go through enough memory to push all else out of the caches.
      if (c.phase == Phase::backward) detail::Tape::current().fetch_behind_kernel();
      for (const Tensor& t : in)  // to be let go, most of them, by who called
        if (t.defined()) detail::fetch(t.impl().storage->block, sizeof(Arena::Block));
      workspace.let_go();
    }
    for (Observer* o : c.observers) o->after(event);
  }

  for (detail::RunWatch* w : c.watches) w->reads(op, in, needs);
  if (recording)
    detail::Tape::current().record(op, attr, in, out, needs, plan.keeps, plan.remade, plan.runs > 0);
  else if (needs != 0)
    mark_forgotten(op, out);
  if (plan.runs > 0) out[0].impl().remakes = plan.runs;
  for (Observer* o : c.observers) o->left(op);
}

}  // namespace rewind_lib
