// Depthwise convolutions. Rows that are normalised (forward) or assembled (backward) go through a ring of as many rows as
// what is made at once reaches, padded with zeros on all sides: every window is then inside, and one strip of code does it all.
// Backward gathers at a position of x: dx there, its share of dw, and the sums of the normalisation, in one pass.

#include <rewind/core/kernels/fused_tile.h>
#include <rewind/core/parallel.h>

#include <algorithm>

namespace rewind_lib::kernels::fused {
namespace {

constexpr int64_t enough_images = 16;  // to make a piece of each
constexpr int64_t wanted_pieces = 8;   // of fewer; every piece of an image reads the rows around it once more
constexpr int64_t least_rows = 2;
constexpr int64_t most_pieces = 32;
constexpr int64_t values_per_flush = 512;  // summed in T before they go to doubles

/// Images, and rows of each, that a piece takes.
struct Cut {
  int64_t images, parts, rows, pieces, n, h;

  Cut(int64_t all_images, int64_t height) : n(all_images), h(height) {
    images = max_of(1, ceil_div(n, most_pieces));
    const int64_t wanted_parts = max_of(2, ceil_div(wanted_pieces, max_of(1, n)));
    rows = max_of(1, n >= enough_images ? h : max_of(min_of(h, least_rows), ceil_div(h, wanted_parts)));
    parts = parallel::pieces(h, rows);
    pieces = parallel::pieces(n, images) * parts;
  }
  int64_t first_image(int64_t piece) const { return piece / parts * images; }
  int64_t last_image(int64_t piece) const { return min_of(n, first_image(piece) + images); }
  int64_t first_row(int64_t piece) const { return piece % parts * rows; }
  int64_t last_row(int64_t piece) const { return min_of(h, first_row(piece) + rows); }
  int64_t count(int64_t piece) const { return (last_image(piece) - first_image(piece)) * (last_row(piece) - first_row(piece)); }
};

/// A row to write that strips are about to walk over in steps that hardware does not foresee.
template <class T>
void prefetch_row(const T* row, int64_t n) {
  for (int64_t i = 0; i < n; i += line_elements<T>) __builtin_prefetch(row + i, 1, 2);
}

// --- forward -----------------------------------------------------------------------------------------------------

/// Rows of y that strips make at once, where there are registers for it: of the rows of x that two need, they share all but one.
constexpr int rows_at_once(int64_t kernel, int64_t stride) { return vector_bytes >= 64 && kernel == 3 && stride == 1 ? 2 : 1; }
/// Rows of x that so many rows of y, one below the other, reach.
constexpr int64_t rows_reached(int rows, int64_t kernel, int64_t stride) { return (rows - 1) * stride + kernel; }

template <class T>
struct ForwardPlan {
  Cut c;
  Affine<T> affine{};
  Moments<T> moments{};
  int64_t row;  // elements of a padded row
  int64_t scratch_size;
  T *zeros, *scratch;

