#include <rewind/core/kernels/pool.h>

#include <rewind/core/kernels/columns.h>
#include <rewind/core/kernels/vector.h>
#include <rewind/core/parallel.h>

#include <algorithm>
#include <limits>
#include <type_traits>

namespace rewind_lib::kernels {
namespace {

using std::int64_t;

constexpr int64_t strip = 64;  // channels whose running values stay in L1

int64_t row_grain(int64_t elements_a_row) {
  return std::max<int64_t>(1, parallel::light_grain / 2 / std::max<int64_t>(1, elements_a_row));
}

struct Range {
  int64_t begin, end;
};

// Taps of the window at `position` that lie inside [0, in).
Range taps_inside(int64_t position, int64_t in, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  const int64_t start = position * stride - padding;
  if (start >= 0 && start + (kernel - 1) * dilation < in) return {0, kernel};
  const int64_t begin = start >= 0 ? 0 : (-start + dilation - 1) / dilation;
  const int64_t end = start >= in ? 0 : std::min(kernel, (in - start - 1) / dilation + 1);
  return {begin, std::max(begin, end)};
}

// Windows (dilation 1) that cover `at`.
Range windows_over(int64_t at, int64_t out, int64_t kernel, int64_t stride, int64_t padding) {
  const int64_t reach = at + padding - kernel;  // windows that start at or before it have ended
  const int64_t begin = reach < 0 ? 0 : reach / stride + 1;
  return {begin, std::max(begin, std::min(out, (at + padding) / stride + 1))};
}

}  // namespace

namespace {

// Integers, one for every lane of a vector (or of a T by itself).
template <class V>
struct PlacesOf {
  using type = decltype(V{} < V{});
};
template <>
struct PlacesOf<float> {
  using type = std::int32_t;
};
template <>
struct PlacesOf<double> {
  using type = std::int64_t;
};

template <class V>
void store_places(std::int32_t* out, typename PlacesOf<V>::type places) {
  if constexpr (std::is_floating_point_v<V>) {
    *out = static_cast<std::int32_t>(places);
  } else {
    using Narrow = typename VectorOf<std::int32_t, sizeof(places) / sizeof(places[0]) * sizeof(std::int32_t)>::type;
    store(out, __builtin_convertvector(places, Narrow));
  }
}

}  // namespace

template <class T>
void max_pool2d_row(const WindowShape& s, std::int64_t oh, const T* image, std::int64_t pitch, Activation activation, T* y,
                    std::int32_t* argmax) {
  const int64_t out_w = s.out_w();
  const Range rows = taps_inside(oh, s.h, s.kh, s.sh, s.ph, s.dh);
  for (int64_t ow = 0; ow < out_w; ++ow) {
    const Range columns = taps_inside(ow, s.w, s.kw, s.sw, s.pw, s.dw);
    const int64_t out = ow * s.c;
    const int64_t first = (oh * s.sh - s.ph + rows.begin * s.dh) * s.w + ow * s.sw - s.pw + columns.begin * s.dw;
    const bool outside = rows.begin == rows.end || columns.begin == columns.end;
    for_overlapping_vectors<T>(0, s.c, [&](auto tag, int64_t c) {
      using V = typename decltype(tag)::type;
      using Places = typename PlacesOf<V>::type;
      using Place = typename PlacesOf<T>::type;
      // The first element of the window is the maximum until a later one is better: so a window of -infinity has a place.
      V best = outside ? splat<V>(-std::numeric_limits<T>::infinity()) : load<V>(image + first * pitch + c);
      Places where = Places{} + static_cast<Place>(outside ? -1 : first);
      for (int64_t kh = rows.begin; kh < rows.end; ++kh)
        for (int64_t kw = columns.begin; kw < columns.end; ++kw) {
          const int64_t pixel = first + (kh - rows.begin) * s.dh * s.w + (kw - columns.begin) * s.dw;
          const V from = load<V>(image + pixel * pitch + c);
          const auto better = (from > best) | ((from != from) & (best == best));  // the first NaN stays
          best = better ? from : best;
          where = better ? Places{} + static_cast<Place>(pixel) : where;
        }
      if (activation != Activation::none) {
        where = best <= V{} ? Places{} - 1 : where;
        if (activation == Activation::relu6) where = best >= V{} + 6 ? Places{} - 1 : where;
        best = activate_lanes(activation, best);
      }
      store(y + out + c, best);
      if (argmax != nullptr) store_places<V>(argmax + out + c, where);
    });
  }
}

template <class T>
void max_pool2d_forward(const WindowShape& s, const T* x, T* y, std::int32_t* argmax, Activation activation) {
  const int64_t out_h = s.out_h(), row_size = s.out_w() * s.c;
  parallel::for_range(s.n * out_h, row_grain(row_size), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      max_pool2d_row(s, row % out_h, x + row / out_h * s.h * s.w * s.c, s.c, activation, y + row * row_size,
                     argmax == nullptr ? nullptr : argmax + row * row_size);
  });
}

