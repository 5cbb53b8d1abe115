#pragma once
// The tape: a linear record of data. Inside the library only; users see backward.h, checkpoint.h and observer.h.
//
// Forward appends entries {op, attributes, values, saved storages}, so append order is already topological and backward is
// a sweep from the end. Each thread has one tape. An entry counts who still needs it: handles on its outputs and later
// entries that read them. When nobody does (an evaluation without NoGrad, a step cut off by an exception), it is dropped
// with everything that it saved.

#include <rewind/autograd/grad_mode.h>
#include <rewind/autograd/observer.h>

#include <atomic>
#include <mutex>
#include <utility>
#include <vector>

namespace rewind_lib::detail {

/// A tensor that waits for its vjp: a share of its storage, and the version it had.
struct Saved {
  Storage* storage = nullptr;
  std::size_t offset = 0;
  std::uint32_t version = 0;

  void keep(const Tensor& tensor);
  void drop() noexcept;
};

struct InputSlot {
  Tensor leaf;     // a leaf that collects a gradient
  ValueRef value;  // or the recorded value that does
  Saved saved;
  Shape shape;
  DType dtype = float32;
  bool needs = false;   // requires a gradient
  bool wanted = false;  // and this sweep asks for it
  bool remade = false;  // saved, but not kept: `value` is made again when it is asked for
};

struct OutputSlot {
  Tensor grad;    // what has reached this value in the sweep so far
  Tensor remade;  // the value itself, made again (OpDecl::remakes): from when it is first asked for until the entry goes
  Saved saved;    // of an op that remakes only the version
  Shape shape;
  DType dtype = float32;
};

struct Entry {
  const OpDecl* op;
  const void* attr;
  const char* module;
  std::uint64_t serial;
  std::span<InputSlot> in;
  std::span<OutputSlot> out;
  std::size_t arena_mark;  // where the arena stood before this entry
  std::uint32_t uses;      // handles on outputs, and inputs of later entries
  std::uint32_t next_dead;
  bool remakes;  // output 0 is made again for those who saved it
  bool live;     // not yet consumed or dropped
  bool needed;   // on a way from a target to y (grad() only)
};

/// Stack memory for entries: grows in chunks that are kept, shrinks with the tape.
class EntryArena {
 public:
  static constexpr std::size_t alignment = 16;
  EntryArena() = default;
  ~EntryArena();
  EntryArena(const EntryArena&) = delete;
  EntryArena& operator=(const EntryArena&) = delete;
  /// Aligned to `alignment`.
  std::byte* take(std::size_t bytes);
  std::size_t mark() const { return used_; }
  void rewind_to(std::size_t mark) { used_ = mark; }

 private:
  static constexpr std::size_t chunk_bytes = std::size_t{1} << 16;
  std::vector<std::byte*> chunks_;
  std::size_t used_ = 0;  // position in the chunks laid end to end
};

/// What a sweep is for.
struct SweepGoal {
  bool create_graph = false;                                  // record the vjps, keep the tape
  bool collect = true;                                        // add to the leaves' gradients; else to `captured`
  std::uint32_t floor = 0;                                    // entries below stay as they are (and there)
  std::vector<std::pair<ValueRef, Tensor>>* below = nullptr;  // what would reach them: held, as they would hold it
  std::span<const Tensor> targets = {};                       // whose gradients grad() asks for
  std::span<Tensor> captured = {};
};

/// Whether nobody else holds a tensor or its memory, and it is all of that memory: not a view into a piece that is larger.
inline bool owns_its_memory(const Tensor& t) {
  const TensorImpl& impl = t.impl();
  return impl.refs.one() && impl.storage->refs.one() && impl.storage->bytes == t.bytes();
}

class Tape final : public Recorder {
 public:
  /// This thread's tape.
  static Tape& current();

  std::uint32_t size() const { return static_cast<std::uint32_t>(entries_.size()); }

  /// Whether the op that made t is here to make it again (OpDecl::remakes). Not when t was modified in place since.
  bool can_remake(const Tensor& t);
  /// Appends an entry and makes it the history of the outputs. It keeps what is in `saves`; inputs `remade` are made again,
  /// and so is output 0 if it `remakes`.
  void record(const OpDecl& op, const void* attr, std::span<const Tensor> in, std::span<const Tensor> out, std::uint32_t needs,
              Saves saves, std::uint32_t remade = 0, bool remakes = false);
  /// From any thread. Another one's is noted, and done when the tape's own thread records or goes back next.
  void dropped(std::uint32_t entry, std::uint64_t serial) noexcept override;

  /// Runs backward from outputs with gradients of theirs, for a goal. Takes both over.
  void run(std::span<Tensor> outputs, std::span<Tensor> gradients, const SweepGoal& goal);

  /// Whether a function that runs again in backward returned t together with others.
  bool is_one_of_several(const Tensor& t);

