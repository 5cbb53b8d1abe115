#include <rewind/core/kernels/depthwise.h>

#include <rewind/core/kernels/loop.h>
#include <rewind/core/kernels/vector.h>
#include <rewind/core/parallel.h>

#include <algorithm>
#include <numeric>
#include <type_traits>

namespace rewind_lib::kernels {
namespace {

using std::int64_t;

constexpr int64_t max_pieces = 32;

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

// One vector of channels of one row of outputs, for R rows of taps; weights stay in registers. All taps of outputs [lo, hi) are
// inside.
template <class T, class V, int R, int KW, int S>
inline void forward_strip(WindowShape s, RowTaps<T> taps, int64_t c, int64_t lo, int64_t hi, int64_t out_w, const T* bias,
                          Activation activation, T* y, bool past) {
  constexpr int group = 4;
  const int64_t channels = s.c;
  V weight[R][KW];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int k = 0; k < KW; ++k) weight[r][k] = load<V>(taps.weight + r * taps.weight_step + k * channels + c);
  const V start = bias != nullptr ? load<V>(bias + c) : V{};
  const auto at_the_edge = [&](int64_t ow) {
    V acc = start;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int k = 0; k < KW; ++k)
        if (const int64_t iw = ow * S - s.pw + k; iw >= 0 && iw < s.w)
          acc = multiply_add(load<V>(taps.data + r * taps.data_step + iw * channels + c), weight[r][k], acc);
    stream(y + ow * channels + c, activate_lanes(activation, acc), past);
  };
  for (int64_t ow = 0; ow < lo; ++ow) at_the_edge(ow);
  for (int64_t ow = hi; ow < out_w; ++ow) at_the_edge(ow);
  const T* x = taps.data + (lo * S - s.pw) * channels + c;
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
void forward_point(WindowShape s, RowTaps<T> taps, int64_t ow, const T* bias, Activation activation, T* y) {
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

template <class T>
void forward_points(const WindowShape& s, const RowTaps<T>& taps, int64_t out_w, const T* bias, Activation activation, T* y, bool) {
  for (int64_t ow = 0; ow < out_w; ++ow) forward_point(s, taps, ow, bias, activation, y + ow * s.c);
}

// Bytes of weights that stay in L1 beside what they meet.
constexpr int64_t columns_weights = 24 << 10;

// All channels of a few outputs before the next, for R rows of taps. Where a vector is half a line, strips come to each line twice,
// in steps that fill a few sets of L1 alone; this goes through memory as it lies, and pays with loading the weights again.
template <class T, int R, int KW, int S>
void forward_columns(WindowShape s, RowTaps<T> taps, int64_t lo, int64_t hi, int64_t out_w, const T* bias, Activation activation,
                     T* y, bool past) {
  const auto columns = [&]<int group>(std::integral_constant<int, group>, int64_t ow) __attribute__((always_inline)) {
    const T* const x = taps.data + (ow * S - s.pw) * s.c;
    for_vectors<T>(0, s.c, [&](auto tag, int64_t c) {
      using V = typename decltype(tag)::type;
      if (taps.below != 0 && c % line_elements<T> == 0) {
#pragma GCC unroll 2
        for (int r = 0; r < S; ++r)
#pragma GCC unroll 8
          for (int j = 0; j < group * S; ++j)
            __builtin_prefetch(x + taps.below + r * taps.data_step + (j + KW - S) * s.c + c, 0, 2);
      }
      const V start = bias != nullptr ? load<V>(bias + c) : V{};
      V acc[group] = {};
#pragma GCC unroll 2
      for (int g = 0; g < group; ++g) acc[g] = start;
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        V weight[KW];
#pragma GCC unroll 8
        for (int k = 0; k < KW; ++k) weight[k] = load<V>(taps.weight + r * taps.weight_step + k * s.c + c);
#pragma GCC unroll 8
        for (int j = 0; j < (group - 1) * S + KW; ++j) {
          const V v = load<V>(x + r * taps.data_step + j * s.c + c);
#pragma GCC unroll 2
          for (int g = 0; g < group; ++g)
            if (j - g * S >= 0 && j - g * S < KW) acc[g] = multiply_add(v, weight[j - g * S], acc[g]);
        }
      }
#pragma GCC unroll 2
      for (int g = 0; g < group; ++g) stream_line(y + (ow + g) * s.c + c, activate_lanes(activation, acc[g]), past);
    });
  };
  for (int64_t ow = 0; ow < lo; ++ow) forward_point(s, taps, ow, bias, activation, y + ow * s.c);
  constexpr int group = S == 1 ? 2 : 1;
  int64_t ow = lo;
  for (; ow + group <= hi; ow += group) columns(std::integral_constant<int, group>{}, ow);
  for (; ow < hi; ++ow) columns(std::integral_constant<int, 1>{}, ow);
  for (; ow < out_w; ++ow) forward_point(s, taps, ow, bias, activation, y + ow * s.c);
}

template <class T, int KW, int S, int R = KW>
void forward_row(const WindowShape& s, const RowTaps<T>& taps, int64_t out_w, const T* bias, Activation activation, T* y,
                 bool past) {
  if constexpr (R > 0) {
    if (taps.count < R) return forward_row<T, KW, S, R - 1>(s, taps, out_w, bias, activation, y, past);
    const int64_t lo = std::min(out_w, ceil_div(s.pw, S));
    const int64_t hi = std::max(lo, std::min(out_w, (s.w + s.pw - s.kw) / S + 1));
    if (vector_bytes < 64 && R * KW * s.c * static_cast<int64_t>(sizeof(T)) <= columns_weights)
      forward_columns<T, R, KW, S>(s, taps, lo, hi, out_w, bias, activation, y, past);
    else
      for_vectors<T>(0, s.c, [&](auto tag, int64_t c) {
        forward_strip<T, typename decltype(tag)::type, R, KW, S>(s, taps, c, lo, hi, out_w, bias, activation, y, past);
      });
  } else {
    forward_points(s, taps, out_w, bias, activation, y, past);
  }
}

template <class T>
using ForwardRow = void (*)(const WindowShape&, const RowTaps<T>&, int64_t, const T*, Activation, T*, bool);

template <class T>
ForwardRow<T> forward_row_for(const WindowShape& s) {
  const bool plain = s.dw == 1 && s.kh <= s.kw && s.w + s.pw >= s.kw;
  if (plain && s.kw == 3 && s.sw == 1) return forward_row<T, 3, 1>;
  if (plain && s.kw == 3 && s.sw == 2) return forward_row<T, 3, 2>;
  if (plain && s.kw == 5 && s.sw == 1) return forward_row<T, 5, 1>;
  if (plain && s.kw == 5 && s.sw == 2) return forward_row<T, 5, 2>;
  return forward_points<T>;
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
// the outputs q, q - 1 ... saw; those of positions [lo, hi) are all there. The R x KW sums of dweight stay in registers for the
// whole row.
template <class T, class V, int R, int KW, int S, bool Dx, bool Dw>
inline void backward_strip(WindowShape s, SeenBy<T> seen, int64_t first, int64_t c, int64_t lo, int64_t hi, int64_t out_w,
                           bool add_dx, const T* x, T* dx) {
  constexpr int reach = (KW - 1) / S + 1;
  const int64_t channels = s.c;
  V weight[R][KW];
  V sum[R][KW];
  const T* g[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    g[r] = seen.dy + (first + r) * seen.dy_step + c;
#pragma GCC unroll 8
    for (int k = 0; k < KW; ++k) {
      if constexpr (Dx) weight[r][k] = load<V>(seen.weight + (first + r) * seen.weight_step + k * channels + c);
      sum[r][k] = V{};
    }
  }
  const int64_t start = -s.pw * channels + c;
  if constexpr (Dw) x += start;
  if constexpr (Dx) dx += start;

  const auto at_the_edge = [&](int64_t q) {
#pragma GCC unroll 2
    for (int t = 0; t < S; ++t) {
      if (const int64_t column = q * S - s.pw + t; column < 0 || column >= s.w) continue;
      const int64_t at = (q * S + t) * channels;
      V d = {}, v = {};
      if constexpr (Dx)
        if (add_dx) d = load<V>(dx + at);
      if constexpr (Dw) v = load<V>(x + at);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int m = 0; m < reach; ++m) {
          if (m * S + t >= KW || q - m < 0 || q - m >= out_w) continue;
          const V dy = load<V>(g[r] + (q - m) * channels);
          if constexpr (Dx) d = multiply_add(dy, weight[r][m * S + t], d);
          if constexpr (Dw) sum[r][m * S + t] = multiply_add(dy, v, sum[r][m * S + t]);
        }
      if constexpr (Dx) stream(dx + at, d, seen.past);
    }
  };
  for (int64_t q = s.pw / S; q < lo; ++q) at_the_edge(q);
  for (int64_t q = hi; q * S - s.pw < s.w; ++q) at_the_edge(q);

  if constexpr (Dw) x += lo * S * channels;
  if constexpr (Dx) dx += lo * S * channels;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) g[r] += lo * channels;
  for (int64_t q = lo; q < hi; ++q) {
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

// All channels of two columns of x before the next two, at stride 2, for R rows of dy, where vectors are half a line and dx is
// streamed: its lines have to be written whole. The sums of dweight wait in L1 for a row, some channels at a time. (At stride 1
// strips are as fast, though they do not stream: there are nine sums to load and store.)
template <class T, int R, bool Dw>
void backward_columns(WindowShape s, SeenBy<T> seen, int64_t lo, int64_t hi, int64_t out_w, const T* x, T* dx) {
  constexpr int kw = 3, stride = 2;
  constexpr int64_t most = 256;
  const int64_t channels = s.c;
  alignas(vector_bytes) T sums[Dw ? R * kw : 1][Dw ? most + line_elements<T> : 1];  // not a multiple of 4 KiB apart
  for (int64_t first = 0; first < channels; first += most) {
    const int64_t last = std::min(channels, first + most);
    if constexpr (Dw)
      for (auto& sum : sums) std::fill_n(sum, last - first, T(0));
    // Columns q stride - padding and the next; with `edge`, columns and outputs that are not there are left out.
    const auto columns = [&]<bool edge>(std::bool_constant<edge>, int64_t q) __attribute__((always_inline)) {
      const int64_t left = q * stride - s.pw;
      const auto missing = [&](int column) { return edge && (left + column < 0 || left + column >= s.w); };
      for_vectors<T>(first, last, [&](auto tag, int64_t c) {
        using V = typename decltype(tag)::type;
        const int64_t at = left * channels + c;
        const T* const dy = seen.dy + q * channels + c;
        if (!edge && c % line_elements<T> == 0) {
          if constexpr (Dw) {
            __builtin_prefetch(x + at + seen.x_below, 0, 2);
            __builtin_prefetch(x + at + channels + seen.x_below, 0, 2);
          }
          __builtin_prefetch(dy + seen.dy_below, 0, 2);
        }
        V d[stride] = {}, in[stride] = {};
#pragma GCC unroll 2
        for (int t = 0; t < stride && Dw; ++t)
          if (!missing(t)) in[t] = load<V>(x + at + t * channels);
#pragma GCC unroll 2
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
          for (int m = 0; m < 2; ++m) {
            if (edge && (q - m < 0 || q - m >= out_w)) continue;
            const V v = load<V>(dy + r * seen.dy_step - m * channels);
#pragma GCC unroll 2
            for (int t = 0; t < stride; ++t) {
              const int k = m * stride + t;
              if (k >= kw || missing(t)) continue;
              d[t] = multiply_add(v, load<V>(seen.weight + r * seen.weight_step + k * channels + c), d[t]);
              if constexpr (Dw) {
                T* const sum = sums[r * kw + k] + (c - first);
                store(sum, multiply_add(v, in[t], load<V>(sum)));
              }
            }
          }
#pragma GCC unroll 2
        for (int t = 0; t < stride; ++t)
          if (!missing(t)) stream_line(dx + at + t * channels, d[t], true);
      });
    };
    for (int64_t q = s.pw / stride; q < lo; ++q) columns(std::true_type{}, q);
    for (int64_t q = hi; q * stride - s.pw < s.w; ++q) columns(std::true_type{}, q);
    for (int64_t q = lo; q < hi; ++q) columns(std::false_type{}, q);
    if constexpr (Dw)
      for (int r = 0; r < R; ++r)
        for (int k = 0; k < kw; ++k) {
          T* const out = seen.dweight + r * seen.weight_step + k * channels;
          for (int64_t c = first; c < last; ++c) out[c] += sums[r * kw + k][c - first];
        }
  }
}

template <class T, int KW, int S, bool Dx, bool Dw>
void backward_row(const WindowShape& s, int64_t out_w, const SeenBy<T>& seen, const T* x, T* dx) {
  constexpr int most = KW == 3 ? 3 : 2;  // as many rows as leave their sums in registers
  const int64_t lo = std::max<int64_t>((KW - 1) / S, ceil_div(s.pw, S));
  const int64_t hi = std::max(lo, std::min(out_w, (s.w + s.pw) / S));
  if constexpr (vector_bytes < 64 && KW == 3 && S == 2 && Dx)
    if (seen.past)
      return seen.count == 1 ? backward_columns<T, 1, Dw>(s, seen, lo, hi, out_w, x, dx)
                             : backward_columns<T, 2, Dw>(s, seen, lo, hi, out_w, x, dx);
  for (int64_t first = 0; first < seen.count; first += most) {
    const int64_t rows = std::min<int64_t>(most, seen.count - first);
    for_vectors<T>(0, s.c, [&](auto tag, int64_t c) {
      using V = typename decltype(tag)::type;
      const bool add = first > 0;
      if (rows == 1)
        backward_strip<T, V, 1, KW, S, Dx, Dw>(s, seen, first, c, lo, hi, out_w, add, x, dx);
      else if (rows == 2)
        backward_strip<T, V, 2, KW, S, Dx, Dw>(s, seen, first, c, lo, hi, out_w, add, x, dx);
      else if constexpr (most == 3)
        backward_strip<T, V, 3, KW, S, Dx, Dw>(s, seen, first, c, lo, hi, out_w, add, x, dx);
    });
  }
}

// Any position of x, any window.
template <class T, bool Dx, bool Dw>
void backward_point(WindowShape s, int64_t out_w, SeenBy<T> seen, int64_t iw, const T* x, T* dx) {
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

template <class T, bool Dx, bool Dw>
void backward_points(const WindowShape& s, int64_t out_w, const SeenBy<T>& seen, const T* x, T* dx) {
  for (int64_t iw = 0; iw < s.w; ++iw) backward_point<T, Dx, Dw>(s, out_w, seen, iw, x, dx);
}

template <class T>
using BackwardRow = void (*)(const WindowShape&, int64_t, const SeenBy<T>&, const T*, T*);

template <class T, bool Dx, bool Dw>
BackwardRow<T> backward_row_for(const WindowShape& s) {
  if (s.dw == 1 && s.kw == 3 && s.sw == 1) return backward_row<T, 3, 1, Dx, Dw>;
  if (s.dw == 1 && s.kw == 3 && s.sw == 2) return backward_row<T, 3, 2, Dx, Dw>;
  if (s.dw == 1 && s.kw == 5 && s.sw == 1) return backward_row<T, 5, 1, Dx, Dw>;
  if (s.dw == 1 && s.kw == 5 && s.sw == 2) return backward_row<T, 5, 2, Dx, Dw>;
  return backward_points<T, Dx, Dw>;
}

template <class T, bool Dx, bool Dw>
void backward(const WindowShape& s, const T* x, const T* dy, const T* weight, T* dx, T* dweight, T* workspace) {
  const int64_t taps = s.kh * s.kw * s.c;
  const int64_t out_h = s.out_h(), out_w = s.out_w();
  const int64_t rows = s.n * s.h;
  const int64_t common = std::gcd(s.sh, s.dh);
  const int64_t grain = row_grain(rows, s.w * s.c);
  const int64_t pieces = parallel::pieces(rows, grain);
  const BackwardRow<T> backward_row = backward_row_for<T, Dx, Dw>(s);
  const bool whole_lines = vector_bytes < 64 && s.kw == 3 && s.sw == 2 && s.sh == 2 && s.dh == 1 && s.dw == 1;  // backward_columns
  const bool past = Dx && s.kh <= 3 &&  // higher ones come back to a row
                    (whole_lines ? streams_lines(dx, s.c, rows * s.w * s.c) : streams(dx, s.c, rows * s.w * s.c));
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
      if (seen.count > 0)
        backward_row(s, out_w, seen, Dw ? x + offset : nullptr, Dx ? dx + offset : nullptr);
      else if constexpr (Dx)
        std::fill_n(dx + offset, s.w * s.c, T(0));
    }
    if (past) stream_end();
  });
  if constexpr (Dw) {
    if (pieces > 1) add_partials(taps, pieces, workspace, dweight);
  }
}

}  // namespace

template <class T>
void depthwise_forward(const WindowShape& s, const T* x, const T* weight, const T* bias, Activation activation, T* y) {
  const int64_t out_h = s.out_h(), out_w = s.out_w();
  const int64_t rows = s.n * out_h;
  if (rows * out_w * s.c == 0) return;
  const ForwardRow<T> forward_row = forward_row_for<T>(s);
  const int64_t grain = row_grain(rows, out_w * s.c);
  const bool past = streams_lines(y, s.c, rows * out_w * s.c);
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
      forward_row(s, taps, out_w, bias, activation, y + row * out_w * s.c, past);
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
