#include <rewind/autograd/schedule/build.h>
#include <rewind/autograd/schedule/strategies.h>

namespace rewind_lib::schedule {

namespace {
void halves(std::vector<Action>& out, int s, int t) {
  if (s == t) return detail::there_and_back(out, s, s);
  const int middle = s + (t - s + 1) / 2;
  detail::sweep(out, s, middle);
  halves(out, middle, t);
  halves(out, s, middle - 1);
}
}  // namespace

Schedule recursive(const Chain& chain) {
  chain.check();
  std::vector<Action> out;
  halves(out, 1, chain.n());
  return with_claims(chain, "recursive", std::move(out));
}

}  // namespace rewind_lib::schedule
