#pragma once
// Storage: a counted block of bytes with a category, shared by the tensors that view it.

#include <rewind/core/allocator.h>
#include <rewind/core/memory.h>
#include <rewind/core/ref_count.h>

#include <cstddef>
#include <cstdint>
#include <utility>

namespace rewind_lib {

struct alignas(64) Storage {
  RefCount refs;          ///< none() when the record is of no storage
  std::uint32_t version;  ///< moves on every write to a tensor's data, so that a stale save is noticed
  Category category;
  std::uint32_t dry;  ///< the dry run that it belongs to: counted there, but without bytes; 0 for real ones
  std::byte* data;    ///< 64-byte aligned; nullptr when dry
  std::size_t bytes;
  const char* op;       ///< the op that made it, "" outside ops
  const char* module;   ///< the module path it was made in, "" outside modules
  Arena::Block* block;  ///< of the arena; nullptr when it has no bytes from there
  std::uint32_t era;    ///< replays of a later one must not change it
};

/// A new storage with one reference. Throws OutOfMemory.
Storage* new_storage(std::size_t bytes, Category category);
void destroy(Storage* storage) noexcept;
inline void retain(Storage* s) { s->refs.add(); }
inline void release(Storage* s) noexcept {
  if (s->refs.drop()) destroy(s);
}
/// Counts the storage's bytes in another category from now on.
void recategorize(Storage* storage, Category category);

/// Where the running thread is, for storages and events to be labelled with. Set by the choke point and by modules.
struct Location {
  const char* op = "";
  const char* module = "";
  std::uint32_t replay = 0;  ///< the era of the replay that goes on, 0 when none does
};
Location& location();

/// Changes a part of location() while alive.
class LocationScope {
 public:
  LocationScope(const char* Location::*part, const char* value) : part_(part), saved_(std::exchange(location().*part, value)) {}
  ~LocationScope() { location().*part_ = saved_; }
  LocationScope(const LocationScope&) = delete;
  LocationScope& operator=(const LocationScope&) = delete;

 private:
  const char* Location::*part_;
  const char* saved_;
};

/// While alive, a function runs again on this thread. What is older is not to be written to: it would be changed once more.
class ReplayEra {
 public:
  ReplayEra() : saved_(std::exchange(location().replay, next())) {}
  ~ReplayEra() { location().replay = saved_; }
  ReplayEra(const ReplayEra&) = delete;
  ReplayEra& operator=(const ReplayEra&) = delete;

 private:
  static std::uint32_t next();
  std::uint32_t saved_;
};

/// While alive, new storages on this thread have no bytes and are counted in a ledger of their own that starts as a copy
/// of the one in force; no limit applies. A dry run inside another sees what the outer one has counted so far, and leaves
/// no trace in it.
class DryLedger {
 public:
  DryLedger();
  ~DryLedger();
  DryLedger(const DryLedger&) = delete;
  DryLedger& operator=(const DryLedger&) = delete;
  static bool active() { return current() != 0; }
  /// The number of the dry run that goes on on this thread, 0 when there is none.
  static std::uint32_t current();
  /// How many there are, one inside the other.
  static std::uint8_t depth();

 private:
  void* outer_;
};

/// Left over from a dry run that has ended: what holds it should forget it.
bool is_stale(const Storage& s);

/// Stands in for a real storage in the dry run that goes on: has its size and category, takes over its place in the dry
/// ledger, and has no bytes.
Storage* new_stand_in(const Storage& real);

}  // namespace rewind_lib
