// 1x1 convolutions at stride 1: products over tiles of rows, the tile's x normalised and its y summed while in L2.

#include <rewind/core/error.h>
#include <rewind/core/kernels/fused_tile.h>
#include <rewind/core/kernels/microkernel.h>
#include <rewind/core/parallel.h>

#include <algorithm>

namespace rewind_lib::kernels::fused {
namespace {

constexpr int64_t forward_elements = 1 << 16;   // of a tile of x and y: 256 KiB
constexpr int64_t backward_elements = 1 << 17;  // of G, z and dz: 512 KiB
constexpr int64_t least_rows = 4 * block_m;
constexpr int64_t least_shared_rows = 2 * block_m;  // where more would leave a thread without any
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
  /// Where the tile begins that comes after the one at `begin`: in this piece, or in the one that this worker is likely to get
  /// next; negative, or `rows` and more, if there is none.
  int64_t next(int64_t rows, int64_t piece, int worker, int64_t begin) const {
    return begin + tile < last(piece, rows) ? begin + tile : first(parallel::next_piece(piece, worker));
  }
};

Cut cut(int64_t rows, int64_t elements_a_row, int64_t elements, int64_t pieces) {
  const int64_t fit = std::clamp(elements / max_of(1, elements_a_row), least_rows, most_rows);
  int64_t tiles = max_of(ceil_div(rows, fit), min_of(wanted_tiles, rows / least_shared_rows));
  tiles = max_of(1, tiles);
  Cut c{};
  c.tile = max_of(1, ceil_div(rows, tiles));
  tiles = parallel::pieces(rows, c.tile);
  c.grain = max_of(1, ceil_div(tiles, pieces)) * c.tile;
  c.pieces = parallel::pieces(rows, c.grain);
  return c;
}

// Whether weights are read as they lie, in dot products. That pays where rows are few and, with 32 registers, where products are so
// deep that packed ones store and load y several times.
bool reads_weights_in_place(int64_t rows, int64_t tile_rows, int64_t in) {
  constexpr int64_t deep = 512;
  return tile_rows * in <= dots_elements && (dots_pay(rows, in) || (own_microkernel && vector_bytes == 64 && in >= deep));
}

template <class T>
struct ForwardPlan {
  Cut c;
  Affine<T> affine{};
  Moments<T> moments{};
  T *packed, *scratch;
  int64_t scratch_size;
  bool dots;
  bool past;  // y is streamed, from a scratch in L2 or, where one panel of depth makes it and nothing is added, from blocks in L1

