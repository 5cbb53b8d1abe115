#pragma once
// A picture of a schedule for terminals: stages down, actions across, as in the papers.

#include <rewind/autograd/schedule/action.h>

namespace rewind_lib::schedule {

/// For example, four stages within 13 bytes:
///
///     budget:13, peak 13 bytes, cost 24, 5 of it recomputed
///     input  ----------
///     stage1 >-------F<
///     stage2 .>----F<..
///     stage3 ..F==<....
///     stage4 ...F<.....
///     memory 3478##6979
///
/// In the row of stage l: > runs forward without recording, F runs forward recorded, < runs backward; - a_l is kept, = its tape
/// is held, . neither. The last row is the memory while each action runs, in tenths of the peak, # at the peak. Longer lists and
/// chains are drawn with several actions in a column or stages in a row, at most `columns` and `rows` of them; what runs then
/// hides what is kept. Throws Error when the list is not sound on the chain.
std::string draw(const Chain& chain, const Schedule& schedule, int columns = 120, int rows = 40);

}  // namespace rewind_lib::schedule
