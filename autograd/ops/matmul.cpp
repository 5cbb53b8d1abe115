// Matrix products with transposes and leading axes. Their gradients are matrix products again.

#include <rewind/autograd/functional.h>
#include <rewind/autograd/ops/check.h>
#include <rewind/autograd/ops/internal.h>
#include <rewind/autograd/ops/registry.h>
#include <rewind/autograd/ops/sample.h>
#include <rewind/core/kernels/gemm.h>

namespace rewind_lib {
namespace {

using ops::check_floats;
using ops::sample;

struct Matmul {
  static constexpr const char* name = "matmul";
  static constexpr const char* input_names = "a, b";
  static constexpr const char* output_names = "y";
  static constexpr Kind kind = Kind::contraction;
  struct Attr {
    bool transpose_a = false, transpose_b = false;
  };

  /// A plain b under an a of any rank is one product over all rows of a, a vector being one row; else one product for each
  /// position of the leading axes, a plain matrix taking part in each.
  static bool by_rows(const Shape& a, const Shape& b, const Attr& attr) {
    return b.rank() == 2 && !attr.transpose_a && a.rank() >= 1;
  }

  static std::string describe(const Shape& a, const Shape& b, const Attr& attr) {
    return str("a ", a, attr.transpose_a ? " (transposed)" : "", " and b ", b, attr.transpose_b ? " (transposed)" : "");
  }