  ForwardPlan(const FusedShape& s, Carver& carver) : c(s.conv.n, s.conv.out_h()) {
    if (s.pending) affine = Affine<T>::carve(carver, s.conv.c);
    if (s.statistics) moments = Moments<T>::carve(carver, s.conv.c, c.pieces);
    row = (s.conv.w + 2 * s.conv.pw) * s.conv.c;
    const int64_t ring_rows = rows_reached(rows_at_once(s.conv.kh, s.conv.sh), s.conv.kh, s.conv.sh);
    scratch_size = parallel::worker_stride<T>(ring_rows * row + 3 * s.conv.c, s.conv.sh * s.conv.c);
    zeros = carver.take<T>(row);
    scratch = carver.take<T>(parallel::threads() * scratch_size);
  }
};

/// R rows of y, one below the other.
template <class T, int K, int S, int R>
struct ForwardRows {
  static constexpr int reach = static_cast<int>(rows_reached(R, K, S));
  const T* rows[reach];  // of x, normalised
  const T *w, *residual;
  T* y;
  int64_t channels, width, pitch;  // pitch: of y, from row to row
  const T* shift;                  // sum and squares take up (y - shift) and its square when it is not null
  T *sum, *squares;
  bool past;  // y is streamed
  // What strips bring in for the next rows, position by position: of x and of y; null where there is none.
  const T *next[R], *below[R];
};

// One vector of channels.
template <class T, class V, int K, int S, int R>
inline void forward_strip(const ForwardRows<T, K, S, R>& f, int64_t c) {
  constexpr int group = 4, reach = ForwardRows<T, K, S, R>::reach;
  // Copies stay in registers: see for_vectors().
  const int64_t channels = f.channels, pitch = f.pitch;
  const T *const residual = f.residual, *next[R], *below[R];
  T* const y = f.y;
  const bool past = f.past;
  V weight[K][K];
  const T* x[reach];
#pragma GCC unroll 8
  for (int r = 0; r < K; ++r)
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) weight[r][k] = load<V>(f.w + (r * K + k) * channels + c);
#pragma GCC unroll 8
  for (int r = 0; r < reach; ++r) x[r] = f.rows[r] + c;
#pragma GCC unroll 2
  for (int o = 0; o < R; ++o) {
    next[o] = f.next[o];
    below[o] = f.below[o];
  }
  V base = {}, a = {}, b = {};
  if (f.shift != nullptr) {
    base = load<V>(f.shift + c);
    a = load<V>(f.sum + c);
    b = load<V>(f.squares + c);
  }
  int64_t at = c;
  const auto columns = [&]<int n>(std::integral_constant<int, n>) __attribute__((always_inline)) {
#pragma GCC unroll 2
    for (int o = 0; o < R; ++o) {
      if (next[o] != nullptr) {
#pragma GCC unroll 8
        for (int j = 0; j < n; ++j) __builtin_prefetch(next[o] + at + j * channels, 0, 2);
      }
      if (below[o] != nullptr) {
#pragma GCC unroll 8
        for (int j = 0; j < n; ++j) __builtin_prefetch(below[o] + at + j * channels, 1, 2);
      }
    }
    V acc[R][n] = {};
#pragma GCC unroll 8
    for (int r = 0; r < reach; ++r) {
#pragma GCC unroll 16
      for (int j = 0; j < (n - 1) * S + K; ++j) {
        const V v = load<V>(x[r] + j * channels);
#pragma GCC unroll 2
        for (int o = 0; o < R; ++o)
#pragma GCC unroll 8
          for (int g = 0; g < n; ++g)
            if (r - o * S >= 0 && r - o * S < K && j - g * S >= 0 && j - g * S < K)
              acc[o][g] = multiply_add(v, weight[r - o * S][j - g * S], acc[o][g]);
      }
      x[r] += n * S * channels;
    }
#pragma GCC unroll 2
    for (int o = 0; o < R; ++o)
#pragma GCC unroll 8
      for (int g = 0; g < n; ++g) {
        V v = acc[o][g];
        const int64_t to = at + o * pitch + g * channels;
        if (residual != nullptr) v += load<V>(residual + to);
        stream(y + to, v, past);
        const V d = v - base;
        a += d;
        b = multiply_add(d, d, b);
      }
    at += n * channels;
  };
  int64_t left = f.width;
  for (; left >= group; left -= group) columns(std::integral_constant<int, group>{});
  for (; left > 0; --left) columns(std::integral_constant<int, 1>{});
  if (f.shift != nullptr) {
    store(f.sum + c, a);
    store(f.squares + c, b);
  }
}

/// out[C]: y at one position.
template <Activation act, class T>
void point(const FusedShape& s, const FusedInput<T>& in, const Affine<T>& p, const T* w, int64_t n, int64_t oh, int64_t ow,
           T* out) {
  const ConvShape& g = s.conv;
  for_vectors<T>(0, g.c, [&](auto tag, int64_t c) {
    using V = typename decltype(tag)::type;
    V acc = {};
    for (int64_t i = 0; i < g.kh; ++i)
      for (int64_t j = 0; j < g.kw; ++j) {
        const int64_t ih = oh * g.sh - g.ph + i, iw = ow * g.sw - g.pw + j;
        if (ih < 0 || ih >= g.h || iw < 0 || iw >= g.w) continue;
        V z = load<V>(in.x + ((n * g.h + ih) * g.w + iw) * g.c + c);
        if (s.pending) z = activated<act, T>(multiply_add(z - load<V>(p.mean + c), load<V>(p.scale + c), load<V>(p.beta + c)));
        acc = multiply_add(z, load<V>(w + (i * g.kw + j) * g.c + c), acc);
      }
    store(out + c, acc);
  });
}

template <class T>
void flush(int64_t channels, T* sum, T* squares, double* to) {
  for (int64_t c = 0; c < channels; ++c) {
    to[c] += static_cast<double>(sum[c]);
    to[channels + c] += static_cast<double>(squares[c]);
    sum[c] = squares[c] = T(0);
  }
}

template <Activation act, class T, int K, int S>
void forward_pieces(const FusedShape& s, const FusedInput<T>& in, const T* w, const T* residual, T* y, const ForwardPlan<T>& p) {
  const ConvShape& g = s.conv;
  const int64_t out_h = g.out_h(), out_w = g.out_w(), channels = g.c;
  constexpr int at_once = rows_at_once(K, S);
  constexpr int64_t ring_rows = rows_reached(at_once, K, S);
  std::fill_n(p.zeros, p.row, T(0));
  const bool past = streams(y, channels, s.rows() * channels);
  parallel::for_pieces(p.c.pieces, [&](int64_t piece, int worker) {
    T* ring = p.scratch + worker * p.scratch_size;
    T *sum = ring + ring_rows * p.row, *squares = sum + channels, *typical = squares + channels;
    const int64_t first = p.c.first_row(piece), last = p.c.last_row(piece);
    for (int64_t k = 0; k < ring_rows; ++k) {
      std::fill_n(ring + k * p.row, g.pw * channels, T(0));
      std::fill_n(ring + k * p.row + (g.pw + g.w) * channels, g.pw * channels, T(0));
    }
    if (s.statistics) {
      point<act>(s, in, p.affine, w, p.c.first_image(piece), (first + last) / 2, out_w / 2, typical);
      if (residual != nullptr) {
        const T* from = residual + ((p.c.first_image(piece) * out_h + (first + last) / 2) * out_w + out_w / 2) * channels;
        for (int64_t c = 0; c < channels; ++c) typical[c] += from[c];
      }
      p.moments.begin(piece, typical);
      std::fill_n(sum, 2 * channels, T(0));
    }
    int64_t waiting = 0;
    for (int64_t n = p.c.first_image(piece); n < p.c.last_image(piece); ++n) {
      int64_t filled = max_of(0, first * S - g.ph);  // rows of x from here on are not in the ring
      const auto rows = [&]<int R>(std::integral_constant<int, R>, int64_t oh) {
        ForwardRows<T, K, S, R> f{.w = w,
                                  .channels = channels,
                                  .width = out_w,
                                  .pitch = out_w * channels,
                                  .shift = s.statistics ? p.moments.shift(piece) : nullptr,
                                  .sum = sum,
                                  .squares = squares,
                                  .past = past};
        const int64_t top = oh * S - g.ph;
        for (; filled < min_of(g.h, top + f.reach); ++filled) {
          if (filled < top) continue;
          T* to = ring + filled % ring_rows * p.row + g.pw * channels;
          const T* from = in.x + (n * g.h + filled) * g.w * channels;
          if (s.pending)
            normalise<act, true>(p.affine, channels, g.w * channels, from, to);
          else
            std::copy_n(from, g.w * channels, to);
        }
        for (int64_t k = 0; k < f.reach; ++k)
          f.rows[k] = top + k < 0 || top + k >= g.h ? p.zeros : ring + (top + k) % ring_rows * p.row;
        const int64_t at = (n * out_h + oh) * out_w * channels;
        f.y = y + at;
        f.residual = residual == nullptr ? nullptr : residual + at;
        if (!past && oh == first) prefetch_row(f.y, R * out_w * channels);
        for (int o = 0; o < R; ++o) {
          const bool more = oh + R + o < last;
          f.below[o] = !past && more ? f.y + (R + o) * f.pitch : nullptr;
          // With a stride of 2 it would be two rows of x, which gained nothing.
          f.next[o] = S == 1 && more && filled + o < g.h ? in.x + (n * g.h + filled + o) * g.w * channels : nullptr;
        }
        for_vectors<T>(0, channels, [&](auto tag, int64_t c) { forward_strip<T, typename decltype(tag)::type, K, S, R>(f, c); });
        if (s.statistics && (waiting += R * out_w) >= values_per_flush) {
          flush(channels, sum, squares, p.moments.sum(piece));
          waiting = 0;
        }
      };
      int64_t oh = first;
      for (; oh + at_once <= last; oh += at_once) rows(std::integral_constant<int, at_once>{}, oh);
      for (; oh < last; ++oh) rows(std::integral_constant<int, 1>{}, oh);
    }
    if (s.statistics) flush(channels, sum, squares, p.moments.sum(piece));
    if (past) stream_end();
  });
}

// --- backward ----------------------------------------------------------------------------------------------------

template <class T>
struct BackwardPlan {
  Cut c;
  Affine<T> affine{};
  Assembly<T> assembly{};
  int64_t reach;  // rows (columns) of y that a position of x can be seen from
  int64_t right;  // zeros behind a row of G; reach - 1 before it
  int64_t row;    // elements of a padded row of G
  int64_t scratch_size;
  double* sums;
  T *zeros, *partials, *scratch;

