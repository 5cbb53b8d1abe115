#pragma once
// What the fused convolutions share: workspaces, normalising and differentiating a tile, statistics that are combined in
// order. Channels repeat along "lines" of whole vectors, so that narrow images vectorise too.

#include <rewind/core/kernels/activation.h>
#include <rewind/core/kernels/fused.h>
#include <rewind/core/kernels/gemm.h>
#include <rewind/core/kernels/loop.h>
#include <rewind/core/kernels/microkernel.h>
#include <rewind/core/kernels/vector.h>
#include <rewind/core/kernels/vector_math.h>

#include <cmath>
#include <cstddef>
#include <cstdint>

namespace rewind_lib::kernels::fused {

using std::int64_t;

/// Cuts a workspace into arrays; without one, only adds up what they take.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<std::byte*>(base)) {}
  template <class U>
  U* take(int64_t n) {
    U* p = base_ == nullptr ? nullptr : reinterpret_cast<U*>(base_ + used_);
    used_ += (static_cast<std::size_t>(n) * sizeof(U) + 63) / 64 * 64;
    return p;
  }
  std::size_t used() const { return used_; }

 private:
  std::byte* base_;
  std::size_t used_ = 0;
};

template <class F>
void with(Activation act, F&& f) {
  switch (act) {
    case Activation::none: return f.template operator()<Activation::none>();
    case Activation::relu: return f.template operator()<Activation::relu>();
    case Activation::relu6: return f.template operator()<Activation::relu6>();
    case Activation::hardswish: return f.template operator()<Activation::hardswish>();
    case Activation::silu: return f.template operator()<Activation::silu>();
  }
}

template <class T, class V>
inline V sigmoid(V z) {
  T x[sizeof(V) / sizeof(T)];
  store(x, z);
  REWIND_INDEPENDENT
  for (T& value : x) value = math::sigmoid(value);
  return load<V>(x);
}

/// act(z), z being a vector of T, or a T.
template <Activation act, class T, class V>
inline V activated(V z) {
  if constexpr (act == Activation::silu) return z * sigmoid<T>(z);
  if constexpr (act == Activation::hardswish) {
    const V zero = {}, sixth = zero + T(1) / T(6);
    V hard = (z + T(3)) * sixth;
    hard = z <= zero - 3 ? zero : hard;
    return z * (z >= zero + 3 ? zero + 1 : hard);
  }
  if constexpr (goes_by_result(act)) return activate_lanes(act, z);
}

/// The gradient of z from that of act(z), g. Where none is passed on, it is 0, whatever g.
template <Activation act, class T, class V>
inline V gradient_through(V g, V z) {
  const V zero = {};
  if constexpr (act == Activation::silu) {
    const V s = sigmoid<T>(z);
    return g * (s * (z * (1 - s) + 1));
  }
  if constexpr (act == Activation::hardswish) {
    const V slope = z * (zero + T(1) / T(3)) + T(0.5), r = g * (z >= zero + 3 ? zero + 1 : slope);
    return z <= zero - 3 ? zero : r;
  }
  if constexpr (act == Activation::relu || act == Activation::relu6) g = z <= zero ? zero : g;
  if constexpr (act == Activation::relu6) g = z >= zero + 6 ? zero : g;
  return g;
}

/// Elements of a line: channels, repeated until they fill whole vectors.
constexpr int64_t line_of(int64_t channels) {
  for (int64_t fold = 1; fold <= 64; fold *= 2)
    if (fold * channels % 16 == 0 && fold * channels >= 64)
      return fold * channels <= 1024 || fold == 1 ? fold * channels : channels;
  return channels;
}

/// out[j] = f(j % channels) along a line.
template <class T, class F>
void spread(int64_t channels, T* out, F f) {
  const int64_t line = line_of(channels);
  for (int64_t c = 0; c < channels; ++c) out[c] = f(c);
  for (int64_t j = channels; j < line; ++j) out[j] = out[j - channels];
}

