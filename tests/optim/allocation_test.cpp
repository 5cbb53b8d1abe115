// Counts what reaches the heap: this program has an operator new of its own.
#include <doctest/doctest.h>

#include <rewind/core/memory.h>
#include <rewind/optim/adam.h>
#include <rewind/optim/clip.h>
#include <rewind/optim/schedule.h>
#include <rewind/optim/sgd.h>

#include <atomic>
#include <cstdlib>
#include <new>

namespace {
std::atomic<long> heap_allocations{0};
}

void* operator new(std::size_t bytes) {
  ++heap_allocations;
  if (void* p = std::malloc(bytes == 0 ? 1 : bytes)) return p;
  throw std::bad_alloc();
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }

using namespace rewind;

namespace {

template <class Optimizer>
void check_steady(const typename Optimizer::Options& options) {
  const std::vector<Tensor> w{zeros({50000}), zeros({3, 5}), zeros({7}, float64)};
  const long at_start = heap_allocations;
  Optimizer optimizer{w, options};
  CHECK(heap_allocations > at_start);  // the count works
  const auto schedule = optim::warmup({.steps = 2}, optim::Cosine{.steps = 10});
  for (int step = 0; step < 4; ++step) {
    for (const Tensor& t : w) t.set_grad(ones(t.shape(), t.dtype()));
    const std::size_t state = optimizer.state_bytes();
    const long before = heap_allocations;
    optim::clip_grad_norm(w, 1.0);
    optimizer.follow(schedule);
    optimizer.step();
    if (step > 0) {
      CHECK(heap_allocations == before);
      CHECK(optimizer.state_bytes() == state);
    }
  }
}

}  // namespace

TEST_CASE("from the second step on nothing is allocated on the heap") {
  check_steady<optim::SGD>({.lr = 0.1});
  check_steady<optim::SGD>({.lr = 0.1, .momentum = 0.9});
  check_steady<optim::Adam>({});
  check_steady<optim::AdamW>({});
}
