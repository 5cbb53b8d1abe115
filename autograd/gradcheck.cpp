#include <rewind/autograd/backward.h>
#include <rewind/autograd/checkpoint.h>
#include <rewind/autograd/functional.h>
#include <rewind/autograd/gradcheck.h>
#include <rewind/autograd/tape.h>
#include <rewind/core/random.h>

#include <algorithm>
#include <cmath>

namespace rewind_lib {
namespace {

using detail::FunctionRef;

std::vector<Tensor> direction_like(const std::vector<Tensor>& outputs) {
  std::vector<Tensor> v;
  std::uint64_t stream = 0;
  for (const Tensor& y : outputs) {
    v.push_back(is_float(y.dtype()) ? empty(y.shape(), float64) : Tensor());
    if (v.back().defined())
      random::fill_uniform(v.back().mutate<double>().data(), y.numel(), -1.0, 1.0, 0x9e3779b9, stream++ << 32);
  }
  return v;
}

double project(const std::vector<Tensor>& outputs, const std::vector<Tensor>& v) {
  double sum = 0;
  for (std::size_t j = 0; j < outputs.size(); ++j) {
    if (!v[j].defined()) continue;
    const auto y = outputs[j].values<double>(), w = v[j].values<double>();
    for (std::size_t i = 0; i < y.size(); ++i) sum += y[i] * w[i];
  }
  return sum;
}

// The same as one tensor, so that the tape can go back from it.
Tensor project_recorded(const std::vector<Tensor>& outputs, const std::vector<Tensor>& v) {
  Tensor total;
  for (std::size_t j = 0; j < outputs.size(); ++j) {
    if (!v[j].defined() || !outputs[j].requires_grad()) continue;
    Tensor part = sum_to(mul(outputs[j], v[j]), {});
    total = total.defined() ? add(std::move(total), std::move(part)) : std::move(part);
  }
  return total;
}

// Fresh leaves, so that no history of the caller's is touched.
std::vector<Tensor> leaves_of(const std::vector<Tensor>& inputs, const std::vector<std::size_t>& checked) {
  std::vector<Tensor> leaves;
  for (const Tensor& x : inputs) leaves.push_back(x.defined() ? x.clone() : Tensor());
  for (const std::size_t i : checked) leaves[i].set_requires_grad();
  return leaves;
}

std::vector<std::size_t> checked_inputs(const std::vector<Tensor>& inputs) {
  const bool marked = std::ranges::any_of(inputs, [](const Tensor& x) { return x.defined() && x.requires_grad(); });
  std::vector<std::size_t> checked;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const Tensor& x = inputs[i];
    if (!x.defined() || !is_float(x.dtype()) || (marked && !x.requires_grad())) continue;
    if (x.dtype() != float64) fail(str("gradcheck: input ", i, " is ", x.dtype(), "; finite differences need float64"));
    checked.push_back(i);
  }
  return checked;
}

/// The gradients of the projected outputs with respect to the checked inputs; zeros where there is no dependence.
std::vector<Tensor> analytic(FunctionRef f, const std::vector<Tensor>& inputs, const std::vector<std::size_t>& checked,
                             const std::vector<Tensor>& v) {
  const GradModeScope record(GradMode::record);  // also where the caller records nothing
  std::vector<Tensor> leaves = leaves_of(inputs, checked);
  const Tensor y = project_recorded(f.call(f.object, leaves), v);
  if (y.defined()) backward(y);
  std::vector<Tensor> gradients;
  for (const std::size_t i : checked) {
    Tensor g = leaves[i].grad();
    gradients.push_back(g.defined() ? g : zeros(leaves[i].shape(), float64));
  }
  return gradients;
}

GradcheckResult first_order(FunctionRef f, const std::vector<Tensor>& inputs, const GradcheckOptions& options, const char* what) {
  const std::vector<std::size_t> checked = checked_inputs(inputs);
  std::vector<Tensor> at = leaves_of(inputs, {});
  const random::Generator start = random::default_generator();
  const auto evaluate = [&] {
    random::default_generator() = start;
    const NoGrad no_grad;
    return f.call(f.object, at);
  };
  const std::vector<Tensor> v = direction_like(evaluate());
  random::default_generator() = start;
  const std::vector<Tensor> gradients = analytic(f, inputs, checked, v);

  GradcheckResult result;
  for (std::size_t k = 0; k < checked.size(); ++k) {
    Tensor& x = at[checked[k]];
    for (std::size_t e = 0; e < static_cast<std::size_t>(x.numel()); ++e) {
      const double value = x.values<double>()[e];
      x.mutate<double>()[e] = value + options.step;
      const double up = project(evaluate(), v);
      x.mutate<double>()[e] = value - options.step;
      const double down = project(evaluate(), v);
      x.mutate<double>()[e] = value;
      const double numeric = (up - down) / (2 * options.step), ours = gradients[k].values<double>()[e];
      const double error = std::abs(ours - numeric) / std::max({1.0, std::abs(ours), std::abs(numeric)});
      if (error <= result.worst && std::isfinite(error)) continue;
      result.worst = error;
      if (error <= options.tolerance) continue;
      result.ok = false;
      result.message = str("gradcheck: ", what, " of input ", checked[k], ", shape ", x.shape(), ", element ", e,
                           ": the tape says ", ours, ", finite differences say ", numeric);
      if (!std::isfinite(error)) return result;
    }
  }
  return result;
}

}  // namespace

