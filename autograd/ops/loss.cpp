// cross_entropy and mse.

#include <rewind/autograd/functional.h>
#include <rewind/autograd/ops/axes.h>
#include <rewind/autograd/ops/check.h>
#include <rewind/autograd/ops/registry.h>
#include <rewind/autograd/ops/sample.h>
#include <rewind/core/kernels/loss.h>
#include <rewind/core/kernels/reduce.h>

namespace rewind_lib {
namespace {

using ops::check_floats;
using ops::sample;
using ops::sample_labels;

struct SmoothingAttr {
  double smoothing;
};

/// Checks logits (in[0]) and labels (in[1]) by shape and dtype.
DType check_rows(std::string_view op, Inputs in, const SmoothingAttr& a) {
  const DType dtype = check_floats(op, in.first(1));
  const Tensor &logits = in[0], &labels = in[1];
  if (!labels.defined()) fail(str(op, ": the labels are undefined (logits ", logits.shape(), ")"));
  if (is_float(labels.dtype()))
    fail(str(op, ": labels must be class numbers, int32 or int64, not ", labels.dtype(), " ", labels.shape(), " (logits ",
             logits.shape(), ")"));
  if (logits.rank() != 2 || logits.numel() == 0)
    fail(str(op, ": logits must be [rows, classes] with at least one of each, not ", logits.shape(), " (labels ", labels.shape(),
             ")"));
  if (labels.rank() != 1 || labels.size(0) != logits.size(0))
    fail(str(op, ": logits ", logits.shape(), " need labels [", logits.size(0), "], one a row, not ", labels.shape()));
  if (!(a.smoothing >= 0 && a.smoothing <= 1)) fail(str(op, ": label smoothing must lie in [0, 1], not ", a.smoothing));
  return dtype;
}

template <class F>
void visit_label(DType dtype, F&& f) {
  if (dtype == int32) return f(std::int32_t{});
  f(std::int64_t{});
}

Tensor cross_entropy_gradient(Tensor logits, Tensor labels, Tensor lse, Tensor rest, Tensor g, const SmoothingAttr& a) {
  return apply_one(ops::cross_entropy_gradient_op,
                   {std::move(logits), std::move(labels), std::move(lse), std::move(rest), std::move(g)}, &a);
}

/// softmax(logits), given the rows' log-sum-exp, and what rounding took from it.
Tensor probabilities(Tensor logits, const Tensor& lse, const Tensor& rest) {
  const Shape column{lse.numel(), 1};
  return exp(sub(sub(std::move(logits), reshape(lse, column)), reshape(rest, column)));
}

struct CrossEntropy {
  static constexpr const char* name = "cross_entropy";
  static constexpr const char* input_names = "logits, labels";
  static constexpr const char* output_names = "loss, log-sum-exp, its rounding";
  static constexpr Kind kind = Kind::reduction;
  using Attr = SmoothingAttr;
  static constexpr std::uint32_t differentiable = bit(0) | bit(1);