/// body(tag, count, j): strips of `count` vectors (of decltype(tag)::type) that cover [0, width). In line, as for_vectors().
template <class T, int Most, class F>
[[gnu::always_inline]] inline void for_strips(int64_t width, F&& body) {
  int64_t j = 0;
  for (; j + Most * lanes<T> <= width; j += Most * lanes<T>) body(VectorTag<Vector<T>>{}, std::integral_constant<int, Most>{}, j);
  if constexpr (Most > vectors_a_line)  // lines that are streamed are written as a whole
    for (constexpr int less = vectors_a_line; j + less * lanes<T> <= width; j += less * lanes<T>)
      body(VectorTag<Vector<T>>{}, std::integral_constant<int, less>{}, j);
  for_vectors<T>(j, width, [&](auto tag, int64_t c) { body(tag, std::integral_constant<int, 1>{}, c); });
}

/// z = (x - mean) scale + beta, along a line.
template <class T>
struct Affine {
  T *mean, *scale, *beta;

  static Affine carve(Carver& carver, int64_t channels) {
    const int64_t line = line_of(channels);
    T* mean = carver.take<T>(line);
    T* scale = carver.take<T>(line);
    return {mean, scale, carver.take<T>(line)};
  }
  void fill(const FusedInput<T>& in, int64_t channels) const {
    spread(channels, mean, [&](int64_t c) { return in.mean[c]; });
    spread(channels, scale, [&](int64_t c) {
      const double rstd = 1 / std::sqrt(static_cast<double>(in.var[c]) + in.eps);
      return static_cast<T>(in.gamma == nullptr ? rstd : rstd * static_cast<double>(in.gamma[c]));
    });
    spread(channels, beta, [&](int64_t c) { return in.beta == nullptr ? T(0) : in.beta[c]; });
  }
};

/// Asks for what lies 8 KiB further on, into L2. Hardware foresees what a loop reads up to the end of a page only, and not all of
/// that where the loop writes, too: reading from memory while writing to L2 goes at 16 GB/s on a core without this, and at 28 with
/// it.
template <class T>
inline void foresee_far(const T* x) {
  __builtin_prefetch(x + 8192 / sizeof(T), 0, 2);
}

/// out = act(z) for n elements, whole rows. Cold: x comes from memory.
template <Activation act, bool Cold = false, class T>
void normalise(Affine<T> p, int64_t channels, int64_t n, const T* x, T* out) {
  const int64_t line = line_of(channels);
  for (int64_t i = 0; i < n; i += line)
    for_vectors<T>(0, min_of(line, n - i), [&](auto tag, int64_t j) {
      using V = typename decltype(tag)::type;
      if constexpr (Cold) foresee_far(x + i + j);
      const V z = multiply_add(load<V>(x + i + j) - load<V>(p.mean + j), load<V>(p.scale + j), load<V>(p.beta + j));
      store(out + i + j, activated<act, T>(z));
    });
}

