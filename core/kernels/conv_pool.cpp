#include <rewind/core/kernels/conv_pool.h>

#include <rewind/core/kernels/fused_tile.h>
#include <rewind/core/kernels/microkernel.h>
#include <rewind/core/kernels/pool.h>
#include <rewind/core/kernels/winograd.h>
#include <rewind/core/parallel.h>

#include <algorithm>

namespace rewind_lib::kernels {
namespace {

using fused::Carver;

constexpr int64_t most_lines = 256;
constexpr int64_t image_elements = 1 << 15;  // of an image of the convolution's result, or of x with its padding
constexpr int64_t most_pieces = 32;

/// Images of x with their padding around them: as they lie, where there is none.
struct Padded {
  int64_t row, size;  // elements
  bool copied;

  Padded(const ConvShape& c, bool always = false)
      : row((c.w + 2 * c.pw) * c.c), size((c.h + 2 * c.ph) * row), copied(always || c.ph > 0 || c.pw > 0) {}
  template <class T>
  void load(const ConvShape& c, const T* image, T* to) const {
    const int64_t inside = c.w * c.c;
    for (int64_t h = 0; h < c.h; ++h) std::copy_n(image + h * inside, inside, to + (h + c.ph) * row + c.pw * c.c);
  }
  template <class T>
  void store(const ConvShape& c, const T* from, T* image) const {
    const int64_t inside = c.w * c.c;
    for (int64_t h = 0; h < c.h; ++h) std::copy_n(from + (h + c.ph) * row + c.pw * c.c, inside, image + h * inside);
  }
};

bool simple(const ConvShape& c) { return own_microkernel && c.sh == 1 && c.sw == 1 && c.dh == 1 && c.dw == 1 && c.groups == 1; }

// ---- forward ----

template <class T>
int64_t pitch_of(const ConvShape& c) {
  return round_up(c.o, lanes<T> / 2);
}

/// Whether a whole convolution by the transform, pooled afterwards, has so few multiplications that it is the faster one.
bool transform_pays(const ConvShape& c) { return winograd::covers(c) && c.c >= 32 && c.o >= 32; }

/// Whether an image of the convolution's result stays in the cache until it is pooled.
template <class T>
bool in_cache(const ConvShape& c) {
  return simple(c) && !transform_pays(c) && c.out_h() <= most_lines && c.out_h() * c.out_w() * pitch_of<T>(c) <= image_elements &&
         Padded(c).size <= image_elements;
}

// Channels of y that vectors along its lines serve: the registers hold their sums for two lines.
constexpr int64_t most_along_lines = vector_bytes == 64 ? 8 : 6;

/// Whether a product would leave some of its vectors empty, so that vectors go along the lines of y instead of over its channels:
/// two lines at a time, which a pool of 2x2 pixels makes one, in registers.
template <class T>
bool along_lines(const ConvPoolShape& s) {
  const WindowShape& p = s.pool;
  const bool two_by_two = p.kh == 2 && p.kw == 2 && p.sh == 2 && p.sw == 2 && p.ph == 0 && p.pw == 0 && p.eh == 0 && p.ew == 0;
  return in_cache<T>(s.conv) && two_by_two && p.c > 0 && p.c <= most_along_lines && p.c < lanes<T> && 2 * p.out_w() >= lanes<T> / 2;
}

template <class V, int... lane>
auto every_other(V v, int from, std::integer_sequence<int, lane...>) {
  return from == 0 ? __builtin_shufflevector(v, v, (2 * lane)...) : __builtin_shufflevector(v, v, (2 * lane + 1)...);
}

/// Makes best the larger of best and from, and of their places; the first of equals, and of NaN, stays.
template <class V, class Places>
void take_larger(V from, Places from_place, V& best, Places& place) {
  const auto better = (from > best) | ((from != from) & (best == best));
  best = better ? from : best;
  place = better ? from_place : place;
}

/// The pool of two lines of V's lanes, for all `outputs` channels. x: planes of channels, `plane` elements each, in rows of `row`;
/// w [KH, KW, C, outputs]. first: the pixel at the beginning of the upper line; y and argmax may be written in pixels of `outputs`.
template <class T, class V, int outputs>
void pooled_pair(const ConvPoolShape& s, const T* x, int64_t plane, int64_t row, const T* w, const T* bias, int64_t first, T* y,
                 std::int32_t* argmax) {
  const ConvShape& c = s.conv;
  V sum[2][outputs] = {};
  for (int64_t i = 0; i < c.kh; ++i)
    for (int64_t j = 0; j < c.kw; ++j)
      for (int64_t k = 0; k < c.c; ++k, w += outputs) {
        const T* at = x + k * plane + i * row + j;
        const V upper = load<V>(at), lower = load<V>(at + row);
#pragma GCC unroll 8
        for (int o = 0; o < outputs; ++o) {
          sum[0][o] = multiply_add(upper, splat<V>(w[o]), sum[0][o]);
          sum[1][o] = multiply_add(lower, splat<V>(w[o]), sum[1][o]);
        }
      }
  constexpr int pairs = sizeof(V) / sizeof(T) / 2;
  using Lanes = std::make_integer_sequence<int, pairs>;
  using Place = std::conditional_t<sizeof(T) == 4, std::int32_t, int64_t>;
  typename VectorOf<Place, pairs * sizeof(T)>::type step = {};
  for (int l = 0; l < pairs; ++l) step[l] = 2 * l;
  T values[outputs][pairs];
  Place places[outputs][pairs];
#pragma GCC unroll 8
  for (int o = 0; o < outputs; ++o) {
    auto place = step + static_cast<Place>(first);
    V line = sum[0][o] + bias[o];
    auto best = every_other(line, 0, Lanes{});
    take_larger(every_other(line, 1, Lanes{}), place + 1, best, place);
    line = sum[1][o] + bias[o];
    const auto below = step + static_cast<Place>(first + c.out_w());
    take_larger(every_other(line, 0, Lanes{}), below, best, place);
    take_larger(every_other(line, 1, Lanes{}), below + 1, best, place);
    if (s.activation != Activation::none) {
      place = best <= decltype(best){} ? decltype(place){} - 1 : place;
      if (s.activation == Activation::relu6) place = best >= decltype(best){} + 6 ? decltype(place){} - 1 : place;
      best = activate_lanes(s.activation, best);
    }
    store(values[o], best);
    store(places[o], place);
  }
  for (int l = 0; l < pairs; ++l)
    for (int o = 0; o < outputs; ++o) {
      y[l * outputs + o] = values[o][l];
      argmax[l * outputs + o] = static_cast<std::int32_t>(places[o][l]);
    }
}

template <class T, int outputs>
void pooled_image(const ConvPoolShape& s, const T* x, int64_t plane, int64_t row, const T* w, const T* bias, T* y,
                  std::int32_t* argmax) {
  constexpr int64_t half = lanes<T> / 2;
  const int64_t width = 2 * s.pool.out_w();
  for (int64_t h = 0; h < s.pool.out_h(); ++h, y += width / 2 * outputs, argmax += width / 2 * outputs) {
    const auto part = [&]<class V>(V, int64_t at) {
      pooled_pair<T, V, outputs>(s, x + 2 * h * row + at, plane, row, w, bias, 2 * h * s.conv.out_w() + at, y + at / 2 * outputs,
                                 argmax + at / 2 * outputs);
    };
    int64_t at = 0;
    for (; at + lanes<T> <= width; at += lanes<T>) part(Vector<T>{}, at);
    for (; at < width; at += half) part(typename VectorOf<T, vector_bytes / 2>::type{}, min_of(at, width - half));  // may overlap
  }
}

template <class T>
using PooledImage = void (*)(const ConvPoolShape&, const T*, int64_t, int64_t, const T*, const T*, T*, std::int32_t*);
template <class T>
PooledImage<T> pooled_image_for(int64_t outputs) {
  constexpr PooledImage<T> all[] = {pooled_image<T, 1>, pooled_image<T, 2>, pooled_image<T, 3>, pooled_image<T, 4>,
                                    pooled_image<T, 5>, pooled_image<T, 6>, pooled_image<T, 7>, pooled_image<T, 8>};
  return all[outputs - 1];
}

template <class T>
struct ForwardPlan {
  int64_t k, pitch, grain, pieces, scratch_size = 0;
  bool by_lines = false;
  T *packed = nullptr, *bias = nullptr, *scratch = nullptr, *whole = nullptr, *conv_workspace = nullptr;