  BackwardPlan(const FusedShape& s, Carver& carver) : c(s.conv.n, s.conv.h) {
    const ConvShape& g = s.conv;
    if (s.pending) affine = Affine<T>::carve(carver, g.c);
    if (s.statistics) assembly = Assembly<T>::carve(carver, g.c);
    reach = (g.kh - 1) / g.sh + 1;
    right = max_of(0, (g.w - 1 + g.pw) / g.sw - (g.out_w() - 1));
    row = (reach - 1 + g.out_w() + right) * g.c;
    scratch_size = parallel::worker_stride<T>(reach * row + 2 * g.c + g.w * g.c, g.c);
    zeros = carver.take<T>(row);
    sums = s.pending ? carver.take<double>(max_of(1, c.pieces) * 2 * g.c) : nullptr;
    partials = carver.take<T>(c.pieces * g.kh * g.kw * g.c);
    scratch = carver.take<T>(parallel::threads() * scratch_size);
  }
};

/// One row of x.
template <class T>
struct BackwardRow {
  const T* rows[5];  // of G at column 0, by tap: oh = q - tap
  const T *x, *w;
  T *dx, *dw;
  const Affine<T>* affine;
  T *first, *second;  // sums of the normalisation
  int64_t channels, width, padding;
  bool past;  // dx is streamed
  // Strips walk in steps that hardware does not foresee, so each brings in what it will meet in the next row.
  int64_t below;   // elements from a position of x and dx to the one in the next row; 0 in the last
  const T *g, *y;  // the next row of what G is assembled from; a hint may point behind its end
};

// One vector of channels of the columns q S + t - padding of a row of x, which outputs q, q - 1, ... saw, through kernel
// rows th + m S, m in [M0, M1). The gradients go through dx when a kernel needs several calls.
template <Activation act, bool Pending, class T, class V, int K, int S, int M0, int M1, int NT, bool First, bool Last>
inline void backward_strip(const BackwardRow<T>& b, int th, int t, int64_t c) {
  constexpr int nr = M1 - M0;
  const int64_t channels = b.channels;
  const int64_t q_begin = b.padding > t ? (b.padding - t + S - 1) / S : 0, q_end = (b.width - 1 + b.padding - t) / S + 1;
  V weight[nr][NT], sum[nr][NT];
  const T* g[nr];
#pragma GCC unroll 8
  for (int m = 0; m < nr; ++m) {
    g[m] = b.rows[M0 + m] + q_begin * channels + c;
#pragma GCC unroll 8
    for (int n = 0; n < NT; ++n) {
      weight[m][n] = load<V>(b.w + ((th + (M0 + m) * S) * K + t + n * S) * channels + c);
      sum[m][n] = V{};
    }
  }
  V mean = {}, scale = {}, beta = {}, s1 = {}, s2 = {};
  if constexpr (Pending) {
    mean = load<V>(b.affine->mean + c);
    scale = load<V>(b.affine->scale + c);
    beta = load<V>(b.affine->beta + c);
    if constexpr (Last) {
      s1 = load<V>(b.first + c);
      s2 = load<V>(b.second + c);
    }
  }
  int64_t at = (q_begin * S + t - b.padding) * channels + c;
  for (int64_t q = q_begin; q < q_end; ++q, at += S * channels) {
    if constexpr (First) {
      __builtin_prefetch(b.x + at + b.below, 0, 2);
      if (!b.past) __builtin_prefetch(b.dx + at + b.below, 1, 2);
      if constexpr (NT == (K + S - 1) / S) {
        __builtin_prefetch(b.g + q * channels + c, 0, 2);
        __builtin_prefetch(b.y + q * channels + c, 0, 2);
      }
    }
    V d = load<V>(b.x + at), z = d, a = d;
    if constexpr (Pending) {
      d = d - mean;
      z = multiply_add(d, scale, beta);
      a = activated<act, T>(z);
    }
    V acc = {};
    if constexpr (!First) acc = load<V>(b.dx + at);
#pragma GCC unroll 8
    for (int m = 0; m < nr; ++m) {
#pragma GCC unroll 8
      for (int n = 0; n < NT; ++n) {
        const V v = load<V>(g[m] - n * channels);
        acc = multiply_add(v, weight[m][n], acc);
        sum[m][n] = multiply_add(v, a, sum[m][n]);
      }
      g[m] += channels;
    }
    if constexpr (Pending && Last) {
      acc = gradient_through<act, T>(acc, z);
      s1 += acc;
      s2 = multiply_add(acc, d, s2);
      acc *= scale;
    }
    stream(b.dx + at, acc, First && Last && b.past);
  }
#pragma GCC unroll 8
  for (int m = 0; m < nr; ++m)
#pragma GCC unroll 8
    for (int n = 0; n < NT; ++n) {
      T* out = b.dw + ((th + (M0 + m) * S) * K + t + n * S) * channels + c;
      store(out, load<V>(out) + sum[m][n]);
    }
  if constexpr (Pending && Last) {
    store(b.first + c, s1);
    store(b.second + c, s2);
  }
}

template <Activation act, bool Pending, class T, class V, int K, int S, int Th>
inline void backward_columns(const BackwardRow<T>& b, int64_t c) {
  constexpr int nr = (K - Th + S - 1) / S;
  if constexpr (K == 5 && S == 1) {
    backward_strip<act, Pending, T, V, K, S, 0, 3, K, true, false>(b, Th, 0, c);
    backward_strip<act, Pending, T, V, K, S, 3, 5, K, false, true>(b, Th, 0, c);
  } else {
    backward_strip<act, Pending, T, V, K, S, 0, nr, (K + S - 1) / S, true, true>(b, Th, 0, c);
    if constexpr (S == 2) backward_strip<act, Pending, T, V, K, S, 0, nr, K / S, true, true>(b, Th, 1, c);
  }
}

template <Activation act, bool Pending, class T, int K, int S>
void backward_pieces(const FusedShape& s, const FusedInput<T>& in, const T* w, const FusedGradient<T>& gradient, T* dx,
                     const BackwardPlan<T>& p) {
  const ConvShape& g = s.conv;
  const int64_t out_h = g.out_h(), out_w = g.out_w(), channels = g.c, taps = K * K * channels;
  constexpr int reach = (K - 1) / S + 1;
  const int64_t left = (reach - 1) * channels;
  const bool past = dx != nullptr && streams(dx, channels, g.n * g.h * g.w * channels);
  std::fill_n(p.zeros, p.row, T(0));
  parallel::for_pieces(p.c.pieces, [&](int64_t piece, int worker) {
    T* ring = p.scratch + worker * p.scratch_size;
    T *first_sum = ring + reach * p.row, *second_sum = first_sum + channels, *spare = second_sum + channels;
    double* sums = Pending ? p.sums + piece * 2 * channels : nullptr;
    if constexpr (Pending) std::fill_n(sums, 2 * channels, 0.0);
    std::fill_n(first_sum, 2 * channels, T(0));
    T* dw = p.partials + piece * taps;
    std::fill_n(dw, taps, T(0));
    for (int k = 0; k < reach; ++k) {
      std::fill_n(ring + k * p.row, left, T(0));
      std::fill_n(ring + k * p.row + left + out_w * channels, p.right * channels, T(0));
    }
    const int64_t first = p.c.first_row(piece), last = p.c.last_row(piece);
    int64_t waiting = 0;
    for (int64_t n = p.c.first_image(piece); n < p.c.last_image(piece); ++n) {
      int64_t filled = max_of(0, (first + g.ph) / S - (reach - 1));  // rows of G from here on are not in the ring
      for (int64_t ih = first; ih < last; ++ih) {
        const int64_t q = (ih + g.ph) / S;
        for (; filled < min_of(out_h, q + 1); ++filled) {
          T* to = ring + filled % reach * p.row + left;
          const int64_t at = (n * out_h + filled) * out_w * channels;
          if (s.statistics)
            assemble<true>(p.assembly, channels, out_w * channels, gradient.g + at, gradient.y + at, to);
          else
            std::copy_n(gradient.g + at, out_w * channels, to);
        }
        BackwardRow<T> b{};
        for (int64_t m = 0; m < reach; ++m)
          b.rows[m] = (q - m < 0 || q - m >= out_h ? p.zeros : ring + (q - m) % reach * p.row) + left;
        const int64_t at = (n * g.h + ih) * g.w * channels;
        b.x = in.x + at;
        b.w = w;
        b.dx = dx == nullptr ? spare : dx + at;
        b.dw = dw;
        b.affine = &p.affine;
        b.first = first_sum;
        b.second = second_sum;
        b.channels = channels;
        b.width = g.w;
        b.padding = g.pw;
        b.past = past;
        b.below = ih + 1 < last && dx != nullptr ? g.w * channels : 0;
        const int64_t next = (n * out_h + min_of(filled, out_h - 1)) * out_w * channels;
        b.g = gradient.g + next;
        b.y = s.statistics ? gradient.y + next : b.g;
        const bool odd = (ih + g.ph) % S == 1;
        for_vectors<T>(0, channels, [&](auto tag, int64_t c) {
          using V = typename decltype(tag)::type;
          if (S == 2 && odd)
            backward_columns<act, Pending, T, V, K, S, S - 1>(b, c);
          else
            backward_columns<act, Pending, T, V, K, S, 0>(b, c);
        });
        if (Pending && (waiting += g.w) >= values_per_flush) {
          flush(channels, first_sum, second_sum, sums);
          waiting = 0;
        }
      }
    }
    if constexpr (Pending) flush(channels, first_sum, second_sum, sums);
    if (past) stream_end();
  });
}

}  // namespace

