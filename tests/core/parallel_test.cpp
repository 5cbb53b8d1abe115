// Parallel loops: every piece once, by whom, and the same cuts for any number of threads.

#include <rewind/core/error.h>
#include <rewind/core/parallel.h>

#include <doctest/doctest.h>

#include <vector>

#include "../threads.h"

namespace rw = rewind;
namespace parallel = rewind::parallel;

TEST_CASE("pieces of parallel work do not depend on the number of threads") {
  for (int threads : {1, 2, 3, 4}) {
    const Threads scope(threads);
    std::vector<int> seen(1001);
    parallel::for_range(1001, 100, [&](std::int64_t begin, std::int64_t end) {
      CHECK_MESSAGE(begin % 100 == 0, "pieces begin at multiples of the grain");
      for (auto i = begin; i < end; ++i) ++seen[static_cast<std::size_t>(i)];
    });
    for (int n : seen) CHECK(n == 1);
  }
  CHECK_THROWS_WITH_AS(parallel::set_threads(0), doctest::Contains("at least 1"), rw::Error);
}

TEST_CASE("every piece is run once, by a worker that there is, however many there are") {
  for (const int threads : {1, 2, 3, 4})
    for (const std::int64_t count : {0, 1, 2, 3, 7, 65534, 65535, 65536, 131070, 131071, 200001}) {
      CAPTURE(threads);
      CAPTURE(count);
      const Threads scope(threads);
      std::vector<int> runs(static_cast<std::size_t>(count)), by(static_cast<std::size_t>(count), -1);
      parallel::for_pieces(count, [&](std::int64_t piece, int worker) {
        ++runs[static_cast<std::size_t>(piece)];
        by[static_cast<std::size_t>(piece)] = worker;
      });
      bool once = true, known = true, ordered = true;
      for (std::size_t i = 0; i < runs.size(); ++i) {
        once &= runs[i] == 1;
        known &= by[i] >= 0 && by[i] < threads;
        ordered &= i == 0 || by[i] % 2 >= by[i - 1] % 2;
      }
      CHECK(once);
      CHECK(known);
      CHECK_MESSAGE(ordered, "workers take pieces from both ends, so that they meet the same memory in the next loop");
    }
}

TEST_CASE("loops one after the other do not take each other's pieces") {
  const Threads scope(4);
  std::vector<int> sums(5);
  for (int round = 0; round < 20000; ++round)
    parallel::for_pieces(5, [&](std::int64_t piece, int) { ++sums[static_cast<std::size_t>(piece)]; });
  for (const int sum : sums) CHECK(sum == 20000);
}