  ForwardPlan(const FusedShape& s, Carver& carver) {
    const int64_t in = s.conv.c, out = s.conv.o;
    c = cut(s.rows(), in + out, forward_elements, most_pieces);
    if (s.pending) affine = Affine<T>::carve(carver, in);
    if (s.statistics) moments = Moments<T>::carve(carver, out, c.pieces);
    dots = reads_weights_in_place(s.rows(), c.tile, in);
    packed = dots ? nullptr : carver.take<T>(packed_size(in, out));
    past = s.statistics && streams_lines<T>(out, s.rows() * out);
    scratch_size = tile_scratch + (s.pending ? c.tile * in : 0) + (past ? max_of(2, c.tile) * out : 0);
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
  bool apart;  // a tile of dx is made in a scratch in L2: what is added to it may lie where it goes, or it is streamed
  // dw: in partial sums, a piece of rows each; or, where these would be larger than G and z, in pieces of dw itself, once the tiles
  // have left G and z (in panels) behind as a whole.
  bool by_weight;
  T *whole_g, *whole_z;
  int64_t outputs, inputs, dw_pieces;  // of such a piece; only one of them cuts

  BackwardPlan(const FusedShape& s, Carver& carver) {
    const int64_t in = s.conv.c, out = s.conv.o, rows = s.rows();
    const int64_t pieces = std::clamp<int64_t>(partial_elements / max_of(1, in * out), 8, most_pieces);
    c = cut(rows, out + 2 * in, backward_elements, pieces);
    by_weight = own_microkernel && s.dw && c.pieces * in * out > rows * (in + out);
    if (by_weight) c = cut(rows, out + 2 * in, backward_elements, most_pieces);
    if (s.pending) affine = Affine<T>::carve(carver, in);
    if (s.statistics) assembly = Assembly<T>::carve(carver, out);
    sums = s.pending ? carver.take<double>(max_of(1, c.pieces) * 2 * in) : nullptr;
    packed = carver.take<T>(packed_size(out, in));
    const bool own_g = s.statistics && !s.residual;
    partials = !by_weight && c.pieces > 1 ? carver.take<T>(c.pieces * in * out) : nullptr;
    whole_g = by_weight && own_g ? carver.take<T>(rows * out) : nullptr;
    whole_z = by_weight ? carver.take<T>(packed_size(rows, in)) : nullptr;
    outputs = out < in ? out : round_up(ceil_div(out, wanted_tiles), block_m);
    inputs = out < in ? round_up(ceil_div(in, wanted_tiles), block_n<T>) : in;
    dw_pieces = parallel::pieces(out, max_of(1, outputs)) * parallel::pieces(in, max_of(1, inputs));
    apart = s.dx && (s.add || (s.pending && streams_lines<T>(in, rows * in)));
    const int64_t used = tile_scratch + (s.pending ? c.tile * in : 0) + (own_g && !by_weight ? c.tile * out : 0) +
                         (apart ? max_of(2, c.tile) * in : 0);
    scratch_size = parallel::worker_stride<T>(used, max_of(in, out));
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
  if (!p.dots) pack_whole(ci, co, w, ci, true, p.packed);
  const TileB<T> weight = p.dots ? TileB<T>{.data = w, .ld = ci, .transposed = true, .dots = true}
                                 : TileB<T>{.data = p.packed, .packed = true, .packed_k = ci};
  const bool past = p.past && streams_lines(y, co, rows * co);
  // Where a line is a row, that adds the same numbers in the same order as Moments does, and the bits are those of a tile.
  const bool in_blocks = own_microkernel && past && !p.dots && residual == nullptr && ci <= block_k && line_of(co) == co;
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
        T *to = y + begin * co, *out = past ? scratch + tile_scratch + (s.pending ? p.c.tile * ci : 0) : to;
        Ahead ahead;
        const int64_t next = p.c.next(rows, piece, worker, begin);
        foresee(ahead, in.x, ci, rows, next, p.c.tile);
        if (in_blocks) {
          if (begin == first) {
            gemm_tile(1, co, ci, a + count / 2 * ci, ci, false, weight, out, co, Epilogue<T>{}, scratch);
            p.moments.begin(piece, out);
          }
          std::fill_n(out, 2 * co, T(0));
          const T* shift = p.moments.shift(piece);
          product_in_blocks(count, co, ci, a, ci, p.packed, ahead,
                            [=](int64_t i, int64_t j, int64_t r, int64_t width, const T* block) {
                              stream_moments(r, width, block, shift + j, out + j, out + co + j, to + i * co + j, co);
                            });
          p.moments.add(piece, out, out + co);
          continue;
        }
        foresee(ahead, residual, co, rows, next, p.c.tile);
        gemm_tile(count, co, ci, a, ci, false, weight, out, co, Epilogue<T>{}, scratch, &ahead);
        if (residual != nullptr) {
          const T* from = residual + begin * co;
          REWIND_INDEPENDENT
          for (int64_t i = 0; i < count * co; ++i) out[i] += from[i];
        }
        if (!s.statistics) continue;
        if (begin == first) p.moments.begin(piece, out + count / 2 * co);
        p.moments.add(piece, count * co, out, past ? to : nullptr);
      }
      if (past) stream_end();
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

/// The gradients of a tile of rows after the other, by one thread.
template <Activation act, class T>
struct BackwardTiles {
  const FusedShape& s;
  const FusedInput<T>& in;
  const FusedGradient<T>& gradient;
  const FusedResult<T>& out;
  const BackwardPlan<T>& p;
  bool past;     // dx is streamed
  T* scratch;    // the thread's
  double* sums;  // the piece's, as is dw
  T* dw;
  int64_t ci = s.conv.c, co = s.conv.o;
  T* normalised = scratch + tile_scratch;
  T* tile_dx = normalised + (s.pending ? p.c.tile * ci : 0);
  T* tile_g = tile_dx + (p.apart ? max_of(2, p.c.tile) * ci : 0);

  /// Brings in the rows of a tile that comes next.
  Ahead tile_ahead(int64_t next) const {
    const int64_t rows = s.rows();
    Ahead ahead;
    foresee(ahead, gradient.g, co, rows, next, p.c.tile);
    if (s.statistics) foresee(ahead, gradient.y, co, rows, next, p.c.tile);
    foresee(ahead, in.x, ci, rows, next, p.c.tile);
    foresee(ahead, out.add, ci, rows, next, p.c.tile);
    return ahead;
  }

  /// G, where what reaches the statistics is in it.
  const T* whole_gradient(int64_t begin, int64_t count) const {
    const T* g = gradient.g + begin * co;
    if (!s.statistics) return g;
    T* to = s.residual ? out.residual + begin * co : p.by_weight ? p.whole_g + begin * co : tile_g;
    assemble(p.assembly, co, count * co, g, gradient.y + begin * co, to);
    return to;
  }

  void weight(int64_t begin, int64_t count, const T* g, bool accumulate, Ahead& ahead) const {
    const T* z = in.x + begin * ci;
    if (s.pending) {
      normalise<act>(p.affine, ci, count * ci, z, normalised);
      z = normalised;
    }
    if (p.by_weight)
      pack(s.rows(), ci, begin, count, z, ci, false, p.whole_z, int64_t{0}, panel_count<T>(ci));
    else
      gemm_tile(co, ci, count, g, co, true, TileB<T>{.data = z, .ld = ci}, dw, ci, Epilogue<T>{.accumulate = accumulate}, scratch,
                &ahead);
  }

  void input(int64_t begin, int64_t count, const T* g, Ahead& ahead) const {
    const T *x = in.x + begin * ci, *more = out.add == nullptr ? nullptr : out.add + begin * ci;
    T* dx = out.x + begin * ci;
    if (own_microkernel && past && co <= block_k && line_of(ci) == ci)  // as in pointwise_forward
      return input_in_blocks(count, g, x, more, dx, ahead);
    T* da = p.apart ? tile_dx : dx;
    gemm_tile(count, ci, co, g, co, false, TileB<T>{.data = p.packed, .packed = true, .packed_k = co}, da, ci, Epilogue<T>{},
              scratch, &ahead);
    if (s.pending) {
      differentiate<act>(p.affine, ci, count * ci, x, da, dx, sums, sums + ci, static_cast<const T*>(nullptr),
                         static_cast<T*>(nullptr), more, past);
    } else if (more != nullptr) {
      REWIND_INDEPENDENT
      for (int64_t i = 0; i < count * ci; ++i) dx[i] = da[i] + more[i];
    }
  }

  void input_in_blocks(int64_t count, const T* g, const T* x, const T* more, T* dx, Ahead& ahead) const {
    T* sum = tile_dx;
    std::fill_n(sum, 2 * ci, T(0));
    product_in_blocks(count, ci, co, g, co, p.packed, ahead,
                      [=, this, affine = p.affine](int64_t i, int64_t j, int64_t r, int64_t width, const T* block) {
                        const int64_t at = i * ci + j;
                        stream_differentiated<act>(affine, j, r, width, block, x + at, dx + at,
                                                   more == nullptr ? nullptr : more + at, ci, sum, sum + ci);
                      });
    for (int64_t c = 0; c < 2 * ci; ++c) sums[c] += static_cast<double>(sum[c]);
  }
};

/// dw from what the tiles have left behind, cut by weight.
template <class T>
void weight_at_once(const FusedShape& s, const BackwardPlan<T>& p, const T* whole_g, T* dw) {
  const int64_t ci = s.conv.c, co = s.conv.o, rows = s.rows(), across = parallel::pieces(ci, p.inputs);
  parallel::for_pieces(p.dw_pieces, [&](int64_t piece, int worker) {
    const int64_t o = piece / across * p.outputs, i = piece % across * p.inputs;
    gemm_tile(min_of(p.outputs, co - o), min_of(p.inputs, ci - i), rows, whole_g + o, co, true,
              TileB<T>{.data = p.whole_z + i * rows, .packed = true, .packed_k = rows}, dw + o * ci + i, ci, Epilogue<T>{},
              p.scratch + worker * p.scratch_size);
  });
}

template <class T>
void pointwise_backward(const FusedShape& s, const FusedInput<T>& in, const T* w, const FusedGradient<T>& gradient,
                        const FusedResult<T>& out, void* workspace) {
  Carver carver(workspace);
  REWIND_CHECK(s.add == (out.add != nullptr));
  const BackwardPlan<T> p(s, carver);
  const int64_t ci = s.conv.c, co = s.conv.o, rows = s.rows();
  if (s.pending) p.affine.fill(in, ci);
  if (s.statistics) p.assembly.fill(gradient, co, rows);
  if (out.x != nullptr) pack_whole(co, ci, w, ci, false, p.packed);
  const bool past = p.apart && s.pending && out.x != out.add && streams_lines(out.x, ci, rows * ci);
  with(in.activation, [&]<Activation act>() {
    parallel::for_pieces(p.c.pieces, [&](int64_t piece, int worker) {
      double* sums = s.pending ? p.sums + piece * 2 * ci : nullptr;
      for (int64_t c = 0; sums != nullptr && c < 2 * ci; ++c) sums[c] = 0;
      T* dw = p.c.pieces > 1 ? p.partials + piece * ci * co : out.w;
      const BackwardTiles<act, T> tiles{s, in, gradient, out, p, past, p.scratch + worker * p.scratch_size, sums, dw};
      const int64_t first = p.c.first(piece), last = p.c.last(piece, rows);
      for (int64_t begin = first; begin < last; begin += p.c.tile) {
        const int64_t count = min_of(p.c.tile, last - begin);
        Ahead ahead = tiles.tile_ahead(p.c.next(rows, piece, worker, begin));
        const T* g = tiles.whole_gradient(begin, count);
        if (out.w != nullptr) tiles.weight(begin, count, g, begin > first, ahead);
        if (out.x != nullptr) tiles.input(begin, count, g, ahead);
      }
      if (past) stream_end();
    });
  });
  if (out.w != nullptr && p.by_weight)
    weight_at_once(s, p, !s.statistics ? gradient.g : s.residual ? static_cast<const T*>(out.residual) : p.whole_g, out.w);
  else if (out.w != nullptr && p.c.pieces > 1)
    add_partials(ci * co, p.c.pieces, p.partials, out.w);
  finish_norm(in, ci, p.c.pieces, p.sums, out.norm);
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
