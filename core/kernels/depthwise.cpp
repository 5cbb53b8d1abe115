#include <rewind/core/kernels/depthwise.h>

#include <rewind/core/kernels/vector.h>
#include <rewind/core/parallel.h>

#include <algorithm>
#include <numeric>

namespace rewind_lib::kernels {
namespace {

using std::int64_t;

constexpr int64_t max_pieces = 32;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }  // for a >= 0

// Rows of `row` elements a piece. Neighbours read the same rows, so a thread takes many that follow one another.
int64_t row_grain(int64_t rows, int64_t row) {
  const int64_t light = std::max<int64_t>(1, parallel::light_grain / 4 / std::max<int64_t>(1, row));
  return std::max(light, parallel::pieces(rows, max_pieces));
}

// ---- forward ----

// Rows of the input that meet the kernel at one output row, with the kernel rows they meet: `count` of each, evenly
// spaced.
template <class T>
struct RowTaps {
  int64_t count = 0;
  const T* data = nullptr;
  int64_t data_step = 0;
  const T* weight = nullptr;
  int64_t weight_step = 0;
  // Strips walk in steps that hardware does not foresee, so each brings in the rows that the next row of outputs will meet first:
  // elements from `data` to the first of them, 0 where there is none.
  int64_t below = 0;
};

// One vector of channels of outputs [lo, hi) of one row, all taps inside, for R rows of taps; weights stay in registers.
template <class T, class V, int R, int KW, int S>
inline void forward_strip(const RowTaps<T>& taps, int64_t channels, int64_t c, int64_t lo, int64_t hi, int64_t padding,
                          const T* bias, Activation activation, T* y, bool past) {
  constexpr int group = 4;
  V weight[R][KW];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int k = 0; k < KW; ++k) weight[r][k] = load<V>(taps.weight + r * taps.weight_step + k * channels + c);
  const V start = bias != nullptr ? load<V>(bias + c) : V{};
  const T* x = taps.data + (lo * S - padding) * channels + c;
  y += lo * channels + c;
  int64_t left = hi - lo;
  for (; left >= group; left -= group) {
    if (taps.below != 0) {
#pragma GCC unroll 2
      for (int r = 0; r < S; ++r)
#pragma GCC unroll 8
        for (int j = 0; j < group * S; ++j) __builtin_prefetch(x + taps.below + r * taps.data_step + (j + KW - S) * channels, 0, 2);
    }
    V acc[group] = {start, start, start, start};
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const T* row = x + r * taps.data_step;
#pragma GCC unroll 16
      for (int j = 0; j < (group - 1) * S + KW; ++j) {
        const V v = load<V>(row + j * channels);
#pragma GCC unroll 8
        for (int g = 0; g < group; ++g)
          if (j - g * S >= 0 && j - g * S < KW) acc[g] = multiply_add(v, weight[r][j - g * S], acc[g]);
      }
    }
#pragma GCC unroll 8
    for (int g = 0; g < group; ++g) stream(y + g * channels, activate_lanes(activation, acc[g]), past);
    x += group * S * channels;
    y += group * channels;
  }
  for (; left > 0; --left) {
    V acc = start;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int k = 0; k < KW; ++k) acc = multiply_add(load<V>(x + r * taps.data_step + k * channels), weight[r][k], acc);
    stream(y, activate_lanes(activation, acc), past);
    x += S * channels;
    y += channels;
  }
}

// Any output, any window.
template <class T>
void forward_point(const WindowShape& s, const RowTaps<T>& taps, int64_t ow, const T* bias, Activation activation, T* y) {
  const int64_t left = ow * s.sw - s.pw;
  for_vectors<T>(0, s.c, [&](auto tag, int64_t c) {
    using V = typename decltype(tag)::type;
    V acc = bias != nullptr ? load<V>(bias + c) : V{};
    for (int r = 0; r < taps.count; ++r)
      for (int64_t k = 0; k < s.kw; ++k) {
        const int64_t iw = left + k * s.dw;
        if (iw >= 0 && iw < s.w) {
          const T* x = taps.data + r * taps.data_step + iw * s.c + c;
          acc = multiply_add(load<V>(x), load<V>(taps.weight + r * taps.weight_step + k * s.c + c), acc);
        }
      }
    store(y + c, activate_lanes(activation, acc));
  });
}

