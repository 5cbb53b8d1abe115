// 1x1 convolutions at stride 1: products over tiles of rows, the tile's x normalised and its y summed while in L2.

#include <rewind/core/kernels/fused_tile.h>
#include <rewind/core/kernels/microkernel.h>
#include <rewind/core/parallel.h>

#include <algorithm>

namespace rewind_lib::kernels::fused {
namespace {

constexpr int64_t forward_elements = 1 << 16;   // of a tile of x and y: 256 KiB
constexpr int64_t backward_elements = 1 << 17;  // of G, z and dz: 512 KiB
constexpr int64_t least_rows = 4 * block_m;
constexpr int64_t most_rows = 40 * block_m;
constexpr int64_t wanted_tiles = 16;
constexpr int64_t most_pieces = 32;
constexpr int64_t partial_elements = 1 << 20;  // of partial sums of dw

struct Cut {
  int64_t tile;   // rows
  int64_t grain;  // rows of a piece, whole tiles
  int64_t pieces;

  int64_t first(int64_t piece) const { return piece * grain; }
  int64_t last(int64_t piece, int64_t rows) const { return min_of(rows, first(piece) + grain); }
  /// Brings in the rows of x that come after the tile at `begin`: the next tile's, or those of the piece that this thread is likely
  /// to take next.
  template <class T>
  void foresee(Ahead& ahead, int64_t rows, int64_t piece, int64_t begin, const T* x, int64_t channels) const {
    int64_t next = begin + tile;
    if (next >= last(piece, rows)) next = first(piece + parallel::threads());
    if (next < rows) ahead.add(x + next * channels, min_of(tile, rows - next) * channels);
  }
};

Cut cut(int64_t rows, int64_t elements_a_row, int64_t elements, int64_t pieces) {
  const int64_t fit = std::clamp(elements / max_of(1, elements_a_row), least_rows, most_rows);
  int64_t tiles = max_of(parallel::pieces(rows, fit), min_of(wanted_tiles, rows / least_rows));
  tiles = max_of(1, tiles);
  Cut c{};
  c.tile = max_of(block_m, parallel::pieces(parallel::pieces(rows, tiles), block_m) * block_m);
  tiles = parallel::pieces(rows, c.tile);
  c.grain = max_of(1, parallel::pieces(tiles, pieces)) * c.tile;
  c.pieces = parallel::pieces(rows, c.grain);
  return c;
}

template <class T>
void pack_weight(int64_t k, int64_t n, const T* w, int64_t ldw, bool transposed, T* packed) {
  const int64_t grain = max_of(1, parallel::light_grain / (k * block_n_max + 1));
  parallel::for_range(panel_count<T>(n), grain,
                      [=](int64_t begin, int64_t end) { pack(k, n, int64_t{0}, k, w, ldw, transposed, packed, begin, end); });
}

template <class T>
struct ForwardPlan {
  Cut c;
  Affine<T> affine{};
  Moments<T> moments{};
  T *packed, *scratch;
  int64_t scratch_size;

  ForwardPlan(const FusedShape& s, Carver& carver) {
    const int64_t in = s.conv.c, out = s.conv.o;
    c = cut(s.rows(), in + out, forward_elements, most_pieces);
    if (s.pending) affine = Affine<T>::carve(carver, in);
    if (s.statistics) moments = Moments<T>::carve(carver, out, c.pieces);
    packed = carver.take<T>(packed_size(in, out));
    scratch_size = tile_scratch + (s.pending ? c.tile * in : 0);
    scratch = carver.take<T>(parallel::threads() * scratch_size);
  }
};

template <class T>
struct BackwardPlan {
  Cut c;
  Affine<T> affine{};
  Assembly<T> assembly{};
  double* sums;
  T *packed, *partials, *scratch;
  int64_t scratch_size;

