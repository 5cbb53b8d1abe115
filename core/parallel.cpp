// A team of our own instead of `omp parallel for`: an OpenMP region ends with a barrier that every thread of the team has to
// reach, also one that got no work because the machine was busy elsewhere, and then costs a time slice of somebody else's.
// Here whoever is running takes pieces, and the caller waits only for pieces that were begun, and once for its helpers to have
// started (docs/decisions/0010). Pieces go from both ends, so that a thread meets the memory that it had before (0018).
// OpenMP remains what OpenBLAS may be built on, and has to be kept to one thread.

#include <rewind/core/error.h>
#include <rewind/core/parallel.h>

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <system_error>
#include <thread>

namespace rewind_lib::parallel {
namespace {

constexpr int most_threads = 4096;

// The first number of a list, as OpenMP takes it; what is no number of threads is passed over.
int from_environment() {
  for (const char* name : {"REWIND_NUM_THREADS", "OMP_NUM_THREADS"}) {
    const char* text = std::getenv(name);
    if (text == nullptr) continue;
    char* end = nullptr;
    const long n = std::strtol(text, &end, 10);
    if (n >= 1 && n <= most_threads && (*end == '\0' || *end == ',')) return static_cast<int>(n);
  }
  return omp_get_num_procs();
}

std::atomic<int>& setting() {
  static std::atomic<int> n{from_environment()};
  return n;
}

thread_local bool inside = false;

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

class Team {
 public:
  /// False when another thread's loop has the team.
  bool run(std::int64_t pieces, int size, detail::Body body, void* context) {
    const std::unique_lock busy(busy_, std::try_to_lock);
    if (!busy.owns_lock()) return false;
    while (workers_ < size - 1) {
      try {
        std::thread([this, me = workers_ + 1] { work(me); }).detach();
      } catch (const std::system_error& e) {
        fail(str("the system gives this process ", workers_ + 1, " threads and not ", size, " (", e.what(),
                 "); set_threads() to fewer"));
      }
      ++workers_;
    }
    // What starting takes in memory is taken here, and not whenever a busy machine lets the thread begin.
    while (begun_.load(std::memory_order_acquire) < workers_) std::this_thread::yield();
    // Close the old job first. A straggler that saw its last ticket would else take a piece of it by the count of the new one.
    const std::uint64_t old = ticket_.load(std::memory_order_relaxed) >> 32, job = old + 1;
    ticket_.store(old << 32 | closed, std::memory_order_relaxed);
    const std::int64_t together = parallel::pieces(pieces, most_tickets), count = parallel::pieces(pieces, together);
    body_.store(body, std::memory_order_relaxed);
    context_.store(context, std::memory_order_relaxed);
    size_.store(size, std::memory_order_relaxed);
    pieces_.store(pieces, std::memory_order_relaxed);
    together_.store(together, std::memory_order_relaxed);
    count_.store(static_cast<std::uint32_t>(count), std::memory_order_release);
    done_.store(0, std::memory_order_relaxed);
    ticket_.store(job << 32, std::memory_order_seq_cst);  // before sleepers_ is read: else who falls asleep now is not woken
    if (sleepers_.load(std::memory_order_seq_cst) > 0) ticket_.notify_all();

    take_pieces(job, 0);
    // Pieces that others have begun. Short waits spin; long ones leave the core to them.
    for (int spins = 0; done_.load(std::memory_order_acquire) != count; ++spins) {
      if (spins < spin_limit)
        relax();
      else
        std::this_thread::yield();
    }
    return true;
  }

 private:
  // About 50 microseconds: longer than the gap between two ops of a step, far shorter than a time slice.
  static constexpr int spin_limit = 2000;

