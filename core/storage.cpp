#include <rewind/core/allocator.h>
#include <rewind/core/records.h>
#include <rewind/core/storage.h>
#include <rewind/core/tensor.h>

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <thread>
#include <utility>

// GCC defines a macro, clang answers a question.
#if defined(__has_feature)
#define REWIND_SANITIZE_ADDRESS __has_feature(address_sanitizer)
#elif defined(__SANITIZE_ADDRESS__)
#define REWIND_SANITIZE_ADDRESS 1
#else
#define REWIND_SANITIZE_ADDRESS 0
#endif

namespace rewind_lib {
namespace {

// A ledger counts bytes. The real one follows real storages; a dry run counts in one of its own.
struct Ledger {
  std::uint32_t dry_run = 0;
  std::uint8_t depth = 0;
  Ledger* outer = nullptr;  // a dry run inside another
  memory::Usage live, peak, at_peak;
  std::vector<memory::Event>* timeline = nullptr;
  bool timeline_cut = false;  // events are missing

  void change(Category category, std::int64_t delta) {
    std::size_t& bytes = live.bytes[static_cast<int>(category)];
    bytes += static_cast<std::size_t>(delta);
    live.total += static_cast<std::size_t>(delta);
    std::size_t& most = peak.bytes[static_cast<int>(category)];
    if (bytes > most) most = bytes;
    if (live.total > peak.total) {
      peak.total = live.total;
      at_peak = live;
    }
    if (timeline != nullptr) note({category, delta, live.total, location().op, location().module});
  }
  // Memory that is given back must not fail.
  void note(const memory::Event& event) noexcept {
    try {
      timeline->push_back(event);
    } catch (const std::bad_alloc&) {
      timeline_cut = true;
    }
  }
  void reset_peak() { peak = at_peak = live; }
};

class SpinLock {
 public:
  void lock() {
    while (flag_.exchange(true, std::memory_order_acquire)) std::this_thread::yield();
  }
  void unlock() { flag_.store(false, std::memory_order_release); }

 private:
  std::atomic<bool> flag_{false};
};

struct Guard {
  explicit Guard(SpinLock& lock) : lock_(lock) { lock_.lock(); }
  ~Guard() { lock_.unlock(); }
  SpinLock& lock_;
};

std::atomic<std::uint32_t> era{1};  // moves with every replay

std::size_t address_space() {
  const auto pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  return pages > 0 && page > 0 ? 4 * static_cast<std::size_t>(pages) * static_cast<std::size_t>(page) : std::size_t{1} << 38;
}

// Everything behind one lock: the arenas, the real ledger, the Storage records.
struct Heap {
  SpinLock lock;
  // Small blocks live apart: a saved per-channel vector must not pin a hole between two feature maps.
  static constexpr std::size_t small_bytes = 16384;
  Arena small{address_space() / 16};
  Arena large{address_space()};
  Ledger real;
  std::size_t limit = 0;
  std::uint64_t fail_countdown = 0;
  Records<Storage> records;

  void give_record(Storage* s) {
    s->refs.reset(0);
    records.give(s);
  }

  static void begin(Storage* s, Category category, std::uint32_t dry, std::size_t bytes) {
    new (s) Storage{1, 0, category, dry, nullptr, bytes, location().op, location().module, nullptr, era};
  }

  /// False when the system has no more.
  bool take_bytes(Storage* s) {
#if REWIND_SANITIZE_ADDRESS
    // Blocks of their own, so that the sanitizer sees every overrun. The arena itself has its own tests.
    s->data = static_cast<std::byte*>(std::aligned_alloc(Arena::alignment, (std::max<std::size_t>(s->bytes, 1) + 63) / 64 * 64));
    return s->data != nullptr;
#else
    if (s->bytes < small_bytes) {
      s->block = small.allocate(s->bytes);
    } else {
      // Free memory is kept, but never so much of it that the process outgrows the tracked peak by more than 2.5 %; with the
      // code that is loaded on the way and the heap, that is 5 % from 200 MB on. Smaller programs may keep as much as that one.
      constexpr std::size_t least = 5'000'000;
      const std::size_t most = std::max(real.peak.total, real.live.total + s->bytes);
      const std::size_t allowed = most + std::max(most / 40, least);
      s->block = large.allocate(s->bytes, allowed - std::min(small.resident(), allowed));
    }
    if (s->block != nullptr) s->data = s->block->data;
    return s->block != nullptr;
#endif
  }