GradcheckResult detail::gradcheck(FunctionRef f, const std::vector<Tensor>& inputs, GradcheckOptions options) {
  if (checked_inputs(inputs).empty()) fail("gradcheck: no input is a float64 tensor, so there is no gradient to check");
  GradcheckResult result = first_order(f, inputs, options, "the gradient");
  if (!result.ok || !options.second_order) return result;

  // The gradient, as a function of the same inputs, checked like any other function.
  const std::vector<std::size_t> checked = checked_inputs(inputs);
  auto gradient = [&](std::vector<Tensor> in) {
    const GradModeScope record(GradMode::record);
    std::vector<Tensor> at, x;
    for (Tensor& t : in) at.push_back(t.defined() && !t.requires_grad() ? t.detach() : t);
    for (const std::size_t i : checked) {
      if (!at[i].requires_grad()) at[i].set_requires_grad();
      x.push_back(at[i]);
    }
    const std::vector<Tensor> out = f.call(f.object, at);
    const Tensor y = project_recorded(out, direction_like(out));
    std::vector<Tensor> g = grad(y, x, {.create_graph = true});
    for (Tensor& t : g)
      if (!in[checked[0]].requires_grad()) t = t.detach();
    return g;
  };
  const auto call = [](void* object, std::vector<Tensor> in) { return (*static_cast<decltype(gradient)*>(object))(std::move(in)); };
  GradcheckResult second = first_order({&gradient, call}, inputs, options, "the second derivative");
  second.worst = std::max(second.worst, result.worst);
  return second;
}

namespace {

/// One call of an op as a function of its inputs.
struct OpCall {
  const OpDecl& op;
  const void* attr;

