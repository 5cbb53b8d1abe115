#include <rewind/autograd/schedule/build.h>
#include <rewind/autograd/schedule/frontier.h>
#include <rewind/core/error.h>
#include <rewind/core/parallel.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <new>
#include <numeric>

namespace rewind_lib::schedule {

namespace {

using detail::Corner;
using detail::Table;
using std::int64_t;
using std::uint32_t;

// Every level and number of ticks is less. Curves end with a corner there, so that loops need not look for the end.
constexpr uint32_t beyond = UINT32_MAX;

std::size_t at(int l) { return static_cast<std::size_t>(l); }

// ---------------------------------------------------------------------------------------------------------------------------
// What has to fit around stages s..t, in levels. a_{s-1} is there and not counted; the gradient of a_t is there and counted,
// unless t is the last stage, whose gradient appears with its backward only.

int64_t gradient(const Table& x, int t) { return t < x.n ? x.w_a[at(t)] : 0; }

// Stage s recorded first and going backward last; what lies between is counted elsewhere.
int64_t recorded_need(const Table& x, int s, int t) {
  return x.w_tape[at(s)] + std::max(gradient(x, t) + x.o_f[at(s)], x.w_a[at(s)] + x.o_b[at(s)]);
}

// The last stage, k - 1, of a sweep from a_{s-1} to a_{k-1}.
int64_t swept_need(const Table& x, int s, int k, int t) {
  return gradient(x, t) + (k - 1 > s ? x.w_a[at(k - 2)] : 0) + x.w_a[at(k - 1)] + x.o_f[at(k - 1)];
}

// The first corner of every curve: where s..t fit at all.
std::vector<int64_t> least_levels(const Table& x) {
  std::vector<int64_t> least(Table::index(x.n, x.n) + 1);
  for (int t = 1; t <= x.n; ++t) {
    for (int s = t; s >= 1; --s) {
      int64_t best = recorded_need(x, s, t);
      if (s < t) best = std::max(best, x.w_tape[at(s)] + least[Table::index(s + 1, t)]);
      int64_t swept = 0;
      for (int k = s + 1; k <= t; ++k) {
        swept = std::max(swept, swept_need(x, s, k, t));
        if (swept >= best) break;
        const int64_t right = x.w_a[at(k - 1)] + least[Table::index(k, t)];
        best = std::min(best, std::max({swept, right, least[Table::index(s, k - 1)]}));
      }
      least[Table::index(s, t)] = best;
    }
  }
  return least;
}

// ---------------------------------------------------------------------------------------------------------------------------
// One curve under construction: the lower envelope so far, from a corner at level 0 that says "does not fit" on.

std::size_t last_at_or_below(const std::vector<Corner>& corners, int64_t level) {
  const auto after =
      std::upper_bound(corners.begin(), corners.end(), level, [](int64_t v, const Corner& corner) { return v < corner.level; });
  return static_cast<std::size_t>(after - corners.begin()) - 1;
}

class Envelope {
 public:
  // Starts with a copy of `curve`, moved up by `shift` levels, where it lies in [floor, top].
  void start(const std::vector<Corner>& curve, int64_t shift, int64_t floor, int64_t top) {
    corners_.assign(1, {0, beyond});
    for (const Corner& corner : curve) {
      const int64_t level = std::max(corner.level + shift, floor);
      if (level > top || corner.level == beyond) break;
      if (corners_.size() > 1 && corners_.back().level == level) corners_.pop_back();
      corners_.push_back({static_cast<uint32_t>(level), corner.ticks});
    }
    corners_.push_back({beyond, 0});
  }

  // Lowers it to  base + right(level - shift) + left(level)  where that is less, for levels in [from, top].
  void lower(const std::vector<Corner>& right, int64_t shift, const std::vector<Corner>& left, int64_t base, int64_t from,
             int64_t top);