/// From the gradient da of act(z), and dz that of z: dx = dz scale, first += sum of dz, second += sum of dz (x - mean).
/// dx may be da. With Settled, act goes by what was made, `made`, where that is not null, and `dz`, when not null, takes dz. `add`,
/// when not null, is added to dx, with the same rounding as by another pass.
template <Activation act, bool Settled = false, class T>
void differentiate(Affine<T> p, int64_t channels, int64_t n, const T* x, const T* da, T* dx, double* first, double* second,
                   const T* made = nullptr, T* dz = nullptr, const T* add = nullptr, bool past = false) {
  const int64_t line = line_of(channels);
  const auto part = [&](int64_t start, int64_t lines, int64_t width) __attribute__((always_inline)) {
    for_strips<T, 2>(width, [&](auto tag, auto count, int64_t j) {
      using V = typename decltype(tag)::type;
      constexpr int nv = decltype(count)::value;
      constexpr int w = sizeof(V) / sizeof(T);
      V mean[nv], scale[nv], beta[nv], a[nv] = {}, b[nv] = {};
      for (int v = 0; v < nv; ++v) {
        mean[v] = load<V>(p.mean + j + v * w);
        scale[v] = load<V>(p.scale + j + v * w);
        beta[v] = load<V>(p.beta + j + v * w);
      }
      for (int64_t r = 0, i = start + j; r < lines; ++r, i += line)
#pragma GCC unroll 2
        for (int v = 0; v < nv; ++v) {
          if constexpr (Settled) {  // these come from memory, in strips that hardware does not foresee: the next n elements
            __builtin_prefetch(x + i + v * w + n, 0, 2);
            __builtin_prefetch(da + i + v * w + n, 0, 2);
            if (made != nullptr) __builtin_prefetch(made + i + v * w + n, 0, 2);
          }
          const V d = load<V>(x + i + v * w) - mean[v];
          V z = multiply_add(d, scale[v], beta[v]);
          if constexpr (Settled)
            if (made != nullptr) z = load<V>(made + i + v * w);
          const V g = gradient_through<act, T>(load<V>(da + i + v * w), z);
          if constexpr (Settled)
            if (dz != nullptr) store(dz + i + v * w, g);
          V d_x = g * scale[v];
          if (add != nullptr) d_x = rounded(d_x) + load<V>(add + i + v * w);
          stream_line(dx + i + v * w, d_x, past);
          a[v] += g;
          b[v] = multiply_add(g, d, b[v]);
        }
      T s[nv * w], q[nv * w];
      for (int v = 0; v < nv; ++v) {
        store(s + v * w, a[v]);
        store(q + v * w, b[v]);
      }
      for (int64_t l = 0, c = j % channels; l < nv * w; ++l, c = c + 1 == channels ? 0 : c + 1) {
        first[c] += static_cast<double>(s[l]);
        second[c] += static_cast<double>(q[l]);
      }
    });
  };
  part(0, n / line, line);
  if (n % line > 0) part(n / line * line, 1, n % line);
}

/// sum += y - shift, squares += (y - shift)^2, by channel; shift is a line.
template <class T>
void add_moments(int64_t channels, int64_t n, const T* y, const T* shift, double* sum, double* squares, T* to = nullptr) {
  const int64_t line = line_of(channels);
  const auto part = [&](int64_t start, int64_t lines, int64_t width) __attribute__((always_inline)) {
    for_strips<T, 4>(width, [&](auto tag, auto count, int64_t j) {
      using V = typename decltype(tag)::type;
      constexpr int nv = decltype(count)::value;
      constexpr int w = sizeof(V) / sizeof(T);
      V base[nv], a[nv] = {}, b[nv] = {};
      for (int v = 0; v < nv; ++v) base[v] = load<V>(shift + j + v * w);
      for (int64_t r = 0, i = start + j; r < lines; ++r, i += line)
#pragma GCC unroll 4
        for (int v = 0; v < nv; ++v) {
          const V value = load<V>(y + i + v * w), d = value - base[v];
          if (to != nullptr) stream_line(to + i + v * w, value, true);
          a[v] += d;
          b[v] = multiply_add(d, d, b[v]);
        }
      T s[nv * w], q[nv * w];
      for (int v = 0; v < nv; ++v) {
        store(s + v * w, a[v]);
        store(q + v * w, b[v]);
      }
      for (int64_t l = 0, c = j % channels; l < nv * w; ++l, c = c + 1 == channels ? 0 : c + 1) {
        sum[c] += static_cast<double>(s[l]);
        squares[c] += static_cast<double>(q[l]);
      }
    });
  };
  part(0, n / line, line);
  if (n % line > 0) part(n / line * line, 1, n % line);
}