  ForwardPlan(const ConvPoolShape& s, Carver& carver) {
    const ConvShape& c = s.conv;
    k = c.kh * c.kw * c.c;
    pitch = pitch_of<T>(c);
    grain = max_of(1, ceil_div(c.n, 2 * most_pieces));
    pieces = parallel::pieces(c.n, grain);
    if (in_cache<T>(c)) {
      by_lines = along_lines<T>(s);
      const Padded padded(c, by_lines);
      packed = carver.take<T>(packed_size(k, pitch));
      bias = carver.take<T>(pitch);
      scratch_size = (by_lines ? 0 : c.out_h() * c.out_w() * pitch) + (padded.copied ? padded.size : 0);
      scratch = carver.take<T>(parallel::threads() * scratch_size);
    } else {
      whole = carver.take<T>(c.n * c.out_h() * c.out_w() * c.o);
      conv_workspace = carver.take<T>(conv2d_forward_workspace(c));
    }
  }
};

}  // namespace

template <class T>
std::size_t conv_pool_forward_workspace(const ConvPoolShape& s) {
  Carver carver(nullptr);
  ForwardPlan<T>(s, carver);
  return carver.used();
}

template <class T>
void conv_pool_forward(const ConvPoolShape& s, const T* x, const T* w, const T* bias, T* y, std::int32_t* argmax, void* workspace) {
  Carver carver(workspace);
  const ForwardPlan<T> p(s, carver);
  const ConvShape& c = s.conv;
  if (p.whole != nullptr) {
    conv2d_forward(c, x, w, bias, Activation::none, p.whole, p.conv_workspace);
    return max_pool2d_forward(s.pool, p.whole, y, argmax, s.activation);
  }
  if (p.by_lines)
    for (int64_t k = 0; k < p.k; ++k)
      for (int64_t o = 0; o < c.o; ++o) p.packed[k * c.o + o] = w[o * p.k + k];
  else
    pack(p.k, c.o, int64_t{0}, p.k, w, p.k, true, p.packed, int64_t{0}, panel_count<T>(c.o));
  for (int64_t o = 0; o < p.pitch; ++o) p.bias[o] = bias != nullptr && o < c.o ? bias[o] : T(0);
  const Padded padded(c, p.by_lines);
  const int64_t plane_row = c.w + 2 * c.pw, plane = (c.h + 2 * c.ph) * plane_row;
  int64_t lines[most_lines];
  for (int64_t h = 0; h < c.out_h(); ++h) lines[h] = h * padded.row;
  const int64_t out_h = s.pool.out_h(), out_row = s.pool.out_w() * c.o;
  parallel::for_pieces(p.pieces, [&](int64_t piece, int worker) {
    T *made = p.scratch + worker * p.scratch_size, *own = p.by_lines ? made : made + c.out_h() * c.out_w() * p.pitch;
    if (padded.copied) std::fill_n(own, padded.size, T(0));
    for (int64_t n = piece * p.grain; n < min_of(c.n, (piece + 1) * p.grain); ++n) {
      const T* image = x + n * c.h * c.w * c.c;
      const int64_t at = n * out_h * out_row;
      if (p.by_lines) {
        for (int64_t h = 0; h < c.h; ++h)
          for (int64_t i = 0; i < c.w; ++i)
            for (int64_t k = 0; k < c.c; ++k) own[k * plane + (h + c.ph) * plane_row + c.pw + i] = *image++;
        pooled_image_for<T>(c.o)(s, own, plane, plane_row, p.packed, p.bias, y + at, argmax + at);
        continue;
      }
      if (padded.copied) {
        padded.load(c, image, own);
        image = own;
      }
      const LinesA<T> windows{.data = image,
                              .begin = lines,
                              .lines = c.out_h(),
                              .width = c.out_w(),
                              .step = c.c,
                              .segments = c.kh,
                              .run = c.kw * c.c,
                              .jump = padded.row};
      lines_tile(windows, p.pitch, p.packed, made, p.pitch, Epilogue<T>{.bias = p.bias});
      for (int64_t h = 0; h < out_h; ++h)
        max_pool2d_row(s.pool, h, made, p.pitch, s.activation, y + at + h * out_row, argmax + at + h * out_row);
    }
  });
}

namespace {

// ---- backward ----

// Images whose maxima take turns, so that what one has added to dx is in the cache when its next one comes.
constexpr int64_t in_turn = 4;

template <class T>
struct BackwardPlan {
  bool half;          // a row of a window fits half a vector
  int64_t run, size;  // elements of a row of a window with what fills up its last vector; of a window
  int64_t images;     // with the elements that a last window reads behind
  int64_t grain, pieces, scratch_size;
  T *filters, *partials, *scratch;
  std::int32_t* begin;  // of a pixel's window, in elements of a padded image