  // The curve. A corner is left out when that costs at most `tolerance` ticks; the first and the last stay.
  std::vector<Corner> take(int64_t tolerance) const {
    if (corners_.size() == 2) return {};
    std::vector<Corner> out(corners_.begin() + 1, corners_.end());
    if (tolerance == 0) return out;
    std::size_t size = 1;
    for (std::size_t i = 1; i < out.size(); ++i) {
      const bool stays = i + 2 >= out.size();
      if (stays || int64_t{out[size - 1].ticks} - out[i].ticks > tolerance) out[size++] = out[i];
    }
    return {out.begin(), out.begin() + static_cast<std::ptrdiff_t>(size)};
  }

 private:
  std::vector<Corner> corners_, lowered_;
};

// Walks the three staircases together. Most candidates lie above the envelope nearly everywhere, so the walk mostly looks for
// the next place where one dips below, in strides; only there it merges. What it does not touch is copied as a block.
void Envelope::lower(const std::vector<Corner>& right, int64_t shift, const std::vector<Corner>& left, int64_t base, int64_t from,
                     int64_t top) {
  std::size_t p = last_at_or_below(corners_, from);
  if (base >= corners_[p].ticks) return;
  std::size_t i = last_at_or_below(right, from - shift);
  std::size_t j = last_at_or_below(left, from);
  const Corner* const g = corners_.data();
  const Corner* const a = right.data();
  const Corner* const b = left.data();
  const std::size_t a_last = right.size() - 2, b_last = left.size() - 2;
  const int64_t least = base + a[a_last].ticks + b[b_last].ticks;

  Corner* out = nullptr;   // into lowered_, from the first improvement on
  std::size_t copied = 0;  // corners of g that are dealt with
  int64_t level = from;
  std::size_t stride = 16;
  while (level <= top && least < g[p].ticks) {
    // In the next `stride` corners the candidate is at least what it is at their end, and the envelope at most what it is here.
    const std::size_t i_far = std::min(i + stride, a_last), j_far = std::min(j + stride, b_last);
    if (base + a[i_far].ticks + b[j_far].ticks >= g[p].ticks) {
      level = std::min(a[i_far + 1].level + shift, int64_t{b[j_far + 1].level});
      while (a[i + 1].level + shift <= level) ++i;
      while (b[j + 1].level <= level) ++j;
      while (g[p + 1].level <= level) ++p;
      stride = stride * 2 + 1;
      continue;
    }
    if (stride > 0) {
      stride /= 4;
      continue;
    }

    if (out == nullptr) {
      lowered_.resize(right.size() + left.size() + corners_.size());
      out = lowered_.data();
    }
    const std::size_t untouched = p > 0 && g[p].level == level ? p : p + 1;
    out = std::copy(g + copied, g + untouched, out);
    for (int64_t last = INT64_MAX;;) {
      const int64_t candidate = base + a[i].ticks + b[j].ticks;
      const int64_t lowest = std::min<int64_t>(candidate, g[p].ticks);
      *out = {static_cast<uint32_t>(level), static_cast<uint32_t>(lowest)};
      out += lowest < last;
      last = lowest;
      if (candidate >= g[p].ticks) break;
      const int64_t next_a = a[i + 1].level + shift, next_b = b[j + 1].level, next_g = g[p + 1].level;
      level = std::min({next_a, next_b, next_g});
      if (level > top) break;
      i += next_a == level;
      j += next_b == level;
      p += next_g == level;
    }
    copied = p + 1;
  }
  if (out == nullptr) return;
  out = std::copy(g + copied, g + corners_.size(), out);
  lowered_.resize(static_cast<std::size_t>(out - lowered_.data()));
  corners_.swap(lowered_);
}

// ---------------------------------------------------------------------------------------------------------------------------
// All curves.

class Solver {
 public:
  Solver(const Chain& chain, Table& table) : x_(table) {
    x_.n = chain.n();
    measure(chain);
    least_ = least_levels(x_);
  }