/// add_moments() of a block of y, `width` columns in whole vectors, in L1: it is streamed to `to`, where rows are ld elements
/// apart, a line of a row at a time.
template <class T>
void stream_moments(int64_t rows, int64_t width, const T* y, const T* shift, T* sum, T* squares, T* to, int64_t ld) {
  for_strips<T, vectors_a_line>(width, [&](auto tag, auto count, int64_t j) {
    using V = typename decltype(tag)::type;
    constexpr int nv = decltype(count)::value, w = sizeof(V) / sizeof(T);
    V base[nv], a[nv], b[nv];
    for (int v = 0; v < nv; ++v) {
      base[v] = load<V>(shift + j + v * w);
      a[v] = load<V>(sum + j + v * w);
      b[v] = load<V>(squares + j + v * w);
    }
    for (int64_t r = 0; r < rows; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < nv; ++v) {
        const V value = load<V>(y + r * width + j + v * w), d = value - base[v];
        stream_line(to + r * ld + j + v * w, value, true);
        a[v] += d;
        b[v] = multiply_add(d, d, b[v]);
      }
    for (int v = 0; v < nv; ++v) {
      store(sum + j + v * w, a[v]);
      store(squares + j + v * w, b[v]);
    }
  });
}

/// differentiate() of a block of da, `width` columns from `first` on: dx is streamed, a line of a row at a time. x, dx and add (or
/// null) point at the block, rows are ld elements apart.
template <Activation act, class T>
void stream_differentiated(Affine<T> p, int64_t first, int64_t rows, int64_t width, const T* da, const T* x, T* dx, const T* add,
                           int64_t ld, T* sum, T* products) {
  for_strips<T, vectors_a_line>(width, [&](auto tag, auto count, int64_t j) {
    using V = typename decltype(tag)::type;
    constexpr int nv = decltype(count)::value, w = sizeof(V) / sizeof(T);
    V mean[nv], scale[nv], beta[nv], a[nv], b[nv];
    for (int v = 0; v < nv; ++v) {
      mean[v] = load<V>(p.mean + first + j + v * w);
      scale[v] = load<V>(p.scale + first + j + v * w);
      beta[v] = load<V>(p.beta + first + j + v * w);
      a[v] = load<V>(sum + first + j + v * w);
      b[v] = load<V>(products + first + j + v * w);
    }
    for (int64_t r = 0; r < rows; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < nv; ++v) {
        const V d = load<V>(x + r * ld + j + v * w) - mean[v];
        const V g = gradient_through<act, T>(load<V>(da + r * width + j + v * w), multiply_add(d, scale[v], beta[v]));
        V d_x = g * scale[v];
        if (add != nullptr) d_x = rounded(d_x) + load<V>(add + r * ld + j + v * w);
        stream_line(dx + r * ld + j + v * w, d_x, true);
        a[v] += g;
        b[v] = multiply_add(g, d, b[v]);
      }
    for (int v = 0; v < nv; ++v) {
      store(sum + first + j + v * w, a[v]);
      store(products + first + j + v * w, b[v]);
    }
  });
}

/// Shifted sums of every piece, combined in order (Chan et al. 1983).
template <class T>
struct Moments {
  int64_t channels;
  double *total, *sums;  // [2, C]; [pieces, 2, C]
  T* shifts;             // [pieces, line]