  BackwardPlan(const FusedShape& s, Carver& carver) {
    const int64_t in = s.conv.c, out = s.conv.o;
    const int64_t pieces = std::clamp<int64_t>(partial_elements / max_of(1, in * out), 8, most_pieces);
    c = cut(s.rows(), out + 2 * in, backward_elements, pieces);
    if (s.pending) affine = Affine<T>::carve(carver, in);
    if (s.statistics) assembly = Assembly<T>::carve(carver, out);
    sums = s.pending ? carver.take<double>(max_of(1, c.pieces) * 2 * in) : nullptr;
    packed = carver.take<T>(packed_size(out, in));
    partials = c.pieces > 1 ? carver.take<T>(c.pieces * in * out) : nullptr;
    scratch_size = tile_scratch + (s.pending ? c.tile * in : 0) + (s.statistics && !s.residual ? c.tile * out : 0);
    scratch = carver.take<T>(parallel::threads() * scratch_size);
  }
};

}  // namespace

template <class T>
std::size_t pointwise_forward_workspace(const FusedShape& s) {
  Carver carver(nullptr);
  ForwardPlan<T>(s, carver);
  return carver.used();
}

template <class T>
void pointwise_forward(const FusedShape& s, const FusedInput<T>& in, const T* w, const T* residual, T* y, T* mean, T* var,
                       void* workspace) {
  Carver carver(workspace);
  const ForwardPlan<T> p(s, carver);
  const int64_t ci = s.conv.c, co = s.conv.o, rows = s.rows();
  if (s.pending) p.affine.fill(in, ci);
  pack_weight(ci, co, w, ci, true, p.packed);
  with(in.activation, [&]<Activation act>() {
    parallel::for_pieces(p.c.pieces, [&](int64_t piece, int worker) {
      T* scratch = p.scratch + worker * p.scratch_size;
      const int64_t first = p.c.first(piece), last = p.c.last(piece, rows);
      for (int64_t begin = first; begin < last; begin += p.c.tile) {
        const int64_t count = min_of(p.c.tile, last - begin);
        const T* a = in.x + begin * ci;
        if (s.pending) {
          normalise<act>(p.affine, ci, count * ci, a, scratch + tile_scratch);
          a = scratch + tile_scratch;
        }
        T* out = y + begin * co;
        Ahead ahead;
        p.c.foresee(ahead, rows, piece, begin, in.x, ci);
        gemm_tile(count, co, ci, a, ci, false, TileB<T>{.data = p.packed, .packed = true, .packed_k = ci}, out, co, Epilogue<T>{},
                  scratch, &ahead);
        if (residual != nullptr) {
          const T* from = residual + begin * co;
          REWIND_INDEPENDENT
          for (int64_t i = 0; i < count * co; ++i) out[i] += from[i];
        }
        if (!s.statistics) continue;
        if (begin == first) p.moments.begin(piece, out + count / 2 * co);
        p.moments.add(piece, count * co, out);
      }
    });
  });
  if (s.statistics)
    p.moments.finish(
        p.c.pieces, [&](int64_t piece) { return min_of(p.c.grain, rows - piece * p.c.grain); }, mean, var);
}

template <class T>
std::size_t pointwise_backward_workspace(const FusedShape& s) {
  Carver carver(nullptr);
  BackwardPlan<T>(s, carver);
  return carver.used();
}

template <class T>
void pointwise_backward(const FusedShape& s, const FusedInput<T>& in, const T* w, const FusedGradient<T>& gradient,
                        const FusedResult<T>& out, void* workspace) {
  Carver carver(workspace);
  const BackwardPlan<T> p(s, carver);
  const int64_t ci = s.conv.c, co = s.conv.o, rows = s.rows();
  if (s.pending) p.affine.fill(in, ci);
  if (s.statistics) p.assembly.fill(gradient, co, rows);
  if (out.x != nullptr) pack_weight(co, ci, w, ci, false, p.packed);
  with(in.activation, [&]<Activation act>() {
    parallel::for_pieces(p.c.pieces, [&](int64_t piece, int worker) {
      T* scratch = p.scratch + worker * p.scratch_size;
      T* normalised = scratch + tile_scratch;
      T* assembled = normalised + (s.pending ? p.c.tile * ci : 0);
      double* sums = s.pending ? p.sums + piece * 2 * ci : nullptr;
      for (int64_t c = 0; sums != nullptr && c < 2 * ci; ++c) sums[c] = 0;
      T* dw = p.c.pieces > 1 ? p.partials + piece * ci * co : out.w;
      const int64_t first = p.c.first(piece), last = p.c.last(piece, rows);
      for (int64_t begin = first; begin < last; begin += p.c.tile) {
        const int64_t count = min_of(p.c.tile, last - begin);
        const T *g = gradient.g + begin * co, *x = in.x + begin * ci;
        Ahead ahead;
        p.c.foresee(ahead, rows, piece, begin, gradient.g, co);
        if (s.statistics) p.c.foresee(ahead, rows, piece, begin, gradient.y, co);
        p.c.foresee(ahead, rows, piece, begin, in.x, ci);
        if (s.statistics) {
          T* to = s.residual ? out.residual + begin * co : assembled;
          assemble(p.assembly, co, count * co, g, gradient.y + begin * co, to);
          g = to;
        }
        if (out.w != nullptr) {
          const T* z = x;
          if (s.pending) {
            normalise<act>(p.affine, ci, count * ci, x, normalised);
            z = normalised;
          }
          gemm_tile(co, ci, count, g, co, true, TileB<T>{.data = z, .ld = ci}, dw, ci, Epilogue<T>{.accumulate = begin > first},
                    scratch, &ahead);
        }
        if (out.x == nullptr) continue;
        T* dx = out.x + begin * ci;
        gemm_tile(count, ci, co, g, co, false, TileB<T>{.data = p.packed, .packed = true, .packed_k = co}, dx, ci, Epilogue<T>{},
                  scratch, &ahead);
        const T* more = out.add == nullptr ? nullptr : out.add + begin * ci;
        if (s.pending) {
          differentiate<act>(p.affine, ci, count * ci, x, dx, dx, sums, sums + ci, static_cast<const T*>(nullptr),
                             static_cast<T*>(nullptr), more);
        } else if (more != nullptr) {
          REWIND_INDEPENDENT
          for (int64_t i = 0; i < count * ci; ++i) dx[i] += more[i];
        }
      }
    });
  });
  if (out.w != nullptr && p.c.pieces > 1) add_partials(ci * co, p.c.pieces, p.partials, out.w);
  if (out.parameters != nullptr) finish_parameters(in, ci, p.c.pieces, p.sums, out.parameters);
}

#define REWIND_INSTANTIATE(T)                                                                                         \
  template std::size_t pointwise_forward_workspace<T>(const FusedShape&);                                             \
  template void pointwise_forward<T>(const FusedShape&, const FusedInput<T>&, const T*, const T*, T*, T*, T*, void*); \
  template std::size_t pointwise_backward_workspace<T>(const FusedShape&);                                            \
  template void pointwise_backward<T>(const FusedShape&, const FusedInput<T>&, const T*, const FusedGradient<T>&,     \
                                      const FusedResult<T>&, void*);
REWIND_INSTANTIATE(float)
REWIND_INSTANTIATE(double)
#undef REWIND_INSTANTIATE

}  // namespace rewind_lib::kernels::fused
