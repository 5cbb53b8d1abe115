#include <rewind/core/kernels/winograd.h>

#include <rewind/core/kernels/loop.h>
#include <rewind/core/parallel.h>

namespace rewind_lib::kernels::winograd {
namespace {

using std::int64_t;

constexpr int64_t points = 16;  // of a transformed tile
constexpr int64_t channel_step = 16;
constexpr int64_t most_channels = 2048;
constexpr int64_t most_weights = 512 * 512;        // C O
constexpr int64_t most_packed = most_weights / 2;  // of these that are transformed at once: less than they take untransformed
constexpr int64_t chunk_elements = 1 << 18;        // of transformed tiles of x and y: 1 MiB, for L2
constexpr int64_t least_chunk = 8 * block_m;       // tiles, for each time that the weights are read

// Of `tiles`, that are transformed at once for so many outputs.
int64_t chunk_of(const ConvShape& s, int64_t tiles, int64_t outputs) {
  const int64_t most = max_of(least_chunk, chunk_elements / (points * (s.c + outputs)));
  return ceil_div(tiles, max_of(1, ceil_div(tiles, most)));
}

// Elements from one point of n to the next: an odd number of lines, since the points of a tile that met in one set of L1 would not
// fit there.
int64_t apart(int64_t n) { return (n / channel_step | 1) * channel_step; }

// B^T d of a column, and A^T m.
template <class V>
void to_points(const V d[4], V t[4]) {
  t[0] = d[0] - d[2];
  t[1] = d[1] + d[2];
  t[2] = d[2] - d[1];
  t[3] = d[1] - d[3];
}
template <class V>
void from_points(const V m[4], V y[2]) {
  y[0] = (m[0] + m[1]) + m[2];
  y[1] = (m[1] - m[2]) - m[3];
}
// A g.
template <class V>
void gradient_to_points(V g0, V g1, V t[4]) {
  t[0] = g0;
  t[1] = g0 + g1;
  t[2] = g0 - g1;
  t[3] = -g1;
}
// G^T m.
template <class V>
void gradient_from_points(const V m[4], V w[3]) {
  const V half = V{} + 0.5f, sum = half * (m[1] + m[2]);
  w[0] = m[0] + sum;
  w[1] = half * (m[1] - m[2]);
  w[2] = sum + m[3];
}

// B^T d B for the tile at `from`; out(c): where a vector of channels goes, a point every `stride` elements.
template <class T, class Out>
void transform_input(const T* from, int64_t row, int64_t channels, Out out, int64_t stride) {
  using V = Vector<T>;
  for (int64_t c = 0; c < channels; c += lanes<T>) {
    T* to = out(c);
    V t[4][4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      V d[4], column[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) d[i] = load<V>(from + i * row + j * channels + c);
      to_points(d, column);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) t[i][j] = column[i];
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      V p[4];
      to_points(t[i], p);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) store(to + (4 * i + j) * stride, p[j]);
    }
  }
}

// A g A^T for the 2 x 2 pixels of G at `from`; out: a point every `stride` elements.
template <class T>
void transform_gradient(const T* from, int64_t row, int64_t channels, T* out, int64_t stride) {
  using V = Vector<T>;
  for (int64_t c = 0; c < channels; c += lanes<T>) {
    V t[2][4];
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) gradient_to_points(load<V>(from + j * channels + c), load<V>(from + row + j * channels + c), t[j]);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      V p[4];
      gradient_to_points(t[0][i], t[1][i], p);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) store(out + (4 * i + j) * stride + c, p[j]);
    }
  }
}

// A^T m A, finished, to the 2 x 2 pixels at y, which are `pixel` elements apart, rows `row`.
template <class T>
void transform_output(const T* points_of, int64_t stride, int64_t channels, const Epilogue<T>& epilogue, T* y, int64_t pixel,
                      int64_t row) {
  using V = Vector<T>;
  for (int64_t c = 0; c < channels; c += lanes<T>) {
    V t[2][4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      V m[4], column[2];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) m[i] = load<V>(points_of + (4 * i + j) * stride + c);
      from_points(m, column);
      t[0][j] = column[0];
      t[1][j] = column[1];
    }
    const V bias = epilogue.bias == nullptr ? V{} : load<V>(epilogue.bias + c);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      V out[2];
      from_points(t[i], out);
      store(y + i * row + c, activate_lanes(epilogue.activation, out[0] + bias));
      store(y + i * row + pixel + c, activate_lanes(epilogue.activation, out[1] + bias));
    }
  }
}