  // ticket_ packs the number of the job and how many pieces have been taken from either end. So a compare-exchange can only take a
  // piece of the job that it looked at, and a job stays until the pieces that were taken are done. `closed` means that none is
  // left.
  static constexpr std::uint64_t closed = 0xffffffff;
  static constexpr std::int64_t most_tickets = 0xffff;  // fit a half; where there are more pieces, some are taken together
  void take_pieces(std::uint64_t job, int worker) {
    inside = true;
    std::uint64_t ticket = ticket_.load(std::memory_order_acquire);
    while (ticket >> 32 == job) {
      const auto front = static_cast<std::uint32_t>(ticket & 0xffff), back = static_cast<std::uint32_t>(ticket >> 16 & 0xffff);
      const std::uint32_t count = count_.load(std::memory_order_acquire);
      const detail::Body body = body_.load(std::memory_order_relaxed);
      void* context = context_.load(std::memory_order_relaxed);
      const std::int64_t pieces = pieces_.load(std::memory_order_relaxed), together = together_.load(std::memory_order_relaxed);
      if (front + back >= count || worker >= size_.load(std::memory_order_relaxed)) break;
      const bool from_front = worker % 2 == 0;
      if (!ticket_.compare_exchange_weak(ticket, ticket + (from_front ? 1 : 0x10000), std::memory_order_acq_rel)) continue;
      const std::int64_t begin = (from_front ? front : count - 1 - back) * together;
      for (std::int64_t piece = begin; piece < std::min(pieces, begin + together); ++piece) body(context, piece, worker);
      done_.fetch_add(1, std::memory_order_acq_rel);
      ticket = ticket_.load(std::memory_order_acquire);
    }
    inside = false;
  }

  [[noreturn]] void work(int me) {
    omp_set_num_threads(1);  // for an OpenBLAS that is built on OpenMP: it runs on the thread that calls it
    begun_.fetch_add(1, std::memory_order_release);
    std::uint64_t seen = 0;
    while (true) {
      std::uint64_t ticket = ticket_.load(std::memory_order_acquire);
      for (int spins = 0; ticket >> 32 == seen && spins < spin_limit; ++spins) {
        relax();
        ticket = ticket_.load(std::memory_order_acquire);
      }
      while (ticket >> 32 == seen) {
        sleepers_.fetch_add(1, std::memory_order_seq_cst);
        ticket_.wait(ticket, std::memory_order_acquire);
        sleepers_.fetch_sub(1, std::memory_order_seq_cst);
        ticket = ticket_.load(std::memory_order_acquire);
      }
      seen = ticket >> 32;
      take_pieces(seen, me);
    }
  }

  std::mutex busy_;
  int workers_ = 0;
  std::atomic<int> begun_{0};
  std::atomic<detail::Body> body_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<int> size_{1};
  std::atomic<std::int64_t> pieces_{0}, together_{1};
  std::atomic<std::uint32_t> count_{0};  // of tickets
  alignas(64) std::atomic<std::uint64_t> ticket_{0};
  alignas(64) std::atomic<std::uint32_t> done_{0};
  std::atomic<int> sleepers_{0};
};

Team& team() {
  // Never destroyed: its threads wait on it until the process ends.
  static Team* const t = new Team;
  return *t;
}

}  // namespace

int threads() { return setting().load(std::memory_order_relaxed); }

void set_threads(int n) {
  if (n < 1) fail(str("set_threads: the number of threads must be at least 1, got ", n));
  if (n > most_threads) fail(str("set_threads: at most ", most_threads, " threads, got ", n));
  setting().store(n, std::memory_order_relaxed);
}

bool active() { return inside; }

void detail::run(std::int64_t pieces, Body body, void* context) {
  const int size = static_cast<int>(pieces < threads() ? pieces : threads());
  if (size > 1 && !active() && team().run(pieces, size, body, context)) return;
  for (std::int64_t i = 0; i < pieces; ++i) body(context, i, 0);
}

SerialRegion::SerialRegion() {
  if (omp_get_max_threads() > 1) {
    saved_ = omp_get_max_threads();
    omp_set_num_threads(1);
  }
}

SerialRegion::~SerialRegion() {
  if (saved_ != 0) omp_set_num_threads(saved_);
}

}  // namespace rewind_lib::parallel
