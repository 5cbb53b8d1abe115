#pragma once
// A report: one HTML page with everything in it, made from what a program measured. Programs write it, the library does not
// know it.
//
//   rewind::report::write("report.html", {{"title", "Digits"}, {"strategies", results}, {"stages", names}});
//
// The page has one section for each kind of data that it is given (report/sections/, one file each); a key that is missing
// leaves its section out, and a null leaves a number out. What the sections read:
//
//   "title"       the heading; "model", "options", "batch", "size", "optimizer", "threads", "parameters", "machine" stand below it
//   "strategies"  [{"strategy": its name, "predicted_peak_bytes", "measured_peak_bytes", "activation_peak_bytes",
//                   "peak_bytes_by_category": {"parameter", "gradient", "optimizer_state", "activation", "input", "workspace",
//                   "total"} (each category's own peak), "step_ms_median", "recomputed_flops_ratio" (FLOPs run a second time, by
//                   those of a step that recomputes nothing), "loss", "gradient_hash",
//                   "schedule": "Fck1 Fall2 ..." (as schedule::to_string writes it),
//                   "trace": [{"kind": "Fck", "stage": 1, "start", "end", "during": bytes, "after": bytes}] (as
//                   schedule::simulate finds it, in the unit of "frontier_unit"),
//                   "timeline": [{"t": 0 to 1, or a count, "parameter": bytes, ... each category, "op", "module"}] (live bytes
//                   from that moment on)}]; the first is what the others are compared with
//   "stages"      names of the stages of the schedules
//   "profile"     a profile as rewind::to_json(Profile) writes it (profile/profile.h); a strategy with a "timeline" beside it,
//                 under "strategies", shows its memory
//   "frontier"    [{"bytes", "seconds"}]: the least time within so many bytes; "frontier_unit": what "seconds" count;
//                 "frontier_beside": {"bytes", "seconds"} of these, what is there beside a schedule's stages, and not in a "trace"
//
// Another section is a file in report/sections/ and a line each in cmake/report.cmake and report/page.js.

#include <rewind/core/error.h>

#include <nlohmann/json.hpp>

#include <string>

namespace rewind_lib::report {

/// Where Debian's package libjs-chart.js puts Chart.js 3.9, which goes into each page.
inline constexpr const char* chart_js = "/usr/share/javascript/chart.js/chart.min.js";

/// The page. `chart` is the file of Chart.js; Error names the package if it is not there.
std::string page(nlohmann::json data, const std::string& chart = chart_js);

/// Throws Error, which names the package, when Chart.js is not there: before what is to be shown is measured.
void expect_chart(const std::string& chart = chart_js);

/// Writes a file, all of it or nothing: what stood there before stays when this cannot be written. A link stays a link, and a
/// device (/dev/stdout) is written to. Throws Error.
void write_whole(const std::string& path, const std::string& text);

/// Writes the page to a file, in that way.
void write(const std::string& path, nlohmann::json data);

/// At most `limit` points of a list of objects, in order: of each stretch the first, the last, and the least and the most sum of
/// `keys`; and the points where each key is at its most over all. Throws Error when limit < 64.
nlohmann::json thin(const nlohmann::json& points, const std::vector<std::string>& keys, std::size_t limit);

}  // namespace rewind_lib::report