  static Moments carve(Carver& carver, int64_t channels, int64_t pieces) {
    double* total = carver.take<double>(2 * channels);
    double* sums = carver.take<double>(pieces * 2 * channels);
    return {channels, total, sums, carver.take<T>(pieces * line_of(channels))};
  }
  T* shift(int64_t piece) const { return shifts + piece * line_of(channels); }
  double* sum(int64_t piece) const { return sums + piece * 2 * channels; }
  /// shift: a typical value of every channel of the piece.
  void begin(int64_t piece, const T* from) const {
    spread(channels, shift(piece), [&](int64_t c) { return from[c]; });
    for (int64_t c = 0; c < 2 * channels; ++c) sum(piece)[c] = 0;
  }
  void add(int64_t piece, int64_t n, const T* y, T* to = nullptr) const {
    add_moments(channels, n, y, shift(piece), sum(piece), sum(piece) + channels, to);
  }
  /// Sums of y - shift and of its squares that were made elsewhere.
  void add(int64_t piece, const T* s, const T* squares) const {
    for (int64_t c = 0; c < channels; ++c) {
      sum(piece)[c] += static_cast<double>(s[c]);
      sum(piece)[channels + c] += static_cast<double>(squares[c]);
    }
  }
  /// count(piece): rows of the piece.
  template <class Count>
  void finish(int64_t pieces, Count count, T* mean, T* var) const {
    double *m = total, *squares = total + channels, before = 0;
    for (int64_t c = 0; c < 2 * channels; ++c) total[c] = 0;
    for (int64_t p = 0; p < pieces; ++p) {
      const double n = static_cast<double>(count(p));
      const double share = n / (before + n), weight = before * share, per_row = 1 / n;
      const double *s1 = sum(p), *s2 = sum(p) + channels;
      const T* from = shift(p);
      for (int64_t c = 0; c < channels; ++c) {
        const double delta = static_cast<double>(from[c]) + s1[c] * per_row - m[c];
        const double within = s2[c] - s1[c] * s1[c] * per_row;
        m[c] += delta * share;
        squares[c] += (within < 0 ? 0 : within) + delta * delta * weight;
      }
      before += n;
    }
    for (int64_t c = 0; c < channels; ++c) {
      mean[c] = static_cast<T>(m[c]);
      var[c] = static_cast<T>(squares[c] / before);
    }
  }
};

/// G = g + ((y - mean) slope + constant), along a line.
template <class T>
struct Assembly {
  T *mean, *slope, *constant;

  static Assembly carve(Carver& carver, int64_t channels) {
    const int64_t line = line_of(channels);
    T* mean = carver.take<T>(line);
    T* slope = carver.take<T>(line);
    return {mean, slope, carver.take<T>(line)};
  }
  void fill(const FusedGradient<T>& g, int64_t channels, int64_t rows) const {
    const double share = 1 / static_cast<double>(rows);
    spread(channels, mean, [&](int64_t c) { return g.mean[c]; });
    spread(channels, slope, [&](int64_t c) { return static_cast<T>(2 * share * static_cast<double>(g.g_var[c])); });
    spread(channels, constant, [&](int64_t c) { return static_cast<T>(share * static_cast<double>(g.g_mean[c])); });
  }
};

/// Cold: g and y come from memory.
template <bool Cold = false, class T>
void assemble(Assembly<T> p, int64_t channels, int64_t n, const T* g, const T* y, T* out) {
  const int64_t line = line_of(channels);
  for (int64_t i = 0; i < n; i += line)
    for_vectors<T>(0, min_of(line, n - i), [&](auto tag, int64_t j) {
      using V = typename decltype(tag)::type;
      if constexpr (Cold) {
        foresee_far(g + i + j);
        foresee_far(y + i + j);
      }
      const V t = multiply_add(load<V>(y + i + j) - load<V>(p.mean + j), load<V>(p.slope + j), load<V>(p.constant + j));
      store(out + i + j, load<V>(g + i + j) + t);
    });
}

/// As assemble(), of all rows, by all threads.
template <class T>
void assemble_rows(const Assembly<T>& p, int64_t rows, int64_t channels, const FusedGradient<T>& gradient, T* out) {
  const int64_t fold = line_of(channels) / channels, grain = max_of(1, parallel::light_grain / (channels * fold)) * fold;
  parallel::for_range(rows, grain, [&](int64_t begin, int64_t end) {
    const int64_t at = begin * channels;
    assemble(p, channels, (end - begin) * channels, gradient.g + at, gradient.y + at, out + at);
  });
}