  /// Inside a vjp: sweeps what was recorded since `mark`, seeded with gradients of `outputs`, for the goal of the sweep
  /// that is going on. Outputs are released before the sweep begins.
  void sweep_segment(std::uint32_t mark, std::vector<Tensor> outputs, std::vector<Tensor> gradients);
  /// Inside a vjp: moves out what has reached output j of the entry at `index`; undefined when nothing has.
  Tensor take_gradient(std::uint32_t index, int j) {
    return std::exchange(entries_[index]->out[static_cast<std::size_t>(j)].grad, Tensor());
  }
  /// Keeps an entry that has no handles and no readers, until unpin().
  void pin(std::uint32_t index) { ++entries_[index]->uses; }
  void unpin(std::uint32_t index) { drop_use(index, entries_[index]->serial); }
  /// When a kernel has run that may have pushed the tape out of the caches.
  void fetch_behind_kernel() const;
  bool create_graph() const { return goal_ != nullptr && goal_->create_graph; }
  /// For profiles: what is on the tape now. Some of it may be dropped already (!live).
  std::span<Entry* const> entries() const { return entries_; }
  /// And the serial number that the next entry gets.
  std::uint64_t next_serial() const { return next_serial_; }

 private:
  friend class EntryVjp;
  static constexpr std::uint32_t none = ~std::uint32_t{0};

  Entry* lookup(const ValueRef& value);
  /// The entry that makes again what a slot reads; Error when an earlier backward has consumed it.
  Entry& maker_of(const InputSlot& slot);
  Tensor remake(const Entry& entry);
  void add_use(const ValueRef& value);
  void drop_use(std::uint32_t entry, std::uint64_t serial) noexcept;
  bool note_drop(std::uint32_t entry, std::uint64_t serial) noexcept;
  void drop_others() noexcept;
  bool take_over();
  void retire() noexcept;
  void accumulate(const ValueRef& value, const Tensor& leaf, Tensor gradient);
  void accumulate_leaf(const Tensor& leaf, Tensor gradient);
  void mark_needed(const SweepGoal& goal);
  void sweep(std::uint32_t floor);
  void kill(std::uint32_t index) noexcept;
  void let_go(Entry& entry) noexcept;
  void clean_up() noexcept;
  void trim() noexcept;

  EntryArena arena_;
  std::vector<Entry*> entries_;
  const std::byte* fetched_ = nullptr;  // up to here the arena's memory was asked for
  std::uint64_t next_serial_ = 1;
  std::uint32_t dead_ = none;  // entries to drop, linked by next_dead
  bool dropping_ = false;
  std::int64_t position_ = -1;  // the entry that a sweep is at: this and lower ones are not dropped under it
  const SweepGoal* goal_ = nullptr;
  bool marked_ = false;          // the last sweep had targets: not all is marked as wanted that is on the tape still
  std::vector<Tensor> touched_;  // leaves that this backward has added to

  // What other threads have dropped: (entry, serial). Once its thread has ended, they do themselves what has to be done.
  std::mutex others_lock_;
  bool retired_ = false;
  std::vector<std::pair<std::uint32_t, std::uint64_t>> others_;
  std::atomic<bool> others_waiting_{false};
};

/// The recorder of values made inside a checkpointed function on its first run: they have no history to give.
class Forgotten final : public Recorder {
 public:
  void dropped(std::uint32_t, std::uint64_t) noexcept override {}
  static Forgotten& instance();
};

/// Sees what a function that may run again during backward depends on beside its inputs.
class RunWatch {
 public:
  /// A call, whose inputs `needs` get a gradient.
  virtual void reads(const OpDecl& op, std::span<const Tensor> in, std::uint32_t needs) = 0;
  /// See depends_on().
  virtual void flag(bool on, const char* what) = 0;

 protected:
  ~RunWatch() = default;
};

/// What the choke point consults, a thread.
struct Context {
  GradMode mode = GradMode::record;
  Phase phase = Phase::forward;
  bool donate = true;
  bool check_replays = false;
  const char* gradient_of = "";
  std::uint64_t run = 0;  // the number of the UnrecordedRun that goes on: tensors made there carry it
  std::vector<Observer*> observers;
  std::vector<RunWatch*> watches;
};
Context& context();

/// Changes a part of the context while alive.
template <auto Member>
class ContextScope {
 public:
  using Value = std::remove_reference_t<decltype(std::declval<Context&>().*Member)>;
  explicit ContextScope(Value value) : saved_(std::exchange(context().*Member, value)) {}
  ~ContextScope() { context().*Member = saved_; }
  ContextScope(const ContextScope&) = delete;
  ContextScope& operator=(const ContextScope&) = delete;

 private:
  Value saved_;
};

}  // namespace rewind_lib::detail
