// Schedules: lists of actions and their judge, the strategies, and the exact frontier against an exhaustive search.

#include <doctest/doctest.h>

#include <rewind/autograd/schedule/draw.h>
#include <rewind/autograd/schedule/frontier.h>
#include <rewind/autograd/schedule/simulate.h>
#include <rewind/autograd/schedule/strategies.h>
#include <rewind/core/error.h>
#include <rewind/core/parallel.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <map>
#include <queue>
#include <random>
#include <set>
#include <tuple>

using namespace rewind;
using namespace rewind::schedule;
using std::int64_t;

namespace {

// ---------------------------------------------------------------------------------------------------------------------------
// Chains.

// Four stages; what is optimal on them was found by exhaustive search elsewhere.
Chain reference_chain() {
  return {.input = 2,
          .stages = {{.w_a = 3, .w_tape = 5, .u_f = 2, .u_b = 4, .o_b = 2},
                     {.w_a = 1, .w_tape = 3, .u_f = 3, .u_b = 5, .o_b = 3},
                     {.w_a = 2, .w_tape = 4, .u_f = 1, .u_b = 2, .o_b = 1},
                     {.w_a = 0, .w_tape = 1, .u_f = 1, .u_b = 1, .o_b = 2}}};
}

// Stages that weigh one unit each, and a loss that weighs one only on the tape.
Chain unit_chain(int n) {
  Chain chain{.input = 0, .stages = std::vector<Stage>(static_cast<std::size_t>(n), {.w_a = 1, .w_tape = 1, .u_f = 1, .u_b = 1})};
  chain.stages.back().w_a = 0;
  return chain;
}

class Random {
 public:
  explicit Random(unsigned seed) : generator_(seed) {}
  int64_t pick(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator_); }
  double noise(double sigma) { return std::exp(sigma * std::normal_distribution<double>()(generator_)); }

  // Small integers: many ties.
  Chain small(int n) {
    Chain chain{.input = pick(0, 4)};
    for (int l = 1; l <= n; ++l) {
      Stage stage{.w_a = pick(0, 4), .u_f = static_cast<double>(pick(0, 4)), .u_b = static_cast<double>(pick(0, 4))};
      stage.w_tape = stage.w_a + pick(0, 5);
      stage.o_f = pick(0, 3);
      stage.o_b = pick(0, 5);
      chain.stages.push_back(stage);
    }
    return chain;
  }
  // Nothing is as one would expect: sizes that differ a thousandfold, tapes smaller than outputs, forwards for nothing.
  Chain adversarial(int n) {
    const auto wild = [&] { return pick(0, 3) == 0 ? 0 : int64_t{1} << pick(0, 10); };
    Chain chain{.input = wild()};
    for (int l = 1; l <= n; ++l) {
      chain.stages.push_back({.w_a = wild(),
                              .w_tape = wild(),
                              .u_f = static_cast<double>(wild()),
                              .u_b = static_cast<double>(wild()),
                              .o_f = wild(),
                              .o_b = wild()});
    }
    return chain;
  }
  // A few kinds of stages in long rows, as residual networks have; costs as measured, with noise, or all the same.
  Chain residual(int n, double sigma) {
    Chain chain{.input = 393216};
    for (int l = 1; l <= n; ++l) {
      const int kind = l == n ? 3 : 3 * (l - 1) / n;
      const int64_t wide = kind == 3 ? 4 : int64_t{8388608} >> kind, statistics = 768 << kind;
      chain.stages.push_back({.w_a = wide,
                              .w_tape = wide * 9 / 4 + statistics,
                              .u_f = 4e-3 * noise(sigma),
                              .u_b = 8e-3 * noise(sigma),
                              .o_f = wide / 4,
                              .o_b = wide * 3 / 2 + (16 << 2 * kind)});
    }
    return chain;
  }
  // Every stage its own kind.
  Chain mixed(int n) {
    Chain chain{.input = 4096 * pick(1, 1000)};
    for (int l = 1; l <= n; ++l) {
      Stage stage{.w_a = 64 * pick(1, 1 << 20), .u_f = noise(1), .o_f = 64 * pick(0, 1 << 18), .o_b = 64 * pick(0, 1 << 20)};
      stage.w_tape = stage.w_a + 64 * pick(0, 1 << 22);
      stage.u_b = 2 * stage.u_f;
      chain.stages.push_back(stage);
    }
    return chain;
  }

 private:
  std::mt19937 generator_;
};

