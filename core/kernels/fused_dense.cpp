// Convolutions of any window. A tile is some whole rows of y: the rows of x under it are normalised once, into a scratch
// padded with zeros.
//
// 3x3 windows go by Winograd's transform where it serves. Otherwise, at stride 1 the windows of a line overlap in that scratch like
// rows of a matrix, and are read where they lie; dx is then a convolution of G with the kernel turned around, and both gradients
// assemble G a tile at a time: the same tile, where y is as large as x and dw is made as a whole. Else windows are laid out as
// rows of a product, and backward assembles G once, takes dx from conv2d_backward_input and differentiates it in place.

#include <rewind/core/kernels/fused_dense_tile.h>

namespace rewind_lib::kernels::fused {
namespace {

template <class T>
struct ForwardPlan {
  Cut c;
  Affine<T> affine{};
  Moments<T> moments{};
  int64_t scratch_size;
  T *packed, *scratch;

  ForwardPlan(const FusedShape& s, Carver& carver) : c(s.conv, most_pieces) {
    const ConvShape& g = s.conv;
    if (s.pending) affine = Affine<T>::carve(carver, g.c);
    if (s.statistics) moments = Moments<T>::carve(carver, g.o, c.pieces);
    packed = carver.take<T>(packed_weights(g));
    const int64_t laid_out = in_place(g) ? 0 : c.lines * g.out_w() * c.taps_at_once * g.c;
    scratch_size = c.patch_size() + (by_transform(g) ? winograd::scratch_size(g, c.lines) : tile_scratch + laid_out);
    scratch = carver.take<T>(parallel::threads() * scratch_size);
  }
};

}  // namespace

bool covers_plain(const ConvShape& g) {
  return g.groups == 1 && g.dh == 1 && g.dw == 1 && g.n > 0 && g.h > 0 && g.c > 0 && g.o > 0 && g.out_h() > 0 && in_place(g) &&
         in_place(turned(g)) && weight_in_pieces(g);
}

template <class T>
std::size_t dense_forward_workspace(const FusedShape& s) {
  Carver carver(nullptr);
  ForwardPlan<T>(s, carver);
  return carver.used();
}

template <class T>
void dense_forward(const FusedShape& s, const FusedInput<T>& in, const T* w, const T* residual, T* y, T* mean, T* var,
                   void* workspace, const Epilogue<T>& epilogue) {
  Carver carver(workspace);
  const ForwardPlan<T> p(s, carver);
  const ConvShape& g = s.conv;
  const int64_t all = g.n * g.out_h(), width = g.out_w(), taps = g.kh * g.kw, k = taps * g.c;
  if (s.pending) p.affine.fill(in, g.c);
  const bool transformed = by_transform(g);
  for_outputs(g, [&](int64_t first_output, int64_t outputs) {
    if (transformed)
      winograd::pack_weight(g, w, false, first_output, outputs, p.packed);
    else
      pack_whole(k, g.o, w, k, true, p.packed);
    with(in.activation, [&]<Activation act>() {
      parallel::for_pieces(p.c.pieces, [&](int64_t piece, int worker) {
        T* scratch = p.scratch + worker * p.scratch_size;
        T *own = scratch + p.c.patch_size(), *columns = own + tile_scratch;
        Patch<T> patch(g, p.c, scratch);
        const int64_t first = piece * p.c.grain, last = min_of(all, first + p.c.grain);
        for (int64_t begin = first; begin < last; begin += p.c.lines) {
          const int64_t lines = min_of(p.c.lines, last - begin), count = lines * width;
          T* out = y + begin * width * g.o;
          Ahead ahead;  // y's lines of this tile, which the products come before, and x's of the next
          ahead.add(out, count * g.o);
          if (g.h == g.out_h()) foresee(ahead, in.x, g.w * g.c, all, p.c.next(all, piece, worker, begin), p.c.lines);
          patch.template load<act>(in, p.affine, begin, begin + lines);
          if (transformed)
            winograd::lines_tile(g, patch.windows(lines), p.packed, first_output, outputs, out, epilogue, own, &ahead);
          else if (in_place(g))
            lines_tile(patch.windows(lines), g.o, p.packed, out, g.o, epilogue);
          for (int64_t tap = 0; tap < taps && !in_place(g); tap += p.c.taps_at_once) {
            const int64_t some = min_of(p.c.taps_at_once, taps - tap), depth = some * g.c;
            patch.unfold(lines, tap, some, columns, depth);
            gemm_tile(count, g.o, depth, columns, depth, false,
                      TileB<T>{.data = p.packed, .packed = true, .packed_k = k, .k_begin = tap * g.c}, out, g.o,
                      Epilogue<T>{.bias = tap + some == taps ? epilogue.bias : nullptr,
                                  .activation = tap + some == taps ? epilogue.activation : Activation::none,
                                  .accumulate = tap > 0},
                      own);
          }
          if (first_output + outputs < g.o) continue;
          if (residual != nullptr) {
            const T* from = residual + begin * width * g.o;
            REWIND_INDEPENDENT
            for (int64_t i = 0; i < count * g.o; ++i) out[i] += from[i];
          }
          if (!s.statistics) continue;
          if (begin == first) p.moments.begin(piece, out + (lines / 2 * width + width / 2) * g.o);
          p.moments.add(piece, count * g.o, out);
        }
      });
    });
  });
  if (s.statistics)
    p.moments.finish(
        p.c.pieces, [&](int64_t piece) { return min_of(p.c.grain, all - piece * p.c.grain) * width; }, mean, var);
}

#define REWIND_INSTANTIATE(T)                                                                                    \
  template std::size_t dense_forward_workspace<T>(const FusedShape&);                                            \
  template void dense_forward<T>(const FusedShape&, const FusedInput<T>&, const T*, const T*, T*, T*, T*, void*, \
                                 const Epilogue<T>&);
REWIND_INSTANTIATE(float)
REWIND_INSTANTIATE(double)
#undef REWIND_INSTANTIATE

}  // namespace rewind_lib::kernels::fused
