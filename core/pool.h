#pragma once
// Records that any thread may take and give back.

#include <rewind/core/records.h>

#include <algorithm>
#include <array>
#include <mutex>

namespace rewind_lib {

/// T must be trivially destructible. Each thread keeps some at hand.
template <class T>
class Pool {
 public:
  /// As Records::take().
  static T* take() {
    AtHand& mine = at_hand();
    if (mine.count == 0 && !mine.refill()) return nullptr;
    T* record = mine.records[--mine.count];
    if (mine.count >= records_ahead) detail::fetch(mine.records[mine.count - records_ahead], sizeof(T));
    return record;
  }
  static void give(T* record) noexcept {
    AtHand& mine = at_hand();
    if (mine.count == mine.records.size()) mine.give_back(mine.count / 2);
    mine.records[mine.count++] = record;
  }

 private:
  struct Shared {
    std::mutex mutex;
    Records<T> records;
  };
  // Never destroyed: records may be given back by the destructors of static objects.
  static Shared& shared() {
    static Shared* const s = new Shared;
    return *s;
  }

  struct AtHand {
    std::array<T*, 64> records;
    std::size_t count = 0;

    [[gnu::noinline]] bool refill() {
      Shared& s = shared();
      const std::lock_guard guard(s.mutex);
      for (; count < records.size() / 2; ++count) {
        T* record = s.records.take();
        if (record == nullptr) break;
        records[count] = record;
      }
      return count > 0;
    }
    // The ones that were given longest ago.
    [[gnu::noinline]] void give_back(std::size_t n) noexcept {
      Shared& s = shared();
      const std::lock_guard guard(s.mutex);
      for (std::size_t i = n; i-- > 0;) s.records.give(records[i]);
      std::copy(records.begin() + static_cast<std::ptrdiff_t>(n), records.begin() + static_cast<std::ptrdiff_t>(count),
                records.begin());
      count -= n;
    }
    ~AtHand() { give_back(count); }
  };
  static AtHand& at_hand() {
    thread_local AtHand mine;
    return mine;
  }
};

}  // namespace rewind_lib
