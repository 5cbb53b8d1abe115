// Declares an op outside the library, softplus(x) = log(1 + exp(beta x)) / beta with its gradient, and uses it like any
// other: in a graph, under checkpoint(), with an observer that counts its cost, checked by gradcheck.

#include <rewind/rewind.h>

#include <algorithm>
#include <cmath>
#include <iostream>

namespace rw = rewind;

struct Softplus {
  static constexpr const char* name = "softplus";
  static constexpr rw::Kind kind = rw::Kind::elementwise;
  struct Attr {
    double beta = 1;
  };

  // The shape of the result, or an error that names the op and the shape.
  static rw::Specs infer(rw::Inputs in, const Attr& a) {
    if (!in[0].defined()) rw::fail("softplus: the input is undefined");
    if (!rw::is_float(in[0].dtype())) rw::fail(rw::str("softplus: needs a float tensor, got ", in[0].dtype(), " ", in[0].shape()));
    if (!(a.beta > 0)) rw::fail(rw::str("softplus: beta must be positive, got ", a.beta));
    return {{in[0].shape(), in[0].dtype()}};
  }
  static rw::Cost cost(rw::Inputs, const rw::Specs& out, const Attr&) { return {.flops = 4 * out[0].shape.numel()}; }
  static void forward(const rw::Forward& f, const Attr& a) {
    rw::visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      const T* x = f.in<T>(0);
      const T beta = static_cast<T>(a.beta);
      T* y = f.out<T>(0);
      rw::parallel::for_range(f.out_shape(0).numel(), rw::parallel::light_grain, [&](std::int64_t begin, std::int64_t end) {
        // log(1 + e^z) = max(z, 0) + log(1 + e^-|z|), which does not overflow
        for (std::int64_t i = begin; i < end; ++i)
          y[i] = std::max(x[i], T{0}) + std::log1p(std::exp(-std::abs(beta * x[i]))) / beta;
      });
    });
  }
  // The gradient is written in ops, so it can be profiled, recomputed and differentiated again.
  static rw::Saves saves(const Attr&, std::uint32_t /*wanted gradients*/) { return {.inputs = rw::bit(0)}; }
  static void vjp(rw::Vjp& v, const Attr& a) { v.give(0, v.grad(0) * rw::sigmoid(a.beta * v.input(0))); }
  // Calls that must work and calls that must fail, for check_op().
  static void samples(rw::Samples<Attr> s) {
    for (int n = 1; n <= 20; ++n) s.add({rw::uniform({n, 3}, -3, 3, rw::float64)}, {.beta = 0.1 * n});
    s.error({rw::zeros({2}, rw::int64)}, {}, "needs a float tensor, got int64 [2]");
    s.error({rw::zeros({2})}, {.beta = 0}, "beta must be positive, got 0");
    s.error({rw::Tensor()}, {}, "the input is undefined");
  }
};

static rw::Tensor softplus(rw::Tensor x, double beta = 1) { return rw::apply<Softplus>({std::move(x)}, {beta}); }

/// An observer sees every call of every op, ours too.
struct FlopCounter : rw::Observer {
  std::int64_t flops = 0;
  void after(const rw::OpEvent& event) override { flops += event.cost().flops; }
};

int main() {
  const rw::OpReport report = rw::check_op(rw::decl_of<Softplus>);
  for (const std::string& problem : report.problems) std::cout << problem << "\n";
  std::cout << "softplus passes " << report.samples << " samples and " << report.errors
            << " errors: " << (report.problems.empty() ? "yes" : "no") << "\n";

  rw::Tensor x = rw::randn({4, 5}, rw::float64).set_requires_grad();
  rw::backward(rw::sum(softplus(x)));
  const rw::Tensor kept = x.grad();
  x.set_grad({});
  rw::backward(rw::sum(rw::checkpoint([](rw::Tensor h) { return softplus(std::move(h)); }, x)));
  std::cout << "recomputed gradients have the same bits: "
            << (kept.to_vector<double>() == x.grad().to_vector<double>() ? "yes" : "no") << "\n";

  FlopCounter counter;
  {
    const rw::ObserverScope scope(counter);
    softplus(x);
  }
  std::cout << "FLOPs of one call on [4, 5]: " << counter.flops << "\n";
  return report.problems.empty() ? 0 : 1;
}
