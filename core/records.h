#pragma once
// Memory for records of one size that come and go, without the heap: slabs, and a stack of what is unused.

#include <rewind/core/fetch.h>

#include <cstddef>
#include <new>
#include <vector>

namespace rewind_lib {

/// A caller that takes one record usually takes more, so the record this many places further down is prefetched. (A linked list of
/// free records could not look ahead.)
constexpr std::size_t records_ahead = 8;

/// T must be trivially destructible. Not safe from several threads.
template <class T>
class Records {
 public:
  Records() = default;
  ~Records() {
    for (T* slab : slabs_) ::operator delete (slab, std::align_val_t{alignof(T)});
  }
  Records(const Records&) = delete;
  Records& operator=(const Records&) = delete;

  /// Memory for one T, which holds what it held when it was given back; nullptr when the system has no more.
  T* take() {
    if (unused_.empty() && !refill()) return nullptr;
    T* record = unused_.back();
    unused_.pop_back();
    if (unused_.size() >= records_ahead) detail::fetch(unused_[unused_.size() - records_ahead], sizeof(T));
    return record;
  }
  void give(T* record) noexcept { unused_.push_back(record); }  // refill() made room

  /// Calls f with every record that there is, unused ones included.
  template <class F>
  void for_each(F f) const {
    for (const T* slab : slabs_)
      for (std::size_t i = 0; i < slab_size; ++i) f(slab[i]);
  }

 private:
  static constexpr std::size_t slab_size = 128;

  // Out of line, so that take() is short.
  [[gnu::noinline]] bool refill() {
    try {
      // Doubled, since reserve() takes exactly what it is asked for.
      if (slabs_.size() == slabs_.capacity()) slabs_.reserve(2 * slabs_.size() + 8);
      unused_.reserve(slabs_.capacity() * slab_size);
      slabs_.push_back(static_cast<T*>(::operator new (slab_size * sizeof(T), std::align_val_t{alignof(T)})));
    } catch (const std::bad_alloc&) {
      return false;
    }
    for (std::size_t i = slab_size; i-- > 0;) give(new (slabs_.back() + i) T{});
    return true;
  }

  std::vector<T*> slabs_, unused_;
};

}  // namespace rewind_lib
