// Preloaded into another program (LD_PRELOAD), counts the bytes that it holds on the heap, as malloc rounds them.

#include <atomic>
#include <cerrno>
#include <cstddef>

#include <malloc.h>

extern "C" {
// glibc's own, under the names that it keeps for those who replace the public ones.
void* __libc_malloc(std::size_t size);
void* __libc_calloc(std::size_t count, std::size_t size);
void* __libc_realloc(void* p, std::size_t size);
void* __libc_memalign(std::size_t alignment, std::size_t size);
void __libc_free(void* p);
}

namespace {

std::atomic<long long> live{0}, peak{0};

void* added(void* p) {
  if (p == nullptr) return p;
  const auto bytes = static_cast<long long>(malloc_usable_size(p));
  const long long now = live.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  long long most = peak.load(std::memory_order_relaxed);
  while (now > most && !peak.compare_exchange_weak(most, now, std::memory_order_relaxed)) {
  }
  return p;
}

void removed(void* p) {
  if (p != nullptr) live.fetch_sub(static_cast<long long>(malloc_usable_size(p)), std::memory_order_relaxed);
}

}  // namespace

extern "C" {

long long heap_meter_live() { return live; }
long long heap_meter_peak() { return peak; }
void heap_meter_reset_peak() { peak = live.load(); }

void* malloc(std::size_t size) { return added(__libc_malloc(size)); }
void* calloc(std::size_t count, std::size_t size) { return added(__libc_calloc(count, size)); }
void free(void* p) {
  removed(p);
  __libc_free(p);
}
void* realloc(void* p, std::size_t size) {
  removed(p);
  return added(__libc_realloc(p, size));
}
void* memalign(std::size_t alignment, std::size_t size) { return added(__libc_memalign(alignment, size)); }
void* aligned_alloc(std::size_t alignment, std::size_t size) { return added(__libc_memalign(alignment, size)); }
int posix_memalign(void** out, std::size_t alignment, std::size_t size) {
  *out = added(__libc_memalign(alignment, size));
  return *out == nullptr ? ENOMEM : 0;
}

}  // extern "C"
