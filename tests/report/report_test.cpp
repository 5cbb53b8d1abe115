#include <rewind/report/report.h>

#include <doctest/doctest.h>

#include <unistd.h>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>

namespace rw = rewind;
using nlohmann::json;

namespace {

/// A folder that goes when the test does.
struct Folder {
  std::filesystem::path path = std::filesystem::temp_directory_path() / ("rewind_report_test_" + std::to_string(getpid()));
  Folder() { std::filesystem::create_directory(path); }
  ~Folder() { std::filesystem::remove_all(path); }
};

std::string write_file(const std::filesystem::path& path, const std::string& text) {
  std::ofstream(path) << text;
  return path.string();
}

std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

int count(const std::string& text, const std::string& part) {
  int n = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

json make_timeline(int n) {
  json points = json::array();
  for (int i = 0; i < n; ++i)
    points.push_back({{"t", i}, {"activation", i == n / 3 ? 1'000'000 : 500 + i % 7}, {"workspace", i == n / 2 ? 777 : 0}});
  return points;
}

}  // namespace

TEST_CASE("text in the data cannot end the script, and comes out as it went in") {
  const Folder folder;
  const std::string chart = write_file(folder.path / "chart.js", "var Chart;"),
                    evil = "</script><script>alert('&')</script><!-- {{style}}";
  const json data = {{"title", evil}, {"machine", evil}, {"loss", std::numeric_limits<double>::quiet_NaN()}};
  const std::string page = rw::report::page(data, chart), start = "<script type=\"application/json\" id=\"data\">";
  CHECK(count(page, "</script>") == 3);
  CHECK(count(page, "<script>alert") == 0);
  CHECK(page.find("<title>&lt;/script&gt;&lt;script&gt;alert(&#39;&amp;&#39;)") != std::string::npos);

  const std::size_t begin = page.find(start) + start.size();
  const json back = json::parse(page.substr(begin, page.find("</script>", begin) - begin));
  CHECK(back["machine"] == evil);
  CHECK(back["loss"].is_null());
}

TEST_CASE("text that is not UTF-8 does not stop a report") {
  const Folder folder;
  CHECK_NOTHROW(rw::report::page({{"machine", "caf\xe9"}}, write_file(folder.path / "chart.js", "var Chart;")));
}

TEST_CASE("the page asks nothing of the network") {
  const Folder folder;
  const std::string page = rw::report::page({{"title", "t"}}, write_file(folder.path / "chart.js", "var Chart;"));
  CHECK(count(page, "default-src 'none'") == 1);
  CHECK(count(page, " src=") == 0);
  CHECK(count(page, "url(") == 0);
  CHECK(count(page, "{{") == 0);
}

TEST_CASE("a missing Chart.js is an error that names the package") {
  try {
    rw::report::page({}, "nowhere/chart.min.js");
    FAIL("no error");
  } catch (const rw::Error& e) {
    CHECK(std::string(e.what()).find("nowhere/chart.min.js") != std::string::npos);
    CHECK(std::string(e.what()).find("libjs-chart.js") != std::string::npos);
  }
}

TEST_CASE("a Chart.js that would end its script element is refused") {
  const Folder folder;
  CHECK_THROWS_AS(rw::report::page({}, write_file(folder.path / "chart.js", "'</script>'")), rw::Error);
}

TEST_CASE("a report that cannot be written leaves nothing behind") {
  const Folder folder;
  CHECK_THROWS_AS(rw::report::write((folder.path / "no" / "report.html").string(), {}), rw::Error);
  const auto path = folder.path / "report.html";
  rw::report::write(path.string(), {{"title", "here"}});
  CHECK(read_file(path).find("<h1>here</h1>") != std::string::npos);
  CHECK_FALSE(std::filesystem::exists(path.string() + ".part"));
}

TEST_CASE("thinning keeps the order, the ends and every extreme") {
  const json points = make_timeline(100'000), thin = rw::report::thin(points, {"activation", "workspace"}, 1000);
  CHECK(thin.size() <= 1000);
  CHECK(thin.size() > 500);
  CHECK(thin.front() == points.front());
  CHECK(thin.back() == points.back());
  std::int64_t before = -1, most = 0, most_workspace = 0;
  for (const json& p : thin) {
    CHECK(p["t"].get<std::int64_t>() > before);
    before = p["t"].get<std::int64_t>();
    most = std::max(most, p["activation"].get<std::int64_t>());
    most_workspace = std::max(most_workspace, p["workspace"].get<std::int64_t>());
  }
  CHECK(most == 1'000'000);
  CHECK(most_workspace == 777);
  CHECK(rw::report::thin(make_timeline(900), {"activation"}, 1000).size() == 900);
}

TEST_CASE("a long timeline does not make a long page") {
  const Folder folder;
  const json data = {{"strategies", {{{"strategy", "vanilla"}, {"timeline", make_timeline(100'000)}}}}};
  CHECK(rw::report::page(data, write_file(folder.path / "chart.js", "var Chart;")).size() < 400'000);
}