  BackwardPlan(const ConvPoolShape& s, bool dx, Carver& carver) {
    const ConvShape& c = s.conv;
    half = c.kw * c.c <= lanes<T> / 2;
    run = half ? lanes<T> / 2 : round_up(c.kw * c.c, lanes<T>);
    size = c.kh * run;
    images = Padded(c).size + run;
    grain = round_up(ceil_div(c.n, most_pieces / 2), in_turn);
    pieces = parallel::pieces(c.n, grain);
    filters = carver.take<T>(c.o * size);
    partials = carver.take<T>(pieces * c.o * (size + 1));
    scratch_size = in_turn * images * (dx ? 2 : 1);
    scratch = carver.take<T>(parallel::threads() * scratch_size);
    begin = carver.take<std::int32_t>(c.out_h() * c.out_w());
  }
};

// What a filter's maxima in some images add to `vectors` columns of its gradient, and of dx. All sums stay in registers.
template <class T, class V, int rows, int vectors, bool Dx>
void scatter(const ConvPoolShape& s, const BackwardPlan<T>& p, const T* g, const std::int32_t* argmax, int64_t count, int64_t row,
             const T* filter, const T* x, T* dx, T* dw, T* dbias) {
  constexpr int w = sizeof(V) / sizeof(T);
  V sum[rows][vectors], weight[rows][vectors];
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < vectors; ++v) {
      sum[r][v] = load<V>(dw + r * p.run + v * w);
      if constexpr (Dx) weight[r][v] = load<V>(filter + r * p.run + v * w);
    }
  const int64_t outputs = s.pool.out_h() * s.pool.out_w(), channels = s.conv.o;
  T total = *dbias;
  for (int64_t i = 0; i < outputs; ++i)
    for (int64_t n = 0; n < count; ++n) {
      const int64_t at = (n * outputs + i) * channels;
      const std::int32_t pixel = argmax[at];
      const T some = pixel < 0 ? T(0) : g[at];
      const int64_t first = n * p.images + p.begin[pixel < 0 ? 0 : pixel];
      total += some;
      const V factor = splat<V>(some);
#pragma GCC unroll 5
      for (int r = 0; r < rows; ++r)
#pragma GCC unroll 3
        for (int v = 0; v < vectors; ++v) {
          const int64_t place = first + r * row + v * w;
          sum[r][v] = multiply_add(factor, load<V>(x + place), sum[r][v]);
          if constexpr (Dx) store(dx + place, multiply_add(factor, weight[r][v], load<V>(dx + place)));
        }
    }
  *dbias = total;
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < vectors; ++v) store(dw + r * p.run + v * w, sum[r][v]);
}

