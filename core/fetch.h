#pragma once
// Asking for memory before it is used.

#include <rewind/core/namespace.h>

#include <cstddef>

namespace rewind_lib::detail {

/// Brings the lines of [begin, begin + bytes) into the caches, to be written, and does not wait for them. A step's kernels push
/// what describes tensors out of the caches; asked for side by side, its lines do not wait for one another.
inline void fetch(const void* begin, std::size_t bytes) {
  for (std::size_t line = 0; line < bytes; line += 64) __builtin_prefetch(static_cast<const std::byte*>(begin) + line, 1);
  asm volatile("");  // else GCC finds that nothing happens here, and drops calls of functions that do nothing but this
}

}  // namespace rewind_lib::detail