std::string describe(const Chain& chain) {
  std::string out = str("input ", chain.input);
  for (const Stage& s : chain.stages)
    out += str(" | a ", s.w_a, " tape ", s.w_tape, " f ", s.u_f, " b ", s.u_b, " of ", s.o_f, " ob ", s.o_b);
  return out;
}

std::string fault_of(const char* actions, const Chain& chain = reference_chain()) { return simulate(chain, parse(actions)).fault; }

template <class F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

bool contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

// ---------------------------------------------------------------------------------------------------------------------------
// The exhaustive search: the shortest path through all states that the four actions can reach. It knows the rules of action.h
// and the sums of chain.h, and neither the simulator nor the recurrences.

struct State {
  unsigned kept = 1, taped = 0;  // bit l: a_l, the tape of l
  int next = 0;                  // the next backward
  int fresh = -1;                // the activation that the last action made
  auto key() const { return std::tuple(kept, taped, next, fresh); }
};

// The frontier (bytes, cost), bytes ascending. Persistent: Fnone may drop only what the action right before it has made, so that
// nothing that was once kept goes before its backward.
std::vector<std::pair<int64_t, double>> exhaustive(const Chain& chain, bool persistent) {
  const int n = chain.n();
  using Value = std::pair<double, int64_t>;  // cost, then peak
  struct Entry {
    Value value;
    State state;
    bool operator<(const Entry& other) const { return value > other.value; }
  };
  std::vector<std::pair<int64_t, double>> frontier;
  for (int64_t limit = INT64_MAX;;) {
    std::map<decltype(State{}.key()), Value> best;
    std::priority_queue<Entry> queue;
    const auto offer = [&](const State& state, const Value& value) {
      const auto [found, first] = best.try_emplace(state.key(), value);
      if (!first && found->second <= value) return;
      found->second = value;
      queue.push({value, state});
    };
    offer({.next = n}, {0, 0});
    Value goal{-1, 0};
    while (!queue.empty()) {
      const Value value = queue.top().value;  // clang 14 cannot capture bindings
      const State state = queue.top().state;
      queue.pop();
      if (best.at(state.key()) < value) continue;
      if (state.next == 0) {
        goal = value;
        break;
      }
      int64_t held = state.next < n ? chain.w_a(state.next) : 0;
      for (int l = 0; l <= n; ++l) {
        if (state.kept >> l & 1) held += chain.w_a(l);
        if (state.taped >> l & 1) held += chain[l].w_tape;
      }
      const auto go = [&](State after, double cost, int64_t during) {
        if (during < limit) offer(after, {value.first + cost, std::max(value.second, during)});
      };
      const unsigned there = state.kept | state.taped;
      for (int l = 1; l <= state.next; ++l) {
        if (!(there >> (l - 1) & 1)) continue;
        const unsigned input = 1u << (l - 1), output = 1u << l;
        if (l == state.next && state.taped & output) {
          go({state.kept & ~input, state.taped & ~output, l - 1, -1}, chain[l].u_b,
             held + (l == n ? chain[l].w_a : 0) + chain[l].o_b);
        }
        if (there & output) continue;
        const double cost = chain[l].u_f;
        go({state.kept, state.taped | output, state.next, -1}, cost, held + chain[l].w_tape + chain[l].o_f);
        if (l == state.next) continue;  // a_l itself is of no use to anyone
        const int64_t during = held + chain[l].w_a + chain[l].o_f;
        go({state.kept | output, state.taped, state.next, l}, cost, during);
        if (state.kept & input && (!persistent || state.fresh == l - 1))
          go({(state.kept & ~input) | output, state.taped, state.next, l}, cost, during);
      }
    }
    if (goal.first < 0) break;
    frontier.push_back({goal.second, goal.first});
    limit = goal.second;
  }
  std::reverse(frontier.begin(), frontier.end());
  return frontier;
}

std::vector<std::pair<int64_t, double>> pairs(const Frontier& frontier) {
  std::vector<std::pair<int64_t, double>> out;
  for (const Point& point : frontier.points()) out.push_back({point.bytes, point.cost});
  return out;
}

