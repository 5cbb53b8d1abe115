#include <rewind/autograd/backward.h>
#include <rewind/autograd/functional.h>
#include <rewind/autograd/tape.h>
#include <rewind/core/fetch.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <new>

namespace rewind_lib {
namespace detail {

void Saved::keep(const Tensor& tensor) {
  storage = tensor.impl().storage;
  offset = tensor.impl().offset;
  version = storage->version;
  retain(storage);
}

void Saved::drop() noexcept {
  if (storage != nullptr) release(std::exchange(storage, nullptr));
}

EntryArena::~EntryArena() {
  for (std::byte* chunk : chunks_) std::free(chunk);
}

std::byte* EntryArena::take(std::size_t bytes) {
  std::size_t at = (used_ + alignment - 1) / alignment * alignment;
  if (at / chunk_bytes != (at + bytes - 1) / chunk_bytes) at = (at / chunk_bytes + 1) * chunk_bytes;
  if (bytes > chunk_bytes)
    fail(str("the tape: ", location().op, " records ", bytes, " bytes of attributes and of what describes its tensors; at most ",
             chunk_bytes, " are possible. Large constants are inputs, not attributes."));
  while (at / chunk_bytes >= chunks_.size()) {
    if (chunks_.size() == chunks_.capacity()) chunks_.reserve(2 * chunks_.size() + 16);
    auto* chunk = static_cast<std::byte*>(std::aligned_alloc(64, chunk_bytes));
    if (chunk == nullptr) throw OutOfMemory("out of memory: the system has no memory for the tape");
    chunks_.push_back(chunk);
  }
  used_ = at + bytes;
  return chunks_[at / chunk_bytes] + at % chunk_bytes;
}

Forgotten& Forgotten::instance() {
  static Forgotten f;
  return f;
}

namespace {
thread_local const Tape* current_tape = nullptr;
}  // namespace

// Tapes are never destroyed, since values that they recorded may outlive their threads, and tell them so: a later thread takes over
// one that is empty. Serial numbers go on, so that old values are told from its own.
Tape& Tape::current() {
  struct Retired {
    std::mutex lock;
    std::vector<Tape*> tapes;
    std::size_t owners = 0;  // threads that will give theirs back, which must not fail: there is room for all
  };
  static Retired* const retired = new Retired;
  struct Owner {
    Tape* tape = nullptr;
    Owner() {
      const std::lock_guard guard(retired->lock);
      retired->tapes.reserve(retired->tapes.size() + retired->owners + 1);
      const auto at = std::ranges::find_if(retired->tapes, [](Tape* t) { return t->take_over(); });
      if (at == retired->tapes.end()) {
        tape = new Tape;
      } else {
        tape = *at;
        retired->tapes.erase(at);
      }
      ++retired->owners;
      current_tape = tape;
    }
    ~Owner() {
      current_tape = nullptr;
      tape->retire();
      const std::lock_guard guard(retired->lock);
      retired->tapes.push_back(tape);
      --retired->owners;
    }
  };
  thread_local Owner owner;
  return *owner.tape;
}

// Held while dropping entries of a tape whose thread has ended. That may reach another such tape, and come back to this one: hence
// one recursive lock for all.
static std::recursive_mutex& retired_lock() {
  static auto* const lock = new std::recursive_mutex;
  return *lock;
}

bool Tape::take_over() {
  const std::scoped_lock guard(retired_lock(), others_lock_);
  if (!entries_.empty()) return false;
  retired_ = false;
  return true;
}

void Tape::retire() noexcept {
  const std::lock_guard dropping(retired_lock());
  {
    const std::lock_guard guard(others_lock_);
    retired_ = true;
  }
  drop_others();
}

Entry* Tape::lookup(const ValueRef& value) {
  if (value.entry >= entries_.size()) return nullptr;
  Entry* e = entries_[value.entry];
  return e->serial == value.serial && e->live ? e : nullptr;
}

bool Tape::can_remake(const Tensor& t) {
  const ValueRef& value = t.impl().value;
  const Entry* e = value.recorder == this ? lookup(value) : nullptr;
  return e != nullptr && e->remakes && e->out[value.output].saved.version == t.impl().storage->version;
}

namespace {

// Of an entry at most, and where it is not known how many it takes: about those of a fused convolution.
constexpr std::size_t entry_bytes = 1536;

// What a vjp reads beside its entry.
void fetch_before_vjp(const Entry& e, std::span<Entry* const> entries) {
  for (const InputSlot& slot : e.in) {
    if (slot.saved.storage != nullptr) fetch(slot.saved.storage, sizeof(Storage));
    if (slot.remade) fetch(entries[slot.value.entry], entry_bytes);
  }
  for (const OutputSlot& slot : e.out) {
    if (slot.saved.storage != nullptr) fetch(slot.saved.storage, sizeof(Storage));
    fetch(slot.grad);
  }
}

constexpr const char* consumed =
    "backward: this part of the tape was already consumed by an earlier backward. Add the losses and call backward once, or "
    "detach() what is carried over from one step to the next.";

std::string where(const Entry& e) { return e.module[0] != 0 ? str(" in module ", e.module) : std::string(); }

void check_version(const Entry& e, const Saved& saved, const Shape& shape, const char* what, std::size_t i) {
  if (saved.storage->version != saved.version)
    fail(str("backward: ", what, " ", i, " of ", e.op->name, where(e), ", shape ", shape,
             ", was modified in place after it was saved for backward. Modify a clone(), or modify it after backward."));
}

Tensor share(const Saved& saved, const Shape& shape, DType dtype) {
  retain(saved.storage);
  return Tensor::adopt(new_impl(saved.storage, saved.offset, shape, dtype));
}

}  // namespace

bool Tape::is_one_of_several(const Tensor& t) {
  const Entry* e = t.impl().value.recorder == this ? lookup(t.impl().value) : nullptr;
  return e != nullptr && e->op->release != nullptr && e->out.size() > 1;
}

Entry& Tape::maker_of(const InputSlot& slot) {
  Entry* maker = lookup(slot.value);
  if (maker == nullptr) fail(consumed);
  return *maker;
}

// The saved inputs of an op that remakes live until its own vjp, which runs after those of all readers of its output. Results on
// the way are not kept: chains are short, and a second pass is cheaper than a tensor at the peak.
Tensor Tape::remake(const Entry& e) {
  if (e.out[0].remade.defined()) return e.out[0].remade;
  std::array<Tensor, most_tensors> in;
  for (std::size_t i = 0; i < e.in.size(); ++i) {
    const InputSlot& slot = e.in[i];
    if (slot.remade) {
      in[i] = remake(maker_of(slot));
    } else if (slot.saved.storage != nullptr) {
      check_version(e, slot.saved, slot.shape, "input", i);
      in[i] = share(slot.saved, slot.shape, slot.dtype);
    }
  }
  const GradModeScope off(GradMode::off);
  const ContextScope<&Context::gradient_of> forward("");
  const LocationScope module(&Location::module, e.module);
  Tensor made;
  apply(*e.op, {in.data(), e.in.size()}, e.attr, {&made, std::size_t{1}});
  return made;
}

void Tape::add_use(const ValueRef& value) {
  if (Entry* e = lookup(value)) ++e->uses;
}

void Tape::record(const OpDecl& op, const void* attr, std::span<const Tensor> in, std::span<const Tensor> out, std::uint32_t needs,
                  Saves saves, std::uint32_t remade, bool remakes) {
  if (others_waiting_.load(std::memory_order_acquire) && goal_ == nullptr) [[unlikely]]  // a sweep counts entries
    drop_others();
  const std::size_t mark = arena_.mark();
  if (entries_.size() == entries_.capacity()) entries_.reserve(2 * entries_.size() + 64);
  // One piece of memory: the entry, its inputs, its outputs, its attributes.
  constexpr auto aligned = [](std::size_t bytes) {
    return (bytes + EntryArena::alignment - 1) / EntryArena::alignment * EntryArena::alignment;
  };
  static_assert(std::max({alignof(Entry), alignof(InputSlot), alignof(OutputSlot)}) <= EntryArena::alignment);
  const std::size_t in_at = aligned(sizeof(Entry)), out_at = in_at + aligned(in.size() * sizeof(InputSlot)),
                    attr_at = out_at + aligned(out.size() * sizeof(OutputSlot));
  std::byte* memory = arena_.take(attr_at + op.attr_size);
  // To be written: this entry and the next, less what was fetched with the one before.
  const std::byte* end = memory + attr_at + op.attr_size + entry_bytes;
  const std::byte* begin = memory < fetched_ && fetched_ <= end ? fetched_ : memory;
  fetch(begin, static_cast<std::size_t>(end - begin));
  fetched_ = end;
  auto* entry = reinterpret_cast<Entry*>(memory);
  auto* in_slots = reinterpret_cast<InputSlot*>(memory + in_at);
  auto* out_slots = reinterpret_cast<OutputSlot*>(memory + out_at);
  void* attr_copy = op.attr_size > 0 ? memory + attr_at : nullptr;
  // From here on nothing throws.
  if (attr_copy != nullptr) std::memcpy(attr_copy, attr, op.attr_size);
  const auto index = size();
  new (entry) Entry{
      &op,  attr_copy, location().module, next_serial_++, {in_slots, in.size()}, {out_slots, out.size()}, mark, 0, none, remakes,
      true, true};

  for (std::size_t i = 0; i < in.size(); ++i) {
    InputSlot& slot = *new (&in_slots[i]) InputSlot;
    if (!in[i].defined()) continue;
    const TensorImpl& t = in[i].impl();
    slot.shape = t.shape;
    slot.dtype = t.dtype;
    if ((needs & bit(static_cast<int>(i))) != 0) {
      slot.needs = slot.wanted = true;
      if (t.value.recorder == nullptr) {
        slot.leaf = in[i];
      } else {
        slot.value = t.value;
        if (t.value.recorder == this) add_use(t.value);
      }
    }
    if ((saves.inputs & bit(static_cast<int>(i))) != 0) slot.saved.keep(in[i]);
    slot.remade = (remade & bit(static_cast<int>(i))) != 0;
  }
  for (std::size_t j = 0; j < out.size(); ++j) {
    OutputSlot& slot = *new (&out_slots[j]) OutputSlot;
    TensorImpl& t = out[j].impl();
    slot.shape = t.shape;
    slot.dtype = t.dtype;
    if (remakes)
      slot.saved.version = t.storage->version;
    else if ((saves.outputs & bit(static_cast<int>(j))) != 0)
      slot.saved.keep(out[j]);
    if ((op.differentiable & bit(static_cast<int>(j))) != 0 && is_float(t.dtype)) {
      t.requires_grad = true;
      t.value = {this, entry->serial, index, static_cast<std::uint32_t>(j)};
      ++entry->uses;
    }
  }
  entries_.push_back(entry);
}

void Tape::dropped(std::uint32_t index, std::uint64_t serial) noexcept {
  if (this == current_tape) [[likely]]
    return drop_use(index, serial);
  if (note_drop(index, serial)) return;
  const std::lock_guard dropping(retired_lock());
  if (!note_drop(index, serial)) drop_use(index, serial);  // it may have been taken over meanwhile
}

/// False when the tape has no thread that would look at it.
bool Tape::note_drop(std::uint32_t index, std::uint64_t serial) noexcept {
  const std::lock_guard guard(others_lock_);
  if (retired_) return false;
  try {
    others_.emplace_back(index, serial);
    others_waiting_.store(true, std::memory_order_release);
  } catch (const std::bad_alloc&) {
    // The entry stays on the tape.
  }
  return true;
}

void Tape::drop_others() noexcept {
  std::vector<std::pair<std::uint32_t, std::uint64_t>> all;
  {
    const std::lock_guard guard(others_lock_);
    all.swap(others_);
    others_waiting_.store(false, std::memory_order_relaxed);
  }
  for (const auto& [index, serial] : all) drop_use(index, serial);
}

void Tape::drop_use(std::uint32_t index, std::uint64_t serial) noexcept {
  Entry* e = lookup({this, serial, index, 0});
  if (e != nullptr && --e->uses == 0 && static_cast<std::int64_t>(index) > position_) kill(index);
}

// Drops an entry and, one after the other instead of recursively, those that only it needed.
void Tape::kill(std::uint32_t index) noexcept {
  Entry* e = entries_[index];
  e->live = false;
  e->next_dead = dead_;
  dead_ = index;
  if (dropping_) return;
  dropping_ = true;
  while (dead_ != none) {
    Entry* next = entries_[dead_];
    dead_ = next->next_dead;
    let_go(*next);
  }
  dropping_ = false;
  trim();
}

void Tape::let_go(Entry& e) noexcept {
  for (InputSlot& slot : e.in) {
    slot.saved.drop();
    slot.leaf = Tensor();
    if (slot.value.recorder == this) drop_use(slot.value.entry, slot.value.serial);  // of another thread's there is none to drop
    slot.value.recorder = nullptr;
  }
  for (OutputSlot& slot : e.out) {
    slot.saved.drop();
    slot.grad = slot.remade = Tensor();
  }
  if (e.op->release != nullptr) e.op->release(e.attr);
}

void Tape::trim() noexcept {
  while (!entries_.empty() && !entries_.back()->live) {
    Entry* e = entries_.back();
    const std::size_t mark = e->arena_mark;
    std::destroy(e->in.begin(), e->in.end());
    std::destroy(e->out.begin(), e->out.end());
    entries_.pop_back();
    arena_.rewind_to(mark);
  }
}

/// The view that a vjp has of its entry.
class EntryVjp final : public Vjp {
 public:
  EntryVjp(Tape& tape, std::uint32_t index)
      : tape_(tape), index_(index), entry_(*tape.entries_[index]), keep_(tape.create_graph()) {}