/// As assemble(), of `width` channels from `first` on: rows of g and y are `ld` elements apart, those of out follow each other.
template <class T>
void assemble_part(Assembly<T> p, int64_t first, int64_t width, int64_t ld, int64_t rows, const T* g, const T* y, T* out) {
  if (width == ld) return assemble(p, ld, rows * ld, g, y, out);
  const Assembly<T> part{p.mean + first, p.slope + first, p.constant + first};
  for (int64_t i = 0; i < rows; ++i) assemble(part, width, width, g + i * ld, y + i * ld, out + i * width);
}

/// The sums of differentiate() a piece, added in order, as gradients of gamma, beta, mean and var.
template <class T>
void finish_norm(const FusedInput<T>& in, int64_t channels, int64_t pieces, double* sums, const NormGradient<T>& out) {
  if (!out.any()) return;
  for (int64_t p = 1; p < pieces; ++p)
    for (int64_t c = 0; c < 2 * channels; ++c) sums[c] += sums[p * 2 * channels + c];
  if (pieces == 0)
    for (int64_t c = 0; c < 2 * channels; ++c) sums[c] = 0;
  for (int64_t c = 0; c < channels; ++c) {
    const double rstd = 1 / std::sqrt(static_cast<double>(in.var[c]) + in.eps);
    const double scale = in.gamma == nullptr ? rstd : rstd * static_cast<double>(in.gamma[c]);
    if (out.gamma != nullptr) out.gamma[c] = static_cast<T>(sums[channels + c] * rstd);
    if (out.beta != nullptr) out.beta[c] = static_cast<T>(sums[c]);
    if (out.mean != nullptr) out.mean[c] = static_cast<T>(-scale * sums[c]);
    if (out.var != nullptr) out.var[c] = static_cast<T>(-0.5 * scale * rstd * rstd * sums[channels + c]);
  }
}

/// Brings in rows of x, `row` elements each, from `next` on, at most `some`, as far as they are in [0, all); x may be null.
template <class T>
void foresee(Ahead& ahead, const T* x, int64_t row, int64_t all, int64_t next, int64_t some) {
  if (x != nullptr && next >= 0 && next < all) ahead.add(x + next * row, min_of(some, all - next) * row);
}

/// Whether dw is made in partial sums, for pieces of y.
bool weight_in_pieces(const ConvShape&);
/// Whether convolutions that nothing is fused with should go by the dense kernels below all the same.
bool covers_plain(const ConvShape&);

// One kind of convolution each.
template <class T>
std::size_t pointwise_forward_workspace(const FusedShape&);
template <class T>
void pointwise_forward(const FusedShape&, const FusedInput<T>&, const T* w, const T* residual, T* y, T* mean, T* var, void*);
template <class T>
std::size_t pointwise_backward_workspace(const FusedShape&);
template <class T>
void pointwise_backward(const FusedShape&, const FusedInput<T>&, const T* w, const FusedGradient<T>&, const FusedResult<T>&, void*);

template <class T>
std::size_t depthwise_forward_workspace(const FusedShape&);
template <class T>
void depthwise_forward(const FusedShape&, const FusedInput<T>&, const T* w, const T* residual, T* y, T* mean, T* var, void*);
template <class T>
std::size_t depthwise_backward_workspace(const FusedShape&);
template <class T>
void depthwise_backward(const FusedShape&, const FusedInput<T>&, const T* w, const FusedGradient<T>&, const FusedResult<T>&, void*);

template <class T>
std::size_t dense_forward_workspace(const FusedShape&);
template <class T>
void dense_forward(const FusedShape&, const FusedInput<T>&, const T* w, const T* residual, T* y, T* mean, T* var, void*,
                   const Epilogue<T>& epilogue = {});
template <class T>
std::size_t dense_backward_workspace(const FusedShape&);
template <class T>
void dense_backward(const FusedShape&, const FusedInput<T>&, const T* w, const FusedGradient<T>&, const FusedResult<T>&, void*);

}  // namespace rewind_lib::kernels::fused
