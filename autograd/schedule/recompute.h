#pragma once
// How a chain trades memory for time, as a user says it.

#include <rewind/autograd/schedule/action.h>

#include <cstddef>
#include <string_view>

namespace rewind_lib {

/// Where a planner's costs come from: a timed run of every stage, or FLOPs and bytes counted from shapes.
enum class Costs : std::uint8_t { measured, counted };

/// The most bytes that may be live at once in a training step, everything counted: parameters, gradients, optimizer state,
/// inputs, activations and workspaces. What memory::set_limit() would enforce.
struct Budget {
  std::size_t bytes = 0;
  Costs costs = Costs::measured;
};

namespace literals {
constexpr std::size_t operator""_KiB(unsigned long long n) { return static_cast<std::size_t>(n) << 10; }
constexpr std::size_t operator""_MiB(unsigned long long n) { return static_cast<std::size_t>(n) << 20; }
constexpr std::size_t operator""_GiB(unsigned long long n) { return static_cast<std::size_t>(n) << 30; }
}  // namespace literals

/// A strategy for a chain of stages. Gradients are the same to the last bit with every one; schedule/strategies.h says what
/// each keeps and costs.
class Recompute {
 public:
  /// Keep every activation.
  static Recompute vanilla() { return Recompute(Kind::vanilla); }
  /// Keep the input only.
  static Recompute low_memory() { return Recompute(Kind::low_memory); }
  static Recompute segments(int k) { return Recompute(Kind::segments, k); }
  static Recompute periodic(int k) { return Recompute(Kind::periodic, k); }
  static Recompute sqrt() { return Recompute(Kind::sqrt); }
  static Recompute recursive() { return Recompute(Kind::recursive); }
  static Recompute revolve(int slots) { return Recompute(Kind::revolve, slots); }
  /// Exactly these actions.
  static Recompute actions(std::vector<schedule::Action> list);
  /// The fastest schedule whose step fits.
  Recompute(Budget budget)
      : kind_(Kind::budget), budget_(budget) {}  // NOLINT(google-explicit-constructor): net.recompute(Budget{n})

  /// "vanilla", "low-memory", "segments:6", "periodic:4", "sqrt", "recursive", "revolve:8", "budget:300MiB" (or kB, MB, GB,
  /// KiB, GiB, or plain bytes), as programs take it. Throws Error on anything else, listing these.
  static Recompute parse(std::string_view text);
  /// Text that parse() takes, with a budget in other units perhaps; "actions" where the list was given, which it does not take.
  std::string name() const;

  bool is_vanilla() const { return kind_ == Kind::vanilla; }
  /// The budget, or nullptr for another strategy.
  const Budget* budget() const { return kind_ == Kind::budget ? &budget_ : nullptr; }
  /// What to do on a chain of n stages. Not for a budget, which needs sizes. Throws Error when the strategy does not fit n.
  std::vector<schedule::Action> actions_for(int n) const;

 private:
  enum class Kind : std::uint8_t { vanilla, low_memory, segments, periodic, sqrt, recursive, revolve, actions, budget };
  explicit Recompute(Kind kind, int number = 0) : kind_(kind), number_(number) {}

  Kind kind_;
  int number_ = 0;
  Budget budget_;
  std::vector<schedule::Action> list_;
};

}  // namespace rewind_lib
