#include <rewind/core/error.h>
#include <rewind/core/parallel.h>

#include <omp.h>

#include <atomic>
#include <cstdlib>

namespace rewind_lib::parallel {
namespace {

int from_environment() {
  for (const char* name : {"REWIND_NUM_THREADS", "OMP_NUM_THREADS"}) {
    const char* text = std::getenv(name);
    if (text != nullptr && std::atoi(text) > 0) return std::atoi(text);
  }
  return omp_get_num_procs();
}

std::atomic<int>& setting() {
  static std::atomic<int> n{from_environment()};
  return n;
}

}  // namespace

int threads() { return setting().load(std::memory_order_relaxed); }

void set_threads(int n) {
  if (n < 1) fail(str("set_threads: the number of threads must be at least 1, got ", n));
  setting().store(n, std::memory_order_relaxed);
}

bool active() { return omp_in_parallel() != 0; }

void detail::run(std::int64_t pieces, Body body, void* context) {
  const int team = static_cast<int>(pieces < threads() ? pieces : threads());
  if (team <= 1 || active()) {
    for (std::int64_t i = 0; i < pieces; ++i) body(context, i, 0);
    return;
  }
  // Dynamic: pieces differ in cost and the machine may be shared; who runs a piece has no influence on its result.
#pragma omp parallel for schedule(dynamic, 1) num_threads(team)
  for (std::int64_t i = 0; i < pieces; ++i) body(context, i, omp_get_thread_num());
}

SerialRegion::SerialRegion() {
  if (!active() && omp_get_max_threads() > 1) {
    saved_ = omp_get_max_threads();
    omp_set_num_threads(1);
  }
}

SerialRegion::~SerialRegion() {
  if (saved_ != 0) omp_set_num_threads(saved_);
}

}  // namespace rewind_lib::parallel
