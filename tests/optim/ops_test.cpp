// Walks the optimizers' ops by their own samples, as the registry test walks autograd's.
#include <doctest/doctest.h>

#include <rewind/autograd/grad_mode.h>
#include <rewind/autograd/observer.h>
#include <rewind/optim/ops.h>
#include <rewind/optim/optimizer.h>

#include <set>
#include <string>

using namespace rewind;

namespace {

// An optimizer as a user writes it: an op for the update, options, and which slots there are. Signum (Bernstein et al. 2018).
struct SignumUpdate {
  static constexpr const char* name = "signum_update";
  static constexpr Kind kind = Kind::optimizer;
  struct Attr {
    double lr, beta;
  };
  static constexpr std::uint32_t mutates = bit(0) | bit(2);
  static constexpr const char* no_gradient = optim::update_has_no_gradient;
  static Specs infer(Inputs in, const Attr&) { return optim::infer_update(name, in); }
  static Cost cost(Inputs in, const Specs&, const Attr&) { return optim::update_cost(in, mutates, 5); }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.in_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      T *w = f.mutable_in<T>(0), *m = f.mutable_in<T>(2);
      for (std::int64_t i = 0; i < f.in_shape(0).numel(); ++i) {
        m[i] = static_cast<T>(a.beta) * m[i] + static_cast<T>(1 - a.beta) * f.in<T>(1)[i];
        w[i] -= static_cast<T>(a.lr) * static_cast<T>((m[i] > 0) - (m[i] < 0));
      }
    });
  }
  static void samples(Samples<Attr> s) { s.add({zeros({2}, float64), zeros({2}, float64), zeros({2}, float64)}, {0.1, 0.9}); }
};

struct SignumOptions {
  double lr = 1e-3, beta = 0.9;
  void check() const {}
};

class Signum final : public optim::OptimizerOf<SignumOptions> {
 public:
  Signum(std::vector<Parameter> parameters, const SignumOptions& options) : OptimizerOf("Signum") {
    add_group(std::move(parameters), options);
  }

 private:
  std::span<const char* const> slots(int) const override {
    static constexpr const char* names[] = {"m"};
    return names;
  }
  void update(const optim::Update& u) override {
    const SignumUpdate::Attr attr{u.lr, options(u.group).beta};
    optim::run_in_place(decl_of<SignumUpdate>, u.in, &attr);
  }
};

struct Walk : SampleSink, Observer {
  explicit Walk(const OpDecl& o) : op(o) {}

  void add_raw(std::vector<Tensor> in, const void* attr) override {
    ++valid;
    std::vector<std::vector<double>> was;
    for (const Tensor& t : in) was.push_back(t.to_vector<double>());
    const auto versions = [&] {
      std::vector<std::uint32_t> v;
      for (const Tensor& t : in) v.push_back(t.impl().storage->version);
      return v;
    };
    const auto before_run = versions();
    {
      const ObserverScope scope(*this);
      apply(op, in, attr, {});
    }
    for (std::size_t i = 0; i < in.size(); ++i) {
      const bool mutates = (op.mutates & bit(static_cast<int>(i))) != 0;
      CHECK(versions()[i] - before_run[i] == (mutates ? 1U : 0U));
      if (!mutates) CHECK(in[i].to_vector<double>() == was[i]);
    }
    for (std::size_t i = 0; i < in.size(); ++i) in[i] = from(was[i], in[i].shape());
    const ShapesOnly dry;
    apply(op, in, attr, {});
    for (std::size_t i = 0; i < in.size(); ++i) CHECK(in[i].to_vector<double>() == was[i]);
  }
  void error_raw(std::vector<Tensor> in, const void* attr, std::string message) override {
    ++errors;
    CHECK_THROWS_WITH_AS(apply(op, in, attr, {}), doctest::Contains(message.c_str()), Error);
    CHECK_THROWS_WITH_AS(apply(op, in, attr, {}), doctest::Contains(op.name), Error);
  }
  void after(const OpEvent& event) override {
    const Cost cost = event.cost();
    CHECK(cost.flops > 0);
    std::int64_t read = 0, written = 0;
    for (std::size_t i = 0; i < event.in.size(); ++i) {
      read += static_cast<std::int64_t>(event.in[i].bytes());
      if ((op.mutates & bit(static_cast<int>(i))) != 0) written += static_cast<std::int64_t>(event.in[i].bytes());
    }
    CHECK(cost.bytes_read == read);
    CHECK(cost.bytes_written == written);
    CHECK(event.phase == Phase::optimizer);
  }

  const OpDecl& op;
  int valid = 0, errors = 0;
};

}  // namespace

TEST_CASE("every op of the optimizers runs its samples and refuses its errors") {
  std::set<std::string> names;
  for (const OpDecl* op : optim::all_ops()) {
    CAPTURE(op->name);
    CHECK(names.insert(op->name).second);
    CHECK(op->kind == Kind::optimizer);
    CHECK(op->no_gradient != nullptr);
    CHECK(op->mutates != 0);
    Walk walk(*op);
    op->samples(walk);
    CHECK(walk.valid >= 4);
    CHECK(walk.errors >= 3);
  }
  CHECK(names.size() == 7);
}

TEST_CASE("an update that would be recorded is refused") {
  Tensor in[] = {ones({2}, float64), ones({2}, float64)};
  in[0].set_requires_grad();
  const struct { double lr, weight_decay; } attr{0.1, 0};
  CHECK_THROWS_WITH_AS(apply(ops::sgd_update_op, in, &attr, {}), doctest::Contains("call it under NoGrad"), Error);
  const NoGrad no_grad;
  apply(ops::sgd_update_op, in, &attr, {});
  CHECK(in[0].to_vector<double>() == std::vector<double>{0.9, 0.9});
}

TEST_CASE("an optimizer of a user's own has groups, counted state and dropped gradients") {
  const Tensor w = zeros({2}, float64);
  Signum signum{{Parameter{"w", w}}, {.lr = 0.5}};
  w.set_grad(from({3.0, -0.1}, {2}));
  signum.step();
  CHECK(w.to_vector<double>() == std::vector<double>{-0.5, 0.5});
  CHECK(signum.state("w", "m").to_vector<double>()[0] == doctest::Approx(0.3));
  CHECK(signum.state_bytes() == 16);
  CHECK_FALSE(w.grad().defined());
}
