#include <rewind/core/kernels/peak.h>
#include <rewind/core/parallel.h>
#include <rewind/profile/machine.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
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
  constexpr std::int64_t n = 1 << 24, line = 64 / sizeof(float);
  std::vector<float> room(n + line), b(n, 1.0f), c(n, 2.0f);
  const auto to_line = static_cast<std::int64_t>((64 - reinterpret_cast<std::uintptr_t>(room.data()) % 64) % 64 / sizeof(float));
  float* const a = room.data() + to_line;
  for (const bool past : {true, false})
    m.bytes_per_second =
        std::max(m.bytes_per_second, best_rate(0.08, [&] { return kernels::triad(n, a, b.data(), c.data(), 0.5f, past); }));
  return m;
}

/// By the number of threads.
struct Known {
  std::mutex mutex;
  std::map<int, Machine> machines;
};
Known& known() {
  static Known k;
  return k;
}

}  // namespace

Machine machine() {
  Known& k = known();
  const std::lock_guard guard(k.mutex);
  const auto at = k.machines.find(parallel::threads());
  return at != k.machines.end() ? at->second : k.machines.emplace(parallel::threads(), measure()).first->second;
}

Machine machine_again() {
  Known& k = known();
  const std::lock_guard guard(k.mutex);
  const Machine now = measure();
  Machine& best = k.machines.try_emplace(now.threads, now).first->second;
  best.flops = std::max(best.flops, now.flops);
  best.bytes_per_second = std::max(best.bytes_per_second, now.bytes_per_second);
  return best;
}

}  // namespace rewind_lib
