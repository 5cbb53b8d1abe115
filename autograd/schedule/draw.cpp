#include <rewind/autograd/schedule/draw.h>
#include <rewind/autograd/schedule/simulate.h>
#include <rewind/core/error.h>

#include <algorithm>

namespace rewind_lib::schedule {

namespace {
// What hides what, where several fall into one cell.
constexpr std::string_view marks = ".-=><F";

void put(char& cell, char mark) {
  if (marks.find(mark) > marks.find(cell)) cell = mark;
}

std::string padded(std::string text, std::size_t width) {
  text.resize(std::max(width, text.size()), ' ');
  return text;
}
}  // namespace

std::string draw(const Chain& chain, const Schedule& schedule, int columns, int rows) {
  const Trace trace = simulate(chain, schedule.actions);
  if (!trace.ok()) fail(str("schedule: cannot draw: ", trace.fault));
  if (columns < 1 || rows < 1) fail(str("schedule: cannot draw in ", columns, " columns and ", rows, " rows"));

  const int n = chain.n();
  const int steps = static_cast<int>(trace.steps.size());
  columns = std::min(columns, std::max(steps, 1));
  rows = std::min(rows, std::max(n, 1));
  const int per_column = (steps + columns - 1) / columns;
  const int per_row = (n + rows - 1) / rows;
  const std::size_t width = static_cast<std::size_t>((steps + per_column - 1) / per_column);
  const auto row = [&](int l) { return static_cast<std::size_t>(l == 0 ? 0 : (l - 1) / per_row + 1); };
  std::vector<std::string> cells(row(n) + 1, std::string(width, '.'));

  std::vector<char> state(chain.stages.size() + 1, '.');
  std::vector<std::int64_t> memory(width);
  state[0] = '-';
  for (int i = 0; i < steps; ++i) {
    const auto [kind, l] = trace.steps[static_cast<std::size_t>(i)].action;
    const auto column = static_cast<std::size_t>(i / per_column);
    const auto stage = static_cast<std::size_t>(l);
    memory[column] = std::max(memory[column], trace.steps[static_cast<std::size_t>(i)].during);
    for (int j = 0; j <= n; ++j) put(cells[row(j)][column], state[static_cast<std::size_t>(j)]);
    put(cells[row(l)][column], kind == Kind::B ? '<' : kind == Kind::Fall ? 'F' : '>');
    state[stage] = kind == Kind::B ? '.' : kind == Kind::Fall ? '=' : '-';
    if ((kind == Kind::B || kind == Kind::Fnone) && state[stage - 1] == '-') state[stage - 1] = '.';
  }

  const std::size_t label = str("stage", n).size() + 1;
  std::string out = str(schedule.strategy.empty() ? "schedule" : schedule.strategy, ", peak ", trace.peak, " bytes, cost ",
                        trace.cost, trace.recomputed > 0 ? str(", ", trace.recomputed, " of it recomputed") : std::string{});
  if (per_column > 1) out += str(", ", per_column, " actions a column");
  if (per_row > 1) out += str(", ", per_row, " stages a row");
  for (std::size_t r = 0; r < cells.size(); ++r)
    out += "\n" +
           padded(r == 0 ? "input" : str("stage", (static_cast<int>(r) - 1) * per_row + 1), std::max<std::size_t>(label, 7)) +
           cells[r];
  out += "\n" + padded("memory", std::max<std::size_t>(label, 7));
  for (const std::int64_t bytes : memory)
    out += bytes == trace.peak
               ? '#'
               : static_cast<char>('0' + static_cast<int>(10.0 * static_cast<double>(bytes) / static_cast<double>(trace.peak)));
  return out + "\n";
}

}  // namespace rewind_lib::schedule