template <class T>
void max_pool2d_backward(const WindowShape& s, const T* dy, const std::int32_t* argmax, T* dx) {
  const int64_t outputs = s.out_h() * s.out_w(), pixels = s.h * s.w;
  // Pieces own channels of an image: windows that share a pixel meet in one piece.
  const int64_t strips = parallel::pieces(s.c, strip);
  const int64_t grain = row_grain(std::min(s.c, strip) * (pixels + outputs));
  parallel::for_range(s.n * strips, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / strips, first = i % strips * strip, last = std::min(s.c, first + strip);
      T* image = dx + n * pixels * s.c;
      for (int64_t p = 0; p < pixels; ++p) std::fill(image + p * s.c + first, image + p * s.c + last, T(0));
      for (int64_t o = n * outputs; o < (n + 1) * outputs; ++o)
        for (int64_t c = first; c < last; ++c) {
          const int64_t at = argmax[o * s.c + c];
          if (at >= 0) image[at * s.c + c] += dy[o * s.c + c];
        }
    }
  });
}

template <class T>
void max_pool2d_gather(const WindowShape& s, const T* x, const std::int32_t* argmax, T* out) {
  const int64_t outputs = s.out_h() * s.out_w();
  parallel::for_range(s.n * outputs, row_grain(s.c), [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      const T* image = x + o / outputs * s.h * s.w * s.c;
      for (int64_t c = 0; c < s.c; ++c) {
        const int64_t at = argmax[o * s.c + c];
        out[o * s.c + c] = at >= 0 ? image[at * s.c + c] : T(0);
      }
    }
  });
}

namespace {

// What the window at (oh, ow) divides by: its positions in the image and the padding, but not those beyond.
int64_t divisor(const WindowShape& s, int64_t oh, int64_t ow) {
  const int64_t top = oh * s.sh - s.ph, left = ow * s.sw - s.pw;
  return (std::min(top + s.kh, s.h + s.ph) - top) * (std::min(left + s.kw, s.w + s.pw) - left);
}

}  // namespace

template <class T>
void avg_pool2d_forward(const WindowShape& s, const T* x, T* y) {
  const int64_t out_h = s.out_h(), out_w = s.out_w();
  parallel::for_range(s.n * out_h, row_grain(out_w * s.c), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / out_h, oh = row % out_h;
      const Range rows = taps_inside(oh, s.h, s.kh, s.sh, s.ph, 1);
      const T* image = x + n * s.h * s.w * s.c;
      for (int64_t ow = 0; ow < out_w; ++ow) {
        const Range columns = taps_inside(ow, s.w, s.kw, s.sw, s.pw, 1);
        const T scale = T(1) / static_cast<T>(divisor(s, oh, ow));
        const int64_t top = oh * s.sh - s.ph, left = ow * s.sw - s.pw;
        T* out = y + (row * out_w + ow) * s.c;
        for_vectors<T>(0, s.c, [&](auto tag, int64_t c) {
          using V = typename decltype(tag)::type;
          V sum = {};
          for (int64_t kh = rows.begin; kh < rows.end; ++kh)
            for (int64_t kw = columns.begin; kw < columns.end; ++kw)
              sum += load<V>(image + ((top + kh) * s.w + left + kw) * s.c + c);
          store(out + c, sum * scale);
        });
      }
    }
  });
}