template <class T, int KW, int S, int R = KW>
void forward_interior(const WindowShape& s, const RowTaps<T>& taps, int64_t lo, int64_t hi, const T* bias, Activation activation,
                      T* y, bool past) {
  if constexpr (R > 0) {
    if (taps.count < R) return forward_interior<T, KW, S, R - 1>(s, taps, lo, hi, bias, activation, y, past);
    for_vectors<T>(0, s.c, [&](auto tag, int64_t c) {
      forward_strip<T, typename decltype(tag)::type, R, KW, S>(taps, s.c, c, lo, hi, s.pw, bias, activation, y, past);
    });
  } else {
    for (int64_t ow = lo; ow < hi; ++ow) forward_point(s, taps, ow, bias, activation, y + ow * s.c);
  }
}

template <class T>
using Interior = void (*)(const WindowShape&, const RowTaps<T>&, int64_t, int64_t, const T*, Activation, T*, bool);

template <class T>
Interior<T> interior_for(const WindowShape& s) {
  if (s.dw != 1 || s.kh > s.kw) return nullptr;
  if (s.kw == 3 && s.sw == 1) return forward_interior<T, 3, 1>;
  if (s.kw == 3 && s.sw == 2) return forward_interior<T, 3, 2>;
  if (s.kw == 5 && s.sw == 1) return forward_interior<T, 5, 1>;
  if (s.kw == 5 && s.sw == 2) return forward_interior<T, 5, 2>;
  return nullptr;
}

// ---- backward ----
//
// Everything is gathered at a position of x: dx there is a sum over the dy that saw it, and each of these pairs adds
// one product to dweight. So dx is written once, and x and dy are read once, for both gradients.

// The rows of dy that saw one row of x, with the kernel rows through which they did: `count` of each, evenly spaced.
template <class T>
struct SeenBy {
  int64_t count = 0;
  const T* dy = nullptr;
  int64_t dy_step = 0;
  const T* weight = nullptr;
  T* dweight = nullptr;
  int64_t weight_step = 0;
  // Strips walk in steps that hardware does not foresee, so each brings in what it will meet in the next row: elements from
  // here to there, 0 in the last row.
  int64_t x_below = 0, dy_below = 0;
  bool past = false;  // dx is streamed
};

// One vector of channels of one row of x, for R rows of dy. Position q covers the S columns q S - padding + t, which
// the outputs q, q - 1 ... saw. The R x KW sums of dweight stay in registers for the whole row.
template <class T, class V, int R, int KW, int S, bool Dx, bool Dw>
inline void backward_strip(const SeenBy<T>& seen, int64_t first, int64_t channels, int64_t c, int64_t q_begin, int64_t q_end,
                           int64_t padding, bool add_dx, const T* x, T* dx) {
  constexpr int reach = (KW - 1) / S + 1;
  V weight[R][KW];
  V sum[R][KW];
  const T* g[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    g[r] = seen.dy + (first + r) * seen.dy_step + q_begin * channels + c;
#pragma GCC unroll 8
    for (int k = 0; k < KW; ++k) {
      if constexpr (Dx) weight[r][k] = load<V>(seen.weight + (first + r) * seen.weight_step + k * channels + c);
      sum[r][k] = V{};
    }
  }
  const int64_t start = (q_begin * S - padding) * channels + c;
  if constexpr (Dw) x += start;
  if constexpr (Dx) dx += start;
  for (int64_t q = q_begin; q < q_end; ++q) {
#pragma GCC unroll 2
    for (int t = 0; t < S; ++t) {
      if constexpr (Dw) __builtin_prefetch(x + t * channels + seen.x_below, 0, 2);
      if constexpr (Dx)
        if (!seen.past) __builtin_prefetch(dx + t * channels + seen.x_below, 1, 2);
    }
    __builtin_prefetch(g[0] + seen.dy_below, 0, 2);
    V d[S];
    V in[S];
#pragma GCC unroll 2
    for (int t = 0; t < S; ++t) {
      if constexpr (Dx) d[t] = add_dx ? load<V>(dx + t * channels) : V{};
      if constexpr (Dw) in[t] = load<V>(x + t * channels);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int m = 0; m < reach; ++m) {
        const V v = load<V>(g[r] - m * channels);
#pragma GCC unroll 2
        for (int t = 0; t < S; ++t) {
          if (m * S + t < KW) {
            if constexpr (Dx) d[t] = multiply_add(v, weight[r][m * S + t], d[t]);
            if constexpr (Dw) sum[r][m * S + t] = multiply_add(v, in[t], sum[r][m * S + t]);
          }
        }
      }
      g[r] += channels;
    }
#pragma GCC unroll 2
    for (int t = 0; t < S; ++t)
      if constexpr (Dx) stream(dx + t * channels, d[t], seen.past);
    if constexpr (Dw) x += S * channels;
    if constexpr (Dx) dx += S * channels;
  }
  if constexpr (Dw) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int k = 0; k < KW; ++k) {
        T* out = seen.dweight + (first + r) * seen.weight_step + k * channels + c;
        store(out, load<V>(out) + sum[r][k]);
      }
  }
}

