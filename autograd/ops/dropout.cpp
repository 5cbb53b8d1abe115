// dropout: a mask made from (seed, offset), so that the gradient, or a replay, makes it again instead of keeping it.

#include <rewind/autograd/functional.h>
#include <rewind/autograd/ops/check.h>
#include <rewind/autograd/ops/registry.h>
#include <rewind/autograd/ops/sample.h>
#include <rewind/core/kernels/pointwise.h>
#include <rewind/core/random.h>

namespace rewind_lib {
namespace {

struct Dropout {
  static constexpr const char* name = "dropout";
  static constexpr const char* input_names = "x";
  static constexpr const char* output_names = "y";
  static constexpr Kind kind = Kind::random;
  struct Attr {
    double p;
    std::uint64_t seed, offset;
  };
  static constexpr std::uint32_t donates = bit(0);

  static Specs infer(Inputs in, const Attr& a) {
    const DType dtype = ops::check_floats(name, in);
    if (!(a.p >= 0 && a.p <= 1))
      fail(str(name, ": the probability p must lie in [0, 1], not ", a.p, " (input ", in[0].shape(), ")"));
    return {{in[0].shape(), dtype}};
  }
  static Cost cost(Inputs, const Specs& out, const Attr&) { return ops::pointwise_cost(out, 2); }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      kernels::dropout(f.in<T>(0), f.out<T>(0), f.out_shape(0).numel(), a.p, a.seed, a.offset);
    });
  }
  static Saves saves(const Attr&, std::uint32_t) { return {}; }
  static void vjp(Vjp& v, const Attr& a) { v.give(0, apply_one(ops::dropout_op, {v.grad(0)}, &a)); }
  static void samples(Samples<Attr> s) {
    std::uint64_t offset = 0;
    for (const double p : {0.0, 0.1, 0.5, 0.9, 1.0})
      for (const Shape& shape : {Shape{}, Shape{5}, Shape{2, 3}, Shape{3, 17}, Shape{0, 2}})
        s.add({ops::sample(shape)}, {p, 7, offset += 64});
    s.error({ops::sample({2, 3})}, {1.5, 0, 0}, "must lie in [0, 1], not 1.5");
    s.error({ops::sample({2, 3})}, {-0.1, 0, 0}, "must lie in [0, 1], not -0.1");
    s.error({arange(3, int32)}, {0.5, 0, 0}, "needs float32 or float64");
    s.error({Tensor()}, {0.5, 0, 0}, "input 0 is undefined");
  }
};

}  // namespace

namespace ops {
constinit const OpDecl dropout_op = declare<Dropout>();
}  // namespace ops

Tensor dropout(Tensor x, double p) {
  const Dropout::Attr probe{p, 0, 0};
  Dropout::infer({&x, 1}, probe);  // a call that fails draws nothing
  if (p == 0) return ops::as_it_is(std::move(x));
  random::Generator& generator = random::default_generator();
  const Dropout::Attr attr{p, generator.seed(), generator.take(static_cast<std::uint64_t>(x.numel()))};
  return apply_one(ops::dropout_op, {std::move(x)}, &attr);
}

}  // namespace rewind_lib
