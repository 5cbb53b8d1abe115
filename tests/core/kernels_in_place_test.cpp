// A pointwise convolution's backward may write over what it reads: the gradient of a residual over g, that of x over what is added
// to it. With the same bits as beside them, by any number of threads.

#include "numbers.h"

#include <rewind/core/kernels/fused.h>
#include <rewind/core/parallel.h>

#include <doctest/doctest.h>

#include <cstring>
#include <vector>

using namespace rewind::kernels;
using std::int64_t;

namespace {

/// dx, G, dw and the gradients of the normalisation.
template <class T>
std::vector<T> backward(const FusedShape& s, bool in_place) {
  const ConvShape& c = s.conv;
  const int64_t in = s.rows() * c.c, out = s.rows() * c.o;
  const std::vector<T> x = numbers<T>(in, 1), w = numbers<T>(c.o * c.c, 2), y = numbers<T>(out, 4), add = numbers<T>(in, 7),
                       mean = numbers<T>(c.c, 4), var(static_cast<std::size_t>(c.c), T(0.3)), y_mean = numbers<T>(c.o, 8),
                       g_mean = numbers<T>(c.o, 5), g_var = numbers<T>(c.o, 6);
  std::vector<T> g = numbers<T>(out, 3), dx = add, whole_g(g.size()), dw(w.size()), norm(static_cast<std::size_t>(4 * c.c));
  std::vector<std::max_align_t> workspace(fused_backward_workspace<T>(s) / sizeof(std::max_align_t) + 1);
  FusedInput<T> input{.x = x.data(), .eps = 1e-5, .activation = Activation::relu};
  FusedResult<T> result{.x = dx.data(),
                        .w = dw.data(),
                        .residual = !s.residual ? nullptr
                                    : in_place  ? g.data()
                                                : whole_g.data(),
                        .add = !s.add     ? nullptr
                               : in_place ? dx.data()
                                          : add.data()};
  if (s.pending) {
    input.mean = mean.data();
    input.var = var.data();
    result.norm = {norm.data(), norm.data() + c.c, norm.data() + 2 * c.c, norm.data() + 3 * c.c};
  }
  fused_backward<T>(s, input, w.data(),
                    {.g = g.data(), .y = y.data(), .mean = y_mean.data(), .g_mean = g_mean.data(), .g_var = g_var.data()}, result,
                    workspace.data());
  std::vector<T> all = dx;
  if (s.residual) all.insert(all.end(), result.residual, result.residual + out);
  all.insert(all.end(), dw.begin(), dw.end());
  all.insert(all.end(), norm.begin(), norm.end());
  return all;
}

}  // namespace

TEST_CASE_TEMPLATE("a pointwise convolution's backward in place has the bits of that beside its inputs", T, float, double) {
  const int threads = rewind::parallel::threads();
  const ConvShape shapes[] = {
      {.n = 3, .h = 32, .w = 31, .c = 16, .o = 64},    // many tiles
      {.n = 3, .h = 31, .w = 32, .c = 37, .o = 19},    // rows that are no whole vectors
      {.n = 2, .h = 7, .w = 7, .c = 320, .o = 256},    // dw cut by weight
      {.n = 1, .h = 150, .w = 256, .c = 64, .o = 16},  // dx is streamed, but for what lies in it
  };
  for (const ConvShape& shape : shapes)
    for (const bool pending : {true, false})
      for (const bool residual : {true, false})
        for (const bool add : {true, false}) {
          if (!residual && !add) continue;
          CAPTURE(shape.c);
          CAPTURE(pending);
          CAPTURE(residual);
          CAPTURE(add);
          const FusedShape s{.conv = shape, .pending = pending, .residual = residual, .add = add};
          rewind::parallel::set_threads(1);
          const std::vector<T> beside = backward<T>(s, false);
          for (const int n : {1, 2, 3}) {
            rewind::parallel::set_threads(n);
            const std::vector<T> in_place = backward<T>(s, true);
            REQUIRE(in_place.size() == beside.size());
            CHECK(std::memcmp(in_place.data(), beside.data(), beside.size() * sizeof(T)) == 0);
          }
        }
  rewind::parallel::set_threads(threads);
}
