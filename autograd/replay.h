#pragma once
// Running a function again during backward: what checkpoint() and the executor of schedules share. Inside the library only.

#include <rewind/autograd/tape.h>
#include <rewind/core/random.h>

#include <optional>

namespace rewind_lib::detail {

/// What the context is while a function runs again inside a vjp.
class ReplayScope {
 public:
  explicit ReplayScope(const random::Generator& at, GradMode mode) : mode_(mode), generator_(at) {}

 private:
  GradModeScope mode_;
  ReplayEra era_;
  ContextScope<&Context::phase> phase_{Phase::recompute};
  ContextScope<&Context::gradient_of> gradient_of_{""};
  random::GeneratorScope generator_;
};

/// What a first run depended on beside its inputs: leaves and computed tensors whose gradients go on, parameters and buffers that
/// get none, and flags; and for a ReplayGuard what it computed, op by op.
class RunLog {
 public:
  /// Notes what is read and computed while alive.
  class Write;
  /// While alive, compares a second run with the notes.
  class Compare;
  /// Throws Error when something that was read was changed in place or frozen since.
  void check_reads() const;

 private:
  /// A tensor that an op read. What was computed is known by its place on the tape, so that no history is held for it.
  struct Read {
    Tensor tensor;  // undefined of what was computed
    ValueRef value;
    std::uint32_t version;
    bool needed;  // a gradient
    int input;
    const OpDecl* op;
    const char* module;
    bool given;  // an input: the second run may get it in another form
    bool seen;   // by the second run
    bool is(const Tensor& t, bool needs) const;
  };
  /// An input of the function, which is told from what it captured.
  struct Given {
    const TensorImpl* leaf;
    ValueRef value;
    const Storage* storage;
  };
  struct Note {
    const OpDecl* op;
    std::uint64_t hash;
  };
  bool is_given(const Tensor& t, bool needs) const;

  std::vector<Given> given_;
  std::vector<Read> reads_;
  std::vector<bool> flags_;
  bool guarded_ = false;  // there are notes
  std::vector<Note> notes_;
};

/// A run of a function that keeps no history. What it makes carries its number, so that others who read it and were not given it
/// can be told: when the function runs again, it has none to give.
class UnrecordedRun {
 public:
  /// inputs: what the run is given. Those that a run before has made get this one's number, in place.
  explicit UnrecordedRun(std::span<const Tensor* const> inputs);

 private:
  ContextScope<&Context::run> run_;
};

class RunLog::Write final : Observer, RunWatch {
 public:
  /// inputs: of the function that is going to run.
  Write(RunLog& log, std::span<const Tensor* const> inputs);
  ~Write() { context().watches.pop_back(); }
  Write(const Write&) = delete;
  Write& operator=(const Write&) = delete;

 private:
  void after(const OpEvent& event) override;
  void reads(const OpDecl& op, std::span<const Tensor> in, std::uint32_t needs) override;
  void flag(bool on, const char*) override { log_.flags_.push_back(on); }
  RunLog& log_;
  std::optional<ObserverScope> scope_;
};

/// The second run reads the same tensors in the same order, and sets the same flags. It may leave out what the first run read
/// (replaying() is for that), but no tensor for good that gets a gradient. Begins before the second run's inputs get a place.
class RunLog::Compare final : Observer, RunWatch {
 public:
  explicit Compare(RunLog& log);
  ~Compare() { context().watches.pop_back(); }
  Compare(const Compare&) = delete;
  Compare& operator=(const Compare&) = delete;
  /// When the function has returned. Throws Error when something is missing.
  void finish() const;

 private:
  void after(const OpEvent& event) override;
  void reads(const OpDecl& op, std::span<const Tensor> in, std::uint32_t needs) override;
  void flag(bool on, const char* what) override;
  RunLog& log_;
  std::uint64_t own_;  // the serial number of the first entry that the run itself may record
  std::size_t next_ = 0, next_flag_ = 0, next_read_ = 0;
  std::optional<ObserverScope> scope_;
};

/// A piece of tape of its own, recorded above everything else: begin() with the inputs, run the function on what it
/// returns, then sweep().
class TapeSegment {
 public:
  /// Appends an entry that stays until it is unpinned, with `input`, one tensor or none, as its output. Returns its index.
  static std::uint32_t place(std::span<Tensor> input);
  TapeSegment() = default;
  ~TapeSegment();
  TapeSegment(TapeSegment&& other) noexcept
      : entry_of_(std::exchange(other.entry_of_, {})), inputs_(other.inputs_), first_(other.first_) {}
  TapeSegment& operator=(TapeSegment&&) = delete;

  /// Gives each input whose bit is set in `needs` a place in the graph. With v that is the place of v's input, so that gradients
  /// are added one by one in the order of a step without recompute; else bits would differ. Without v, or where v has none, the
  /// input gets an entry of its own, where its gradient collects.
  void begin(std::span<Tensor> inputs, std::uint32_t needs, const Vjp* v);
  /// Goes back from the results, which are released first, and returns the gradients of the inputs that have places of their own;
  /// undefined where none is wanted or none arrives.
  std::vector<Tensor> sweep(std::vector<Tensor> results, std::vector<Tensor> gradients);

 private:
  static constexpr std::uint32_t none = ~std::uint32_t{0};
  std::vector<std::uint32_t> entry_of_;  // of each input, and one more where none has any
  std::size_t inputs_ = 0;
  std::uint32_t first_ = 0;
};

/// The tape from here on as one of its own: backward() goes down to where it stood, leaves what is below alone, and drops, at its
/// end, the gradients that would go there. For trials between a user's forward and backward. Goes after what the trial has
/// recorded.
class TrialTape {
 public:
  TrialTape();
  ~TrialTape();
  TrialTape(const TrialTape&) = delete;
  TrialTape& operator=(const TrialTape&) = delete;
  /// collect: adds to the gradients of leaves, as backward() does; else these are dropped, too.
  void backward(std::span<Tensor> outputs, std::span<Tensor> gradients, bool collect) const {
    std::vector<std::pair<ValueRef, Tensor>> below;
    Tape::current().run(outputs, gradients, {.collect = collect, .floor = floor_, .below = &below});
  }

 private:
  std::uint32_t floor_;
};

}  // namespace rewind_lib::detail
