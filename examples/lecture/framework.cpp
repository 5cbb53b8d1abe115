// The price of the framework: what one addition costs beside the additions themselves. A framework checks shapes, finds memory,
// writes a tape; on one number that is all of the time, on a million of them it is nothing.
//
// --json F: {"threads", "versions": {"torch_cpp", "torch_python"}, "sizes": [{"elements", "loop_ns", "rewind": T, "torch_cpp": T,
// "torch_python": T}]}, T: {"no_gradient_ns", "forward_ns", "forward_backward_ns"}; the nanoseconds of one addition of that many
// floats. loop: the same in a plain loop on one thread. torch_cpp and torch_python are there where they are installed.

#include "../support/measure.h"
#include "../support/options.h"
#include "../support/peer.h"

namespace rw = rewind;

namespace {

/// Nanoseconds of one f(), when many are done.
template <class F>
double ns(int repeat, F&& f) {
  return 1e9 / repeat * support::seconds_of(5, [&] {
           for (int i = 0; i < repeat; ++i) f();
         });
}

nlohmann::json rewind_ns(std::int64_t n, int repeat) {
  rw::Tensor a = rw::ones({n}), b = rw::ones({n});
  const rw::Tensor g = rw::ones({n});
  const double no_gradient = ns(repeat, [&] { rw::add(a, b); });
  a.set_requires_grad();
  b.set_requires_grad();
  const double forward = ns(repeat, [&] { rw::add(a, b); });
  const double both = ns(repeat, [&] {
    rw::backward(rw::add(a, b), g);
    a.set_grad({});
    b.set_grad({});
  });
  return {{"no_gradient_ns", no_gradient}, {"forward_ns", forward}, {"forward_backward_ns", both}};
}

double loop_ns(std::int64_t n, int repeat) {
  const auto size = static_cast<std::size_t>(n);
  std::vector<float> a(size, 1), b(size, 1), c(size);
  return ns(repeat, [&] {
    for (std::size_t i = 0; i < size; ++i) c[i] = a[i] + b[i];
    asm volatile("" : : "r"(c.data()) : "memory");  // or the compiler would add once for all repetitions
  });
}

void print(const char* who, const nlohmann::json& t) {
  std::printf("  %-16s %12.0f %12.0f %20.0f\n", who, t["no_gradient_ns"].get<double>(), t["forward_ns"].get<double>(),
              t["forward_backward_ns"].get<double>());
}

void measure(const std::vector<std::int64_t>& sizes, int most, const std::string& json) {
  const auto repeat = [&](std::int64_t n) { return static_cast<int>(std::clamp<std::int64_t>(100'000'000 / n, 1, most)); };
  std::string arguments = rw::str(rw::parallel::threads());
  for (const std::int64_t n : sizes) arguments += rw::str(" ", n, ":", repeat(n));
  const struct {
    const char *name, *key;
    nlohmann::json results;
  } peers[] = {{"PyTorch, C++", "torch_cpp", support::peer("add", arguments)},
               {"PyTorch, Python", "torch_python", support::peer("add.py", arguments)}};

  nlohmann::json results{{"threads", rw::parallel::threads()}, {"versions", nlohmann::json::object()}};
  for (const auto& peer : peers)
    if (!peer.results.is_null()) results["versions"][peer.key] = peer.results["version"];
  std::printf("ns of an addition    no gradient      forward forward and backward\n");
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    nlohmann::json row{{"elements", sizes[i]}, {"rewind", rewind_ns(sizes[i], repeat(sizes[i]))}};
    row["loop_ns"] = loop_ns(sizes[i], repeat(sizes[i]));
    std::printf("%lld float%s\n  %-16s %12.0f\n", static_cast<long long>(sizes[i]), sizes[i] == 1 ? "" : "s", "plain loop",
                row["loop_ns"].get<double>());
    print("Rewind", row["rewind"]);
    for (const auto& peer : peers)
      if (!peer.results.is_null()) print(peer.name, row[peer.key] = peer.results["sizes"][i]);
    results["sizes"].push_back(std::move(row));
  }
  support::write_json(json, results);
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::int64_t> sizes{1, 1000, 1000000};
  int most = 20000;
  std::string json;
  CLI::App app{"Nanoseconds of one addition"};
  app.add_option("--sizes", sizes, "elements, separated by commas")->delimiter(',')->check(support::positive);
  app.add_option("--repeat", most, "additions a measurement, fewer for large ones")->check(support::positive);
  app.add_option("--json", json, "write the results to this file");
  CLI11_PARSE(app, argc, argv);
  return support::run({json}, [&] { measure(sizes, most, json); });
}
