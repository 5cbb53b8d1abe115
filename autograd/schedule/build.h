#pragma once
// The phrases that schedules are made of. For the strategies; not part of the interface.

#include <rewind/autograd/schedule/simulate.h>

namespace rewind_lib::schedule::detail {

/// From a_{s-1}, which stays, to a_{t-1}: Fck(s) Fnone(s+1) .. Fnone(t-1). Nothing when s = t.
inline void sweep(std::vector<Action>& out, int s, int t) {
  for (int l = s; l < t; ++l) out.push_back(l == s ? Fck(l) : Fnone(l));
}

/// Stages s..t recorded, then backward: Fall(s) .. Fall(t) B(t) .. B(s).
inline void there_and_back(std::vector<Action>& out, int s, int t) {
  for (int l = s; l <= t; ++l) out.push_back(Fall(l));
  for (int l = t; l >= s; --l) out.push_back(B(l));
}

/// Segments that begin at stages first[0] = 1 < first[1] < .. <= n: all but the last are run twice.
inline std::vector<Action> segmented(int n, const std::vector<int>& first) {
  std::vector<Action> out;
  for (std::size_t i = 0; i + 1 < first.size(); ++i) sweep(out, first[i], first[i + 1]);
  for (std::size_t i = first.size(); i-- > 0;) there_and_back(out, first[i], i + 1 < first.size() ? first[i + 1] - 1 : n);
  return out;
}

}  // namespace rewind_lib::schedule::detail