  bool needs(int i) const override { return in(i).wanted; }
  bool has_grad(int j) const override { return entry_.out[static_cast<std::size_t>(j)].grad.defined(); }

  Tensor grad(int j) override {
    OutputSlot& slot = entry_.out[static_cast<std::size_t>(j)];
    return slot.grad.defined() ? std::exchange(slot.grad, Tensor()) : zeros(slot.shape, slot.dtype);
  }

  Tensor input(int i) override {
    InputSlot& slot = in(i);
    if (keep_ && slot.leaf.defined() && slot.saved.storage != nullptr) {
      check_version(entry_, slot.saved, slot.shape, "input", static_cast<std::size_t>(i));
      return slot.leaf;
    }
    Tensor t = slot.remade ? remade(tape_.maker_of(slot)) : unpack(slot.saved, slot.shape, slot.dtype, "input", i);
    if (keep_ && slot.value.recorder != nullptr) attach(t, slot.value);
    return t;
  }

  Tensor output(int j) override {
    OutputSlot& slot = entry_.out[static_cast<std::size_t>(j)];
    Tensor t = entry_.remakes ? remade(entry_) : unpack(slot.saved, slot.shape, slot.dtype, "output", j);
    if (keep_ && is_float(slot.dtype) && (entry_.op->differentiable & bit(j)) != 0)
      attach(t, {&tape_, entry_.serial, index_, static_cast<std::uint32_t>(j)});
    return t;
  }