template <class T, int KW, int S, bool Dx, bool Dw>
void backward_interior(const SeenBy<T>& seen, int64_t channels, int64_t q_begin, int64_t q_end, int64_t padding, const T* x,
                       T* dx) {
  constexpr int most = KW == 3 ? 3 : 2;  // as many rows as leave their sums in registers
  for (int64_t first = 0; first < seen.count; first += most) {
    const int64_t rows = std::min<int64_t>(most, seen.count - first);
    for_vectors<T>(0, channels, [&](auto tag, int64_t c) {
      using V = typename decltype(tag)::type;
      const bool add = first > 0;
      if (rows == 1)
        backward_strip<T, V, 1, KW, S, Dx, Dw>(seen, first, channels, c, q_begin, q_end, padding, add, x, dx);
      else if (rows == 2)
        backward_strip<T, V, 2, KW, S, Dx, Dw>(seen, first, channels, c, q_begin, q_end, padding, add, x, dx);
      else if constexpr (most == 3)
        backward_strip<T, V, 3, KW, S, Dx, Dw>(seen, first, channels, c, q_begin, q_end, padding, add, x, dx);
    });
  }
}

// Any position of x, any window.
template <class T, bool Dx, bool Dw>
void backward_point(const WindowShape& s, int64_t out_w, const SeenBy<T>& seen, int64_t iw, const T* x, T* dx) {
  for_vectors<T>(0, s.c, [&](auto tag, int64_t c) {
    using V = typename decltype(tag)::type;
    V d = {};
    V in = {};
    if constexpr (Dw) in = load<V>(x + iw * s.c + c);
    for (int r = 0; r < seen.count; ++r)
      for (int64_t k = 0; k < s.kw; ++k) {
        const int64_t from = iw + s.pw - k * s.dw;
        if (from < 0 || from % s.sw != 0 || from / s.sw >= out_w) continue;
        const V v = load<V>(seen.dy + r * seen.dy_step + from / s.sw * s.c + c);
        if constexpr (Dx) d = multiply_add(v, load<V>(seen.weight + r * seen.weight_step + k * s.c + c), d);
        if constexpr (Dw) {
          T* out = seen.dweight + r * seen.weight_step + k * s.c + c;
          store(out, multiply_add(v, in, load<V>(out)));
        }
      }
    if constexpr (Dx) store(dx + iw * s.c + c, d);
  });
}

template <class T>
using BackwardInterior = void (*)(const SeenBy<T>&, int64_t, int64_t, int64_t, int64_t, const T*, T*);