template <class T>
std::size_t depthwise_forward_workspace(const FusedShape& s) {
  Carver carver(nullptr);
  ForwardPlan<T>(s, carver);
  return carver.used();
}

template <class T>
void depthwise_forward(const FusedShape& s, const FusedInput<T>& in, const T* w, const T* residual, T* y, T* mean, T* var,
                       void* workspace) {
  Carver carver(workspace);
  const ForwardPlan<T> p(s, carver);
  if (s.pending) p.affine.fill(in, s.conv.c);
  with(in.activation, [&]<Activation act>() {
    if (s.conv.kh == 3 && s.conv.sh == 1) return forward_pieces<act, T, 3, 1>(s, in, w, residual, y, p);
    if (s.conv.kh == 3) return forward_pieces<act, T, 3, 2>(s, in, w, residual, y, p);
    if (s.conv.sh == 1) return forward_pieces<act, T, 5, 1>(s, in, w, residual, y, p);
    forward_pieces<act, T, 5, 2>(s, in, w, residual, y, p);
  });
  if (s.statistics)
    p.moments.finish(
        p.c.pieces, [&](int64_t piece) { return p.c.count(piece) * s.conv.out_w(); }, mean, var);
}

template <class T>
std::size_t depthwise_backward_workspace(const FusedShape& s) {
  Carver carver(nullptr);
  BackwardPlan<T>(s, carver);
  return carver.used();
}

