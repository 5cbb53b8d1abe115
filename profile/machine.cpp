#include <rewind/core/kernels/peak.h>
#include <rewind/core/parallel.h>
#include <rewind/profile/machine.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

namespace rewind_lib {
namespace {

/// The best rate of `work`, which returns how much it did, within the given time; in units a second.
template <class F>
double best_rate(double seconds, F&& work) {
  using Clock = std::chrono::steady_clock;
  const auto since = [](Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); };
  work();  // wakes the threads and touches the memory
  double best = 0;
  const auto start = Clock::now();
  do {
    const auto begin = Clock::now();
    const auto amount = static_cast<double>(work());
    best = std::max(best, amount / since(begin));
  } while (since(start) < seconds);
  return best;
}

Machine measure() {
  Machine m;
  m.cores = static_cast<int>(std::thread::hardware_concurrency());
  m.threads = parallel::threads();
  const std::int64_t pieces = 8 * m.threads;
  std::vector<float> sink(static_cast<std::size_t>(pieces));
  m.flops = best_rate(0.1, [&] { return kernels::multiply_adds(pieces, sink.data()); });
  // 64 MiB each. Not from the allocator: they belong to no step, and a user's limit is for steps.
  constexpr std::int64_t n = 1 << 24;
  std::vector<float> a(n), b(n, 1.0f), c(n, 2.0f);
  m.bytes_per_second = best_rate(0.15, [&] { return kernels::triad(n, a.data(), b.data(), c.data(), 0.5f); });
  return m;
}

}  // namespace

const Machine& machine() {
  static std::mutex mutex;
  static std::map<int, Machine> known;
  const std::lock_guard guard(mutex);
  const int threads = parallel::threads();
  const auto at = known.find(threads);
  return at != known.end() ? at->second : known.emplace(threads, measure()).first->second;
}

}  // namespace rewind_lib