  const Shape& input_shape(int i) const override { return in(i).shape; }
  const Shape& output_shape(int j) const override { return entry_.out[static_cast<std::size_t>(j)].shape; }
  int inputs() const override { return static_cast<int>(entry_.in.size()); }

  bool join(int i, Tensor& value) const override {
    const InputSlot& slot = in(i);
    if (!slot.wanted) return false;
    if (slot.leaf.defined()) {
      value = slot.leaf;
      return true;
    }
    if (slot.value.recorder != &tape_ || tape_.lookup(slot.value) == nullptr) return false;  // give() says why
    attach(value, slot.value);
    return true;
  }

  Tensor take_given(int i) override {
    const ValueRef& value = in(i).value;
    Entry* e = !keep_ && in(i).wanted && value.recorder == &tape_ ? tape_.lookup(value) : nullptr;
    return e == nullptr ? Tensor() : std::exchange(e->out[value.output].grad, Tensor());
  }

  void give(int i, Tensor gradient) override {
    InputSlot& slot = in(i);
    if (!slot.wanted) return;
    if (!(gradient.shape() == slot.shape) || gradient.dtype() != slot.dtype)
      fail(str(entry_.op->name, ": its vjp gives input ", i, " a gradient of ", gradient.dtype(), " ", gradient.shape(),
               ", but the input is ", slot.dtype, " ", slot.shape));
    tape_.accumulate(slot.value, slot.leaf, std::move(gradient));
  }