  std::vector<Tensor> operator()(std::vector<Tensor> in) const {
    std::vector<Tensor> out(static_cast<std::size_t>(op.infer(in, attr).size()));
    apply(op, in, attr, out);
    return out;
  }
};

bool same_bits(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && a.dtype() == b.dtype() && std::memcmp(a.raw<std::byte>(), b.raw<std::byte>(), a.bytes()) == 0;
}

bool same_bits(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  return std::ranges::equal(a, b, [](const Tensor& x, const Tensor& y) { return same_bits(x, y); });
}

/// Notices which saved tensors a vjp reads.
class SpyVjp final : public Vjp {
 public:
  SpyVjp(Vjp& inner, Saves& read) : inner_(inner), read_(read) {}
  bool needs(int i) const override { return inner_.needs(i); }
  bool has_grad(int j) const override { return inner_.has_grad(j); }
  Tensor grad(int j) override { return inner_.grad(j); }
  Tensor input(int i) override {
    read_.inputs |= bit(i);
    return inner_.input(i);
  }
  Tensor output(int j) override {
    read_.outputs |= bit(j);
    return inner_.output(j);
  }
  const Shape& input_shape(int i) const override { return inner_.input_shape(i); }
  const Shape& output_shape(int j) const override { return inner_.output_shape(j); }
  int inputs() const override { return inner_.inputs(); }
  bool join(int i, Tensor& value) const override { return inner_.join(i, value); }
  Tensor take_given(int i) override { return inner_.take_given(i); }
  void give(int i, Tensor gradient) override { inner_.give(i, std::move(gradient)); }

 private:
  Vjp& inner_;
  Saves& read_;
};

thread_local const OpDecl* spied_op = nullptr;
thread_local Saves spied_reads;

class Checker final : public SampleSink {
 public:
  Checker(const OpDecl& op, OpReport& report) : op_(op), report_(report) {}

  void add_raw(std::vector<Tensor> inputs, const void* attr) override {
    const int number = report_.samples++;
    try {
      check(std::move(inputs), attr, number);
    } catch (const std::exception& e) {
      problem(number, str("threw: ", e.what()));
    }
  }

  void error_raw(std::vector<Tensor> inputs, const void* attr, std::string message) override {
    const int number = report_.errors++;
    try {
      OpCall{op_, attr}(std::move(inputs));
      problem(number, str("of the errors did not throw; expected '", message, "'"));
    } catch (const Error& e) {
      const std::string_view text = e.what();
      if (text.find(message) == text.npos) problem(number, str("of the errors says '", text, "' instead of '", message, "'"));
      if (text.find(op_.name) == text.npos) problem(number, str("of the errors does not name the op: '", text, "'"));
    } catch (const std::exception& e) {
      problem(number, str("of the errors is not a rewind::Error: ", e.what()));
    }
  }

 private:
  void problem(int number, std::string text) { report_.problems.push_back(str(op_.name, ": sample ", number, " ", text)); }

