#pragma once
// The fastest schedule within a budget of bytes, for every budget at once: the whole curve of memory against time.
//
// Optimal among persistent schedules: those in which a checkpoint or a tape, once kept, stays until its backward has used it.
// Schedules that give up a checkpoint earlier can be faster still; by how much at most, on small chains, is what the exhaustive
// search in tests/autograd/schedule_test.cpp prints. docs/decisions/0008-exact-frontier.md explains the program and its limits.

#include <rewind/autograd/schedule/action.h>

namespace rewind_lib::schedule {

struct Limits {
  /// Solve for budgets up to this many bytes only. What is needed for one budget is far less work than the whole curve.
  std::int64_t budget = INT64_MAX;
  /// Cost that may be lost to thinning, relative to the cost of vanilla. 0: exact.
  double loss = 0;
  /// Bytes that the planner itself may take for its curves. An exact solve that would take more is done again with losses of
  /// 2 %, 8 %, 32 %, .. until it fits, and Frontier::loss says so; Error when even a loss above 100 % does not.
  std::int64_t planner_bytes = std::int64_t{1} << 29;
};

/// A corner of the curve: from this budget on, a schedule of this cost fits.
struct Point {
  std::int64_t bytes = 0;
  double cost = 0;
};

namespace detail {
/// A corner of C(s,t,.): from this level on, so much recomputation is enough. Eight bytes, because there are tens of millions.
struct Corner {
  std::uint32_t level = 0;  ///< bytes, in the solver's unit
  std::uint32_t ticks = 0;  ///< cost, in the solver's unit, beyond one forward and one backward of each stage
};
/// What the solver knows when it is done; all that schedule() needs.
struct Table {
  int n = 0;
  std::int64_t bytes_per_level = 1;
  double cost_per_tick = 1;
  std::vector<std::int64_t> w_a, w_tape, o_f, o_b;  ///< levels, by stage; index 0 is the input's
  std::vector<std::int64_t> ticks_to;               ///< forward cost of stages 1..l
  /// Of stages s..t: levels ascending, ticks descending, closed by a corner beyond all levels. Empty where nothing fits.
  std::vector<std::vector<Corner>> curves;
  const std::vector<Corner>& curve(int s, int t) const { return curves[index(s, t)]; }
  static std::size_t index(int s, int t) { return static_cast<std::size_t>(t) * static_cast<std::size_t>(t - 1) / 2 + s - 1; }
};
}  // namespace detail

class Frontier {
 public:
  /// Bytes ascending, cost descending. The first has the least bytes that any persistent schedule takes, thinned or not; the last
  /// has vanilla's cost, unless Limits::budget cut it off. schedule() takes exactly these bytes and, but for rounding (see loss()),
  /// this cost. Where curves were thinned or slack() is not 0, it may take less of either.
  const std::vector<Point>& points() const { return points_; }

  /// The fastest schedule with a peak of at most `budget` bytes. Throws Error when there is none, saying what the minimum is and
  /// which stages force it, and when the budget is beyond what the curve was solved for and that cut something off.
  Schedule schedule(std::int64_t budget) const;

  /// The bytes below which nothing runs.
  std::int64_t minimum() const { return points_.front().bytes; }
  /// The cost of schedule(budget) is at most that of the persistent optimum plus loss() times vanilla's cost. Counts thinning,
  /// and the rounding of costs to 32 bits (none when they are small integers).
  double loss() const { return loss_; }
  /// Bytes that sizes may be overestimated by, together: 0 unless the chain has more than 2^31 times the greatest common
  /// divisor of its sizes.
  std::int64_t slack() const { return slack_; }
  /// Bytes that the curves take, now and at most.
  std::int64_t planner_bytes() const { return planner_bytes_; }

 private:
  friend Frontier solve(const Chain&, const Limits&);

  Chain chain_;
  detail::Table table_;
  std::vector<Point> points_;
  double loss_ = 0;
  std::int64_t slack_ = 0;
  std::int64_t planner_bytes_ = 0;
  std::int64_t solved_to_ = INT64_MAX;  // Limits::budget, where it cut something off
};

/// Throws Error when the chain is not sound. n^3/6 merges of curves for n stages.
Frontier solve(const Chain& chain, const Limits& limits = {});

}  // namespace rewind_lib::schedule
