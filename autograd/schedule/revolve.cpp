#include <rewind/autograd/schedule/build.h>
#include <rewind/autograd/schedule/strategies.h>
#include <rewind/core/error.h>

#include <algorithm>

namespace rewind_lib::schedule {

namespace {

// C(slots + runs, slots): the stages that `slots` activations can reverse when no stage runs more than `runs` times before the
// run that records it. 0 when runs < 0. Saturates: only comparisons with a number of stages are made.
std::int64_t reach(int slots, int runs) {
  if (runs < 0) return 0;
  std::int64_t c = 1;
  for (int i = 1; i <= std::min(slots, runs); ++i) {
    c = c * (std::int64_t{std::max(slots, runs)} + i) / i;
    if (c > (std::int64_t{1} << 31)) return std::int64_t{1} << 31;
  }
  return c;
}

int least_runs(int n, int slots) {
  int runs = 0;
  while (reach(slots, runs) < n) ++runs;
  return runs;
}

void reverse(std::vector<Action>& out, int s, int t, int slots) {
  while (s < t && slots > 1) {
    const int middle = s + revolve_split(t - s + 1, slots);
    detail::sweep(out, s, middle);
    reverse(out, middle, t, slots - 1);
    t = middle - 1;
  }
  for (int l = t; l >= s; --l) {
    detail::sweep(out, s, l);
    detail::there_and_back(out, l, l);
  }
}

void check_slots(int slots) {
  if (slots < 1) fail(str("schedule: revolve:", slots, "; give the number of activations to keep, the input included, 1 or more"));
}

}  // namespace

std::int64_t revolve_extra_forwards(int n, int slots) {
  check_slots(slots);
  const int runs = least_runs(n, slots);
  if (runs == 0) return 0;
  std::int64_t c = 1;  // C(slots + 1 + i, i), at most runs * n in the end
  for (int i = 1; i < runs; ++i) c = c * (slots + 1 + i) / i;
  return std::int64_t{runs} * n - c;
}

int revolve_split(int n, int slots) {
  check_slots(slots);
  const int runs = least_runs(n, slots);
  // The first part runs once in the sweep, so at most runs - 1 times more: it has at most reach(slots, runs - 1) stages. The second
  // may run as often as all of it did, and has at least reach(slots - 1, runs - 1) (section 3 of the paper). This is the latest
  // split that keeps to both.
  const std::int64_t split = std::min(reach(slots, runs - 1), n - reach(slots - 1, runs - 1));
  return static_cast<int>(std::clamp<std::int64_t>(split, 1, n - 1));
}

Schedule revolve(const Chain& chain, int slots) {
  check_slots(slots);
  chain.check();
  std::vector<Action> out;
  reverse(out, 1, chain.n(), slots);
  return with_claims(chain, str("revolve:", slots), std::move(out));
}

}  // namespace rewind_lib::schedule
