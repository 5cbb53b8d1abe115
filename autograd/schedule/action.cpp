#include <rewind/autograd/schedule/action.h>
#include <rewind/core/error.h>

#include <charconv>
#include <iterator>

namespace rewind_lib::schedule {

namespace {
// Longest match is not needed: no name is the beginning of another.
constexpr std::string_view names[] = {"Fnone", "Fck", "Fall", "B"};

Action parse_word(std::string_view word) {
  for (std::size_t kind = 0; kind < std::size(names); ++kind) {
    if (!word.starts_with(names[kind])) continue;
    const std::string_view digits = word.substr(names[kind].size());
    int stage = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), stage);
    if (error == std::errc{} && end == digits.data() + digits.size() && stage >= 1) return {static_cast<Kind>(kind), stage};
  }
  fail(str("schedule: \"", word, "\" is no action; actions are Fnone, Fck, Fall and B with the number of a stage, as in Fall3"));
}
}  // namespace

std::string to_string(Action action) { return str(names[static_cast<std::size_t>(action.kind)], action.stage); }

std::string to_string(const std::vector<Action>& actions) {
  std::string out;
  for (const Action& action : actions) {
    if (!out.empty()) out += ' ';
    out += to_string(action);
  }
  return out;
}

std::vector<Action> parse(std::string_view text) {
  constexpr std::string_view space = " \t\r\n";
  std::vector<Action> actions;
  for (std::size_t at = text.find_first_not_of(space); at != std::string_view::npos;) {
    const std::size_t end = text.find_first_of(space, at);
    actions.push_back(parse_word(text.substr(at, end == std::string_view::npos ? end : end - at)));
    at = text.find_first_not_of(space, end);
  }
  return actions;
}

}  // namespace rewind_lib::schedule