template <class T, bool Dx, bool Dw>
BackwardInterior<T> backward_interior_for(const WindowShape& s) {
  if (s.dw != 1) return nullptr;
  if (s.kw == 3 && s.sw == 1) return backward_interior<T, 3, 1, Dx, Dw>;
  if (s.kw == 3 && s.sw == 2) return backward_interior<T, 3, 2, Dx, Dw>;
  if (s.kw == 5 && s.sw == 1) return backward_interior<T, 5, 1, Dx, Dw>;
  if (s.kw == 5 && s.sw == 2) return backward_interior<T, 5, 2, Dx, Dw>;
  return nullptr;
}

// One row of x: x and dx point at its first element (either may be null when not wanted).
template <class T, bool Dx, bool Dw>
void backward_row(const WindowShape& s, int64_t out_w, const SeenBy<T>& seen, const T* x, T* dx) {
  if (seen.count == 0) {
    if constexpr (Dx) std::fill_n(dx, s.w * s.c, T(0));
    return;
  }
  int64_t left = 0, right = 0;  // columns [left, right) are taken by the interior
  if (const auto interior = backward_interior_for<T, Dx, Dw>(s)) {
    const int64_t q_begin = std::max((s.kw - 1) / s.sw, ceil_div(s.pw, s.sw));
    const int64_t q_end = std::min(out_w, (s.w + s.pw) / s.sw);
    if (q_begin < q_end) {
      left = q_begin * s.sw - s.pw;
      right = q_end * s.sw - s.pw;
      interior(seen, s.c, q_begin, q_end, s.pw, x, dx);
    }
  }
  for (int64_t iw = 0; iw < left; ++iw) backward_point<T, Dx, Dw>(s, out_w, seen, iw, x, dx);
  for (int64_t iw = right; iw < s.w; ++iw) backward_point<T, Dx, Dw>(s, out_w, seen, iw, x, dx);
}

template <class T, bool Dx, bool Dw>
void backward(const WindowShape& s, const T* x, const T* dy, const T* weight, T* dx, T* dweight, T* workspace) {
  const int64_t taps = s.kh * s.kw * s.c;
  const int64_t out_h = s.out_h(), out_w = s.out_w();
  const int64_t rows = s.n * s.h;
  const int64_t common = std::gcd(s.sh, s.dh);
  const int64_t grain = row_grain(rows, s.w * s.c);
  const int64_t pieces = parallel::pieces(rows, grain);
  const bool past = Dx && s.kh <= 3 && streams(dx, s.c, rows * s.w * s.c);  // higher ones come back to a row
  if constexpr (Dw)
    if (pieces == 0) std::fill_n(dweight, taps, T(0));
  parallel::for_pieces(pieces, [&](int64_t piece, int) {
    T* sums = nullptr;
    if constexpr (Dw) {
      sums = pieces > 1 ? workspace + piece * taps : dweight;
      std::fill_n(sums, taps, T(0));
    }
    for (int64_t row = piece * grain; row < std::min(rows, (piece + 1) * grain); ++row) {
      const int64_t n = row / s.h, ih = row % s.h;
      SeenBy<T> seen;
      for (int64_t k = 0; k < s.kh; ++k) {
        const int64_t from = ih + s.ph - k * s.dh;
        if (from < 0 || from % s.sh != 0 || from / s.sh >= out_h) continue;
        if (seen.count++ > 0) continue;
        seen.dy = dy + (n * out_h + from / s.sh) * out_w * s.c;
        if constexpr (Dx) seen.weight = weight + k * s.kw * s.c;
        if constexpr (Dw) seen.dweight = sums + k * s.kw * s.c;
      }
      seen.dy_step = -(s.dh / common) * out_w * s.c;
      seen.weight_step = s.sh / common * s.kw * s.c;
      seen.past = past;
      seen.x_below = row + 1 < rows ? s.w * s.c : 0;
      seen.dy_below = row + 1 < rows ? out_w * s.c : 0;
      const int64_t offset = row * s.w * s.c;
      backward_row<T, Dx, Dw>(s, out_w, seen, Dw ? x + offset : nullptr, Dx ? dx + offset : nullptr);
    }
    if (past) stream_end();
  });
  if constexpr (Dw) {
    if (pieces > 1)
      parallel::for_range(taps, std::max<int64_t>(512, parallel::light_grain / pieces), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) dweight[i] = workspace[i];
        for (int64_t piece = 1; piece < pieces; ++piece)
          for (int64_t i = begin; i < end; ++i) dweight[i] += workspace[piece * taps + i];
      });
  }
}

}  // namespace

