#include <rewind/core/kernels/winograd.h>

#include <rewind/core/kernels/loop.h>
#include <rewind/core/parallel.h>

namespace rewind_lib::kernels::winograd {
namespace {

using std::int64_t;

constexpr int64_t points = 16;  // of a transformed tile
constexpr int64_t channel_step = block_n_max;
constexpr int64_t least_channels = 32;
constexpr int64_t most_weights = 256 * 256;   // C O
constexpr int64_t chunk_elements = 1 << 18;   // of transformed tiles of x and y: 1 MiB, for L2
constexpr int64_t least_chunk = 2 * block_m;  // tiles, for each time that the weights are read

int64_t chunk_of(const ConvShape& s) { return max_of(least_chunk, chunk_elements / (points * (s.c + s.o)) / block_m * block_m); }

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

// B^T d B for the tile at `from`; out: a point every `stride` elements.
template <class T>
void transform_input(const T* from, int64_t row, int64_t channels, T* out, int64_t stride) {
  using V = Vector<T>;
  for (int64_t c = 0; c < channels; c += lanes<T>) {
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
      for (int j = 0; j < 4; ++j) store(out + (4 * i + j) * stride + c, p[j]);
    }
  }
}

// A^T m A, finished, to the 2 x 2 pixels at y, whose rows are `row` elements apart.
template <class T>
void transform_output(const T* points_of, int64_t stride, int64_t channels, const Epilogue<T>& epilogue, T* y, int64_t row) {
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
      store(y + i * row + channels + c, activate_lanes(epilogue.activation, out[1] + bias));
    }
  }
}

// (G g G^T) at `point` of one pair of channels; tap(i, j) is the weight there.
template <class V, class Tap>
V weight_at(int64_t point, Tap tap) {
  const auto mix = [](int64_t p, V a, V b, V c) {
    const V half = V{} + 0.5f;
    return p == 0 ? a : p == 3 ? c : p == 1 ? half * ((a + c) + b) : half * ((a + c) - b);
  };
  const int64_t i = point / 4, j = point % 4;
  V row[3];
  for (int k = 0; k < 3; ++k) row[k] = mix(i, tap(0, k), tap(1, k), tap(2, k));
  return mix(j, row[0], row[1], row[2]);
}

}  // namespace

bool covers(const ConvShape& s) {
  return own_microkernel && s.kh == 3 && s.kw == 3 && s.sh == 1 && s.sw == 1 && s.dh == 1 && s.dw == 1 && s.groups == 1 &&
         s.out_h() > 0 && s.out_w() > 0 && s.out_h() % 2 == 0 && s.out_w() % 2 == 0 && s.c % channel_step == 0 &&
         s.o % channel_step == 0 && s.c >= least_channels && s.o >= least_channels && s.c * s.o <= most_weights;
}

std::int64_t packed_size(const ConvShape& s) { return points * s.c * s.o; }
std::int64_t scratch_size(const ConvShape& s) { return tile_scratch + chunk_of(s) * points * (s.c + s.o); }

template <class T>
void pack_weight(const ConvShape& s, const T* w, bool turned, T* packed) {
  using V = Vector<T>;
  constexpr int64_t width = block_n<T>;
  const int64_t panels = s.o / width;
  parallel::for_range(points * panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t point = i / panels, first = i % panels * width;
      T* panel = packed + (point * s.o + first) * s.c;
      for (int64_t c = 0; c < s.c; ++c) {
        if (turned) {  // w [C, 3, 3, O], seen from its other end
          for (int64_t o = 0; o < width; o += lanes<T>)
            store(panel + c * width + o,
                  weight_at<V>(point, [&](int a, int b) { return load<V>(w + ((c * 3 + 2 - a) * 3 + 2 - b) * s.o + first + o); }));
        } else {
          for (int64_t o = 0; o < width; ++o)
            panel[c * width + o] = weight_at<T>(point, [&](int a, int b) { return w[(((first + o) * 3 + a) * 3 + b) * s.c + c]; });
        }
      }
    }
  });
}

template <class T>
void lines_tile(const ConvShape& s, const LinesA<T>& a, const T* packed, T* y, const Epilogue<T>& epilogue, T* scratch) {
  const int64_t chunk = chunk_of(s), across = a.width / 2, tiles = a.lines / 2 * across, row = a.width * s.o;
  T *in = scratch + tile_scratch, *out = in + chunk * points * s.c;
  for (int64_t first = 0; first < tiles; first += chunk) {
    const int64_t count = min_of(chunk, tiles - first);
    for (int64_t t = 0; t < count; ++t) {
      const int64_t line = (first + t) / across * 2, column = (first + t) % across * 2;
      transform_input(a.data + a.begin[line] + column * s.c, a.jump, s.c, in + t * s.c, chunk * s.c);
    }
    for (int64_t p = 0; p < points; ++p)
      gemm_tile(count, s.o, s.c, in + p * chunk * s.c, s.c, false,
                TileB<T>{.data = packed + p * s.c * s.o, .packed = true, .packed_k = s.c}, out + p * chunk * s.o, s.o,
                Epilogue<T>{}, scratch);
    for (int64_t t = 0; t < count; ++t) {
      const int64_t line = (first + t) / across * 2, column = (first + t) % across * 2;
      transform_output(out + t * s.o, chunk * s.o, s.o, epilogue, y + line * row + column * s.o, row);
    }
  }
}

#define REWIND_INSTANTIATE(T)                                         \
  template void pack_weight<T>(const ConvShape&, const T*, bool, T*); \
  template void lines_tile<T>(const ConvShape&, const LinesA<T>&, const T*, T*, const Epilogue<T>&, T*);
REWIND_INSTANTIATE(float)
REWIND_INSTANTIATE(double)
#undef REWIND_INSTANTIATE

}  // namespace rewind_lib::kernels::winograd