 private:
  InputSlot& in(int i) const { return entry_.in[static_cast<std::size_t>(i)]; }

  Tensor unpack(Saved& saved, const Shape& shape, DType dtype, const char* what, int i) {
    if (saved.storage == nullptr)
      fail(str(entry_.op->name, ": its vjp reads ", what, " ", i,
               ", which is not there: an earlier backward over this failed midway (compute the loss again), or its "
               "saves() does not declare it, or it is read twice"));
    check_version(entry_, saved, shape, what, static_cast<std::size_t>(i));
    if (keep_) return share(saved, shape, dtype);
    return Tensor::adopt(new_impl(std::exchange(saved.storage, nullptr), saved.offset, shape, dtype));
  }

  // Kept for the next vjp that asks; with a handle of its own for each, since it may be given a place in the graph.
  Tensor remade(Entry& e) {
    Tensor& made = e.out[0].remade;
    made = tape_.remake(e);
    retain(made.impl().storage);
    return Tensor::adopt(new_impl(made.impl().storage, made.impl().offset, made.shape(), made.dtype()));
  }

  // Gives a saved tensor its place in the graph again, so that the vjp itself can be differentiated.
  void attach(const Tensor& t, const ValueRef& value) const {
    if (value.recorder != &tape_) return;  // another thread's: give() says so
    t.impl().requires_grad = true;
    t.impl().value = value;
    tape_.add_use(value);
  }

