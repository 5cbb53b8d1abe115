#pragma once
// How many hold a record: tensors and storages are shared, and freed by the last.

#include <rewind/core/namespace.h>

#include <atomic>
#include <cstdint>

#if __has_include(<sys/single_threaded.h>)
#include <sys/single_threaded.h>
#endif

namespace rewind_lib {

/// Safe from any thread. While the process has no second one, which the C library knows, it counts without locked instructions
/// (docs/decisions/0016-plain-counts-while-alone.md).
class RefCount {
 public:
  RefCount(std::uint32_t n = 0) : count_(n) {}
  void add() noexcept {
    if (alone())
      count_.store(count_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    else
      count_.fetch_add(1, std::memory_order_relaxed);
  }
  /// Whether it was the last that is gone now. (The count itself may then be left as it was.)
  bool drop() noexcept {
    if (one()) return true;
    if (!alone()) return count_.fetch_sub(1, std::memory_order_acq_rel) == 1;
    count_.store(count_.load(std::memory_order_relaxed) - 1, std::memory_order_relaxed);
    return false;
  }
  /// Whether who asks is the only one that holds it.
  bool one() const noexcept { return count_.load(std::memory_order_acquire) == 1; }
  bool none() const noexcept { return count_.load(std::memory_order_relaxed) == 0; }
  /// For a record that nobody else can reach.
  void reset(std::uint32_t n) noexcept { count_.store(n, std::memory_order_relaxed); }

 private:
  static bool alone() noexcept {
#if __has_include(<sys/single_threaded.h>)
    return __libc_single_threaded != 0;
#else
    return false;
#endif
  }
  std::atomic<std::uint32_t> count_;
};

}  // namespace rewind_lib
