// The forward part of a schedule falls into pieces: runs of recorded stages, which go on the tape like any code, and runs of
// unrecorded ones (segments), each of which becomes one entry that holds the kept activations. That entry's vjp interprets
// the segment's share of the remaining actions. Its tapes are stacked above everything else and swept stage by stage.

#include <rewind/autograd/replay.h>
#include <rewind/autograd/schedule/execute.h>

#include <algorithm>
#include <memory>
#include <optional>

namespace rewind_lib::schedule {
namespace {

using detail::Context;
using detail::Tape;
using detail::TapeSegment;

/// Stages [first, last] that run unrecorded, what backward does about them, and what it needs for that.
struct Segment {
  std::shared_ptr<Stages> stages;
  int first, last;
  std::vector<Action> actions;                // from after B(last + 1) to B(first)
  std::vector<Tensor> kept;                   // a_first .. a_{last-1} where kept, by position; a_{first-1} is the entry's input
  std::vector<random::Generator> generators;  // where the random numbers stood before each stage
  std::vector<bool> differentiable;           // whether a gradient goes on from each stage to its input
  std::vector<detail::RunLog> logs;           // what each stage computed, for a ReplayGuard
  std::size_t at(int l) const { return static_cast<std::size_t>(l - first); }
  Tensor& activation(int l) { return kept[at(l)]; }
};

struct Attr {
  Segment* segment;
};

/// A stage recorded again: its piece of tape and its result.
struct Recorded {
  TapeSegment tape;
  Tensor result;
};

void run_backward(Vjp& v, const void* attr) {
  Segment& s = *static_cast<const Attr*>(attr)->segment;
  if (Tape::current().create_graph())
    fail("recompute: a recomputed chain cannot be differentiated twice; use Recompute::vanilla() where create_graph is on");

  const int before = s.first - 1;
  Tensor gradient = v.grad(0);
  Tensor input = v.input(0);
  std::vector<std::optional<Recorded>> tapes(s.kept.size() + 1);
  const auto tape = [&](int l) -> std::optional<Recorded>& { return tapes[s.at(l)]; };
  const auto kept = [&](int l) -> Tensor& { return l == before ? input : s.activation(l); };
  const auto source = [&](int l) {  // a_l without a history
    REWIND_CHECK(kept(l).defined() || (l > before && tape(l)));
    const Tensor& a = kept(l).defined() ? kept(l) : tape(l)->result;
    return a.detach();
  };
  for (const Action& action : s.actions) {
    const int l = action.stage;
    switch (action.kind) {
      case Kind::Fnone:
      case Kind::Fck: {
        // The only handle when the activation is not kept, so that the stage can use its memory. The segment's input is kept to
        // the end: it is the chain's, or on the tape of the stage before.
        const bool last_use = action.kind == Kind::Fnone && l > s.first && kept(l - 1).defined();
        Tensor a = last_use ? std::exchange(kept(l - 1), Tensor()) : source(l - 1);
        const detail::ReplayScope scope(s.generators[s.at(l)], GradMode::off);
        const detail::RunLog::Compare compare(s.logs[s.at(l)]);
        kept(l) = s.stages->run(l, std::move(a));
        break;
      }
      case Kind::Fall: {
        Tensor a = source(l - 1);
        const detail::ReplayScope scope(s.generators[s.at(l)], GradMode::record);
        const detail::RunLog::Compare compare(s.logs[s.at(l)]);
        Recorded& r = tape(l).emplace();
        r.tape.begin(std::span(&a, 1), (l > s.first ? s.differentiable[s.at(l)] : v.needs(0)) ? 1 : 0);
        r.result = s.stages->run(l, std::move(a));
        break;
      }
      case Kind::B: {
        Recorded r = std::move(*tape(l));
        tape(l).reset();
        std::vector<Tensor> results, gradients;
        results.push_back(std::move(r.result));
        gradients.push_back(std::move(gradient));
        // Not before the sweep: the piece of tape may have saved it, but if not, backward can do without it.
        kept(l - 1) = Tensor();
        gradient = std::move(r.tape.sweep(std::move(results), std::move(gradients))[0]);
        break;
      }
    }
  }
  if (gradient.defined()) v.give(0, std::move(gradient));
}

constexpr OpDecl segment_decl = [] {
  OpDecl d{};
  d.name = "segment";
  d.kind = rewind_lib::Kind::movement;
  d.attr_size = sizeof(Attr);
  d.differentiable = 1;
  d.vjp = run_backward;
  d.release = [](const void* attr) noexcept { delete static_cast<const Attr*>(attr)->segment; };
  return d;
}();

[[noreturn]] void refuse(const std::vector<Action>& actions, const std::string& why) {
  fail(str("recompute: this schedule cannot be executed: ", why, " (", to_string(actions), ")"));
}

/// Runs the segment's stages for the first time, keeping what the actions say, and puts its entry on the tape.
Tensor run_segment(std::unique_ptr<Segment> s, std::span<const Action> forward, Tensor a) {
  const Tensor input = a;
  s->logs.reserve(forward.size());  // Write refers to them
  s->kept.resize(static_cast<std::size_t>(s->last - s->first));
  {
    const GradModeScope track(GradMode::track);
    for (const Action& action : forward) {
      s->generators.push_back(random::default_generator());
      s->differentiable.push_back(a.requires_grad());
      if (action.kind == Kind::Fck && action.stage > s->first) s->activation(action.stage - 1) = a.detach();
      const detail::RunLog::Write write(s->logs.emplace_back());
      a = s->stages->run(action.stage, std::move(a));
    }
  }
  if (!a.requires_grad()) return a;
  if (a.impl().value.recorder != &detail::Forgotten::instance() || a.impl().refs.load() > 1) a = view_as(a, a.shape());
  const Attr attr{s.get()};
  Tape::current().record(segment_decl, &attr, std::span(&input, 1), std::span(&a, 1), input.requires_grad() ? 1 : 0, {.inputs = 1});
  static_cast<void>(s.release());
  return a;
}

}  // namespace

Tensor execute(Stages* owned, const std::vector<Action>& actions, Tensor a) {
  const std::shared_ptr<Stages> stages(owned);
  const auto backward = std::ranges::find(actions, Kind::B, &Action::kind);
  const std::span forward(actions.begin(), backward);
  for (std::size_t i = 0; i < forward.size(); ++i)
    if (forward[i].stage != static_cast<int>(i) + 1) refuse(actions, "before the first B each stage must run once, in order");
  if (grad_mode() != GradMode::record) {
    for (const Action& f : forward) a = stages->run(f.stage, std::move(a));
    return a;
  }
  for (std::size_t begin = 0; begin < forward.size();) {
    if (forward[begin].kind == Kind::Fall) {
      a = stages->run(forward[begin++].stage, std::move(a));
      continue;
    }
    std::size_t end = begin;
    while (end < forward.size() && forward[end].kind != Kind::Fall) ++end;
    auto s = std::make_unique<Segment>();
    s->stages = stages;
    s->first = static_cast<int>(begin) + 1;
    s->last = static_cast<int>(end);
    const auto from =
        s->last == static_cast<int>(forward.size()) ? backward : std::ranges::find(backward, actions.end(), B(s->last + 1)) + 1;
    const auto to = std::ranges::find(from, actions.end(), B(s->first));
    if (to == actions.end()) refuse(actions, str("B", s->first, " is missing"));
    s->actions.assign(from, to + 1);
    for (const Action& x : s->actions)
      if (x.stage < s->first || x.stage > s->last)
        refuse(actions, str(to_string(x), " runs outside the stages ", s->first, " to ", s->last));
    const std::span part = forward.subspan(begin, end - begin);
    a = run_segment(std::move(s), part, std::move(a));
    begin = end;
  }
  return a;
}

}  // namespace rewind_lib::schedule