  int64_t least() const { return least_[Table::index(1, x_.n)]; }
  int64_t slack_levels() const { return rounded_sizes_; }
  // Ticks that rounding may cost a schedule: at most n(n-1)/2 forwards beyond the first of each stage, half a tick each, in the
  // schedule that was found and in the one that was missed.
  int64_t rounding_ticks() const { return rounded_costs_ ? int64_t{x_.n} * (x_.n - 1) / 2 : 0; }

  // Fills the table for levels up to `top`. False when that takes more than `bytes`.
  bool solve(int64_t top, int64_t tolerance, int64_t bytes);
  int64_t bytes() const { return bytes_; }

 private:
  void measure(const Chain& chain);
  void solve(Envelope& envelope, int s, int t, int64_t top, int64_t tolerance);

  Table& x_;
  std::vector<int64_t> least_;
  int64_t rounded_sizes_ = 0;
  bool rounded_costs_ = false;
  int64_t bytes_ = 0;
};

// Chooses the units. Sizes are rounded up, costs to nearest.
void Solver::measure(const Chain& chain) {
  int64_t divisor = 0, largest = 0, all = 0;
  for (const Stage& stage : chain.stages) {
    for (const int64_t size : {stage.w_a, stage.w_tape, stage.o_f, stage.o_b}) divisor = std::gcd(divisor, size);
    largest = std::max({largest, stage.w_a, stage.o_f, stage.o_b});
    all += stage.w_a + stage.w_tape;
  }
  // No level that matters is above: all tapes and activations, a gradient, a workspace.
  all += 4 * largest;
  x_.bytes_per_level = std::max<int64_t>(divisor, 1);
  if (all / x_.bytes_per_level >= beyond / 2) x_.bytes_per_level = all / (beyond / 2) + 1;
  const auto levels = [&](int64_t size) {
    rounded_sizes_ += size % x_.bytes_per_level != 0;
    return (size + x_.bytes_per_level - 1) / x_.bytes_per_level;
  };

  // In the worst case stage l runs n - l times more than once.
  double most = 0;
  for (int l = 1; l <= x_.n; ++l) most += (x_.n - l) * chain[l].u_f;
  const double room = beyond - 2.0 * x_.n * x_.n - 2;
  x_.cost_per_tick = most > 0 ? std::exp2(std::ceil(std::log2(most / room))) : 1;

  x_.w_a = {0};
  x_.w_tape = x_.o_f = x_.o_b = x_.ticks_to = {0};
  for (const Stage& stage : chain.stages) {
    x_.w_a.push_back(levels(stage.w_a));
    x_.w_tape.push_back(levels(stage.w_tape));
    x_.o_f.push_back(levels(stage.o_f));
    x_.o_b.push_back(levels(stage.o_b));
    const double ticks = std::nearbyint(stage.u_f / x_.cost_per_tick);
    rounded_costs_ = rounded_costs_ || ticks * x_.cost_per_tick != stage.u_f;
    x_.ticks_to.push_back(x_.ticks_to.back() + static_cast<int64_t>(ticks));
  }
}

bool Solver::solve(int64_t top, int64_t tolerance, int64_t bytes) {
  x_.curves.assign(least_.size(), {});
  std::vector<Envelope> scratch(at(parallel::threads()));
  std::atomic<int64_t> taken = static_cast<int64_t>(least_.size() * (sizeof(std::vector<Corner>) + sizeof(int64_t)));
  std::atomic<bool> out_of_memory = false;
  // Curves of equally many stages do not need one another.
  for (int stages = 1; stages <= x_.n; ++stages) {
    const auto body = [&](int64_t piece, int worker) {
      const int s = static_cast<int>(piece) + 1, t = s + stages - 1;
      if (least_[Table::index(s, t)] > top || taken > bytes || out_of_memory) return;
      try {
        solve(scratch[at(worker)], s, t, top, tolerance);
        taken += static_cast<int64_t>(x_.curve(s, t).size() * sizeof(Corner));
      } catch (const std::bad_alloc&) {
        out_of_memory = true;
      }
    };
    // Short chains take milliseconds; on a busy machine, meeting other threads n times takes longer.
    if (x_.n < 96)
      for (int64_t piece = 0; piece <= x_.n - stages; ++piece) body(piece, 0);
    else
      parallel::for_pieces(x_.n - stages + 1, body);
    if (out_of_memory) throw std::bad_alloc();
    if (taken > bytes) return false;
  }
  bytes_ = taken;
  return true;
}

void Solver::solve(Envelope& envelope, int s, int t, int64_t top, int64_t tolerance) {
  std::vector<Corner>& curve = x_.curves[Table::index(s, t)];
  const int64_t recorded = recorded_need(x_, s, t);
  if (s == t) {
    curve = {{static_cast<uint32_t>(recorded), 0}, {beyond, 0}};
    return;
  }
  envelope.start(x_.curve(s + 1, t), x_.w_tape[at(s)], recorded, top);
  int64_t swept = 0;
  for (int k = s + 1; k <= t; ++k) {
    swept = std::max(swept, swept_need(x_, s, k, t));
    const int64_t kept = x_.w_a[at(k - 1)];
    const int64_t from = std::max({swept, kept + least_[Table::index(k, t)], least_[Table::index(s, k - 1)]});
    if (from > top) continue;
    envelope.lower(x_.curve(k, t), kept, x_.curve(s, k - 1), x_.ticks_to[at(k - 1)] - x_.ticks_to[at(s - 1)], from, top);
  }
  curve = envelope.take(tolerance);
}

// ---------------------------------------------------------------------------------------------------------------------------
// From curves back to actions: at each choice, the one that costs least here. Nothing was stored; looking costs n searches.

constexpr int64_t does_not_fit = INT64_MAX / 4;

int64_t ticks(const Table& x, int s, int t, int64_t level) {
  const std::vector<Corner>& curve = x.curve(s, t);
  if (curve.empty() || level < curve.front().level) return does_not_fit;
  return curve[last_at_or_below(curve, level)].ticks;
}

void write(std::vector<Action>& out, const Table& x, int s, int t, int64_t level) {
  if (s == t) return detail::there_and_back(out, s, s);
  int64_t best = recorded_need(x, s, t) <= level ? ticks(x, s + 1, t, level - x.w_tape[at(s)]) : does_not_fit;
  int split = s;  // s: record stage s
  int64_t swept = 0;
  for (int k = s + 1; k <= t; ++k) {
    swept = std::max(swept, swept_need(x, s, k, t));
    if (swept > level) break;
    const int64_t cost =
        x.ticks_to[at(k - 1)] - x.ticks_to[at(s - 1)] + ticks(x, k, t, level - x.w_a[at(k - 1)]) + ticks(x, s, k - 1, level);
    if (cost < best) {
      best = cost;
      split = k;
    }
  }
  REWIND_CHECK(best < does_not_fit);
  if (split == s) {
    out.push_back(Fall(s));
    write(out, x, s + 1, t, level - x.w_tape[at(s)]);
    out.push_back(B(s));
  } else {
    detail::sweep(out, s, split);
    write(out, x, split, t, level - x.w_a[at(split - 1)]);
    write(out, x, s, split - 1, level);
  }
}

std::string percent(double fraction) { return str(100 * fraction, " %"); }

// "stage 7 (features.3) backward, 812 bytes of its own (tape 500, ..)", for each stage that is at the peak.
std::string who_forces(const Chain& chain, const Schedule& schedule) {
  const Trace trace = simulate(chain, schedule.actions);
  std::vector<bool> told(chain.stages.size() + 1);
  std::string out;
  for (const Step& step : trace.steps) {
    const int l = step.action.stage;
    if (step.during != trace.peak || told[at(l)]) continue;
    told[at(l)] = true;
    const Stage& stage = chain[l];
    if (!out.empty()) out += "; ";
    if (step.action.kind == Kind::B)
      out += str(chain.name(l), " going backward (tape ", stage.w_tape, ", output's gradient ", stage.w_a,
                 ", workspace and input's gradient ", stage.o_b, ")");
    else
      out += str(chain.name(l), " running forward (", step.action.kind == Kind::Fall ? "tape " : "output ",
                 step.action.kind == Kind::Fall ? stage.w_tape : stage.w_a, ", workspace ", stage.o_f, ")");
  }
  return out;
}

}  // namespace

Schedule Frontier::schedule(std::int64_t budget) const {
  if (budget < minimum()) {
    const Schedule least = schedule(minimum());
    fail(str("schedule: no schedule fits in ", budget, " bytes; the minimum is ", minimum(), " bytes, ", chain_.input,
             " of them the input. What forces it: ", who_forces(chain_, least)));
  }
  if (budget > solved_to_)
    fail(str("schedule: this frontier was solved up to ", solved_to_, " bytes; solve it again for a budget of ", budget));
  const auto after = std::upper_bound(points_.begin(), points_.end(), budget,
                                      [](std::int64_t bytes, const Point& point) { return bytes < point.bytes; });
  const Point& point = *(after - 1);
  std::vector<Action> actions;
  write(actions, table_, 1, table_.n, (point.bytes - chain_.input) / table_.bytes_per_level);
  Schedule schedule = with_claims(chain_, str("budget:", budget), std::move(actions));
  REWIND_CHECK(schedule.peak <= budget);
  return schedule;
}

Frontier solve(const Chain& chain, const Limits& limits) {
  chain.check();
  if (!(limits.loss >= 0)) fail(str("schedule: a loss of ", limits.loss, "; give 0 for an exact frontier, or more"));
  Frontier frontier;
  frontier.chain_ = chain;
  Table& table = frontier.table_;
  Solver solver(chain, table);
  const double vanilla = chain.cost();

  // Whatever the budget, the least is solved for, so that there is something to say when the budget is below it.
  const int64_t budget = limits.budget < chain.input ? 0 : (limits.budget - chain.input) / table.bytes_per_level;
  const int64_t top = std::clamp<int64_t>(budget, solver.least(), beyond - 1);

  // A schedule is a tree with at most n - 1 inner nodes, one per choice, and each may lose the tolerance of its curve once.
  double loss = limits.loss;
  int64_t tolerance = 0;
  for (;;) {
    tolerance = table.n < 2 ? 0 : static_cast<int64_t>(std::min(loss * vanilla / table.cost_per_tick / (table.n - 1), 1e9));
    if (solver.solve(top, tolerance, limits.planner_bytes)) break;
    if (loss >= 1)
      fail(str("schedule: the planner needs more than the ", limits.planner_bytes, " bytes it may take for ", table.n,
               " stages, even with a loss of ", percent(loss), "; allow more, give a budget, or make fewer stages"));
    loss = std::max(4 * loss, 0.02);
  }

  for (const Corner& corner : table.curve(1, table.n)) {
    if (corner.level == beyond) break;
    frontier.points_.push_back({chain.input + corner.level * table.bytes_per_level, vanilla + corner.ticks * table.cost_per_tick});
  }
  if (table.curve(1, table.n)[table.curve(1, table.n).size() - 2].ticks > 0)
    frontier.solved_to_ = std::max(limits.budget, frontier.minimum());
  const double lost = static_cast<double>(tolerance * (table.n - 1) + solver.rounding_ticks());
  frontier.loss_ = vanilla > 0 ? lost * table.cost_per_tick / vanilla : 0;
  frontier.slack_ = solver.slack_levels() * table.bytes_per_level;
  frontier.planner_bytes_ = solver.bytes();
  return frontier;
}

}  // namespace rewind_lib::schedule
