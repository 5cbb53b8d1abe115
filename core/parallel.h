#pragma once
// Threads. The only place that knows OpenMP.
//
// Work is cut into pieces whose number and borders depend on the problem alone, never on the number of threads; threads
// only choose who runs which piece. A kernel that writes disjoint outputs a piece, or one partial sum a piece that are
// then added in order, therefore gives the same bits for any number of threads.

#include <rewind/core/namespace.h>

#include <cstdint>
#include <type_traits>
#include <utility>

namespace rewind_lib::parallel {

/// Threads that parallel loops use: set_threads, else REWIND_NUM_THREADS, else OMP_NUM_THREADS, else the cores at hand. A variable
/// that is no number from 1 to 4096 is passed over.
int threads();
/// Not while another thread runs an op: its workspaces were made for as many threads as there were. Throws Error for n below 1 or
/// above 4096; any op does when the system gives the process fewer.
void set_threads(int n);

/// True inside a running parallel loop; loops started there run serially.
bool active();

/// Elements of light work (an add, say) that a piece should hold at least, so that waking a thread pays.
inline constexpr std::int64_t light_grain = 32768;

constexpr std::int64_t pieces(std::int64_t n, std::int64_t grain) { return (n + grain - 1) / grain; }

namespace detail {
using Body = void (*)(void* context, std::int64_t piece, int worker);
void run(std::int64_t pieces, Body body, void* context);
}  // namespace detail

/// Calls body(piece, worker) once for every piece in [0, count); worker in [0, threads()) names the scratch space that
/// this call has to itself. body must not throw.
template <class F>
void for_pieces(std::int64_t count, F&& body) {
  if (count == 1) {
    body(std::int64_t{0}, 0);
  } else if (count > 1) {
    using Fn = std::remove_reference_t<F>;
    detail::run(
        count, [](void* context, std::int64_t piece, int worker) { (*static_cast<Fn*>(context))(piece, worker); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }
}

/// The piece that a worker is likely to get after this one, if there is such a one: every other worker takes them from the end.
inline std::int64_t next_piece(std::int64_t piece, int worker) {
  return worker % 2 == 0 ? piece + (threads() + 1) / 2 : piece - threads() / 2;
}

/// The piece to make as piece k of `count`, so that workers go backwards over what they had in a loop of as many pieces before.
inline std::int64_t backwards(std::int64_t k, std::int64_t count) {
  const std::int64_t middle = threads() > 1 ? (count + 1) / 2 : count;
  return k < middle ? middle - 1 - k : count - 1 - (k - middle);
}

/// The distance between the scratch spaces of two workers, in elements of T: the `elements` that each uses, and a gap of 64 times
/// the `step` in which it reads them, 64 KiB at most. The hardware's prefetcher runs on beyond the end of such reads; without a
/// gap, into lines that another core writes to (docs/performance.md).
template <class T>
constexpr std::int64_t worker_stride(std::int64_t elements, std::int64_t step) {
  constexpr std::int64_t steps = 64, most = (std::int64_t{64} << 10) / static_cast<std::int64_t>(sizeof(T));
  return elements + (steps * step < most ? steps * step : most);
}

/// Calls body(begin, end) over [0, n) in pieces of `grain` (the last may be shorter). body must not throw.
template <class F>
void for_range(std::int64_t n, std::int64_t grain, F&& body) {
  for_pieces(pieces(n, grain), [&](std::int64_t piece, int) {
    const std::int64_t begin = piece * grain;
    body(begin, begin + grain < n ? begin + grain : n);
  });
}

/// While alive, calls into an OpenMP-threaded library from this thread stay on this thread (a BLAS call in a serial
/// region would otherwise start threads, and its bits depend on their number). Free on the other threads of a loop.
class SerialRegion {
 public:
  SerialRegion();
  ~SerialRegion();
  SerialRegion(const SerialRegion&) = delete;
  SerialRegion& operator=(const SerialRegion&) = delete;

 private:
  int saved_ = 0;
};

}  // namespace rewind_lib::parallel
