#pragma once
// Asking for memory before it is used.

#include <rewind/core/namespace.h>

#include <cstddef>

namespace rewind_lib::detail {

/// Prefetches [begin, begin + bytes) for writing and does not wait. A step's kernels push the small records that describe tensors
/// out of the caches; prefetched together, their misses overlap.
inline void fetch(const void* begin, std::size_t bytes) {
  for (std::size_t line = 0; line < bytes; line += 64) __builtin_prefetch(static_cast<const std::byte*>(begin) + line, 1);
  asm volatile("");  // else GCC finds that nothing happens here, and drops calls of functions that do nothing but this
}

}  // namespace rewind_lib::detail