  void give_bytes(Storage* s) {
#if REWIND_SANITIZE_ADDRESS
    std::free(s->data);
#else
    (s->bytes < small_bytes ? small : large).deallocate(s->block);
#endif
  }
};

Heap& heap() {
  // Never destroyed: tensors may outlive every other static object.
  static Heap* const h = new Heap;
  return *h;
}

thread_local Ledger* dry_ledger = nullptr;
thread_local Category category_now = Category::activation;
thread_local Location location_now;

Ledger& ledger_now() { return dry_ledger != nullptr ? *dry_ledger : heap().real; }

/// Tells all ledgers that count a storage: those of dry runs from the innermost one out to its own, and the real one of real bytes.
template <class Tell>
void for_ledgers(const Storage& s, Tell&& tell) {
  if (!is_stale(s))
    for (Ledger* l = dry_ledger; l != nullptr; l = l->outer) {
      tell(*l);
      if (l->dry_run == s.dry) break;
    }
  if (s.dry == 0) tell(heap().real);
}

std::vector<memory::Holding> largest_locked(int count) {
  std::vector<memory::Holding> all;
  heap().records.for_each([&](const Storage& s) {
    if (!s.refs.none() && !is_stale(s)) all.push_back({s.bytes, s.category, s.op, s.module});
  });
  const auto keep = std::min(all.size(), static_cast<std::size_t>(std::max(count, 0)));
  std::partial_sort(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(keep), all.end(),
                    [](const auto& a, const auto& b) { return a.bytes > b.bytes; });
  all.resize(keep);
  return all;
}

[[noreturn]] void refuse(std::size_t bytes, Category category, const memory::Usage& live, const char* reason, std::size_t limit,
                         const std::vector<memory::Holding>& holdings) {
  const Location& at = location();
  std::string text = str("out of memory: ", at.op[0] != 0 ? str(at.op, " ") : "", "needs ", bytes, " bytes (", memory::human(bytes),
                         ") of ", name_of(category), at.module[0] != 0 ? str(" in ", at.module) : "", ": ", reason,
                         limit > 0 ? memory::human(limit) : "", ". Live now: ", memory::human(live.total), " (");
  for (int c = 0; c < category_count; ++c)
    text += str(c > 0 ? ", " : "", name_of(static_cast<Category>(c)), " ", memory::human(live.bytes[c]));
  text += ").";
  if (!holdings.empty()) text += " Largest live tensors:";
  for (const auto& h : holdings)
    text += str(&h == holdings.data() ? " " : ", ", memory::human(h.bytes), " ", name_of(h.category),
                h.op[0] != 0 ? str(" by ", h.op) : "", h.module[0] != 0 ? str(" in ", h.module) : "");
  text += str(holdings.empty() ? " Use" : ". Use", " a smaller batch",
              limit > 0 ? ", recompute more, or raise the limit." : " or recompute more.");
  throw OutOfMemory(text);
}

}  // namespace

Location& location() { return location_now; }

std::uint32_t ReplayEra::next() { return ++era; }

const char* name_of(Category category) {
  constexpr const char* names[] = {"parameter", "gradient", "optimizer_state", "activation", "input", "workspace"};
  return names[static_cast<int>(category)];
}

Storage* new_storage(std::size_t bytes, Category category) {
  Heap& h = heap();
  const char* reason = nullptr;
  std::size_t limit = 0;
  {
    Guard guard(h.lock);
    Ledger& ledger = ledger_now();
    if (h.fail_countdown > 0 && --h.fail_countdown == 0) {
      reason = "a test asked for this failure";
    } else if (dry_ledger == nullptr && h.limit > 0 && ledger.live.total + bytes > h.limit) {
      reason = "the limit is ";
      limit = h.limit;
    } else if (Storage* s = h.records.take(); s == nullptr) {
      reason = "the system has no more memory";
    } else {
      Heap::begin(s, category, ledger.dry_run, bytes);
      if (s->dry != 0 || h.take_bytes(s)) {
        ledger.change(category, static_cast<std::int64_t>(bytes));
        return s;
      }
      h.give_record(s);
      reason = "the system has no more memory";
    }
  }
  refuse(bytes, category, memory::live(), reason, limit, memory::largest(5));
}

void destroy(Storage* s) noexcept {
  Heap& h = heap();
  Guard guard(h.lock);
  for_ledgers(*s, [&](Ledger& ledger) { ledger.change(s->category, -static_cast<std::int64_t>(s->bytes)); });
  if (s->dry == 0) h.give_bytes(s);
  h.give_record(s);
}

void recategorize(Storage* s, Category category) {
  if (s->category == category) return;
  Guard guard(heap().lock);
  const auto bytes = static_cast<std::int64_t>(s->bytes);
  for_ledgers(*s, [&](Ledger& ledger) {
    ledger.change(s->category, -bytes);
    ledger.change(category, bytes);
  });
  s->category = category;
}

DryLedger::DryLedger() : outer_(dry_ledger) {
  if (depth() == 255) fail("a dry run inside 255 others: does something that is called in a dry run begin one?");
  auto* ledger = new Ledger;
  static std::atomic<std::uint32_t> runs{0};
  ledger->dry_run = ++runs;
  ledger->depth = static_cast<std::uint8_t>(depth() + 1);
  ledger->outer = dry_ledger;
  Guard guard(heap().lock);
  ledger->live = ledger_now().live;
  ledger->reset_peak();
  dry_ledger = ledger;
}

DryLedger::~DryLedger() {
  detail::restore_gradients();
  delete dry_ledger->timeline;
  delete std::exchange(dry_ledger, static_cast<Ledger*>(outer_));
}

bool is_stale(const Storage& s) {
  if (s.dry == 0) return false;
  for (const Ledger* l = dry_ledger; l != nullptr; l = l->outer)
    if (l->dry_run == s.dry) return false;
  return true;
}

std::uint8_t DryLedger::depth() { return dry_ledger != nullptr ? dry_ledger->depth : 0; }
std::uint32_t DryLedger::current() { return dry_ledger != nullptr ? dry_ledger->dry_run : 0; }

Storage* new_stand_in(const Storage& real) {
  Heap& h = heap();
  Guard guard(h.lock);
  Storage* s = h.records.take();
  if (s == nullptr) throw OutOfMemory("out of memory: the system has no memory for a storage record");
  Heap::begin(s, real.category, ledger_now().dry_run, real.bytes);
  return s;
}

namespace memory {

Usage live() {
  Guard guard(heap().lock);
  return ledger_now().live;
}
Usage peak() {
  Guard guard(heap().lock);
  return ledger_now().peak;
}
Usage at_peak() {
  Guard guard(heap().lock);
  return ledger_now().at_peak;
}
void reset_peak() {
  Guard guard(heap().lock);
  ledger_now().reset_peak();
}
void set_limit(std::size_t bytes) {
  Guard guard(heap().lock);
  heap().limit = bytes;
}
std::size_t limit() {
  Guard guard(heap().lock);
  return heap().limit;
}
void fail_at(std::uint64_t n) {
  Guard guard(heap().lock);
  heap().fail_countdown = n;
}
std::vector<Holding> largest(int count) {
  Guard guard(heap().lock);
  return largest_locked(count);
}
std::size_t resident() {
  Guard guard(heap().lock);
  return heap().small.resident() + heap().large.resident();
}

CategoryScope::CategoryScope(Category category) : saved_(category_now) { category_now = category; }
CategoryScope::~CategoryScope() { category_now = saved_; }
Category current_category() { return category_now; }

Scope::Scope() {
  Guard guard(heap().lock);
  Ledger& ledger = ledger_now();
  before_ = ledger.live;
  outer_peak_ = ledger.peak;
  outer_at_peak_ = ledger.at_peak;
  ledger.reset_peak();
}
Scope::~Scope() {
  Guard guard(heap().lock);
  Ledger& ledger = ledger_now();
  for (int c = 0; c < category_count; ++c) ledger.peak.bytes[c] = std::max(ledger.peak.bytes[c], outer_peak_.bytes[c]);
  if (outer_peak_.total >= ledger.peak.total) {
    ledger.peak.total = outer_peak_.total;
    ledger.at_peak = outer_at_peak_;
  }
}
Usage Scope::peak() const { return memory::peak(); }
Usage Scope::at_peak() const { return memory::at_peak(); }

void start_timeline() {
  Guard guard(heap().lock);
  Ledger& ledger = ledger_now();
  if (ledger.timeline == nullptr) ledger.timeline = new std::vector<Event>;
  ledger.timeline->clear();
  ledger.timeline_cut = false;
}
std::vector<Event> stop_timeline() {
  Guard guard(heap().lock);
  Ledger& ledger = ledger_now();
  std::vector<Event> events;
  if (ledger.timeline != nullptr) events.swap(*ledger.timeline);
  delete ledger.timeline;
  ledger.timeline = nullptr;
  if (ledger.timeline_cut) throw OutOfMemory("out of memory: the timeline of memory did not fit; record fewer steps");
  return events;
}

std::string human(std::size_t bytes) {
  constexpr const char* units[] = {"B", "kB", "MB", "GB", "TB"};
  if (bytes < 1000) return str(bytes, " B");
  double value = static_cast<double>(bytes);
  int unit = 0;
  for (; value >= 999.95 && unit < 4; ++unit) value /= 1000;
  char text[32];
  std::snprintf(text, sizeof text, "%.1f %s", value, units[unit]);
  return text;
}

std::string report() {
  const Usage now = live(), most = peak(), then = at_peak();
  char line[128];
  std::snprintf(line, sizeof line, "%-16s %12s %12s %12s\n", "memory", "live", "own peak", "at the peak");
  std::string text = line;
  const auto row = [&](const char* name, std::size_t a, std::size_t b, std::size_t c) {
    std::snprintf(line, sizeof line, "%-16s %12s %12s %12s\n", name, human(a).c_str(), human(b).c_str(), human(c).c_str());
    text += line;
  };
  for (int c = 0; c < category_count; ++c) row(name_of(static_cast<Category>(c)), now.bytes[c], most.bytes[c], then.bytes[c]);
  row("total", now.total, most.total, most.total);
  return text;
}

}  // namespace memory
}  // namespace rewind_lib
