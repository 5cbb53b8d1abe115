#include <rewind/autograd/schedule/build.h>
#include <rewind/autograd/schedule/strategies.h>

namespace rewind_lib::schedule {

Schedule low_memory(const Chain& chain) {
  std::vector<Action> out;
  for (int l = chain.n(); l >= 1; --l) {
    detail::sweep(out, 1, l);
    detail::there_and_back(out, l, l);
  }
  return with_claims(chain, "low-memory", std::move(out));
}

}  // namespace rewind_lib::schedule