  /// The mean loss, and what the gradient needs: each row's log-sum-exp, and what rounding took from it. (The exponential of a
  /// difference of large logits would be off by as much.)
  static Specs infer(Inputs in, const Attr& a) {
    const DType dtype = check_rows(name, in, a);
    const Shape rows{in[0].size(0)};
    return {{{}, dtype}, {rows, dtype}, {rows, dtype}};
  }
  static Cost cost(Inputs in, const Specs&, const Attr&) { return {.flops = 4 * in[0].numel()}; }
  static std::size_t workspace(Inputs in, const Specs& out, const Attr&) {
    return scratch_bytes(in[0].size(0)) + bytes_of_rows(out);
  }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      visit_label(f.in_dtype(1), [&](auto label_zero) {
        using T = decltype(zero);
        using Label = decltype(label_zero);
        const std::int64_t rows = f.in_shape(0)[0], classes = f.in_shape(0)[1];
        const Label* labels = f.in<Label>(1);
        if (const std::int64_t bad = kernels::first_bad_label(labels, rows, classes); bad >= 0)
          fail(str(name, ": row ", bad, " has label ", static_cast<std::int64_t>(labels[bad]), ", but logits ", f.in_shape(0),
                   " have ", classes, " classes: labels go from 0 to ", classes - 1));
        T* loss = reinterpret_cast<T*>(f.workspace<std::byte>() + scratch_bytes(rows));
        kernels::cross_entropy_forward(f.in<T>(0), labels, rows, classes, a.smoothing, loss, f.out<T>(1), f.out<T>(2));
        kernels::sum(loss, &rows, 1, bit(0), static_cast<T>(1 / static_cast<double>(rows)), f.out<T>(0), f.workspace<double>());
      });
    });
  }
  static Saves saves(const Attr&, std::uint32_t) { return {.inputs = bit(0) | bit(1), .outputs = bit(1) | bit(2)}; }
  static void vjp(Vjp& v, const Attr& a) {
    Tensor logits = v.input(0), labels = v.input(1), lse = v.output(1), rest = v.output(2);
    // The log-sum-exp is an output like any other: a second derivative comes back through it.
    if (v.has_grad(1)) v.give(0, mul(probabilities(logits, lse, rest), reshape(v.grad(1), Shape{lse.numel(), 1})));
    if (v.has_grad(0))
      v.give(0, cross_entropy_gradient(std::move(logits), std::move(labels), std::move(lse), std::move(rest), v.grad(0), a));
  }
  static void samples(Samples<Attr> s) {
    int salt = 0;
    for (const Shape& shape : {Shape{1, 1}, Shape{1, 5}, Shape{3, 2}, Shape{4, 3}, Shape{7, 10}, Shape{2, 17}, Shape{5, 1}})
      for (const double smoothing : {0.0, 0.1, 1.0}) {
        ++salt;
        s.add({sample(shape, -3, 3, salt), sample_labels(shape[0], shape[1], salt % 2 == 0 ? int32 : int64, salt)}, {smoothing});
      }
    s.error({sample({2, 3}), Tensor()}, {0}, "the labels are undefined");
    s.error({sample({2, 3}), sample({2})}, {0}, "labels must be class numbers, int32 or int64, not float64 [2]");
    s.error({sample({2, 3}), arange(3, int64)}, {0}, "logits [2, 3] need labels [2], one a row, not [3]");
    s.error({sample({6}), arange(6, int64)}, {0}, "must be [rows, classes]");
    s.error({sample({0, 3}), arange(0, int64)}, {0}, "not [0, 3]");
    s.error({sample({2, 3}), from<std::int64_t>({0, 3}, {2})}, {0}, "row 1 has label 3, but logits [2, 3] have 3 classes");
    s.error({sample({2, 3}), from<std::int32_t>({-1, 0}, {2})}, {0}, "row 0 has label -1");
    s.error({sample({2, 3}), arange(2, int64)}, {1.5}, "label smoothing must lie in [0, 1], not 1.5");
    s.error({arange(6, int64), arange(6, int64)}, {0}, "needs float32 or float64");
  }

 private:
  static std::size_t scratch_bytes(std::int64_t rows) {
    return static_cast<std::size_t>(kernels::sum_scratch(&rows, 1, bit(0))) * sizeof(double);
  }
  static std::size_t bytes_of_rows(const Specs& out) {
    return static_cast<std::size_t>(out[1].shape.numel()) * size_of(out[1].dtype);
  }
};

/// (softmax(logits) - target) g / rows.
struct CrossEntropyGradient {
  static constexpr const char* name = "cross_entropy_gradient";
  static constexpr const char* input_names = "logits, labels, log-sum-exp, its rounding, g";
  static constexpr const char* output_names = "dlogits";
  static constexpr Kind kind = Kind::elementwise;
  using Attr = SmoothingAttr;
  static constexpr std::uint32_t donates = bit(0);

