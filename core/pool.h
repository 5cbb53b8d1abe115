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
    if (mine.count == mine.room && !mine.make_room()) return give_all(&record, 1);
    mine.records[mine.count++] = record;
  }

 private:
  struct Shared {
    std::mutex mutex;
    Records<T> records;
  };
  // Never destroyed: the destructors of static objects may give records back.
  static Shared& shared() {
    static Shared* const s = new Shared;
    return *s;
  }

  static void give_all(T* const* records, std::size_t n) noexcept {
    Shared& s = shared();
    const std::lock_guard guard(s.mutex);
    while (n-- > 0) s.records.give(records[n]);
  }

  // Without a destructor, since other thread_local objects may give records back when it would have run already.
  struct AtHand {
    std::array<T*, 64> records;
    std::size_t count, room;  // 0 until the first use, and again when the thread ends
    bool over;

    [[gnu::noinline]] bool refill() {
      make_room();
      Shared& s = shared();
      const std::lock_guard guard(s.mutex);
      for (const std::size_t wanted = over ? 1 : records.size() / 2; count < wanted; ++count) {
        T* record = s.records.take();
        if (record == nullptr) break;
        records[count] = record;
      }
      return count > 0;
    }
    // False when the thread keeps none any more.
    [[gnu::noinline]] bool make_room() noexcept {
      if (over) return false;
      thread_local const AtEnd at_end;
      room = records.size();
      if (count == room) give_back(count / 2);
      return true;
    }
    // The ones that were given longest ago.
    void give_back(std::size_t n) noexcept {
      give_all(records.data(), n);
      std::copy(records.begin() + static_cast<std::ptrdiff_t>(n), records.begin() + static_cast<std::ptrdiff_t>(count),
                records.begin());
      count -= n;
    }
  };
  struct AtEnd {
    ~AtEnd() {
      AtHand& mine = at_hand();
      mine.give_back(mine.count);
      mine.room = 0;
      mine.over = true;
    }
  };
  static AtHand& at_hand() {
    static constinit thread_local AtHand mine{};
    return mine;
  }
};

}  // namespace rewind_lib
