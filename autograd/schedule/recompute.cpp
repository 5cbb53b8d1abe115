#include <rewind/autograd/schedule/recompute.h>
#include <rewind/autograd/schedule/simulate.h>
#include <rewind/autograd/schedule/strategies.h>
#include <rewind/core/error.h>

#include <charconv>
#include <utility>

namespace rewind_lib {
namespace {

constexpr std::pair<std::string_view, std::size_t> units[] = {{"", 1},
                                                              {"B", 1},
                                                              {"kB", 1000},
                                                              {"MB", 1000000},
                                                              {"GB", 1000000000},
                                                              {"KiB", std::size_t{1} << 10},
                                                              {"MiB", std::size_t{1} << 20},
                                                              {"GiB", std::size_t{1} << 30}};

[[noreturn]] void unknown(std::string_view text) {
  fail(str("recompute: unknown strategy '", text,
           "'; known are vanilla, low-memory, sqrt, recursive, segments:K, periodic:K, revolve:SLOTS "
           "and budget:BYTES (as in budget:300MiB), with K, SLOTS >= 1"));
}

/// The bytes that "300MiB" or "1.5GB" says, 0 when it says nothing.
std::size_t parse_bytes(std::string_view text) {
  double value = 0;
  const auto r = std::from_chars(text.data(), text.data() + text.size(), value);
  if (r.ec != std::errc() || !(value > 0) || value > 1e15) return 0;
  const std::string_view unit(r.ptr, static_cast<std::size_t>(text.data() + text.size() - r.ptr));
  for (const auto& [name, bytes] : units)
    if (unit == name) {
      const double total = value * static_cast<double>(bytes);
      return total < 0x1p63 ? static_cast<std::size_t>(total) : 0;
    }
  return 0;
}

}  // namespace

Recompute Recompute::actions(std::vector<schedule::Action> list) {
  Recompute r(Kind::actions);
  r.list_ = std::move(list);
  return r;
}

Recompute Recompute::parse(std::string_view text) {
  const auto colon = text.find(':');
  const std::string_view name = text.substr(0, colon), argument = colon == text.npos ? "" : text.substr(colon + 1);
  if (colon == text.npos) {
    if (name == "vanilla") return vanilla();
    if (name == "low-memory") return low_memory();
    if (name == "sqrt") return sqrt();
    if (name == "recursive") return recursive();
    unknown(text);
  }
  if (name == "budget") {
    const std::size_t bytes = parse_bytes(argument);
    if (bytes == 0) unknown(text);
    return Budget{.bytes = bytes};
  }
  int k = 0;
  const auto r = std::from_chars(argument.data(), argument.data() + argument.size(), k);
  if (r.ec != std::errc() || r.ptr != argument.data() + argument.size() || k < 1) unknown(text);
  if (name == "segments") return segments(k);
  if (name == "periodic") return periodic(k);
  if (name == "revolve") return revolve(k);
  unknown(text);
}

std::string Recompute::name() const {
  switch (kind_) {
    case Kind::vanilla: return "vanilla";
    case Kind::low_memory: return "low-memory";
    case Kind::segments: return str("segments:", number_);
    case Kind::periodic: return str("periodic:", number_);
    case Kind::sqrt: return "sqrt";
    case Kind::recursive: return "recursive";
    case Kind::revolve: return str("revolve:", number_);
    case Kind::actions: return "actions";
    case Kind::budget: break;
  }
  for (const auto& [unit, bytes] : {units[7], units[6], units[5]})
    if (budget_.bytes % bytes == 0) return str("budget:", budget_.bytes / bytes, unit);
  return str("budget:", budget_.bytes);
}

std::vector<schedule::Action> Recompute::actions_for(int n) const {
  const schedule::Chain chain{.stages = std::vector<schedule::Stage>(static_cast<std::size_t>(n))};
  switch (kind_) {
    case Kind::vanilla: return schedule::vanilla(chain).actions;
    case Kind::low_memory: return schedule::low_memory(chain).actions;
    case Kind::segments: return schedule::segments(chain, number_).actions;
    case Kind::periodic: return schedule::periodic(chain, number_).actions;
    case Kind::sqrt: return schedule::sqrt(chain).actions;
    case Kind::recursive: return schedule::recursive(chain).actions;
    case Kind::revolve: return schedule::revolve(chain, number_).actions;
    case Kind::actions:
      if (const std::string fault = schedule::simulate(chain, list_).fault; !fault.empty())
        fail(str("recompute: these actions do not fit a chain of ", n, " stages: ", fault, " (", to_string(list_), ")"));
      return list_;
    case Kind::budget: break;
  }
  REWIND_CHECK(kind_ != Kind::budget);
  return {};
}

}  // namespace rewind_lib