  static Specs infer(Inputs in, const Attr& a) {
    const DType dtype = check_rows(name, in, a);
    const Tensor floats[] = {in[0], in[2], in[3], in[4]};
    check_floats(name, floats);
    if (!(in[2].shape() == in[1].shape()) || !(in[3].shape() == in[1].shape()) || !(in[4].shape() == Shape{}))
      fail(str(name, ": logits ", in[0].shape(), " need a log-sum-exp and its rounding ", in[1].shape(), " and a gradient [], not ",
               in[2].shape(), ", ", in[3].shape(), " and ", in[4].shape()));
    return {{in[0].shape(), dtype}};
  }
  static Cost cost(Inputs, const Specs& out, const Attr&) { return ops::pointwise_cost(out, 4); }
  static void forward(const Forward& f, const Attr& a) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      visit_label(f.in_dtype(1), [&](auto label_zero) {
        using T = decltype(zero);
        const std::int64_t rows = f.in_shape(0)[0], classes = f.in_shape(0)[1];
        kernels::cross_entropy_backward(f.in<T>(0), f.in<decltype(label_zero)>(1), f.in<T>(2), f.in<T>(3), rows, classes,
                                        a.smoothing, f.in<T>(4), static_cast<T>(1 / static_cast<double>(rows)), f.out<T>(0));
      });
    });
  }
  static Saves saves(const Attr&, std::uint32_t needs) {
    std::uint32_t inputs = bit(0) | bit(2) | bit(3);
    if ((needs & bit(4)) != 0) inputs |= bit(1);
    if ((needs & (bit(0) | bit(2) | bit(3))) != 0) inputs |= bit(4);
    return {.inputs = inputs};
  }
  static void vjp(Vjp& v, const Attr& a) {
    Tensor u = v.grad(0), logits = v.input(0), lse = v.input(2), rest = v.input(3);
    const std::int64_t rows = v.input_shape(0)[0];
    if (v.needs(0) || v.needs(2) || v.needs(3)) {
      Tensor d = affine(mul(mul(u, probabilities(logits, lse, rest)), v.input(4)), 1 / static_cast<double>(rows), 0);
      if (v.needs(2) || v.needs(3)) {
        Tensor of_sum = neg(reshape(sum_to(d, {rows, 1}), Shape{rows}));
        v.give(3, of_sum);
        v.give(2, std::move(of_sum));
      }
      v.give(0, std::move(d));
    }
    if (v.needs(4)) {
      Tensor one = ones({}, u.dtype());
      v.give(4, sum(mul(std::move(u), cross_entropy_gradient(std::move(logits), v.input(1), std::move(lse), std::move(rest),
                                                             std::move(one), a))));
    }
  }
  static void samples(Samples<Attr> s) {
    int salt = 0;
    for (const Shape& shape : {Shape{1, 1}, Shape{1, 5}, Shape{3, 2}, Shape{4, 3}, Shape{7, 10}, Shape{2, 17}, Shape{5, 1}})
      for (const double smoothing : {0.0, 0.1, 1.0}) {
        ++salt;
        Tensor labels = sample_labels(shape[0], shape[1], salt % 2 == 0 ? int32 : int64, salt);
        s.add({sample(shape, -3, 1, salt), std::move(labels), sample({shape[0]}, 1, 3, salt), sample({shape[0]}, -0.1, 0.1, salt),
               sample({}, 0.5, 1.5)},
              {smoothing});
      }
    s.error({sample({2, 3}), arange(2, int64), sample({3}), sample({2}), sample({})}, {0},
            "need a log-sum-exp and its rounding [2] and a gradient [], not [3], [2] and []");
    s.error({sample({2, 3}), arange(2, int64), sample({2}), sample({2}), sample({2})}, {0}, "not [2], [2] and [2]");
    s.error({sample({2, 3}), sample({2}), sample({2}), sample({2}), sample({})}, {0}, "labels must be class numbers");
    s.error({sample({2, 3}), arange(2, int64), sample({2}), sample({2}), Tensor()}, {0}, "is undefined");
  }
};

Tensor mse_gradient(Tensor a, Tensor b, Tensor g) {
  return apply_one(ops::mse_gradient_op, {std::move(a), std::move(b), std::move(g)}, nullptr);
}

const Shape mse_shapes[] = {{},     {1},       {2},       {3},          {5},       {8},          {17},
                            {33},   {1, 1},    {1, 3},    {2, 3},       {3, 2},    {5, 1},       {3, 17},
                            {4, 8}, {2, 3, 4}, {1, 1, 5}, {2, 2, 2, 2}, {7, 1, 2}, {2, 1, 3, 1}, {13, 2}};

DType check_pair(std::string_view op, Inputs in) {
  const DType dtype = check_floats(op, in);
  if (!(in[0].shape() == in[1].shape()))
    fail(str(op, ": prediction and target must have one shape, got ", in[0].shape(), " and ", in[1].shape()));
  if (in[0].numel() == 0) fail(str(op, ": there is no mean of no elements, shape ", in[0].shape()));
  return dtype;
}

struct Mse {
  static constexpr const char* name = "mse";
  static constexpr const char* input_names = "a, b";
  static constexpr const char* output_names = "loss";
  static constexpr Kind kind = Kind::reduction;
  struct Attr {};

