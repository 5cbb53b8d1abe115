#include <rewind/autograd/schedule/build.h>
#include <rewind/autograd/schedule/strategies.h>
#include <rewind/core/error.h>

namespace rewind_lib::schedule {

Schedule periodic(const Chain& chain, int k) {
  if (k < 1) fail(str("schedule: periodic:", k, "; give the number of stages in a period, 1 or more"));
  std::vector<int> first;
  for (std::int64_t l = 1; l <= chain.n(); l += k) first.push_back(static_cast<int>(l));
  return with_claims(chain, str("periodic:", k), detail::segmented(chain.n(), first));
}

}  // namespace rewind_lib::schedule
