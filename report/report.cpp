#include <rewind/report/embedded.h>
#include <rewind/report/report.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <map>
#include <set>

namespace rewind_lib::report {

namespace {

constexpr std::size_t timeline_points = 3000, frontier_points = 2000;  // more than a screen has pixels

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string escape(const std::string& text, const std::map<char, std::string>& replacements) {
  std::string out;
  for (const char c : text) {
    const auto r = replacements.find(c);
    r == replacements.end() ? out.push_back(c) : void(out += r->second);
  }
  return out;
}

std::string escape_html(const std::string& text) {
  return escape(text, {{'&', "&amp;"}, {'<', "&lt;"}, {'>', "&gt;"}, {'"', "&quot;"}, {'\'', "&#39;"}});
}

/// JSON that may stand inside <script>: nothing in it can end the element. In JSON these characters occur in strings only.
std::string embed(const nlohmann::json& data) {
  const std::string text = data.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);  // bad UTF-8 is no reason to fail
  return escape(text, {{'<', "\\u003c"}, {'>', "\\u003e"}, {'&', "\\u0026"}});
}

/// Replaces each {{name}} of the template. In one pass: what is put in is not looked at again.
std::string fill(const std::string& page, const std::map<std::string, std::string>& values) {
  std::string out;
  std::size_t at = 0;
  for (std::size_t open; (open = page.find("{{", at)) != std::string::npos;) {
    const std::size_t close = page.find("}}", open);
    REWIND_CHECK(close != std::string::npos);
    const auto value = values.find(page.substr(open + 2, close - open - 2));
    REWIND_CHECK(value != values.end());
    out += page.substr(at, open - at) + value->second;
    at = close + 2;
  }
  return out + page.substr(at);
}

double number(const nlohmann::json& point, const std::string& key) {
  const auto value = point.find(key);
  return value != point.end() && value->is_number() ? value->get<double>() : 0;
}

void thin_all(nlohmann::json& data) {
  if (const auto frontier = data.find("frontier"); frontier != data.end() && frontier->is_array())
    *frontier = thin(*frontier, {"bytes", "seconds"}, frontier_points);
  const auto strategies = data.find("strategies");
  if (strategies == data.end() || !strategies->is_array()) return;
  for (auto& s : *strategies)
    if (const auto timeline = s.find("timeline"); timeline != s.end() && timeline->is_array())
      *timeline =
          thin(*timeline, {"parameter", "gradient", "optimizer_state", "activation", "input", "workspace"}, timeline_points);
}

}  // namespace

nlohmann::json thin(const nlohmann::json& points, const std::vector<std::string>& keys, std::size_t limit) {
  if (limit < 64) fail(str("report: thin() keeps at least 64 points, not ", limit));
  if (points.size() <= limit) return points;

  std::vector<double> sums;
  std::vector<std::pair<double, std::size_t>> most(keys.size(), {-1, 0});
  for (std::size_t i = 0; i < points.size(); ++i) {
    double sum = 0;
    for (std::size_t k = 0; k < keys.size(); ++k) {
      const double value = number(points[i], keys[k]);
      sum += value;
      if (value > most[k].first) most[k] = {value, i};
    }
    sums.push_back(sum);
  }

  std::set<std::size_t> keep;
  for (const auto& m : most) keep.insert(m.second);
  const std::size_t stretches = (limit - std::min(limit, keys.size())) / 4;
  for (std::size_t s = 0; s < stretches; ++s) {
    const std::size_t begin = points.size() * s / stretches, end = points.size() * (s + 1) / stretches;
    const auto first = sums.begin() + static_cast<std::ptrdiff_t>(begin), last = sums.begin() + static_cast<std::ptrdiff_t>(end);
    keep.insert({begin, end - 1, static_cast<std::size_t>(std::min_element(first, last) - sums.begin()),
                 static_cast<std::size_t>(std::max_element(first, last) - sums.begin())});
  }
  nlohmann::json kept = nlohmann::json::array();
  for (const std::size_t i : keep) kept.push_back(points[i]);
  return kept;
}

std::string chart_of(const std::string& chart) {
  std::string library = read(chart);
  if (library.empty())
    throw Error("report: cannot read " + chart + ", which draws the charts of the page: install Debian's package libjs-chart.js" +
                " (apt-get install libjs-chart.js)");
  if (library.find("</script") != std::string::npos || library.find("<!--") != std::string::npos)
    throw Error("report: " + chart + " cannot be put into a page; is it Chart.js 3.9, as Debian's package libjs-chart.js has it?");
  return library;
}

void expect_chart(const std::string& chart) { static_cast<void>(chart_of(chart)); }

std::string page(nlohmann::json data, const std::string& chart) {
  const std::string library = chart_of(chart);
  thin_all(data);
  const auto title = data.find("title");
  return fill(embedded::html,
              {{"title", escape_html(title != data.end() && title->is_string() ? title->get<std::string>() : "Rewind report")},
               {"style", embedded::css},
               {"chart.js", library},
               {"script", embedded::js},
               {"data", embed(data)}});
}

void write_whole(const std::string& path, const std::string& text) {
  namespace fs = std::filesystem;
  std::error_code none;
  const bool device = fs::exists(path, none) && !fs::is_regular_file(path, none);
  fs::path target = path;
  for (int links = 0; !device && fs::is_symlink(target, none) && links < 40; ++links) {
    const fs::path to = fs::read_symlink(target, none);
    target = to.is_absolute() ? to : target.parent_path() / to;
  }
  const fs::path part = device ? target : fs::path(target.string() + ".part");
  std::ofstream file(part, std::ios::binary);
  file << text;
  file.close();
  if (const fs::file_status before = fs::status(target, none); fs::is_regular_file(before))
    fs::permissions(part, before.permissions(), none);
  if (file && (device || std::rename(part.c_str(), target.c_str()) == 0)) return;
  if (!device) fs::remove(part, none);
  throw Error("cannot write " + path + ": check that the folder exists and has room");
}

void write(const std::string& path, nlohmann::json data) { write_whole(path, page(std::move(data))); }

}  // namespace rewind_lib::report
