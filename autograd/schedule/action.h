#pragma once
// What a schedule is made of: four actions, in a list. docs/decisions/0008-exact-frontier.md argues why these four suffice.
//
// The state is a set of kept activations, a set of tapes, and how far backward has come. At first the input a_0 is kept, there
// is no tape, and stage n is the next to go backward. Stage l can run when a_{l-1} is there: kept, or inside the tape of stage
// l-1, which holds that stage's output.
//
//   Fnone(l)  runs stage l without recording and keeps a_l. Lets go of a_{l-1}, if that was kept (a tape stays as it is).
//   Fck(l)    the same, but goes on keeping a_{l-1}: a checkpoint.
//   Fall(l)   runs stage l recorded: its tape, a_l within, is there from now on. Goes on keeping a_{l-1}, which backward needs.
//   B(l)      runs stage l backward; needs its tape, a_{l-1} and the gradient of a_l, that is, B(l+1) right before it in the
//             order n, n-1, .., 1. Consumes the tape, and lets go of a_{l-1}, if that was kept: no one can need it any more.
//
// There is no jump: Fck(3) or Fall(3), wherever they stand, take a_2, and that it is still there is what the list must see to.
// "Fck1 Fnone2 Fall3 B3 Fck1 Fall2 B2 Fall1 B1" starts again from the input twice.
//
// There is no action that drops. An activation is last used by a forward or by a backward of the stage after it, and dropping
// it at any later time costs memory and gains nothing; Fnone and B are those drops. A tape that is dropped before its backward
// should have been an Fck or Fnone. So the four actions express every schedule worth having, those included that give up a
// checkpoint before its backward has come (called non-persistent in the literature).

#include <rewind/autograd/schedule/chain.h>

#include <string_view>

namespace rewind_lib::schedule {

enum class Kind : std::uint8_t { Fnone, Fck, Fall, B };

struct Action {
  Kind kind = Kind::Fnone;
  int stage = 0;
  friend bool operator==(const Action&, const Action&) = default;
};

constexpr Action Fnone(int l) { return {Kind::Fnone, l}; }
constexpr Action Fck(int l) { return {Kind::Fck, l}; }
constexpr Action Fall(int l) { return {Kind::Fall, l}; }
constexpr Action B(int l) { return {Kind::B, l}; }

/// "Fall3"
std::string to_string(Action action);
/// "Fck1 Fck2 Fall3 Fall4 B4 B3 Fall2 B2 Fall1 B1"
std::string to_string(const std::vector<Action>& actions);
/// The inverse of to_string; any white space separates. Throws Error naming the first word that is no action.
std::vector<Action> parse(std::string_view text);

/// A list of actions for one chain, and what it is claimed to take there (see Chain for what a peak is).
struct Schedule {
  std::string strategy = {};  ///< "sqrt", "revolve:8": where it comes from
  std::vector<Action> actions = {};
  std::int64_t peak = 0;  ///< bytes
  double cost = 0;        ///< in the unit of the chain
};

}  // namespace rewind_lib::schedule
