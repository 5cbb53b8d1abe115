// Results that are larger than the caches are stored past them, where they are aligned: with the same bits as those that are not.

#include "numbers.h"

#include <rewind/core/kernels/depthwise.h>
#include <rewind/core/kernels/fused.h>
#include <rewind/core/kernels/vector.h>
#include <rewind/core/parallel.h>

#include <doctest/doctest.h>

#include <array>
#include <cstring>
#include <memory>
#include <vector>

using namespace rewind::kernels;
using std::int64_t;

namespace {

/// n elements that begin on a line, or one element behind.
template <class T>
class Array {
 public:
  Array(int64_t n, bool aligned) : n_(n), bytes_(static_cast<std::size_t>(n) * sizeof(T) + 192) {
    void* p = bytes_.data();
    std::size_t room = bytes_.size();
    begin_ = static_cast<T*>(std::align(64, room - 64, p, room)) + (aligned ? 0 : 1);
  }
  T* data() { return begin_; }
  std::vector<T> values() const { return {begin_, begin_ + n_}; }

 private:
  int64_t n_;
  std::vector<std::byte> bytes_;
  T* begin_;
};

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

/// y, dx, dw and what else a fused convolution makes.
template <class T>
std::vector<std::vector<T>> fused(const FusedShape& s, bool aligned) {
  const ConvShape& c = s.conv;
  const int64_t in = c.n * c.h * c.w * c.c, out = s.rows() * c.o, taps = c.o * c.kh * c.kw * (s.depthwise ? 1 : c.c);
  const std::vector<T> x = numbers<T>(in, 1), w = numbers<T>(taps, 2), g = numbers<T>(out, 3), mean = numbers<T>(c.c, 4),
                       var(static_cast<std::size_t>(c.c), T(0.3)), g_mean = numbers<T>(c.o, 5), g_var = numbers<T>(c.o, 6),
                       added = numbers<T>(s.add ? in : 0, 7);
  Array<T> y(out, aligned), dx(in, aligned);
  std::vector<T> statistics(static_cast<std::size_t>(2 * c.o)), dw(w.size()), parameters(static_cast<std::size_t>(4 * c.c));
  std::vector<std::max_align_t> workspace(
      std::max(fused_forward_workspace<T>(s), fused_backward_workspace<T>(s)) / sizeof(std::max_align_t) + 1);
  const FusedInput<T> input{.x = x.data(), .mean = mean.data(), .var = var.data(), .eps = 1e-5, .activation = Activation::relu6};
  fused_forward<T>(s, input, w.data(), nullptr, y.data(), statistics.data(), statistics.data() + c.o, workspace.data());
  const FusedGradient<T> gradient{
      .g = g.data(), .y = y.data(), .mean = statistics.data(), .g_mean = g_mean.data(), .g_var = g_var.data()};
  fused_backward<T>(s, input, w.data(), gradient,
                    {.x = dx.data(),
                     .w = dw.data(),
                     .norm = {parameters.data(), parameters.data() + c.c, parameters.data() + 2 * c.c, parameters.data() + 3 * c.c},
                     .add = s.add ? added.data() : nullptr},
                    workspace.data());
  return {y.values(), dx.values(), statistics, dw, parameters};
}

template <class T>
std::vector<std::vector<T>> plain_depthwise(const WindowShape& s, bool aligned) {
  const int64_t in = s.n * s.h * s.w * s.c, out = s.n * s.out_h() * s.out_w() * s.c;
  const std::vector<T> x = numbers<T>(in, 1), w = numbers<T>(s.kh * s.kw * s.c, 2), g = numbers<T>(out, 3);
  Array<T> y(out, aligned), dx(in, aligned), dx_alone(in, aligned);
  std::vector<T> dw(w.size()), workspace(static_cast<std::size_t>(depthwise_backward_weight_workspace(s)));
  depthwise_forward<T>(s, x.data(), w.data(), nullptr, Activation::relu, y.data());
  depthwise_backward<T>(s, x.data(), g.data(), w.data(), dx.data(), dw.data(), workspace.data());
  depthwise_backward_input<T>(s, g.data(), w.data(), dx_alone.data());
  return {y.values(), dx.values(), dx_alone.values(), dw};
}

template <class T>
void check(const std::vector<std::vector<T>>& streamed, const std::vector<std::vector<T>>& stored) {
  REQUIRE(streamed.size() == stored.size());
  for (std::size_t i = 0; i < stored.size(); ++i) {
    CAPTURE(i);
    CHECK(same_bits(streamed[i], stored[i]));
  }
}

}  // namespace

TEST_CASE_TEMPLATE("streamed results have the bits of stored ones", T, float, double) {
  constexpr int64_t channels = 48, width = 64, height = stream_bytes / static_cast<int64_t>(sizeof(T)) / channels / width + 3;
  for (const int64_t kernel : {3, 5})
    for (const int64_t stride : {1, 2}) {
      CAPTURE(kernel);
      CAPTURE(stride);
      const int64_t h = height * stride, w = width * stride;
      const WindowShape window{.n = 1,
                               .h = h,
                               .w = w,
                               .c = channels,
                               .kh = kernel,
                               .kw = kernel,
                               .sh = stride,
                               .sw = stride,
                               .ph = kernel / 2,
                               .pw = kernel / 2};
      check(plain_depthwise<T>(window, true), plain_depthwise<T>(window, false));
      const ConvShape conv{.n = 1,
                           .h = h,
                           .w = w,
                           .c = channels,
                           .o = channels,
                           .kh = kernel,
                           .kw = kernel,
                           .sh = stride,
                           .sw = stride,
                           .ph = kernel / 2,
                           .pw = kernel / 2,
                           .groups = channels};
      const FusedShape shape{.conv = conv, .depthwise = true, .pending = true};
      check(fused<T>(shape, true), fused<T>(shape, false));
    }
  // Depthwise at stride 2 where outputs end at, before and behind the input's columns, with more channels than sums have room for,
  // and with fewer columns than the kernel.
  for (const auto& [w, padding, c] :
       {std::array<int64_t, 3>{65, 0, channels}, {64, 0, 16}, {65, 1, 272}, {64, 2, 24}, {2, 1, 272}}) {
    CAPTURE(w);
    CAPTURE(padding);
    const WindowShape window{.n = 1,
                             .h = stream_bytes / static_cast<int64_t>(sizeof(T)) / w / c + 2,
                             .w = w,
                             .c = c,
                             .kh = 3,
                             .kw = 3,
                             .sh = 2,
                             .sw = 2,
                             .ph = padding,
                             .pw = padding};
    check(plain_depthwise<T>(window, true), plain_depthwise<T>(window, false));
  }
  // Straight from blocks in L1; with few channels of y, and with many of x, from a tile.
  for (const auto& [in, out] : {std::pair<int64_t, int64_t>{channels, 2 * channels}, {16, 32}, {208, 64}}) {
    CAPTURE(in);
    const ConvShape conv{.n = 1, .h = height * channels / std::min(in, out) + 1, .w = width, .c = in, .o = out};
    for (const bool add : {false, true}) {
      const FusedShape shape{.conv = conv, .pending = true, .add = add};
      check(fused<T>(shape, true), fused<T>(shape, false));
    }
  }
}
