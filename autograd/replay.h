#pragma once
// Running a function again during backward: what checkpoint() and the executor of schedules share. Inside the library only.

#include <rewind/autograd/tape.h>
#include <rewind/core/random.h>

#include <optional>

namespace rewind_lib::detail {

/// Puts the random numbers to where a first run found them, and afterwards to where they were.
class ReplayedGenerator {
 public:
  explicit ReplayedGenerator(const random::Generator& at) : saved_(std::exchange(random::default_generator(), at)) {}
  ~ReplayedGenerator() { random::default_generator() = saved_; }
  ReplayedGenerator(const ReplayedGenerator&) = delete;
  ReplayedGenerator& operator=(const ReplayedGenerator&) = delete;

 private:
  random::Generator saved_;
};

/// What the context is while a function runs again inside a vjp.
class ReplayScope {
 public:
  explicit ReplayScope(const random::Generator& at, GradMode mode) : mode_(mode), generator_(at) {}

 private:
  GradModeScope mode_;
  ContextScope<&Context::replaying> replaying_{true};
  ContextScope<&Context::phase> phase_{Phase::recompute};
  ContextScope<&Context::gradient_of> gradient_of_{""};
  ReplayedGenerator generator_;
};

/// What a first run computed, op by op, for a ReplayGuard to compare with. Empty without one.
class RunLog {
 public:
  /// Notes what is computed while alive.
  class Write;
  /// Compares what is computed while alive with the notes, in order.
  class Compare;

 private:
  struct Note {
    const OpDecl* op;
    std::uint64_t hash;
  };
  std::vector<Note> notes_;
};

class RunLog::Write final : Observer {
 public:
  explicit Write(RunLog& log);

 private:
  void after(const OpEvent& event) override;
  RunLog& log_;
  std::optional<ObserverScope> scope_;
};

class RunLog::Compare final : Observer {
 public:
  explicit Compare(const RunLog& log);

 private:
  void after(const OpEvent& event) override;
  const RunLog& log_;
  std::size_t next_ = 0;
  std::optional<ObserverScope> scope_;
};

/// A piece of tape of its own, recorded above everything else: begin() with the inputs, run the function on what it
/// returns, then sweep().
class TapeSegment {
 public:
  TapeSegment() = default;
  ~TapeSegment();
  TapeSegment(TapeSegment&& other) noexcept : entry_of_(std::exchange(other.entry_of_, {})), first_(other.first_) {}
  TapeSegment& operator=(TapeSegment&&) = delete;

  /// Gives the inputs whose bit is set in `needs` a place on the tape where their gradients collect.
  void begin(std::span<Tensor> inputs, std::uint32_t needs);
  /// Goes back from the results, which are released first, and returns the gradients of the inputs; undefined where none is
  /// wanted or none arrives.
  std::vector<Tensor> sweep(std::vector<Tensor> results, std::vector<Tensor> gradients);

 private:
  static constexpr std::uint32_t none = ~std::uint32_t{0};
  std::vector<std::uint32_t> entry_of_;
  std::uint32_t first_ = 0;
};

}  // namespace rewind_lib::detail
