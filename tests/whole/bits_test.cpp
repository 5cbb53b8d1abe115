// The bits of a training run are the same on any number of threads.

#include "bits.h"

#include <doctest/doctest.h>

TEST_CASE("loss, gradients, parameters and running statistics have the same bits on one, two, three and four threads") {
  for (const bits::Case& c : bits::cases) {
    CAPTURE(c.model.name);
    std::vector<std::uint64_t> one;
    for (const int threads : {1, 2, 3, 4}) {
      CAPTURE(threads);
      const zoo::Threads scope(threads);
      const auto now = bits::train(c, 3);
      if (one.empty()) one = now;
      CHECK(now == one);
    }
    // Bits that nothing moves would prove nothing.
    zoo::Model other = c.model;
    ++other.batch;
    CHECK(bits::train({other, c.optimizer}, 3) != one);
  }
}
