#include <rewind/autograd/schedule/build.h>
#include <rewind/autograd/schedule/strategies.h>

namespace rewind_lib::schedule {

Schedule vanilla(const Chain& chain) {
  std::vector<Action> out;
  detail::there_and_back(out, 1, chain.n());
  return with_claims(chain, "vanilla", std::move(out));
}

}  // namespace rewind_lib::schedule