// G g of a column.
template <class V>
void weight_to_points(V g0, V g1, V g2, V t[4]) {
  const V half = V{} + 0.5f;
  t[0] = g0;
  t[1] = half * ((g0 + g2) + g1);
  t[2] = half * ((g0 + g2) - g1);
  t[3] = g2;
}

// G g G^T of one pair of channels, or a vector of them; tap(i, j): the weight there.
template <class V, class Tap>
void transform_weight(Tap tap, V out[points]) {
  V t[3][4];
#pragma GCC unroll 3
  for (int j = 0; j < 3; ++j) weight_to_points(tap(0, j), tap(1, j), tap(2, j), t[j]);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) weight_to_points(t[0][i], t[1][i], t[2][i], out + 4 * i);
}

}  // namespace

bool covers(const ConvShape& s) {
  return own_microkernel && s.kh == 3 && s.kw == 3 && s.sh == 1 && s.sw == 1 && s.dh == 1 && s.dw == 1 && s.groups == 1 &&
         s.out_h() > 0 && s.out_w() > 0 && s.out_h() % 2 == 0 && s.out_w() % 2 == 0 && s.c > 0 && s.o > 0 &&
         s.c % channel_step == 0 && s.o % channel_step == 0 && s.c <= most_channels && s.o <= most_channels &&
         s.c * s.o <= most_weights;
}

std::int64_t outputs_at_once(const ConvShape& s) {
  const int64_t passes = ceil_div(s.c * s.o, most_packed), step = block_n_max;
  return min_of(s.o, round_up(ceil_div(s.o, passes), step));
}
std::int64_t packed_size(const ConvShape& s) { return points * s.c * outputs_at_once(s); }
std::int64_t sums_size(const ConvShape& s) { return points * s.c * s.o; }
std::int64_t scratch_size(const ConvShape& s, std::int64_t lines) {
  // No less for fewer lines, or outputs, whose chunk may be the larger one.
  const int64_t a_tile = points * (s.c + outputs_at_once(s)), tiles = lines / 2 * (s.out_w() / 2);
  return tile_scratch + 2 * points * channel_step + min_of(tiles * a_tile, max_of(least_chunk * a_tile, chunk_elements));
}

template <class T>
void pack_weight(const ConvShape& s, const T* w, bool turned, int64_t first_output, int64_t outputs, T* packed) {
  using V = Vector<T>;
  constexpr int64_t w_lanes = lanes<T>;
  const int64_t panels = panel_count<T>(outputs), blocks = s.c / w_lanes, a_point = s.c * outputs;
  parallel::for_range(
      panels * blocks, max_of(1, parallel::light_grain / (points * w_lanes * block_n<T>)), [&](int64_t begin, int64_t end) {
        V transformed[points];
        T square[points][block_n<T> * w_lanes];  // [O, C]
        for (int64_t i = begin; i < end; ++i) {
          const int64_t in_packed = i / blocks * block_n<T>, width = min_of(block_n<T>, outputs - in_packed);
          const int64_t first = first_output + in_packed, from = i % blocks * w_lanes;
          T* panel = packed + in_packed * s.c;
          if (turned) {  // w [C, 3, 3, O], seen from its other end
            for (int64_t c = from; c < from + w_lanes; ++c)
              for (int64_t o = 0; o < width; o += w_lanes) {
                transform_weight([&](int a, int b) { return load<V>(w + ((c * 3 + 2 - a) * 3 + 2 - b) * s.o + first + o); },
                                 transformed);
                for (int64_t p = 0; p < points; ++p) store(panel + p * a_point + c * width + o, transformed[p]);
              }
            continue;
          }
          for (int64_t o = 0; o < width; ++o) {
            transform_weight([&](int a, int b) { return load<V>(w + (((first + o) * 3 + a) * 3 + b) * s.c + from); }, transformed);
            for (int64_t p = 0; p < points; ++p) store(square[p] + o * w_lanes, transformed[p]);
          }
          for (int64_t p = 0; p < points; ++p)
            pack(s.c, width, from, w_lanes, square[p], w_lanes, true, panel + p * a_point, int64_t{0}, int64_t{1});
        }
      });
}