// Every corner of the frontier is what its schedule takes, to the byte.
void check_claims(const Chain& chain, const Frontier& frontier) {
  for (std::size_t i = 0; i < frontier.points().size(); ++i) {
    const Point& point = frontier.points()[i];
    const Schedule schedule = frontier.schedule(point.bytes);
    const Trace trace = validate(chain, schedule);
    REQUIRE_MESSAGE(trace.ok(), trace.fault);
    CHECK(trace.peak == point.bytes);
    CHECK(trace.cost == doctest::Approx(point.cost).epsilon(1e-9 + frontier.loss()));
    if (i > 0) {
      CHECK(point.bytes > frontier.points()[i - 1].bytes);
      CHECK(point.cost < frontier.points()[i - 1].cost);
    }
  }
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------------

TEST_CASE("actions are printed and parsed") {
  const char* text = "Fck1 Fnone2 Fall3 B3 Fck1 Fall2 B2 Fall1 B1";
  const std::vector<Action> actions = parse(text);
  CHECK(actions.size() == 9);
  CHECK(actions[0] == Fck(1));
  CHECK(actions[1] == Fnone(2));
  CHECK(actions[2] == Fall(3));
  CHECK(actions[3] == B(3));
  CHECK(to_string(actions) == text);
  CHECK(parse("  Fall12\n\tB12 ") == std::vector<Action>{Fall(12), B(12)});
  CHECK(parse("").empty());
  for (const char* wrong : {"F1", "Fall", "Fall0", "Fall-1", "B1x", "b1", "Fall99999999999", "Fck 1"})
    CHECK(contains(error_of([&] { parse(wrong); }), "is no action"));
}

TEST_CASE("the simulator adds up what is in memory") {
  const Chain chain = reference_chain();
  const Trace trace = simulate(chain, parse("Fck1 Fck2 Fall3 Fall4 B4 B3 Fall2 B2 Fall1 B1"));
  REQUIRE_MESSAGE(trace.ok(), trace.fault);
  std::vector<int64_t> during, after;
  for (const Step& step : trace.steps) {
    during.push_back(step.during);
    after.push_back(step.after);
  }
  CHECK(during == std::vector<int64_t>{5, 6, 10, 11, 13, 13, 9, 12, 10, 12});
  CHECK(after == std::vector<int64_t>{5, 6, 10, 11, 12, 6, 9, 5, 10, 0});
  CHECK(trace.peak == 13);
  CHECK(trace.peak_step == 4);
  CHECK(trace.cost == 24);
  CHECK(trace.recomputed == 5);
  CHECK(trace.steps.back().end == 24);
}

TEST_CASE("each kind of broken list is told apart") {
  CHECK(fault_of("Fall1 Fall2 Fall3 Fall4 B4 B3 B2 B1") == "");
  CHECK(fault_of("Fall1 Fall2 Fall3 Fall5") == "action 4, Fall5: the chain has stages 1 to 4");
  CHECK(fault_of("Fall2") == "action 1, Fall2: a_1 is not there");
  CHECK(fault_of("Fck1 Fnone2 Fnone3 Fall4 B4 Fall3") == "action 6, Fall3: a_2 is not there");
  CHECK(fault_of("Fck1 Fnone2 Fck1 Fck1") == "action 4, Fck1: a_1 is there already, kept");
  CHECK(fault_of("Fall1 Fck1") == "action 2, Fck1: a_1 is there already, on the tape of stage 1");
  CHECK(fault_of("Fall1 Fall2 Fall3 Fall4 B4 Fall4") == "action 6, Fall4: stage 4 has gone backward already");
  CHECK(fault_of("Fall1 Fall2 Fall3 Fall4 B3") == "action 5, B3: the next backward in order is B4");
  CHECK(fault_of("Fall1 Fall2 Fall3 Fall4 B4 B4") == "action 6, B4: the next backward in order is B3");
  CHECK(fault_of("Fall1 Fall2 Fall3 Fnone4 B4") == "action 5, B4: there is no tape of stage 4");
  CHECK(fault_of("Fck1 Fck2 Fall3 Fnone1") == "action 4, Fnone1: a_1 is there already, kept");
  CHECK(fault_of("Fnone1 Fall2 Fall3 Fall4 B4 B3 B2 Fall1") == "action 8, Fall1: a_0 is not there");
  CHECK(fault_of("Fall1 Fall2 Fall3 Fall4 B4 B3 B2 B1 B1") == "action 9, B1: every backward has been done");
  CHECK(fault_of("Fall1 Fall2 Fall3 Fall4 B4 B3 B2") == "at the end of the list: B1 is missing");
  CHECK(fault_of("") == "at the end of the list: B4 is missing");
  CHECK(fault_of("Fck1 Fck2 Fall3 Fall4 B4 B3 Fnone2 Fck1 Fall2 B2 Fall1 B1") == "action 9, Fall2: a_2 is there already, kept");
  CHECK(fault_of("Fall1 Fall2 Fall3 Fall4 B4 B3 B2 Fck1 B1") == "action 8, Fck1: a_1 is there already, on the tape of stage 1");
  CHECK(fault_of("Fck1 Fall2 B2 Fck1 Fall1 B1", {.input = 1, .stages = {{}, {}}}) == "action 5, Fall1: a_1 is there already, kept");
  // The output of a stage whose successor is done serves no one.
  CHECK(fault_of("Fck1 Fck2 Fall3 B3 Fck2 Fall2", {.input = 1, .stages = {{}, {}, {}}}) ==
        "action 6, Fall2: a_2 is there already, kept");
  CHECK(fault_of("Fall1 Fall2 B2 B1", {.input = 1, .stages = {{}, {}}}) == "");
  CHECK(fault_of("Fall1 Fck2 Fall2", {.input = 1, .stages = {{}, {}}}) == "action 3, Fall2: a_2 is there already, kept");

  const Chain chain = reference_chain();
  Schedule claims = vanilla(chain);
  CHECK(validate(chain, claims).ok());
  claims.peak -= 1;
  CHECK(contains(validate(chain, claims).fault, "not 16 as claimed"));
  claims.peak += 1;
  claims.cost *= 1.001;
  CHECK(contains(validate(chain, claims).fault, "the cost is 19"));
}

TEST_CASE("a list with one action changed, dropped, repeated or swapped is refused or another sound list") {
  // Whatever passes must hold on its own: every stage backward once, in order, each after a recorded forward.
  Random random(3);
  int refused = 0, passed = 0;
  for (int round = 0; round < 4000; ++round) {
    const int n = static_cast<int>(random.pick(2, 9));
    const Chain chain = random.small(n);
    std::vector<Action> actions =
        round % 2 ? recursive(chain).actions : segments(chain, static_cast<int>(random.pick(1, n))).actions;
    const auto i = static_cast<std::size_t>(random.pick(0, static_cast<int64_t>(actions.size()) - 1));
    switch (random.pick(0, 4)) {
      case 0: actions.erase(actions.begin() + static_cast<std::ptrdiff_t>(i)); break;
      case 1: actions.insert(actions.begin() + static_cast<std::ptrdiff_t>(i), actions[i]); break;
      case 2: std::swap(actions[i], actions[(i + 1) % actions.size()]); break;
      case 3: actions[i].kind = static_cast<Kind>(random.pick(0, 3)); break;
      default: actions[i].stage = static_cast<int>(random.pick(0, n + 1));
    }
    const Trace trace = simulate(chain, actions);
    if (!trace.ok()) {
      ++refused;
      continue;
    }
    ++passed;
    std::vector<int> backward;
    std::set<int> recorded;
    for (const Action& action : actions) {
      if (action.kind == Kind::Fall) CHECK(recorded.insert(action.stage).second);
      if (action.kind != Kind::B) continue;
      backward.push_back(action.stage);
      CHECK(recorded.count(action.stage) == 1);
    }
    CHECK(backward.size() == static_cast<std::size_t>(n));
    CHECK(std::is_sorted(backward.rbegin(), backward.rend()));
  }
  CHECK(refused > 3000);
  CHECK(passed > 50);  // Fck for Fnone, mostly
}

TEST_CASE("a checkpoint can be given up before its backward") {
  // a_1 and a_2 are kept in the first sweep; a_1 stays over the backward of stage 4, then goes on the way to a_2, and is made anew.
  const Trace trace = simulate(unit_chain(4), parse("Fck1 Fck2 Fnone3 Fall4 B4 Fnone2 Fall3 B3 Fck1 Fall2 B2 Fall1 B1"));
  CHECK_MESSAGE(trace.ok(), trace.fault);
}

TEST_CASE("unsound chains are refused") {
  CHECK(contains(error_of([] { vanilla({}); }), "no stages"));
  Chain chain = reference_chain();
  chain.stages[1].w_tape = -1;
  chain.stages[1].name = "features.1";
  CHECK(contains(error_of([&] { solve(chain); }), "stage 2 (features.1) has a negative size"));
  chain = reference_chain();
  chain.stages[3].u_b = NAN;
  CHECK(contains(error_of([&] { recursive(chain); }), "stage 4 has a cost that is negative or not finite"));
  CHECK(contains(error_of([] { segments(reference_chain(), 5); }), "give 1 to 4"));
  CHECK(contains(error_of([] { segments(reference_chain(), 0); }), "give 1 to 4"));
  CHECK(contains(error_of([] { periodic(reference_chain(), 0); }), "1 or more"));
  CHECK(contains(error_of([] { revolve(reference_chain(), 0); }), "1 or more"));
}

// ---------------------------------------------------------------------------------------------------------------------------

TEST_CASE("each strategy writes the list that its paper describes") {
  const Chain chain = unit_chain(4);
  CHECK(to_string(vanilla(chain).actions) == "Fall1 Fall2 Fall3 Fall4 B4 B3 B2 B1");
  CHECK(to_string(low_memory(chain).actions) == "Fck1 Fnone2 Fnone3 Fall4 B4 Fck1 Fnone2 Fall3 B3 Fck1 Fall2 B2 Fall1 B1");
  CHECK(to_string(sqrt(chain).actions) == "Fck1 Fnone2 Fall3 Fall4 B4 B3 Fall1 Fall2 B2 B1");
  CHECK(periodic(chain, 2).actions == sqrt(chain).actions);
  CHECK(segments(chain, 1).actions == vanilla(chain).actions);
  CHECK(periodic(chain, 9).actions == vanilla(chain).actions);
  CHECK(to_string(periodic(chain, 3).actions) == "Fck1 Fnone2 Fnone3 Fall4 B4 Fall1 Fall2 Fall3 B3 B2 B1");
  CHECK(to_string(recursive(chain).actions) == "Fck1 Fnone2 Fck3 Fall4 B4 Fall3 B3 Fck1 Fall2 B2 Fall1 B1");
  CHECK(revolve(chain, 1).actions == low_memory(chain).actions);
  CHECK(revolve(chain, std::numeric_limits<int>::max()).actions == revolve(chain, chain.n()).actions);
}

TEST_CASE("segments of a unit chain take what Chen et al. count") {
  const auto [units, recomputed] = [](int n, int k) {
    const Chain chain = unit_chain(n);
    const Trace trace = validate(chain, segments(chain, k));
    return std::pair(trace.peak, trace.recomputed);
  }(16, 4);
  CHECK(units == 7);
  CHECK(recomputed == 12);
  const Chain chain = unit_chain(64);
  CHECK(segments(chain, 8).actions == sqrt(chain).actions);
  const Trace trace = validate(chain, sqrt(chain));
  CHECK(trace.peak == 15);
  CHECK(trace.recomputed == 56);
}

TEST_CASE("low-memory takes constant memory and quadratic work, recursive logarithmic memory") {
  const auto peak = [](Schedule schedule) { return schedule.peak; };
  CHECK(peak(low_memory(unit_chain(8))) == peak(low_memory(unit_chain(128))));
  CHECK(validate(unit_chain(20), low_memory(unit_chain(20))).recomputed == 20 * 19 / 2);
  for (int n = 4; n <= 512; n *= 2) CHECK(peak(recursive(unit_chain(2 * n))) == peak(recursive(unit_chain(n))) + 1);
}

TEST_CASE("revolve takes the extra forwards of the closed form, and no fewer are possible") {
  CHECK(revolve_extra_forwards(10, 3) == 15);
  CHECK(revolve_extra_forwards(20, 3) == 45);
  CHECK(revolve_extra_forwards(100, 10) == 222);
  CHECK(revolve_split(10, 3) == 4);
  CHECK(revolve_split(20, 3) == 10);

  // fewest[c][l] by the recurrence, without the closed form.
  constexpr int most_stages = 60, most_slots = 12;
  std::vector<std::vector<int64_t>> fewest(most_slots + 1, std::vector<int64_t>(most_stages + 1));
  for (int c = 1; c <= most_slots; ++c) {
    for (int l = 1; l <= most_stages; ++l) {
      fewest[c][l] = int64_t{l} * (l - 1) / 2;
      for (int k = 1; k < l && c > 1; ++k) fewest[c][l] = std::min(fewest[c][l], k + fewest[c - 1][l - k] + fewest[c][k]);
      CHECK(revolve_extra_forwards(l, c) == fewest[c][l]);

      const Chain chain = unit_chain(l);
      const Schedule schedule = revolve(chain, c);
      int64_t extra = 0, kept = 1, most_kept = 0;
      for (const Action action : schedule.actions) {
        extra += action.kind == Kind::Fck || action.kind == Kind::Fnone;
        kept += action.kind == Kind::Fck ? 1 : action.kind == Kind::B ? -1 : 0;
        if (action.kind == Kind::B) most_kept = std::max(most_kept, kept);
      }
      CHECK(extra == fewest[c][l]);
      CHECK(most_kept <= c);
    }
  }
}

TEST_CASE("every strategy is sound on every chain") {
  Random random(5);
  for (int n = 1; n <= 40; ++n) {
    for (const Chain& chain : {random.small(n), random.adversarial(n), random.mixed(n)}) {
      std::vector<Schedule> all{vanilla(chain), low_memory(chain), sqrt(chain), recursive(chain)};
      for (int k = 1; k <= n; ++k) all.push_back(segments(chain, k));
      for (int k = 1; k <= n + 1; ++k) all.push_back(periodic(chain, k));
      for (int c = 1; c <= n + 1; ++c) all.push_back(revolve(chain, c));
      for (const Schedule& schedule : all) {
        const Trace trace = validate(chain, schedule);
        REQUIRE_MESSAGE(trace.ok(), schedule.strategy, " on ", describe(chain), ": ", trace.fault);
        CHECK(parse(to_string(schedule.actions)) == schedule.actions);
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------------

TEST_CASE("the frontier of the reference chain is the known one") {
  const Chain chain = reference_chain();
  const Frontier frontier = solve(chain);
  CHECK(pairs(frontier) == std::vector<std::pair<int64_t, double>>{{12, 26}, {13, 24}, {15, 21}, {17, 19}});
  CHECK(frontier.minimum() == 12);
  CHECK(frontier.loss() == 0);
  CHECK(frontier.slack() == 0);
  CHECK(frontier.planner_bytes() > 0);
  CHECK(to_string(frontier.schedule(13).actions) == "Fck1 Fck2 Fall3 Fall4 B4 B3 Fall2 B2 Fall1 B1");
  CHECK(frontier.schedule(14).cost == 24);
  CHECK(frontier.schedule(INT64_MAX).cost == 19);
  CHECK(frontier.schedule(INT64_MAX).actions == vanilla(chain).actions);
  CHECK(exhaustive(chain, true) == pairs(frontier));
}

TEST_CASE("a budget that nothing fits in names the minimum and the stages that force it") {
  Chain chain = reference_chain();
  chain.stages[1].name = "layer1";
  const std::string error = error_of([&] { solve(chain).schedule(11); });
  CHECK_MESSAGE(contains(error, "no schedule fits in 11 bytes; the minimum is 12 bytes, 2 of them the input"), error);
  CHECK_MESSAGE(contains(error, "stage 2 (layer1) going backward (tape 3"), error);
  CHECK(error_of([&] { solve(chain, {.budget = 11}).schedule(11); }) == error);
  CHECK(error_of([&] { solve(chain, {.budget = -5}).schedule(11); }) == error);
}

TEST_CASE("the frontier is optimal among persistent schedules, against exhaustive search") {
  Random random(7);
  double worst = 1;
  std::string worst_chain;
  int better = 0, compared = 0, lower = 0;
  const auto compare = [&](const Chain& chain) {
    const Frontier frontier = solve(chain);
    const auto persistent = exhaustive(chain, true);
    REQUIRE_MESSAGE(pairs(frontier) == persistent, describe(chain));
    check_claims(chain, frontier);
    // And how far from the optimum of all schedules?
    const auto all = exhaustive(chain, false);
    ++compared;
    lower += all.front().first < persistent.front().first;
    bool any = false;
    for (const auto& [bytes, cost] : all) {
      if (bytes < frontier.minimum()) continue;
      const double ratio = frontier.schedule(bytes).cost / cost;
      any = any || ratio > 1;
      if (ratio > worst) {
        worst = ratio;
        worst_chain = describe(chain);
      }
    }
    better += any;
  };
  for (int round = 0; round < 600; ++round)
    for (int n = 1; n <= 4; ++n) compare(round % 2 ? random.small(n) : random.adversarial(n));
  for (int round = 0; round < 1200; ++round) compare(round % 2 ? random.small(5) : random.adversarial(5));
  for (int round = 0; round < 60; ++round) compare(round % 2 ? random.small(6) : random.adversarial(6));
  MESSAGE("non-persistent schedules are faster on ", better, " of ", compared, " chains, by ", worst, " at most (", worst_chain,
          "), and take less than the persistent minimum on ", lower);
  CHECK(worst < 2);
}

TEST_CASE("the frontier's claims hold to the byte, and every strategy lies on it or above") {
  Random random(11);
  for (int n : {1, 2, 3, 5, 8, 13, 21, 34, 40}) {
    for (const Chain& chain :
         {random.small(n), random.adversarial(n), random.residual(n, 0), random.residual(n, 0.03), random.mixed(n)}) {
      const Frontier frontier = solve(chain);
      check_claims(chain, frontier);
      CHECK(frontier.loss() < 1e-4);
      std::vector<Schedule> all{vanilla(chain), low_memory(chain), sqrt(chain), recursive(chain)};
      for (int k = 1; k <= n; ++k) all.push_back(segments(chain, k));
      for (int k = 1; k <= n; ++k) all.push_back(periodic(chain, k));
      for (int c = 1; c <= n; ++c) all.push_back(revolve(chain, c));
      for (const Schedule& schedule : all) {
        REQUIRE(schedule.peak >= frontier.minimum());
        const double cost = frontier.schedule(schedule.peak).cost;
        CHECK_MESSAGE(cost <= schedule.cost * (1 + 1e-9) + frontier.loss() * chain.cost(), schedule.strategy, " on ",
                      describe(chain));
      }
      CHECK(frontier.points().back().cost == doctest::Approx(chain.cost()));
    }
  }
}

TEST_CASE("a frontier solved for one budget is the beginning of the whole") {
  Random random(13);
  for (int round = 0; round < 30; ++round) {
    const Chain chain = round % 2 ? random.mixed(24) : random.residual(24, 0.03);
    const Frontier whole = solve(chain);
    const auto points = pairs(whole);
    const auto& middle = points[points.size() * static_cast<std::size_t>(round) / 30];
    const Frontier part = solve(chain, {.budget = middle.first});
    const auto end = std::find(points.begin(), points.end(), middle);
    CHECK(pairs(part) == std::vector(points.begin(), end + 1));
    CHECK(part.schedule(middle.first).actions == whole.schedule(middle.first).actions);
    CHECK(part.planner_bytes() <= whole.planner_bytes());
    if (end + 1 != points.end()) CHECK(contains(error_of([&] { part.schedule(middle.first + 1); }), "was solved up to"));
  }
}

TEST_CASE("thinning stays within the loss that it reports") {
  Random random(17);
  for (const Chain& chain : {random.mixed(48), random.residual(48, 0.05)}) {
    const Frontier exact = solve(chain);
    const auto check = [&](const Frontier& thin) {
      CHECK(thin.minimum() == exact.minimum());
      CHECK(thin.points().size() < exact.points().size());
      double worst = 0;
      for (const Point& point : exact.points()) {
        const Schedule schedule = thin.schedule(point.bytes);
        CHECK(validate(chain, schedule).ok());
        worst = std::max(worst, (schedule.cost - point.cost) / chain.cost());
      }
      CHECK(worst <= thin.loss());
      return worst;
    };
    for (const double loss : {0.05, 0.2}) {
      const Frontier thin = solve(chain, {.loss = loss});
      CHECK(thin.loss() < loss * 1.001 + 1e-4);
      const double worst = check(thin);
      MESSAGE(exact.points().size(), " points, ", exact.planner_bytes(), " bytes; with a loss of ", loss, " allowed ",
              thin.points().size(), " points, ", thin.planner_bytes(), " bytes, lost ", worst);
    }
    // A planner that may not take the memory that it needs thins by itself.
    const Frontier tight = solve(chain, {.planner_bytes = exact.planner_bytes() * 3 / 4});
    CHECK(tight.planner_bytes() < exact.planner_bytes());
    CHECK(tight.loss() >= 0.01);
    check(tight);
    CHECK(contains(error_of([&] { solve(chain, {.planner_bytes = 100}); }), "may take"));
  }
}

TEST_CASE("sizes beyond 32 bits of levels are rounded up, and say so") {
  // Odd sizes of terabytes: no common divisor to speak of.
  Random random(19);
  Chain chain{.input = 1};
  for (int l = 1; l <= 12; ++l) {
    const int64_t w_a = (int64_t{1} << 40) + 2 * random.pick(0, 1 << 20) + 1;
    chain.stages.push_back({.w_a = w_a, .w_tape = 2 * w_a + 1, .u_f = 1, .u_b = 2, .o_b = w_a});
  }
  const Frontier frontier = solve(chain);
  CHECK(frontier.slack() > 0);
  CHECK(frontier.slack() < chain.stages[0].w_a / 1000);
  for (const Point& point : frontier.points()) {
    const Schedule schedule = frontier.schedule(point.bytes);
    CHECK(validate(chain, schedule).ok());
    CHECK(schedule.peak <= point.bytes);
    CHECK(point.bytes - schedule.peak <= frontier.slack());
  }
}

TEST_CASE("a frontier is the same for any number of threads") {
  const Chain chain = Random(29).mixed(70);
  const int before = parallel::threads();
  std::vector<Frontier> frontiers;
  for (const int threads : {1, 2, 5}) {
    parallel::set_threads(threads);
    frontiers.push_back(solve(chain));
  }
  parallel::set_threads(before);
  for (const Frontier& frontier : frontiers) {
    CHECK(pairs(frontier) == pairs(frontiers[0]));
    CHECK(frontier.planner_bytes() == frontiers[0].planner_bytes());
    CHECK(frontier.schedule(2 * frontier.minimum()).actions == frontiers[0].schedule(2 * frontier.minimum()).actions);
  }
}

TEST_CASE("chains without bytes or without cost have a frontier of one point") {
  Chain nothing{.input = 0, .stages = std::vector<Stage>(6)};
  CHECK(pairs(solve(nothing)) == std::vector<std::pair<int64_t, double>>{{0, 0}});
  Chain free = reference_chain();
  for (Stage& stage : free.stages) stage.u_f = 0;
  CHECK(pairs(solve(free)) == std::vector<std::pair<int64_t, double>>{{12, 12}});
}

TEST_CASE("a schedule is drawn, stages down and actions across") {
  const Chain chain = reference_chain();
  CHECK("\n" + draw(chain, solve(chain).schedule(13)) == R"(
budget:13, peak 13 bytes, cost 24, 5 of it recomputed
input  ----------
stage1 >-------F<
stage2 .>----F<..
stage3 ..F==<....
stage4 ...F<.....
memory 3478##6979
)");
  const std::string large = draw(unit_chain(200), recursive(unit_chain(200)), 60, 20);
  CHECK(contains(large, "10 stages a row"));
  CHECK(std::count(large.begin(), large.end(), '\n') == 23);
  for (std::size_t begin = large.find('\n') + 1; begin < large.size(); begin = large.find('\n', begin) + 1)
    CHECK(large.find('\n', begin) - begin <= 70);
  CHECK(contains(error_of([&] { draw(chain, {.actions = parse("Fall2")}); }), "cannot draw: action 1"));
  constexpr int endless = std::numeric_limits<int>::max();
  CHECK(draw(chain, vanilla(chain), endless, endless) == draw(chain, vanilla(chain), 100, 100));
}

// Speed is printed, not tested; memory and what is lost are counted.
namespace {
void report(const std::string& what, const Chain& chain, const Limits& limits = {}) {
  const auto start = std::chrono::steady_clock::now();
  const Frontier frontier = solve(chain, limits);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  MESSAGE(what, ", ", chain.n(), " stages: ", seconds, " s, ", static_cast<double>(frontier.planner_bytes()) / 1e6, " MB, ",
          frontier.points().size(), " points, loss at most ", frontier.loss());
  CHECK(frontier.planner_bytes() < 64'000'000 * static_cast<std::size_t>(chain.n()) / 128);
  CHECK(frontier.loss() < 1e-3);
}
}  // namespace

TEST_CASE("how long the planner takes") {
  Random random(23);
  for (const int n : {64, 128}) {
    report("residual, equal costs", random.residual(n, 0));
    report("residual, measured costs", random.residual(n, 0.03));
    report("every stage its own", random.mixed(n));
  }
}

// rewind_tests_autograd -ns -tc='how long the planner takes, 340 stages'
TEST_CASE("how long the planner takes, 340 stages" * doctest::skip()) {
  Random random(23);
  report("residual, equal costs", random.residual(340, 0));
  const Chain measured = random.residual(340, 0.03);
  report("residual, measured costs", measured);
  report("residual, measured costs, up to a twelfth of vanilla", measured, {.budget = vanilla(measured).peak / 12});
  report("residual, measured costs, a loss of 5 % allowed", measured, {.loss = 0.05});
  report("every stage its own, a loss of 2 % allowed", random.mixed(340), {.loss = 0.02});
}
