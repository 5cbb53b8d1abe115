// The forward part of a schedule falls into pieces: runs of recorded stages, which go on the tape like any code, and runs of
// unrecorded ones (segments), each of which becomes one entry that holds the kept activations. That entry's vjp interprets
// the segment's share of the remaining actions. Its tapes are stacked above everything else and swept stage by stage.

#include <rewind/autograd/replay.h>
#include <rewind/autograd/schedule/execute.h>

#include <algorithm>
#include <array>
#include <memory>
#include <optional>

namespace rewind_lib::schedule {
namespace {

using detail::Context;
using detail::Tape;
using detail::TapeSegment;

constexpr std::size_t parts = 3;
std::array<Tensor, parts> split(Value a) { return {std::move(a.x), std::move(a.mean), std::move(a.var)}; }
std::uint32_t differentiable_parts(const Value& a) {
  std::uint32_t mask = 0;
  for (std::size_t i = 0; const Tensor* t : {&a.x, &a.mean, &a.var})
    mask |= t->defined() && t->requires_grad() ? bit(static_cast<int>(i)) : 0, ++i;
  return mask;
}
using Versions = std::array<std::uint32_t, parts>;
Versions versions_of(const Value& a) {
  Versions v{};
  for (std::size_t i = 0; const Tensor* t : {&a.x, &a.mean, &a.var}) v[i++] = t->defined() ? t->impl().storage->version : 0;
  return v;
}

/// Whether a part leads to something before it on the tape, or is a leaf: not so what was made in a run that is not recorded.
bool has_history(const Tensor& t) {
  return t.defined() && t.requires_grad() && t.impl().value.recorder != &detail::Forgotten::instance();
}
std::uint32_t parts_with_history(const Value& a) {
  std::uint32_t mask = 0;
  for (std::size_t i = 0; const Tensor* t : {&a.x, &a.mean, &a.var}) mask |= has_history(*t) ? bit(static_cast<int>(i)) : 0, ++i;
  return mask;
}
/// The parts `own` with their history, the others without.
Value detach_but(const Value& a, std::uint32_t own) {
  const auto part = [&](const Tensor& t, int i) {
    if (!t.defined()) return Tensor();
    return (own & bit(i)) != 0 && has_history(t) ? t : t.detach();
  };
  return {part(a.x, 0), part(a.mean, 1), part(a.var, 2)};
}

/// Stages [first, last] that run unrecorded, what backward does about them, and what it needs for that.
struct Segment {
  std::shared_ptr<Stages> stages;
  int first, last;
  std::uint32_t results = 0;                  // which parts of a_last carry gradients: the entry's outputs
  bool statistics = false;                    // a_{first-1} comes with some
  std::vector<Action> actions;                // from after B(last + 1) to B(first)
  std::vector<Value> kept;                    // a_first .. a_{last-1} where kept, by position; a_{first-1} is the entry's input
  std::vector<Versions> versions;             // of these, as they were kept
  std::vector<random::Generator> generators;  // where the random numbers stood before each stage
  std::vector<std::uint32_t> differentiable;  // which parts of each stage's input a gradient goes on to
  // Which of these came with a history of their own: what the segment was given, where the stages before returned that, and what
  // they returned of what they captured. Gradients go there one by one, as without recompute.
  std::vector<std::uint32_t> own;
  std::vector<detail::RunLog> logs;  // what each stage depended on
  std::size_t at(int l) const { return static_cast<std::size_t>(l - first); }
  Value& activation(int l) { return kept[at(l)]; }
  void keep(int l, const Value& a) {
    kept[at(l)] = detach_but(a, own[at(l + 1)]);
    versions[at(l)] = versions_of(a);
  }
  /// Throws Error when what was kept of stage l is not as it was.
  void check_kept(int l) const {
    if (kept[at(l)].x.defined() && versions_of(kept[at(l)]) != versions[at(l)])
      fail(str("recompute: what stage ", l, " made, shape ", kept[at(l)].x.shape(),
               ", was changed in place after it was kept to run the next stages again. Change a clone() of it."));
  }
  void check_kept() const {
    for (int l = first; l < last; ++l) check_kept(l);
  }
};

struct Attr {
  Segment* segment;
};

/// Marks the parts as made in a run that is not recorded: what a stage leaves of them beside the chain must not pass for a
/// constant.
void forget(Value& a, std::uint32_t differentiable) {
  for (int i = 0; Tensor * t : {&a.x, &a.mean, &a.var}) {
    if ((differentiable & bit(i++)) == 0) continue;
    t->impl().requires_grad = true;
    t->impl().value = {.recorder = &detail::Forgotten::instance()};
  }
}

/// A stage recorded again: its piece of tape and its result.
struct Recorded {
  TapeSegment tape;
  Value result;
  Versions versions{};
};

void run_backward(Vjp& v, const void* attr) {
  Segment& s = *static_cast<const Attr*>(attr)->segment;
  if (Tape::current().create_graph())
    fail("recompute: a recomputed chain cannot be differentiated twice; use Recompute::vanilla() where create_graph is on");

  for (const detail::RunLog& log : s.logs) log.check_reads();
  s.check_kept();
  const int before = s.first - 1;
  std::vector<Tensor> gradients(parts);  // of the activation that was reached
  for (std::size_t i = 0, j = 0; i < parts; ++i)
    if ((s.results & bit(static_cast<int>(i))) != 0) {
      if (v.has_grad(static_cast<int>(j))) gradients[i] = v.grad(static_cast<int>(j));
      ++j;
    }
  Value input{v.input(0)};
  if (s.statistics) input = {std::move(input.x), v.input(1), v.input(2)};
  for (int i = 0; Tensor * t : {&input.x, &input.mean, &input.var}) {
    if ((s.differentiable[0] & bit(i)) != 0) static_cast<void>(v.join(i, *t));  // else it gets places of its own below
    ++i;
  }
  const Versions given = versions_of(input);
  std::vector<std::optional<Recorded>> tapes(s.kept.size() + 1);
  const auto tape = [&](int l) -> std::optional<Recorded>& { return tapes[s.at(l)]; };
  const auto kept = [&](int l) -> Value& { return l == before ? input : s.activation(l); };
  const auto input_of = [&](int l) {
    REWIND_CHECK(kept(l - 1).x.defined() || (l - 1 > before && tape(l - 1)));
    return detach_but(kept(l - 1).x.defined() ? kept(l - 1) : tape(l - 1)->result, s.own[s.at(l)]);
  };
  // The parts of a stage's input whose gradients have no other place to go to.
  const auto to_place = [&](int l, const Value& a) { return s.differentiable[s.at(l)] & ~parts_with_history(a); };
  // What a stage was given, and others will be again.
  const auto check_input_of = [&](int l) {
    if (l > s.first) s.check_kept(l - 1);
    const bool changed = l == s.first ? kept(before).x.defined() && versions_of(input) != given
                                      : tape(l - 1) && versions_of(tape(l - 1)->result) != tape(l - 1)->versions;
    if (changed)
      fail(str("recompute: stage ", l, " changed what it was given in place, when it ran again. Let it change a clone()."));
  };
  for (const Action& action : s.actions) {
    const int l = action.stage;
    switch (action.kind) {
      case Kind::Fnone:
      case Kind::Fck: {
        // The only handle when the activation is not kept, so that the stage can use its memory. The segment's input is kept to
        // the end: it is the chain's, or on the tape of the stage before.
        const bool last_use = action.kind == Kind::Fnone && l > s.first && kept(l - 1).x.defined();
        Value a = input_of(l);
        if (last_use) kept(l - 1) = {};
        forget(a, to_place(l, a));
        const detail::UnrecordedRun run(std::array<const Tensor*, parts>{&a.x, &a.mean, &a.var});
        const detail::ReplayScope scope(s.generators[s.at(l)], GradMode::track);
        detail::RunLog::Compare compare(s.logs[s.at(l)]);
        s.keep(l, s.stages->run(l, std::move(a)));
        compare.finish();
        check_input_of(l);
        break;
      }
      case Kind::Fall: {
        Value input_now = input_of(l);
        const std::uint32_t place = to_place(l, input_now);
        std::array<Tensor, parts> a = split(std::move(input_now));
        const detail::ReplayScope scope(s.generators[s.at(l)], GradMode::record);
        detail::RunLog::Compare compare(s.logs[s.at(l)]);
        Recorded& r = tape(l).emplace();
        r.tape.begin(a, place, nullptr);
        r.result = s.stages->run(l, {std::move(a[0]), std::move(a[1]), std::move(a[2])});
        r.versions = versions_of(r.result);
        compare.finish();
        check_input_of(l);
        break;
      }
      case Kind::B: {
        Recorded r = std::move(*tape(l));
        tape(l).reset();
        std::array<Tensor, parts> results = split(std::move(r.result));
        std::vector<Tensor> from, of;
        for (std::size_t i = 0; i < parts; ++i)
          if (gradients[i].defined()) {
            from.push_back(std::move(results[i]));
            of.push_back(std::move(gradients[i]));
          }
        results = {};
        // Not before the sweep: the piece of tape may have saved it, but if not, backward can do without it.
        kept(l - 1) = {};
        gradients = r.tape.sweep(std::move(from), std::move(of));
        break;
      }
    }
  }
  for (std::size_t i = 0; i < gradients.size(); ++i)
    if (gradients[i].defined()) v.give(static_cast<int>(i), std::move(gradients[i]));
}

constexpr OpDecl segment_decl = [] {
  OpDecl d{};
  d.name = "segment";
  d.kind = rewind_lib::Kind::movement;
  d.attr_size = sizeof(Attr);
  d.differentiable = 7;
  d.vjp = run_backward;
  d.release = [](const void* attr) noexcept { delete static_cast<const Attr*>(attr)->segment; };
  d.held = [](const void* attr) {
    std::vector<Tensor> all;
    for (const Value& a : static_cast<const Attr*>(attr)->segment->kept)
      for (const Tensor& t : {a.x, a.mean, a.var})
        if (t.defined()) all.push_back(t);
    return all;
  };
  return d;
}();

[[noreturn]] void refuse(const std::vector<Action>& actions, const std::string& why) {
  fail(str("recompute: this schedule cannot be executed: ", why, " (", to_string(actions), ")"));
}

/// Backward goes down, and what it runs again belongs to the unrecorded stages that it has come to.
void check_backward(const std::vector<Action>& actions, std::span<const Action> forward) {
  const int n = static_cast<int>(forward.size());
  std::vector<int> last(forward.size());  // of the unrecorded stages that a stage is among; 0 where it was recorded
  for (int l = n; l > 0; --l) {
    const auto i = static_cast<std::size_t>(l - 1);
    last[i] = forward[i].kind == Kind::Fall ? 0 : l < n && last[i + 1] != 0 ? last[i + 1] : l;
  }
  int reached = n + 1;  // the last B
  for (const Action& x : std::span(actions).subspan(forward.size())) {
    if (x.stage < 1 || x.stage > n) refuse(actions, str("there is no stage ", x.stage));
    if (x.kind == Kind::B) {
      if (x.stage != reached - 1) refuse(actions, str(to_string(x), " follows B", reached, ", out of order"));
      reached = x.stage;
      continue;
    }
    const int end = last[static_cast<std::size_t>(x.stage - 1)];
    if (end == 0) refuse(actions, str(to_string(x), " runs a stage again that was recorded in forward"));
    if (x.stage >= reached || reached > end + 1)
      refuse(actions, str(to_string(x), " comes ", x.stage >= reached ? str("after B", x.stage) : str("before B", end + 1)));
  }
}

/// Runs the segment's stages for the first time, keeping what the actions say, and puts its entry on the tape.
Value run_segment(std::unique_ptr<Segment> s, std::span<const Action> forward, Value a) {
  const std::array<Tensor, parts> inputs = split(a);
  s->statistics = a.mean.defined();
  s->logs.reserve(forward.size());  // Write refers to them
  s->kept.resize(static_cast<std::size_t>(s->last - s->first));
  s->versions.resize(s->kept.size());
  const Versions given = versions_of(a);
  {
    const GradModeScope track(GradMode::track);
    for (const Action& action : forward) {
      s->generators.push_back(random::default_generator());
      s->differentiable.push_back(differentiable_parts(a));
      s->own.push_back(parts_with_history(a));
      if (action.kind == Kind::Fck && action.stage > s->first) s->keep(action.stage - 1, a);
      const std::array<const Tensor*, parts> given_now{&a.x, &a.mean, &a.var};
      const detail::UnrecordedRun run(given_now);
      const detail::RunLog::Write write(s->logs.emplace_back(), given_now);
      a = s->stages->run(action.stage, std::move(a));
    }
  }
  if (versions_of({inputs[0], inputs[1], inputs[2]}) != given)
    fail(str("recompute: one of the stages ", s->first, " to ", s->last, " changed what they were given, shape ", inputs[0].shape(),
             ", in place; run again they would be given what it left. Let it change a clone()."));
  s->check_kept();
  if (!a.requires_grad()) return a;
  std::vector<Tensor> outputs;
  for (std::size_t i = 0; Tensor * t : {&a.x, &a.mean, &a.var}) {
    const std::uint32_t part = bit(static_cast<int>(i++));
    // What stages passed through has a history of its own, or is a leaf: gradients go there as without recomputation.
    if (!t->defined() || !t->requires_grad() || t->impl().value.recorder != &detail::Forgotten::instance()) continue;
    if (!t->impl().refs.one()) *t = view_as(*t, t->shape());
    s->results |= part;
    outputs.push_back(*t);
  }
  if (outputs.empty()) return a;
  const Attr attr{s.get()};
  const std::uint32_t all = s->statistics ? 7 : 1;
  Tape::current().record(segment_decl, &attr, std::span(inputs).first(s->statistics ? parts : 1), outputs, s->differentiable[0],
                         {.inputs = all});
  static_cast<void>(s.release());
  return a;
}

}  // namespace

Value execute(Stages* owned, const std::vector<Action>& actions, Value a) {
  const std::shared_ptr<Stages> stages(owned);
  const auto backward = std::ranges::find(actions, Kind::B, &Action::kind);
  const std::span forward(actions.begin(), backward);
  for (std::size_t i = 0; i < forward.size(); ++i)
    if (forward[i].stage != static_cast<int>(i) + 1) refuse(actions, "before the first B each stage must run once, in order");
  if (grad_mode() != GradMode::record) {
    for (const Action& f : forward) a = stages->run(f.stage, std::move(a));
    return a;
  }
  check_backward(actions, forward);
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
    auto from = backward;
    if (s->last < static_cast<int>(forward.size())) {
      from = std::ranges::find(backward, actions.end(), B(s->last + 1));
      if (from == actions.end()) refuse(actions, str("B", s->last + 1, " is missing"));
      ++from;
    }
    const auto to = std::ranges::find(from, actions.end(), B(s->first));
    if (to == actions.end()) refuse(actions, str("B", s->first, " is missing"));
    s->actions.assign(from, to + 1);
    std::vector<bool> recorded(static_cast<std::size_t>(s->last - s->first) + 1);
    for (const Action& x : s->actions) {
      if (x.stage < s->first || x.stage > s->last)
        refuse(actions, str(to_string(x), " runs outside the stages ", s->first, " to ", s->last));
      if (x.kind == Kind::B && !recorded[s->at(x.stage)]) refuse(actions, str(to_string(x), " comes without Fall", x.stage));
      if (x.kind == Kind::B || x.kind == Kind::Fall) recorded[s->at(x.stage)] = x.kind == Kind::Fall;
    }
    const std::span part = forward.subspan(begin, end - begin);
    a = run_segment(std::move(s), part, std::move(a));
    begin = end;
  }
  return a;
}

}  // namespace rewind_lib::schedule