template <class T, class V, int rows, int vectors>
void backward_pieces(const ConvPoolShape& s, const BackwardPlan<T>& p, const T* g, const std::int32_t* argmax, const T* x, T* dx) {
  const ConvShape& c = s.conv;
  const Padded padded(c, true);
  const int64_t image = c.h * c.w * c.c, outputs = s.pool.out_h() * s.pool.out_w() * c.o;
  parallel::for_pieces(p.pieces, [&](int64_t piece, int worker) {
    T *own = p.scratch + worker * p.scratch_size, *own_dx = own + in_turn * p.images;
    T *dw = p.partials + piece * c.o * (p.size + 1), *dbias = dw + c.o * p.size;
    std::fill_n(dw, c.o * (p.size + 1), T(0));
    std::fill_n(own, in_turn * p.images, T(0));
    for (int64_t n = piece * p.grain; n < min_of(c.n, (piece + 1) * p.grain); n += in_turn) {
      const int64_t count = min_of(in_turn, c.n - n);
      for (int64_t i = 0; i < count; ++i) padded.load(c, x + (n + i) * image, own + i * p.images);
      if (dx != nullptr) std::fill_n(own_dx, in_turn * p.images, T(0));
      for (int64_t o = 0; o < c.o; ++o) {
        const auto run = dx != nullptr ? scatter<T, V, rows, vectors, true> : scatter<T, V, rows, vectors, false>;
        T discarded = 0;
        for (int64_t at = 0; at < p.run; at += vectors * static_cast<int64_t>(sizeof(V) / sizeof(T)))
          run(s, p, g + n * outputs + o, argmax + n * outputs + o, count, padded.row, p.filters + o * p.size + at, own + at,
              own_dx + at, dw + o * p.size + at, at == 0 ? dbias + o : &discarded);
      }
      for (int64_t i = 0; dx != nullptr && i < count; ++i) padded.store(c, own_dx + i * p.images, dx + (n + i) * image);
    }
  });
}

}  // namespace

