#pragma once
// Recycles records of one type without going to the heap: a free list a thread, refilled in slabs.

#include <rewind/core/namespace.h>

#include <cstddef>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

namespace rewind_lib {

/// T must be trivially destructible. take() returns raw memory for one T, nullptr when the system has no more.
template <class T>
class Pool {
 public:
  static T* take() {
    Local& list = local();
    if (list.head == nullptr && !list.refill()) return nullptr;
    Node* node = list.head;
    list.head = node->next;
    return reinterpret_cast<T*>(node);
  }
  static void give(T* record) noexcept {
    Local& list = local();
    list.head = new (record) Node{list.head};
  }

 private:
  struct Node {
    Node* next;
  };
  static_assert(sizeof(T) >= sizeof(Node));

  // What threads leave behind when they end; also keeps every slab reachable. Never destroyed: records may be given
  // back by the destructors of static objects.
  struct Shared {
    std::mutex mutex;
    Node* head = nullptr;
    std::vector<void*> slabs;
  };
  static Shared& shared() {
    static Shared* const s = new Shared;
    return *s;
  }

  struct Local {
    Node* head = nullptr;

    bool refill() {
      Shared& s = shared();
      const std::lock_guard guard(s.mutex);
      if (s.head != nullptr) {
        head = std::exchange(s.head, nullptr);
        return true;
      }
      constexpr std::size_t count = 64;
      void* slab = ::operator new (count * sizeof(T), std::align_val_t{alignof(T)}, std::nothrow);
      if (slab == nullptr) return false;
      s.slabs.push_back(slab);
      for (std::size_t i = 0; i < count; ++i) head = new (static_cast<std::byte*>(slab) + i * sizeof(T)) Node{head};
      return true;
    }
    ~Local() {
      if (head == nullptr) return;
      Shared& s = shared();
      const std::lock_guard guard(s.mutex);
      Node* tail = head;
      while (tail->next != nullptr) tail = tail->next;
      tail->next = s.head;
      s.head = std::exchange(head, nullptr);
    }
  };
  static Local& local() {
    thread_local Local list;
    return list;
  }
};

}  // namespace rewind_lib