  Tape& tape_;
  std::uint32_t index_;
  Entry& entry_;
  bool keep_;
};

void Tape::accumulate_leaf(const Tensor& leaf, Tensor gradient) {
  if (!goal_->collect) {
    for (std::size_t t = 0; t < goal_->targets.size(); ++t)
      if (goal_->targets[t].same(leaf)) {
        Tensor& sum = goal_->captured[t];
        sum = sum.defined() ? add(std::move(sum), gradient) : gradient;
      }
    return;
  }
  touched_.push_back(leaf);
  Tensor old = leaf.take_grad();
  if (old.defined()) {
    gradient = add(std::move(old), std::move(gradient));
  } else if (!owns_its_memory(gradient)) {
    gradient = gradient.clone();  // a leaf's gradient is its own buffer, and no part of a larger one
  }
  gradient.set_category(Category::gradient);
  leaf.set_grad(std::move(gradient));
}

void Tape::accumulate(const ValueRef& value, const Tensor& leaf, Tensor gradient) {
  if (value.recorder == nullptr) return accumulate_leaf(leaf, std::move(gradient));
  if (value.recorder == this && value.entry < goal_->floor) {
    const auto at = std::ranges::find_if(
        *goal_->below, [&](const auto& b) { return b.first.serial == value.serial && b.first.output == value.output; });
    if (at == goal_->below->end())
      goal_->below->emplace_back(value, std::move(gradient));
    else
      at->second = add(std::move(at->second), std::move(gradient));
    return;
  }
  Entry* e = value.recorder == this ? lookup(value) : nullptr;
  if (e == nullptr)
    fail(value.recorder == &Forgotten::instance()
             ? "backward: a tensor was made inside a checkpointed or recomputed function, on "
               "its first run, and has no history; return it from that function, or detach() it. (backward() and grad() "
               "cannot be called inside of one.)"
         : value.recorder == this ? consumed
                                  : "backward: a tensor was computed on another thread; each thread records on a tape of its own");
  Tensor& sum = e->out[value.output].grad;
  sum = sum.defined() ? add(std::move(sum), std::move(gradient)) : std::move(gradient);
}

// grad(): marks what lies on a way from a target, so that the sweep computes nothing else. A checkpointed function may
// reach a target through what it captured, so its entry always counts.
void Tape::mark_needed(const SweepGoal& goal) {
  const auto is_target = [&](const InputSlot& slot) {
    return std::ranges::any_of(goal.targets, [&](const Tensor& t) {
      const ValueRef& v = t.impl().value;
      return slot.leaf.defined() ? slot.leaf.same(t)
                                 : v.recorder == this && v.serial == slot.value.serial && v.output == slot.value.output;
    });
  };
  for (Entry* e : entries_) {
    if (!e->live) continue;
    const bool opaque = e->op->release != nullptr;
    e->needed = opaque;
    for (InputSlot& slot : e->in) {
      // What has no entry here any more (consumed, or another thread's) may have been on a way: the sweep will say so.
      const Entry* producer = slot.value.recorder == this ? lookup(slot.value) : nullptr;
      const bool lost = slot.value.recorder != nullptr && producer == nullptr;
      slot.wanted =
          slot.needs && (opaque || lost || goal.targets.empty() || (producer != nullptr && producer->needed) || is_target(slot));
      e->needed |= slot.wanted;
    }
  }
}

// Where the gradients of the entry go that a sweep is at, and the entry that comes next. They lie side by side, but for a chunk's
// first.
void Tape::fetch_behind_kernel() const {
  if (position_ < 0) return;
  const auto at = static_cast<std::size_t>(position_);
  const Entry& e = *entries_[at];
  for (const InputSlot& slot : e.in) {
    fetch(slot.leaf);
    if (slot.value.recorder == this && slot.value.entry + 1 < at) fetch(entries_[slot.value.entry], entry_bytes);
  }
  if (at == 0) return;
  const auto* next = reinterpret_cast<const std::byte*>(entries_[at - 1]);
  const auto bytes = static_cast<std::size_t>(reinterpret_cast<const std::byte*>(&e) - next);
  fetch(next, std::min(bytes, entry_bytes));
}

void Tape::sweep(std::uint32_t floor) {
  const GradModeScope mode(goal_->create_graph ? GradMode::record : GradMode::off);
  for (std::uint32_t i = static_cast<std::uint32_t>(position_ + 1); i-- > floor;) {
    if (i >= entries_.size()) continue;
    position_ = i;
    Entry& e = *entries_[i];
    fetch_before_vjp(e, entries_);
    if (!e.live) continue;
    if (std::ranges::none_of(e.out, [](const OutputSlot& slot) { return slot.grad.defined(); })) {
      if (e.uses == 0) kill(i);
      continue;
    }
    for (std::size_t t = 0; t < goal_->targets.size(); ++t) {
      const ValueRef& v = goal_->targets[t].impl().value;
      if (v.recorder == this && v.serial == e.serial) goal_->captured[t] = e.out[v.output].grad;
    }
    if (std::ranges::any_of(e.in, &InputSlot::wanted) || e.op->release != nullptr) {
      if (e.op->vjp == nullptr)
        fail(str("backward: ", e.op->name, where(e), " has no gradient: ", e.op->no_gradient == nullptr ? "" : e.op->no_gradient));
      const ContextScope<&Context::gradient_of> gradient_of(e.op->name);
      const LocationScope module(&Location::module, e.module);
      EntryVjp vjp(*this, i);
      e.op->vjp(vjp, e.attr);
    }
    if (!goal_->create_graph) {
      kill(i);
    } else {
      for (OutputSlot& slot : e.out) slot.grad = Tensor();
    }
  }
}

void Tape::sweep_segment(std::uint32_t mark, std::vector<Tensor> outputs, std::vector<Tensor> gradients) {
  REWIND_CHECK(goal_ != nullptr);
  const std::int64_t saved = std::exchange(position_, static_cast<std::int64_t>(size()) - 1);
  for (std::size_t j = 0; j < outputs.size(); ++j) {
    Tensor y = std::exchange(outputs[j], Tensor());
    if (gradients[j].defined() && !y.requires_grad() && goal_->targets.empty())
      fail(str("replay: result ", j, ", shape ", y.shape(),
               ", led to a gradient in the first run, and does not when it is run again. "
               "What is recomputed has to compute the same every time, detach() included."));
    if (gradients[j].defined() && y.requires_grad()) accumulate(y.impl().value, y, std::exchange(gradients[j], Tensor()));
    gradients[j] = Tensor();
  }
  sweep(mark);
  position_ = saved;
}

// After a sweep, well ended or not: no gradient stays behind, and what nobody needs goes.
void Tape::clean_up() noexcept {
  position_ = -1;
  goal_ = nullptr;
  for (Entry* e : entries_)
    for (OutputSlot& slot : e->out) slot.grad = slot.remade = Tensor();
  for (std::uint32_t i = size(); i-- > 0;)
    if (i < size() && entries_[i]->live && entries_[i]->uses == 0) kill(i);
}

void Tape::run(std::span<Tensor> outputs, std::span<Tensor> gradients, const SweepGoal& goal) {
  if (goal_ != nullptr) fail("backward: called while another backward is going on, from inside a checkpointed function or a vjp");
  if (others_waiting_.load(std::memory_order_acquire)) drop_others();
  for (const Tensor& y : outputs)
    if (const ValueRef& value = y.impl().value; value.recorder == this && lookup(value) == nullptr)
      fail(
          "backward: this part of the tape was already consumed by an earlier backward. Compute the loss again, or use "
          "grad(y, x, {.create_graph = true}), which keeps the tape.");
  const ContextScope<&Context::phase> phase(Phase::backward);
  try {
    // Entries are recorded with all that needs a gradient wanted.
    if (!goal.targets.empty() || marked_) mark_needed(goal);
    marked_ = !goal.targets.empty();
    goal_ = &goal;
    position_ = static_cast<std::int64_t>(size()) - 1;
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      const Tensor y = std::exchange(outputs[i], Tensor());
      const ValueRef value = y.impl().value;
      for (std::size_t t = 0; t < goal.targets.size(); ++t)
        if (goal.targets[t].same(y) && value.recorder == nullptr) goal.captured[t] = gradients[i];
      if (!goal.collect && value.recorder == nullptr) continue;
      const GradModeScope mode(goal.create_graph ? GradMode::record : GradMode::off);
      if (!goal.create_graph && gradients[i].requires_grad()) gradients[i] = gradients[i].detach();
      accumulate(value, y, std::move(gradients[i]));
    }
    sweep(goal.floor);
  } catch (...) {
    clean_up();
    for (const Tensor& leaf : touched_) leaf.set_grad({});
    touched_.clear();
    throw;
  }
  clean_up();
  touched_.clear();
}

}  // namespace detail

