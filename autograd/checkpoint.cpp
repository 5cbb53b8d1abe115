#include <rewind/autograd/checkpoint.h>
#include <rewind/autograd/replay.h>

#include <algorithm>
#include <memory>

namespace rewind_lib::detail {
namespace {

/// The attribute of a checkpoint entry. Trivially copyable; owns the closure through OpDecl::release.
struct Call {
  Closure* closure;
  RunLog* log;                   // owned
  random::Generator generator;   // where the random numbers stood before the first run
  std::uint32_t differentiable;  // which results the entry's outputs are
  std::uint32_t given;           // which inputs are defined
};

const Call& call_of(const void* attr) { return *static_cast<const Call*>(attr); }

void replay(Vjp& v, const void* attr) {
  const Call& call = call_of(attr);
  if (Tape::current().create_graph())
    fail(
        "checkpoint: a checkpointed function cannot be differentiated twice; call it without checkpoint() where create_graph is "
        "on");

  call.log->check_reads();
  std::vector<Tensor> gradients;
  for (std::uint32_t rest = call.differentiable, j = 0; rest != 0; rest &= rest - 1, ++j)
    gradients.push_back(v.has_grad(static_cast<int>(j)) ? v.grad(static_cast<int>(j)) : Tensor());

  TapeSegment segment;
  std::vector<Tensor> results;
  {
    const ReplayScope scope(call.generator, GradMode::record);
    std::vector<Tensor> inputs;
    for (int i = 0; i < v.inputs(); ++i) inputs.push_back((call.given & bit(i)) != 0 ? v.input(i) : Tensor());
    const RunLog::Compare compare(*call.log);
    segment.begin(inputs, v.needs(), &v);
    std::vector<Tensor> all = call.closure->call(std::move(inputs));
    compare.finish();
    for (std::size_t j = 0; j < all.size(); ++j)
      if (j < most_tensors && (call.differentiable & bit(static_cast<int>(j))) != 0) results.push_back(std::move(all[j]));
  }
  if (results.size() != gradients.size())
    fail("checkpoint: the function returned fewer tensors when it ran again; it must compute the same every time");
  std::vector<Tensor> of_inputs = segment.sweep(std::move(results), std::move(gradients));
  for (std::size_t i = of_inputs.size(); i-- > 0;)
    if (of_inputs[i].defined()) v.give(static_cast<int>(i), std::move(of_inputs[i]));
}

constexpr OpDecl checkpoint_decl = [] {
  OpDecl d{};
  d.name = "checkpoint";
  d.kind = Kind::movement;
  d.attr_size = sizeof(Call);
  d.differentiable = ~std::uint32_t{0};
  d.vjp = replay;
  d.release = [](const void* attr) noexcept {
    delete call_of(attr).closure;
    delete call_of(attr).log;
  };
  return d;
}();

}  // namespace

std::vector<Tensor> run_checkpoint(Closure* closure, std::vector<Tensor> inputs) {
  std::unique_ptr<Closure> owner(closure);
  if (grad_mode() != GradMode::record) return closure->call(std::move(inputs));
  if (inputs.size() > most_tensors)
    fail(str("checkpoint: takes at most ", most_tensors, " inputs, got ", inputs.size(), "; capture the others in the function"));

  const random::Generator before = random::default_generator();
  std::vector<std::uint32_t> versions;
  for (const Tensor& x : inputs) versions.push_back(x.defined() ? x.impl().storage->version : 0);
  std::vector<Tensor> out;
  auto log = std::make_unique<RunLog>();
  {
    const GradModeScope track(GradMode::track);
    const UnrecordedRun run({});
    std::vector<const Tensor*> given;
    for (const Tensor& x : inputs) given.push_back(&x);
    const RunLog::Write write(*log, given);
    out = closure->call(inputs);
  }
  for (std::size_t i = 0; i < inputs.size(); ++i)
    if (inputs[i].defined() && inputs[i].impl().storage->version != versions[i])
      fail(str("checkpoint: the function changed its input ", i, ", shape ", inputs[i].shape(),
               ", in place, and would be given what it left when it runs again. Let it change a clone()."));
  std::vector<Tensor> results;  // those that carry a gradient
  std::uint32_t differentiable = 0;
  std::vector<Tensor> made = out;
  for (std::size_t j = 0; j < out.size(); ++j) {
    // What the function passed through has a history of its own, or is a leaf: gradients go there as without a checkpoint.
    if (!out[j].defined() || !out[j].requires_grad() || out[j].impl().value.recorder != &Forgotten::instance()) continue;
    if (j >= most_tensors)
      fail(str("checkpoint: at most the first ", most_tensors,
               " results of a function may carry gradients; concat() some, or split the function"));
    // The function may have kept a handle on what it returned, and returned it twice; the entry needs an object of its own.
    const auto k =
        static_cast<std::size_t>(std::ranges::find_if(made, [&](const Tensor& t) { return t.same(made[j]); }) - made.begin());
    if (k < j) {
      out[j] = out[k];
      continue;
    }
    out[j] = view_as(made[j], made[j].shape());
    differentiable |= bit(static_cast<int>(j));
    results.push_back(out[j]);
  }
  if (results.empty()) return out;

  Saves saves;
  std::uint32_t needs = 0;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (!inputs[i].defined()) continue;
    saves.inputs |= bit(static_cast<int>(i));
    if (inputs[i].requires_grad()) needs |= bit(static_cast<int>(i));
  }
  const Call call{closure, log.get(), before, differentiable, saves.inputs};
  Tape::current().record(checkpoint_decl, &call, inputs, results, needs, saves);
  static_cast<void>(owner.release());
  static_cast<void>(log.release());
  return out;
}

}  // namespace rewind_lib::detail

namespace rewind_lib {

ReplayGuard::ReplayGuard() : saved_(std::exchange(detail::context().check_replays, true)) {}
ReplayGuard::~ReplayGuard() { detail::context().check_replays = saved_; }

}  // namespace rewind_lib