template <class T>
void depthwise_forward(const WindowShape& s, const T* x, const T* weight, const T* bias, Activation activation, T* y) {
  const int64_t out_h = s.out_h(), out_w = s.out_w();
  const int64_t rows = s.n * out_h;
  if (rows * out_w * s.c == 0) return;
  int64_t lo = out_w, hi = out_w;
  const Interior<T> interior = interior_for<T>(s);
  if (interior != nullptr && s.w + s.pw >= s.kw) {
    lo = std::min(out_w, ceil_div(s.pw, s.sw));
    hi = std::max(lo, std::min(out_w, (s.w + s.pw - s.kw) / s.sw + 1));
  }
  const int64_t grain = row_grain(rows, out_w * s.c);
  const bool past = streams(y, s.c, rows * out_w * s.c);
  parallel::for_range(rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / out_h, oh = row % out_h;
      RowTaps<T> taps;
      for (int64_t k = 0; k < s.kh; ++k) {
        const int64_t ih = oh * s.sh - s.ph + k * s.dh;
        if (ih < 0 || ih >= s.h || taps.count++ > 0) continue;
        taps.data = x + (n * s.h + ih) * s.w * s.c;
        taps.weight = weight + k * s.kw * s.c;
      }
      taps.data_step = s.dh * s.w * s.c;
      taps.weight_step = s.kw * s.c;
      if (s.dh == 1 && s.sh == s.sw && row + 1 < end && taps.count > 0) {
        const int64_t below = taps.count * taps.data_step;
        if (taps.data - x + below + s.sh * taps.data_step <= s.n * s.h * s.w * s.c) taps.below = below;
      }
      T* out = y + row * out_w * s.c;
      for (int64_t ow = 0; ow < lo; ++ow) forward_point(s, taps, ow, bias, activation, out + ow * s.c);
      if (lo < hi) interior(s, taps, lo, hi, bias, activation, out, past);
      for (int64_t ow = hi; ow < out_w; ++ow) forward_point(s, taps, ow, bias, activation, out + ow * s.c);
    }
    if (past) stream_end();
  });
}

template <class T>
void depthwise_backward_input(const WindowShape& s, const T* dy, const T* weight, T* dx) {
  backward<T, true, false>(s, nullptr, dy, weight, dx, nullptr, nullptr);
}

std::int64_t depthwise_backward_weight_workspace(const WindowShape& s) {
  const int64_t pieces = parallel::pieces(s.n * s.h, row_grain(s.n * s.h, s.w * s.c));
  return pieces > 1 ? pieces * s.kh * s.kw * s.c : 0;
}

template <class T>
void depthwise_backward_weight(const WindowShape& s, const T* x, const T* dy, T* dweight, T* workspace) {
  backward<T, false, true>(s, x, dy, nullptr, nullptr, dweight, workspace);
}

template <class T>
void depthwise_backward(const WindowShape& s, const T* x, const T* dy, const T* weight, T* dx, T* dweight, T* workspace) {
  backward<T, true, true>(s, x, dy, weight, dx, dweight, workspace);
}

#define REWIND_INSTANTIATE(T)                                                                           \
  template void depthwise_forward<T>(const WindowShape&, const T*, const T*, const T*, Activation, T*); \
  template void depthwise_backward_input<T>(const WindowShape&, const T*, const T*, T*);                \
  template void depthwise_backward_weight<T>(const WindowShape&, const T*, const T*, T*, T*);           \
  template void depthwise_backward<T>(const WindowShape&, const T*, const T*, const T*, T*, T*, T*);
REWIND_INSTANTIATE(float)
REWIND_INSTANTIATE(double)
#undef REWIND_INSTANTIATE

}  // namespace rewind_lib::kernels