  void check(std::vector<Tensor> inputs, const void* attr, int number) {
    const OpCall call{op_, attr};
    const auto clones = [&] { return leaves_of(inputs, {}); };

    // The shapes are known in advance, and the kernels keep to them.
    const Specs specs = op_.infer(inputs, attr);
    std::vector<Tensor> plain;
    {
      const NoGrad no_grad;
      std::vector<Tensor> in = clones();
      const NoDonation keep;
      plain = call(in);
      for (std::size_t i = 0; i < in.size(); ++i)
        if (in[i].defined() && (op_.mutates & bit(static_cast<int>(i))) == 0 && !same_bits(in[i], inputs[i]))
          problem(number, str("changes its input ", i, ", which it does not declare to mutate"));
      if (!same_bits(call(clones()), plain)) problem(number, "gives different bits when it runs again");
    }
    for (int j = 0; j < specs.size(); ++j)
      if (!(plain[static_cast<std::size_t>(j)].shape() == specs[j].shape))
        problem(number, str("makes output ", j, " of another shape than inferred"));

    // A donated buffer holds the same bits.
    {
      const NoGrad no_grad;
      if (!same_bits(call(clones()), plain)) problem(number, "gives different bits when an input's buffer is donated");
    }
    if (op_.cost(inputs, specs, attr).flops < 0) problem(number, "has a negative cost");
    if (op_.vjp == nullptr) return;

    const std::vector<std::size_t> checked = checked_inputs(inputs);
    if (checked.empty()) return;
    if (const GradcheckResult r = rewind_lib::gradcheck(op_, inputs, attr); !r.ok) problem(number, r.message);

    // Gradients: the same bits with donation, without, and recomputed; everything that is saved is read.
    const std::vector<Tensor> v = direction_like(plain);
    const auto gradients = [&](auto run) {
      std::vector<Tensor> leaves = leaves_of(inputs, checked), moved;
      // Not the leaves themselves but copies made by an op: only computed values can be donated.
      for (std::size_t i = 0; i < leaves.size(); ++i)
        moved.push_back(leaves[i].defined() && leaves[i].requires_grad() ? affine(leaves[i], 1, 0) : leaves[i]);
      Tensor y = project_recorded(run(std::move(moved)), v);
      if (y.defined()) backward(std::move(y));
      std::vector<Tensor> g;
      for (const std::size_t i : checked)
        g.push_back(leaves[i].grad().defined() ? leaves[i].grad() : zeros(leaves[i].shape(), float64));
      return g;
    };
    const auto direct = [&](std::vector<Tensor> in) { return call(std::move(in)); };
    const random::Generator start = random::default_generator();
    const std::vector<Tensor> expected = gradients(direct);
    {
      const NoDonation keep;
      random::default_generator() = start;
      if (!same_bits(gradients(direct), expected)) problem(number, "has gradients of different bits without donation");
    }
    random::default_generator() = start;
    const auto recomputed = [&](std::vector<Tensor> in) {
      class Call final : public detail::Closure {
       public:
        explicit Call(const OpCall& c) : call_(c) {}
        std::vector<Tensor> call(std::vector<Tensor> x) override { return call_(std::move(x)); }

       private:
        OpCall call_;
      };
      return detail::run_checkpoint(new Call(call), std::move(in));
    };
    if (!same_bits(gradients(recomputed), expected)) problem(number, "has gradients of different bits when it is recomputed");

    check_saves(inputs, attr, checked, v, number);
  }

  // Runs backward with a copy of the declaration whose vjp goes through a spy.
  void check_saves(const std::vector<Tensor>& inputs, const void* attr, const std::vector<std::size_t>& checked,
                   const std::vector<Tensor>& v, int number) {
    OpDecl spied = op_;
    spied_op = &op_;
    spied_reads = {};
    spied.vjp = [](Vjp& inner, const void* a) {
      SpyVjp spy(inner, spied_reads);
      spied_op->vjp(spy, a);
    };
    std::uint32_t needs = 0;
    for (const std::size_t i : checked) needs |= bit(static_cast<int>(i));
    Tensor y = project_recorded(OpCall{spied, attr}(leaves_of(inputs, checked)), v);
    if (!y.defined()) return;
    backward(std::move(y));
    const Saves declared = op_.saves(attr, needs);
    for (int i = 0; i < static_cast<int>(inputs.size()); ++i)
      if ((declared.inputs & ~spied_reads.inputs & bit(i)) != 0 && inputs[static_cast<std::size_t>(i)].defined())
        problem(number, str("saves input ", i, " but its vjp never reads it"));
    for (int j = 0; j < Specs::max_outputs; ++j)
      if ((declared.outputs & ~spied_reads.outputs & bit(j)) != 0)
        problem(number, str("saves output ", j, " but its vjp never reads it"));
  }

  const OpDecl& op_;
  OpReport& report_;
};

}  // namespace

GradcheckResult gradcheck(const OpDecl& op, const std::vector<Tensor>& inputs, const void* attr, GradcheckOptions options) {
  return gradcheck(OpCall{op, attr}, inputs, options);
}

OpReport check_op(const OpDecl& op) {
  OpReport report;
  Checker checker(op, report);
  op.samples(checker);
  if (report.samples < 20) report.problems.push_back(str(op.name, ": has ", report.samples, " samples, needs at least 20"));
  if (report.errors < 3) report.problems.push_back(str(op.name, ": has ", report.errors, " error samples, needs at least 3"));
  return report;
}

}  // namespace rewind_lib
