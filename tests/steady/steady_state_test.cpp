// A training step that has found its sizes asks the C library for no more memory: tensors, the tape and everything around them
// live in memory that is kept. A program of its own, because it counts every malloc.

#include "../whole/zoo.h"

#include <doctest/doctest.h>

#include <atomic>
#include <cerrno>
#include <cstddef>

extern "C" {
// glibc's own, under the names that it keeps for those who replace the public ones.
void* __libc_malloc(std::size_t size);
void* __libc_calloc(std::size_t count, std::size_t size);
void* __libc_realloc(void* p, std::size_t size);
void* __libc_memalign(std::size_t alignment, std::size_t size);

static std::atomic<long long> calls{0};

void* malloc(std::size_t size) {
  ++calls;
  return __libc_malloc(size);
}
void* calloc(std::size_t count, std::size_t size) {
  ++calls;
  return __libc_calloc(count, size);
}
void* realloc(void* p, std::size_t size) {
  ++calls;
  return __libc_realloc(p, size);
}
void* aligned_alloc(std::size_t alignment, std::size_t size) {
  ++calls;
  return __libc_memalign(alignment, size);
}
int posix_memalign(void** out, std::size_t alignment, std::size_t size) {
  ++calls;
  *out = __libc_memalign(alignment, size);
  return *out == nullptr ? ENOMEM : 0;
}
}

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
      const long long before = calls;
      step();
      CHECK(calls - before == 0);
    }
  }
}