namespace {

void check_history(const Tensor& y, const char* what) {
  if (!y.requires_grad())
    fail(str(what, ": this tensor, shape ", y.shape(),
             ", has no history: nothing that it was computed from requires a gradient, or it was "
             "computed under NoGrad"));
}

Tensor unit_gradient(const Tensor& y, const char* what) {
  if (y.numel() != 1)
    fail(str(what, ": needs a tensor with one element, this one has shape ", y.shape(),
             "; reduce it with sum() or mean(), or give an output gradient"));
  return ones(y.shape(), y.dtype());
}

void check_gradient(const Tensor& y, const Tensor& g, const char* what) {
  if (!(g.shape() == y.shape()) || g.dtype() != y.dtype())
    fail(str(what, ": the output gradient is ", g.dtype(), " ", g.shape(), ", but the output is ", y.dtype(), " ", y.shape()));
}

}  // namespace

void backward(Tensor loss) {
  Tensor g = unit_gradient(loss, "backward");
  backward(std::move(loss), std::move(g));
}

void backward(Tensor output, Tensor output_gradient) {
  std::array outputs{std::move(output)}, gradients{std::move(output_gradient)};
  backward(outputs, gradients);
}

void backward(std::span<Tensor> outputs, std::span<Tensor> gradients) {
  if (outputs.size() != gradients.size())
    fail(str("backward: ", outputs.size(), " outputs, but ", gradients.size(), " output gradients"));
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    check_gradient(outputs[i], gradients[i], "backward");
    check_history(outputs[i], "backward");
  }
  detail::Tape::current().run(outputs, gradients, {});
}