  static Specs infer(Inputs in, const Attr&) { return {{{}, check_pair(name, in)}}; }
  static Cost cost(Inputs in, const Specs&, const Attr&) { return {.flops = 3 * in[0].numel()}; }
  static void forward(const Forward& f, const Attr&) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      *f.out<T>(0) = kernels::mse_forward(f.in<T>(0), f.in<T>(1), f.in_shape(0).numel());
    });
  }
  static Saves saves(const Attr&, std::uint32_t) { return {.inputs = bit(0) | bit(1)}; }
  static void vjp(Vjp& v, const Attr&) {
    Tensor a = v.input(0), b = v.input(1);
    if (!v.needs(0)) return v.give(1, mse_gradient(std::move(b), std::move(a), v.grad(0)));
    Tensor d = mse_gradient(std::move(a), std::move(b), v.grad(0));
    if (v.needs(1)) v.give(1, neg(d));
    v.give(0, std::move(d));
  }
  static void samples(Samples<Attr> s) {
    for (const Shape& shape : mse_shapes) s.add({sample(shape), sample(shape, -1, 3, 1)});
    s.error({sample({2, 3}), sample({3})}, {}, "must have one shape, got [2, 3] and [3]");
    s.error({sample({0}), sample({0})}, {}, "no mean of no elements");
    s.error({sample({2}), sample({2}).to(float32)}, {}, "inputs must have one dtype");
    s.error({sample({2}), Tensor()}, {}, "input 1 is undefined");
  }
};

/// 2 (a - b) g / n.
struct MseGradient {
  static constexpr const char* name = "mse_gradient";
  static constexpr const char* input_names = "a, b, g";
  static constexpr const char* output_names = "da";
  static constexpr Kind kind = Kind::elementwise;
  struct Attr {};
  static constexpr std::uint32_t donates = bit(0) | bit(1);

  static Specs infer(Inputs in, const Attr&) {
    const DType dtype = check_pair(name, in.first(2));
    check_floats(name, in);
    if (!(in[2].shape() == Shape{})) fail(str(name, ": the gradient must have shape [], not ", in[2].shape()));
    return {{in[0].shape(), dtype}};
  }
  static Cost cost(Inputs, const Specs& out, const Attr&) { return ops::pointwise_cost(out, 2); }
  static void forward(const Forward& f, const Attr&) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      kernels::mse_backward(f.in<T>(0), f.in<T>(1), f.in_shape(0).numel(), *f.in<T>(2), f.out<T>(0));
    });
  }
  static Saves saves(const Attr&, std::uint32_t needs) {
    std::uint32_t inputs = 0;
    if ((needs & (bit(0) | bit(1))) != 0) inputs |= bit(2);
    if ((needs & bit(2)) != 0) inputs |= bit(0) | bit(1);
    return {.inputs = inputs};
  }
  static void vjp(Vjp& v, const Attr&) {
    Tensor u = v.grad(0);
    const double k = 2 / static_cast<double>(v.input_shape(0).numel());
    if (v.needs(2)) v.give(2, affine(sum(mul(u, sub(v.input(0), v.input(1)))), k, 0));
    if (!v.needs(0) && !v.needs(1)) return;
    Tensor d = affine(mul(std::move(u), v.input(2)), k, 0);
    if (v.needs(1)) v.give(1, neg(d));
    v.give(0, std::move(d));
  }
  static void samples(Samples<Attr> s) {
    for (const Shape& shape : mse_shapes) s.add({sample(shape), sample(shape, -1, 3, 1), sample({}, 0.5, 1.5)});
    s.error({sample({2}), sample({3}), sample({})}, {}, "must have one shape, got [2] and [3]");
    s.error({sample({2}), sample({2}), sample({2})}, {}, "the gradient must have shape [], not [2]");
    s.error({sample({2}), sample({2}), Tensor()}, {}, "input 2 is undefined");
  }
};

}  // namespace

namespace ops {
constinit const OpDecl cross_entropy_op = declare<CrossEntropy>();
constinit const OpDecl cross_entropy_gradient_op = declare<CrossEntropyGradient>();
constinit const OpDecl mse_op = declare<Mse>();
constinit const OpDecl mse_gradient_op = declare<MseGradient>();
}  // namespace ops

Tensor cross_entropy(Tensor logits, Tensor labels, double label_smoothing) {
  const SmoothingAttr attr{label_smoothing};
  Tensor in[] = {std::move(logits), std::move(labels)}, out[3];
  apply(ops::cross_entropy_op, in, &attr, out);
  return std::move(out[0]);
}

Tensor mse(Tensor prediction, Tensor target) { return apply_one(ops::mse_op, {std::move(prediction), std::move(target)}, nullptr); }

}  // namespace rewind_lib
