// Reverse against forward mode. The Jacobian of f: R^n -> R^m a row at a time (vector-Jacobian products, what backward does), a
// column at a time (Jacobian-vector products), or a column at a time by finite differences. Reverse costs m sweeps, the others n.
// A loss has m = 1: that is why training is reverse mode.
//
// The jvp needs no forward mode: u -> J^T u is linear in u, and its own vjp is v -> J v. So differentiate the vjp.
//
// --json F: {"hidden", "cases": [{"n", "m", "modes": {"reverse" | "forward" | "differences": {"flops", "flops_in_f", "ms",
// "largest_error"}}}], "steps": [{"h", "largest_error"}]}. flops_in_f: FLOPs of the Jacobian, by those of f. Errors are against
// reverse mode; steps is what finite differences make of ever smaller steps.

#include "../support/measure.h"
#include "../support/options.h"

#include <cmath>

namespace rw = rewind;
using rw::Tensor;

namespace {

struct Function {
  Function(int n, int m, int hidden)
      : w1((1 / std::sqrt(n)) * rw::randn({hidden, n}, rw::float64)),
        w2((1 / std::sqrt(hidden)) * rw::randn({m, hidden}, rw::float64)),
        x(rw::randn({1, n}, rw::float64).set_requires_grad()) {}
  Tensor operator()(Tensor at) const { return rw::linear(rw::tanh(rw::linear(std::move(at), w1)), w2); }

  Tensor w1, w2, x;  // x [1, n] -> [1, m]
};

Tensor identity(int n) {
  Tensor eye = rw::zeros({n, n}, rw::float64);
  for (int i = 0; i < n; ++i) eye.mutate<double>()[static_cast<std::size_t>(i * n + i)] = 1;
  return eye;
}

Tensor vjp(const Function& f, const Tensor& u) { return rw::grad(f(f.x), {f.x}, {.output_gradient = u})[0]; }

Tensor jvp(const Function& f, const Tensor& v) {
  const Tensor y = f(f.x), u = rw::zeros(y.shape(), rw::float64).set_requires_grad();
  const Tensor product = rw::grad(y, {f.x}, {.output_gradient = u, .create_graph = true})[0];  // J^T u
  return rw::grad(product, {u}, {.output_gradient = v})[0];                                    // J v
}

/// All rows of `directions` through `product`, one below the other.
template <class F>
Tensor rows(const Tensor& directions, F&& product) {
  std::vector<Tensor> list;
  for (std::int64_t i = 0; i < directions.size(0); ++i) list.push_back(product(rw::view_rows(directions, i, i + 1)));
  return rw::concat(std::move(list), 0);
}

Tensor reverse(const Function& f, const Tensor& outputs) {
  return rows(outputs, [&](const Tensor& u) { return vjp(f, u); });
}
Tensor forward(const Function& f, const Tensor& inputs) {
  return rw::permute(rows(inputs, [&](const Tensor& v) { return jvp(f, v); }), {1, 0});
}
Tensor differences(const Function& f, const Tensor& inputs, double h) {
  const rw::NoGrad no_grad;
  const Tensor at = f(f.x);
  return rw::permute(rows(inputs, [&](const Tensor& v) { return (f(f.x + h * v) - at) * (1 / h); }), {1, 0});
}

double largest(const Tensor& a, const Tensor& b) { return rw::max(rw::abs(a - b)).item(); }

nlohmann::json compare(int n, int m, int hidden, int rounds) {
  const Function f(n, m, hidden);
  const Tensor inputs = identity(n), outputs = identity(m), exact = reverse(f, outputs);
  const auto flops_of_f = rw::dry_run([&] { f(f.x); }).flops;
  nlohmann::json modes;
  const auto measure = [&](const char* mode, auto&& jacobian) {
    const auto flops = rw::dry_run(jacobian).flops;
    const double ms = 1e3 * support::seconds_of(rounds, jacobian), error = largest(jacobian(), exact);
    const double in_f = static_cast<double>(flops) / static_cast<double>(flops_of_f);
    std::printf("%6d %6d  %-12s %8.1f %9.2f ms   %.1e\n", n, m, mode, in_f, ms, error);
    modes[mode] = {{"flops", flops}, {"flops_in_f", in_f}, {"ms", ms}, {"largest_error", error}};
  };
  measure("reverse", [&] { return reverse(f, outputs); });
  measure("forward", [&] { return forward(f, inputs); });
  measure("differences", [&] { return differences(f, inputs, 1e-6); });
  return {{"n", n}, {"m", m}, {"modes", modes}};
}

}  // namespace

int main(int argc, char** argv) {
  int hidden = 256, many = 64, rounds = 5;
  std::string json;
  CLI::App app{"What a Jacobian costs in reverse mode, in forward mode, and by finite differences"};
  app.add_option("--hidden", hidden, "units between inputs and outputs")->check(support::positive);
  app.add_option("--many", many, "inputs or outputs, where there are many")->check(support::positive);
  app.add_option("--rounds", rounds, "of each measurement")->check(support::positive);
  app.add_option("--json", json, "write the results to this file");
  CLI11_PARSE(app, argc, argv);
  return support::run({json}, [&] {
    nlohmann::json results{{"hidden", hidden}};
    std::printf("inputs outputs mode         in f's FLOPs      time   largest error\n");
    for (const auto& [n, m] : {std::pair{many, 1}, {many, many}, {1, many}})
      results["cases"].push_back(compare(n, m, hidden, rounds));

    const Function f(many, 1, hidden);
    const Tensor exact = reverse(f, identity(1));
    std::printf("\nfinite differences: too long a step bends, too short a one drowns in rounding\n");
    for (int digits = 1; digits <= 15; digits += 2) {
      const double h = std::pow(10.0, -digits), error = largest(differences(f, identity(many), h), exact);
      std::printf("  h = 1e-%02d   largest error %.1e\n", digits, error);
      results["steps"].push_back({{"h", h}, {"largest_error", error}});
    }
    support::write_json(json, results);
  });
}
