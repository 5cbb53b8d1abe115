#include <rewind/autograd/schedule/build.h>
#include <rewind/autograd/schedule/strategies.h>
#include <rewind/core/error.h>

#include <cmath>

namespace rewind_lib::schedule {

namespace {
std::vector<Action> equal_segments(int n, int k) {
  std::vector<int> first;
  for (int i = 0; i < k; ++i) first.push_back(static_cast<int>(std::int64_t{i} * n / k) + 1);
  return detail::segmented(n, first);
}
}  // namespace

Schedule segments(const Chain& chain, int k) {
  if (k < 1 || k > chain.n()) fail(str("schedule: segments:", k, " of a chain of ", chain.n(), " stages; give 1 to ", chain.n()));
  return with_claims(chain, str("segments:", k), equal_segments(chain.n(), k));
}

Schedule sqrt(const Chain& chain) {
  chain.check();
  const int k = static_cast<int>(std::lround(std::sqrt(chain.n())));
  return with_claims(chain, "sqrt", equal_segments(chain.n(), k));
}

}  // namespace rewind_lib::schedule
