// A training step that has found its sizes asks the system for no more memory: tensors, the tape and everything around them live
// in memory that is kept.

#include "zoo.h"

#include <doctest/doctest.h>

#include <atomic>
#include <cstdlib>
#include <new>

namespace {

std::atomic<long long> allocations{0};

}  // namespace

// Of this whole program. Arrays and the forms that do not throw end here, too; aligned ones have a pair of their own.
void* operator new(std::size_t size) {
  ++allocations;
  if (void* p = std::malloc(size == 0 ? 1 : size)) return p;
  throw std::bad_alloc();
}
void* operator new(std::size_t size, std::align_val_t alignment) {
  ++allocations;
  const auto a = static_cast<std::size_t>(alignment);
  if (void* p = std::aligned_alloc(a, (size + a - 1) / a * a)) return p;
  throw std::bad_alloc();
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }

TEST_CASE("a step in its steady state allocates nothing on the heap") {
  for (const int threads : {1, 2}) {
    const zoo::Threads scope(threads);
    for (const zoo::Model& model : zoo::models) {
      INFO(std::string(model.name));
      zoo::Task task(model);
      const auto adam = zoo::make_optimizer("adam", task.net.parameters());
      const auto step = [&] {
        task.forward_backward();
        adam->step();
      };
      for (int i = 0; i < 4; ++i) step();
      const long long before = allocations;
      step();
      CHECK(allocations - before == 0);
    }
  }
}