template <class T>
void lines_tile(const ConvShape& s, const LinesA<T>& a, const T* packed, int64_t first_output, int64_t outputs, T* y,
                const Epilogue<T>& epilogue, T* scratch, Ahead* ahead) {
  const int64_t across = a.width / 2, tiles = a.lines / 2 * across, row = a.width * s.o;
  const int64_t chunk = chunk_of(s, tiles, outputs), a_point = apart(chunk * s.c), of_y = apart(chunk * outputs);
  T *in = scratch + tile_scratch, *out = in + points * a_point;
  const Epilogue<T> of_outputs{.bias = epilogue.bias == nullptr ? nullptr : epilogue.bias + first_output,
                               .activation = epilogue.activation};
  for (int64_t first = 0; first < tiles; first += chunk) {
    const int64_t count = min_of(chunk, tiles - first);
    for (int64_t t = 0; t < count; ++t) {
      const int64_t line = (first + t) / across * 2, column = (first + t) % across * 2;
      transform_input(
          a.data + a.begin[line] + column * s.c, a.jump, s.c, [&](int64_t c) { return in + t * s.c + c; }, a_point);
    }
    for (int64_t p = 0; p < points; ++p)
      gemm_tile(count, outputs, s.c, in + p * a_point, s.c, false,
                TileB<T>{.data = packed + p * s.c * outputs, .packed = true, .packed_k = s.c}, out + p * of_y, outputs,
                Epilogue<T>{}, scratch, ahead);
    for (int64_t t = 0; t < count; ++t) {
      const int64_t line = (first + t) / across * 2, column = (first + t) % across * 2;
      transform_output(out + t * outputs, of_y, outputs, of_outputs, y + line * row + column * s.o + first_output, s.o, row);
    }
  }
}

template <class T>
void weight_tile(const ConvShape& s, const LinesA<T>& x, const LinesA<T>& g, bool accumulate, T* sums, T* scratch, Ahead* ahead) {
  const int64_t across = x.width / 2, tiles = x.lines / 2 * across, chunk = chunk_of(s, tiles, s.o);
  const int64_t a_point = apart(chunk * s.c), of_g = apart(chunk * s.o);
  T *in = scratch + tile_scratch, *out = in + points * a_point;
  for (int64_t first = 0; first < tiles; first += chunk) {
    const int64_t count = min_of(chunk, tiles - first);
    for (int64_t t = 0; t < count; ++t) {
      const int64_t line = (first + t) / across * 2, column = (first + t) % across * 2;
      const auto in_panel = [&](int64_t c) {
        const int64_t j = c / block_n<T> * block_n<T>;
        return in + j * chunk + t * panel_width<T>(min_of(block_n<T>, s.c - j)) + c - j;
      };
      transform_input(x.data + x.begin[line] + column * s.c, x.jump, s.c, in_panel, a_point);
      transform_gradient(g.data + g.begin[line] + column * s.o, g.jump, s.o, out + t * s.o, of_g);
    }
    for (int64_t p = 0; p < points; ++p)
      gemm_tile(s.o, s.c, count, out + p * of_g, s.o, true, TileB<T>{.data = in + p * a_point, .packed = true, .packed_k = chunk},
                sums + p * s.o * s.c, s.c, Epilogue<T>{.accumulate = accumulate || first > 0}, scratch, ahead);
  }
}

template <class T>
void weight_gradient(const ConvShape& s, const T* sums, T* dw) {
  using V = Vector<T>;
  for (int64_t o = 0; o < s.o; ++o)
    for (int64_t c = 0; c < s.c; c += lanes<T>) {
      V t[3][4];
      for (int j = 0; j < 4; ++j) {
        V m[4], column[3];
        for (int i = 0; i < 4; ++i) m[i] = load<V>(sums + ((4 * i + j) * s.o + o) * s.c + c);
        gradient_from_points(m, column);
        for (int i = 0; i < 3; ++i) t[i][j] = column[i];
      }
      for (int i = 0; i < 3; ++i) {
        V out[3];
        gradient_from_points(t[i], out);
        for (int j = 0; j < 3; ++j) store(dw + ((o * 3 + i) * 3 + j) * s.c + c, out[j]);
      }
    }
}

#define REWIND_INSTANTIATE(T)                                                                               \
  template void pack_weight<T>(const ConvShape&, const T*, bool, int64_t, int64_t, T*);                     \
  template void weight_tile<T>(const ConvShape&, const LinesA<T>&, const LinesA<T>&, bool, T*, T*, Ahead*); \
  template void weight_gradient<T>(const ConvShape&, const T*, T*);                                         \
  template void lines_tile<T>(const ConvShape&, const LinesA<T>&, const T*, int64_t, int64_t, T*, const Epilogue<T>&, T*, Ahead*);
REWIND_INSTANTIATE(float)
REWIND_INSTANTIATE(double)
#undef REWIND_INSTANTIATE

}  // namespace rewind_lib::kernels::winograd
