#pragma once
// Whether ops on this thread are recorded.

#include <rewind/core/namespace.h>

#include <cstdint>

namespace rewind_lib {

/// record: ops whose inputs require a gradient go on the tape. off: nothing is recorded. track: nothing is recorded, but
/// outputs know that they would have been (the first run of a checkpointed function).
enum class GradMode : std::uint8_t { record, off, track };
GradMode grad_mode();

/// Sets the mode of this thread while alive.
class GradModeScope {
 public:
  explicit GradModeScope(GradMode mode);
  ~GradModeScope();
  GradModeScope(const GradModeScope&) = delete;
  GradModeScope& operator=(const GradModeScope&) = delete;

 private:
  GradMode saved_;
};

/// While alive, nothing is recorded on this thread: evaluation needs no memory for a backward.
class NoGrad : GradModeScope {
 public:
  NoGrad() : GradModeScope(GradMode::off) {}
};

/// True while a checkpointed function runs again during backward, and while stages are timed for a budget. Code with side effects
/// of its own (a counter, a print, a layer that moves its state with fill(), copy_from() or mutate(), which throw Error in a
/// replay) looks here; ops that change tensors in place are left out of a replay anyway.
bool replaying();

/// For code that may be recomputed and branches on a flag that is neither an input nor a tensor (training or evaluation, say): call
/// it with the flag, and a replay that meets another one throws Error, naming `what` ("train() or eval()").
void depends_on(bool flag, const char* what);

}  // namespace rewind_lib