  static Specs infer(Inputs in, const Attr& attr) {
    const DType dtype = check_floats(name, in);
    const Shape &a = in[0].shape(), &b = in[1].shape();
    if (!by_rows(a, b, attr) && (a.rank() < 2 || b.rank() < 2))
      fail(str(name, ": needs matrices, [..., M, K] and [..., K, N], but got ", describe(a, b, attr),
               "; add an axis with reshape()"));
    const std::int64_t inner = a[attr.transpose_a ? -2 : -1], inner_b = b[attr.transpose_b ? -1 : -2];
    if (inner != inner_b)
      fail(str(name, ": inner extents differ, ", inner, " and ", inner_b, ": ", describe(a, b, attr),
               "; look at the transpose flags"));
    const Shape& most = a.rank() == 2 && b.rank() > 2 ? b : a;
    if (a.rank() > 2 && b.rank() > 2) {
      bool same = a.rank() == b.rank();
      for (int i = 0; same && i < a.rank() - 2; ++i) same = a[i] == b[i];
      if (!same) fail(str(name, ": leading axes must be equal, or one side a plain matrix, but got ", describe(a, b, attr)));
    }
    Shape out;
    for (int i = 0; i < most.rank() - 2; ++i) out.push_back(most[i]);
    if (a.rank() > 1) out.push_back(a[attr.transpose_a ? -1 : -2]);
    out.push_back(b[attr.transpose_b ? -2 : -1]);
    return {{out, dtype}};
  }
  static kernels::GemmShape gemm(const Shape& a, const Shape& b, const Attr& attr) {
    kernels::GemmShape s{.n = b[attr.transpose_b ? -2 : -1],
                         .k = a[attr.transpose_a ? -2 : -1],
                         .transpose_a = attr.transpose_a,
                         .transpose_b = attr.transpose_b};
    s.m = a.rank() < 2 ? 1 : a[attr.transpose_a ? -1 : -2];
    const Shape& most = a.rank() == 2 && b.rank() > 2 ? b : a;
    std::int64_t leading = 1;
    for (int i = 0; i < most.rank() - 2; ++i) leading *= most[i];
    if (by_rows(a, b, attr)) {
      s.m *= leading;
    } else {
      s.batch = leading;
      s.stride_a = a.rank() > 2 ? s.m * s.k : 0;
      s.stride_b = b.rank() > 2 ? s.k * s.n : 0;
      s.stride_c = s.m * s.n;
    }
    return s;
  }
  static Cost cost(Inputs in, const Specs& out, const Attr& attr) {
    const std::int64_t macs = out[0].shape.numel() * in[0].shape()[attr.transpose_a ? -2 : -1];
    return {.flops = 2 * macs, .macs = macs};
  }
  static std::size_t workspace(Inputs in, const Specs& out, const Attr& attr) {
    return static_cast<std::size_t>(kernels::gemm_workspace(gemm(in[0].shape(), in[1].shape(), attr))) * size_of(out[0].dtype);
  }
  static void forward(const Forward& f, const Attr& attr) {
    visit_float(f.out_dtype(0), [&](auto zero) {
      using T = decltype(zero);
      kernels::gemm(gemm(f.in_shape(0), f.in_shape(1), attr), f.in<T>(0), f.in<T>(1), f.out<T>(0), f.workspace<T>());
    });
  }
  static Saves saves(const Attr&, std::uint32_t needs) { return {.inputs = ops::other_factors(needs)}; }
  static void vjp(Vjp& v, const Attr& attr) {
    const bool ta = attr.transpose_a, tb = attr.transpose_b;
    Tensor g = v.grad(0);
    if (v.needs(1)) {
      Tensor a = v.input(0);
      if (by_rows(v.input_shape(0), v.input_shape(1), attr))
        v.give(1, tb ? ops::linear_backward_weight(g, std::move(a)) : ops::linear_backward_weight(std::move(a), g));
      else
        v.give(1, sum_to(tb ? matmul(g, std::move(a), true, ta) : matmul(std::move(a), g, !ta, false), v.input_shape(1)));
    }
    if (v.needs(0)) {
      Tensor b = v.input(1);
      v.give(0, sum_to(ta ? matmul(std::move(b), std::move(g), tb, true) : matmul(std::move(g), std::move(b), false, !tb),
                       v.input_shape(0)));
    }
  }
  static void samples(Samples<Attr> s) {
    struct Case {
      Shape leading_a, leading_b;
      std::int64_t m, k, n;
    };
    const Case cases[] = {{{}, {}, 3, 4, 2},         {{}, {}, 1, 5, 1},  {{2}, {2}, 2, 3, 4},
                          {{2, 3}, {2, 3}, 1, 2, 2}, {{3}, {}, 2, 3, 2}, {{}, {2}, 3, 2, 2}};
    for (const Case& c : cases)
      for (const Attr attr : {Attr{false, false}, Attr{true, false}, Attr{false, true}, Attr{true, true}}) {
        Shape a = c.leading_a, b = c.leading_b;
        a.push_back(attr.transpose_a ? c.k : c.m);
        a.push_back(attr.transpose_a ? c.m : c.k);
        b.push_back(attr.transpose_b ? c.n : c.k);
        b.push_back(attr.transpose_b ? c.k : c.n);
        s.add({sample(a), sample(b, -1, 2, 1)}, attr);
      }
    s.add({sample({3}), sample({3, 2}, -1, 2, 1)}, {});
    s.add({sample({3}), sample({2, 3}, -1, 2, 1)}, {false, true});
    s.add({sample({2, 0}), sample({0, 3})}, {});
    s.add({sample({0, 2}), sample({2, 3})}, {});
    s.error({sample({2, 3}), sample({4, 5})}, {}, "inner extents differ, 3 and 4: a [2, 3] and b [4, 5]");
    s.error({sample({2, 3}), sample({3, 5})}, {false, true}, "b [3, 5] (transposed)");
    s.error({sample({3, 2}), sample({3})}, {}, "needs matrices");
    s.error({sample({2}), sample({2, 2})}, {true, false}, "a [2] (transposed)");
    s.error({sample({2, 2, 3}), sample({3, 3, 2})}, {}, "leading axes must be equal");
    s.error({sample({2, 3}), sample({3, 2}).to(float32)}, {}, "inputs must have one dtype");
  }
};

}  // namespace

namespace ops {
constinit const OpDecl matmul_op = declare<Matmul>();
}  // namespace ops

Tensor matmul(Tensor a, Tensor b, bool transpose_a, bool transpose_b) {
  const Matmul::Attr attr{transpose_a, transpose_b};
  return apply_one(ops::matmul_op, {std::move(a), std::move(b)}, &attr);
}

}  // namespace rewind_lib