template <class T>
void depthwise_backward(const FusedShape& s, const FusedInput<T>& in, const T* w, const FusedGradient<T>& gradient,
                        const FusedResult<T>& out, void* workspace) {
  Carver carver(workspace);
  const BackwardPlan<T> p(s, carver);
  const int64_t channels = s.conv.c;
  if (s.pending) p.affine.fill(in, channels);
  if (s.statistics) p.assembly.fill(gradient, channels, s.rows());
  if (out.x != nullptr || out.w != nullptr)
    with(s.pending ? in.activation : Activation::none, [&]<Activation act>() {
      const auto run = [&]<bool Pending>() {
        if (s.conv.kh == 3 && s.conv.sh == 1) return backward_pieces<act, Pending, T, 3, 1>(s, in, w, gradient, out.x, p);
        if (s.conv.kh == 3) return backward_pieces<act, Pending, T, 3, 2>(s, in, w, gradient, out.x, p);
        if (s.conv.sh == 1) return backward_pieces<act, Pending, T, 5, 1>(s, in, w, gradient, out.x, p);
        backward_pieces<act, Pending, T, 5, 2>(s, in, w, gradient, out.x, p);
      };
      if (s.pending)
        run.template operator()<true>();
      else if constexpr (act == Activation::none)
        run.template operator()<false>();
    });
  if (out.w != nullptr) add_partials(s.conv.kh * s.conv.kw * channels, p.c.pieces, p.partials, out.w);
  finish_norm(in, channels, p.c.pieces, p.sums, out.norm);
}

#define REWIND_INSTANTIATE(T)                                                                                         \
  template std::size_t depthwise_forward_workspace<T>(const FusedShape&);                                             \
  template void depthwise_forward<T>(const FusedShape&, const FusedInput<T>&, const T*, const T*, T*, T*, T*, void*); \
  template std::size_t depthwise_backward_workspace<T>(const FusedShape&);                                            \
  template void depthwise_backward<T>(const FusedShape&, const FusedInput<T>&, const T*, const FusedGradient<T>&,     \
                                      const FusedResult<T>&, void*);
REWIND_INSTANTIATE(float)
REWIND_INSTANTIATE(double)
#undef REWIND_INSTANTIATE

}  // namespace rewind_lib::kernels::fused