std::vector<Tensor> grad(const Tensor& y, const std::vector<Tensor>& x, GradOptions options) {
  Tensor g = options.output_gradient.defined() ? std::move(options.output_gradient) : unit_gradient(y, "grad");
  check_gradient(y, g, "grad");
  check_history(y, "grad");
  for (std::size_t i = 0; i < x.size(); ++i)
    if (!x[i].requires_grad()) fail(str("grad: x[", i, "], shape ", x[i].shape(), ", does not require a gradient"));
  std::vector<Tensor> result(x.size());
  for (std::size_t i = 0; i < x.size(); ++i)
    if (detail::Tape::current().is_one_of_several(x[i]))
      fail(str(
          "grad: x[", i, "], shape ", x[i].shape(),
          ", was returned by a checkpointed function together with others, and what the function made of it is not known; return "
          "it alone, or ask for the gradients of what went in"));
  std::array outputs{y}, gradients{std::move(g)};
  detail::Tape::current().run(outputs, gradients,
                              {.create_graph = options.create_graph, .collect = false, .targets = x, .captured = result});
  for (std::size_t i = 0; i < x.size(); ++i)
    if (!result[i].defined())
      fail(str("grad: y does not depend on x[", i, "], shape ", x[i].shape(), " (was it detached on the way?)"));
  if (!options.create_graph)
    for (Tensor& t : result)
      if (!detail::owns_its_memory(t)) t = t.clone();
  return result;
}

}  // namespace rewind_lib