template <class T>
bool conv_pool_backward_covers(const ConvPoolShape& s) {
  const ConvShape& c = s.conv;
  const int64_t row = c.kw * c.c;
  const int64_t bytes = row * static_cast<int64_t>(sizeof(T));
  return simple(c) && c.n > 0 && row > 0 && ((c.kh == 3 && bytes <= 192) || (c.kh == 5 && bytes <= 128)) &&
         Padded(c).size <= image_elements;
}

template <class T>
std::size_t conv_pool_backward_workspace(const ConvPoolShape& s, bool dx) {
  Carver carver(nullptr);
  BackwardPlan<T>(s, dx, carver);
  return carver.used();
}

template <class T>
void conv_pool_backward(const ConvPoolShape& s, const T* g, const std::int32_t* argmax, const T* x, const T* w, T* dx, T* dw,
                        T* dbias, void* workspace) {
  Carver carver(workspace);
  const BackwardPlan<T> p(s, dx != nullptr, carver);
  const ConvShape& c = s.conv;
  const int64_t row = c.kw * c.c, lines = c.o * c.kh;
  for (int64_t l = 0; dx != nullptr && l < lines; ++l) {
    std::copy_n(w + l * row, row, p.filters + l * p.run);
    std::fill_n(p.filters + l * p.run + row, p.run - row, T(0));
  }
  const Padded padded(c, true);
  for (int64_t h = 0; h < c.out_h(); ++h)
    for (int64_t i = 0; i < c.out_w(); ++i) p.begin[h * c.out_w() + i] = static_cast<std::int32_t>(h * padded.row + i * c.c);

  using Whole = Vector<T>;
  using Half = typename VectorOf<T, vector_bytes / 2>::type;
  // As many columns at once as registers hold, in equal parts.
  const int64_t vectors = p.run / lanes<T>;
  if (c.kh == 3)
    (p.half             ? backward_pieces<T, Half, 3, 1>
     : vectors % 3 == 0 ? backward_pieces<T, Whole, 3, 3>
     : vectors % 2 == 0 ? backward_pieces<T, Whole, 3, 2>
                        : backward_pieces<T, Whole, 3, 1>)(s, p, g, argmax, x, dx);
  else
    (p.half             ? backward_pieces<T, Half, 5, 1>
     : vectors % 2 == 0 ? backward_pieces<T, Whole, 5, 2>
                        : backward_pieces<T, Whole, 5, 1>)(s, p, g, argmax, x, dx);

  const int64_t all = c.o * (p.size + 1);
  for (int64_t piece = 1; piece < p.pieces; ++piece) {
    const T* from = p.partials + piece * all;
    REWIND_INDEPENDENT
    for (int64_t i = 0; i < all; ++i) p.partials[i] += from[i];
  }
  for (int64_t l = 0; l < lines; ++l) std::copy_n(p.partials + l * p.run, row, dw + l * row);
  std::copy_n(p.partials + c.o * p.size, c.o, dbias);
}

#define REWIND_INSTANTIATE(T)                                                                                       \
  template std::size_t conv_pool_forward_workspace<T>(const ConvPoolShape&);                                        \
  template void conv_pool_forward<T>(const ConvPoolShape&, const T*, const T*, const T*, T*, std::int32_t*, void*); \
  template bool conv_pool_backward_covers<T>(const ConvPoolShape&);                                                 \
  template std::size_t conv_pool_backward_workspace<T>(const ConvPoolShape&, bool);                                 \
  template void conv_pool_backward<T>(const ConvPoolShape&, const T*, const std::int32_t*, const T*, const T*, T*, T*, T*, void*);
REWIND_INSTANTIATE(float)
REWIND_INSTANTIATE(double)
#undef REWIND_INSTANTIATE

}  // namespace rewind_lib::kernels