template <class T>
void avg_pool2d_backward(const WindowShape& s, const T* dy, T* dx) {
  const int64_t out_h = s.out_h(), out_w = s.out_w();
  parallel::for_range(s.n * s.h, row_grain(s.w * s.c), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / s.h, ih = row % s.h;
      const Range rows = windows_over(ih, out_h, s.kh, s.sh, s.ph);
      for (int64_t iw = 0; iw < s.w; ++iw) {
        const Range columns = windows_over(iw, out_w, s.kw, s.sw, s.pw);
        T* out = dx + (row * s.w + iw) * s.c;
        std::fill_n(out, s.c, T(0));
        for (int64_t oh = rows.begin; oh < rows.end; ++oh)
          for (int64_t ow = columns.begin; ow < columns.end; ++ow) {
            const T scale = T(1) / static_cast<T>(divisor(s, oh, ow));
            const T* from = dy + ((n * out_h + oh) * out_w + ow) * s.c;
            for (int64_t c = 0; c < s.c; ++c) out[c] += from[c] * scale;
          }
      }
    }
  });
}

template <class T>
void global_avg_pool_forward(std::int64_t n, std::int64_t pixels, std::int64_t c, const T* x, T* y) {
  const double scale = pixels == 0 ? 0 : 1 / static_cast<double>(pixels);
  const int64_t strips = parallel::pieces(c, 4 * strip);
  parallel::for_range(n * strips, row_grain(pixels * std::min(c, 4 * strip)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / strips, first = i % strips * 4 * strip, last = std::min(c, first + 4 * strip);
      const T* from = x + image * pixels * c;
      for_vectors<T>(first, last, [&](auto tag, int64_t at) {
        using V = typename decltype(tag)::type;
        // In parts, so that a large image does not lose what comes late to what is there already.
        constexpr int64_t part = 4 * lines_per_flush, width = sizeof(V) / sizeof(T);
        double total[width] = {};
        for (int64_t p = 0; p < pixels;) {
          const int64_t to = std::min(pixels, p + part);
          V sum[4] = {};
          for (; p + 4 <= to; p += 4)
            for (int q = 0; q < 4; ++q) sum[q] += load<V>(from + (p + q) * c + at);
          for (; p < to; ++p) sum[0] += load<V>(from + p * c + at);
          T sums[width];
          store(sums, (sum[0] + sum[1]) + (sum[2] + sum[3]));
          for (int64_t k = 0; k < width; ++k) total[k] += static_cast<double>(sums[k]);
        }
        for (int64_t k = 0; k < width; ++k) y[image * c + at + k] = static_cast<T>(total[k] * scale);
      });
    }
  });
}

template <class T>
void global_avg_pool_backward(std::int64_t n, std::int64_t pixels, std::int64_t c, const T* dy, T* dx) {
  const T scale = pixels == 0 ? T(0) : T(1) / static_cast<T>(pixels);
  parallel::for_range(n * pixels, row_grain(c), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* from = dy + row / pixels * c;
      T* out = dx + row * c;
      for (int64_t i = 0; i < c; ++i) out[i] = from[i] * scale;
    }
  });
}

#define REWIND_INSTANTIATE(T)                                                                                               \
  template void max_pool2d_row<T>(const WindowShape&, std::int64_t, const T*, std::int64_t, Activation, T*, std::int32_t*); \
  template void max_pool2d_forward<T>(const WindowShape&, const T*, T*, std::int32_t*, Activation);                         \
  template void max_pool2d_backward<T>(const WindowShape&, const T*, const std::int32_t*, T*);                              \
  template void max_pool2d_gather<T>(const WindowShape&, const T*, const std::int32_t*, T*);                                \
  template void avg_pool2d_forward<T>(const WindowShape&, const T*, T*);                                                    \
  template void avg_pool2d_backward<T>(const WindowShape&, const T*, T*);                                                   \
  template void global_avg_pool_forward<T>(std::int64_t, std::int64_t, std::int64_t, const T*, T*);                         \
  template void global_avg_pool_backward<T>(std::int64_t, std::int64_t, std::int64_t, const T*, T*);
REWIND_INSTANTIATE(float)
REWIND_INSTANTIATE(double)
#undef REWIND_INSTANTIATE

}  // namespace rewind_lib::kernels
