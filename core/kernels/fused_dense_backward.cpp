// Gradients of dense convolutions. See fused_dense.cpp.

#include <rewind/core/kernels/fused_dense_tile.h>

namespace rewind_lib::kernels::fused {
namespace {

constexpr int64_t partial_elements = 1 << 22;
constexpr int64_t sums_elements = 1 << 18;  // of a dw by the transform, that a worker makes at once: 1 MiB, for L2

/// Outputs of dw that are made at once. By the transform few, where channels are many: x is transformed for them again.
int64_t weight_block(const ConvShape& g) {
  if (!by_transform(g)) return max_of(1, g.o);
  return min_of(g.o, max_of(32, sums_elements / winograd::sums_size({.c = g.c, .o = 1}) / 32 * 32));
}

/// Pieces of y whose parts of dw are made on their own and added up.
int64_t weight_pieces(const ConvShape& g) {
  const int64_t blocks = parallel::pieces(g.o, weight_block(g));
  if (blocks > 1) return ceil_div(wanted_tiles, blocks);
  return std::clamp<int64_t>(partial_elements / (g.o * g.kh * g.kw * g.c), 8, most_pieces);
}

/// The convolution that makes so many of the outputs.
ConvShape part_of(ConvShape g, int64_t outputs) {
  g.o = outputs;
  return g;
}

/// dw of some lines, from x's patch where it lies. By the transform, in `sums` of winograd::sums_size elements until the last one.
template <class T>
struct WeightSums {
  const ConvShape& c;
  T *dw, *sums, *work;
  bool transformed = by_transform(c);

  /// g: the same lines of G, with as many columns as the patch, zeros where a window would reach over the end of a line.
  void add(const Patch<T>& x, const LinesA<T>& g, int64_t begin, int64_t lines, bool accumulate, Ahead* ahead) const {
    if (transformed) return winograd::weight_tile(c, x.windows(lines), g, accumulate, sums, work, ahead);
    const int64_t pitch = x.cut.patch_row / c.c;
    for (int64_t l = 0; l < lines;) {  // the lines of one image follow each other
      const int64_t some = min_of(lines - l, c.out_h() - (begin + l) % c.out_h());
      for (int64_t kh = 0; kh < c.kh; ++kh)
        gemm_tile(c.o, c.kw * c.c, (some - 1) * pitch + c.out_w(), g.data + g.begin[l], c.o, true,
                  TileB<T>{.data = x.data + x.top[l] + kh * x.cut.patch_row, .ld = c.c, .in_place = few_outputs(c)},
                  dw + kh * c.kw * c.c, c.kh * c.kw * c.c, Epilogue<T>{.accumulate = accumulate || l > 0}, work, ahead);
      l += some;
    }
  }
  void finish() const {
    if (transformed) winograd::weight_gradient(c, sums, dw);
  }
};

template <class T>
struct BackwardPlan {
  Cut c, d;          // of dw; of dx in place
  ConvShape around;  // dx as a convolution
  Affine<T> affine{};
  Assembly<T> assembly{};
  bool partial;                    // dw in partial sums; else by conv2d_backward_weight, from x normalised as a whole
  bool in_place;                   // dx; else by conv2d_backward_input
  bool lay_out = false;            // windows, for dw, in rows of so many columns
  bool together = false;           // dw and dx from each tile of G and x, while it is in L2
  int64_t columns = 0, block = 0;  // of dw's outputs
  int64_t scratch_size, input_scratch_size, work_size = 0, rows_grain, rows_pieces;
  double* sums;
  T *assembled, *partials, *scratch, *normalised, *weight_workspace, *packed, *input_workspace;

  BackwardPlan(const FusedShape& s, Carver& carver)
      : c(s.conv, weight_pieces(s.conv)), d(turned(s.conv), most_pieces), around(turned(s.conv)) {
    const ConvShape& g = s.conv;
    if (s.pending) affine = Affine<T>::carve(carver, g.c);
    if (s.statistics) assembly = Assembly<T>::carve(carver, g.o);
    partial = weight_in_pieces(g);
    in_place = fused::in_place(g) && fused::in_place(around);
    const bool by_tile = partial && (!s.dx || in_place);
    assembled = s.statistics && !by_tile ? carver.take<T>(s.rows() * g.o) : nullptr;
    const int64_t fold = line_of(g.c) / g.c, pixels = g.n * g.h * g.w;
    rows_grain = round_up(max_of(parallel::light_grain / g.c, ceil_div(pixels, most_pieces)), fold);
    lay_out = small_windows<T>(g) || !fused::in_place(g);
    block = weight_block(g);
    together =
        s.dw && s.dx && partial && in_place && !lay_out && block == g.o && around.h == g.h && around.w == g.w && c.lines == d.lines;
    rows_pieces = together ? c.pieces : in_place ? d.pieces : parallel::pieces(pixels, rows_grain);
    sums = s.pending ? carver.take<double>(max_of(1, rows_pieces) * 2 * g.c) : nullptr;
    // dw, then dx, in the same memory, unless they are made together.
    Carver first = carver, second = carver;
    if (!s.dw) {
      scratch_size = 0;
      partials = scratch = normalised = weight_workspace = nullptr;
    } else if (partial) {
      partials = first.template take<T>(c.pieces > 1 ? c.pieces * weight_size(s) : 0);
      columns = c.taps_at_once * g.c;
      if (small_windows<T>(g)) {
        const int64_t last = (columns - 1) % block_n<T> + 1;
        columns += panel_width<T>(last) - last;
      }
      const int64_t laid_out = c.lines * g.out_w() * (columns + (assembled == nullptr && s.statistics ? g.o : 0));
      const int64_t lines_of_g = together ? 0 : c.lines * c.patch_row / g.c * block;
      const ConvShape part = part_of(g, block);
      const bool transformed = by_transform(part);
      work_size = transformed && !together ? winograd::scratch_size(part, c.lines) : tile_scratch;
      scratch_size = work_size + c.patch_size() + block_n<T> +
                     (lay_out ? laid_out : lines_of_g + (transformed ? winograd::sums_size(part) : 0));
      scratch = first.template take<T>(parallel::threads() * scratch_size);
    } else {
      normalised = s.pending ? first.template take<T>(pixels * g.c) : nullptr;
      weight_workspace = first.template take<T>(conv2d_backward_weight_workspace(g));
    }
    if (together) second = first;
    if (!s.dx) {
      packed = input_workspace = nullptr;
      input_scratch_size = 0;
    } else if (in_place) {
      packed = second.template take<T>(packed_weights(around));
      input_scratch_size = d.patch_size() + (by_transform(around) ? winograd::scratch_size(around, d.lines) : 0);
      input_workspace = second.template take<T>(parallel::threads() * input_scratch_size);
    } else {
      input_workspace = second.template take<T>(conv2d_backward_input_workspace(g));
    }
    carver = first.used() > second.used() ? first : second;
  }
  static int64_t weight_size(const FusedShape& s) { return s.conv.o * s.conv.kh * s.conv.kw * s.conv.c; }
};

template <Activation act, class T>
void weight_gradient(const FusedShape& s, const FusedInput<T>& in, const FusedGradient<T>& gradient, const T* g, T* dw,
                     const BackwardPlan<T>& p) {
  const ConvShape& c = s.conv;
  const int64_t all = c.n * c.out_h(), width = c.out_w(), taps = c.kh * c.kw, size = p.weight_size(s);
  const int64_t blocks = parallel::pieces(c.o, p.block);
  const bool by_tile = p.assembled == nullptr && s.statistics;
  parallel::for_pieces(p.c.pieces * blocks, [&](int64_t task, int worker) {
    const int64_t piece = task / blocks, first_output = task % blocks * p.block;
    T* scratch = p.scratch + worker * p.scratch_size;
    Patch<T> patch(c, p.c, scratch + p.work_size);
    T* behind = scratch + p.work_size + p.c.patch_size() + block_n<T>;
    T* out = (p.c.pieces > 1 ? p.partials + piece * size : dw) + first_output * taps * c.c;
    const int64_t first = piece * p.c.grain, last = min_of(all, first + p.c.grain);
    if (!p.lay_out) {
      const ConvShape part = part_of(c, min_of(p.block, c.o - first_output));
      const int64_t row = p.c.patch_row / c.c * part.o;
      int64_t lines_of_g[most_lines];
      for (int64_t l = 0; l < p.c.lines; ++l) lines_of_g[l] = l * row;
      const LinesA<T> rows{.data = behind, .begin = lines_of_g, .jump = row};
      const WeightSums<T> sums{part, out, behind + p.c.lines * row, scratch};
      std::fill_n(behind, p.c.lines * row, T(0));
      for (int64_t begin = first; begin < last; begin += p.c.lines) {
        const int64_t lines = min_of(p.c.lines, last - begin);
        patch.template load<act>(in, p.affine, begin, begin + lines);
        for (int64_t l = 0; l < lines; ++l) {
          const int64_t at = (begin + l) * width * c.o + first_output;
          if (by_tile)
            assemble_part(p.assembly, first_output, part.o, c.o, width, gradient.g + at, gradient.y + at, behind + l * row);
          else
            for (int64_t i = 0; i < width; ++i) std::copy_n(g + at + i * c.o, part.o, behind + l * row + i * part.o);
        }
        sums.add(patch, rows, begin, lines, begin > first, nullptr);
      }
      return sums.finish();
    }
    T* columns = behind;
    T* assembled = columns + p.c.lines * width * p.columns;
    if (small_windows<T>(c)) std::fill_n(columns, p.c.lines * width * p.columns, T(0));  // and so what is behind a window stays
    for (int64_t begin = first; begin < last; begin += p.c.lines) {
      const int64_t lines = min_of(p.c.lines, last - begin);
      patch.template load<act>(in, p.affine, begin, begin + lines);
      const T* from = g + begin * width * c.o;
      if (by_tile) {
        const int64_t at = begin * width * c.o;
        assemble<true>(p.assembly, c.o, lines * width * c.o, gradient.g + at, gradient.y + at, assembled);
        from = assembled;
      }
      for (int64_t tap = 0; tap < taps; tap += p.c.taps_at_once) {
        const int64_t count = min_of(p.c.taps_at_once, taps - tap), depth = count * c.c;
        const bool panels = small_windows<T>(c);
        const int64_t ld = panels ? p.columns : depth;
        patch.unfold(lines, tap, count, columns, ld);
        gemm_tile(c.o, depth, lines * width, from, c.o, true, TileB<T>{.data = columns, .ld = ld, .in_place = panels},
                  out + tap * c.c, taps * c.c, Epilogue<T>{.accumulate = begin > first}, scratch);
      }
    }
  });
  if (p.c.pieces > 1) add_partials(size, p.c.pieces, p.partials, dw);
}

/// From the gradient of the value of x to that of x, `n` elements of whole rows from element `at` on.
template <Activation act, class T>
void differentiate_rows(const Affine<T>& affine, int64_t channels, int64_t at, int64_t n, const FusedInput<T>& in, T* dx,
                        double* sums) {
  const int64_t step = 64 * line_of(channels);  // summed in T
  for (int64_t i = at; i < at + n; i += step)
    differentiate<act>(affine, channels, min_of(step, at + n - i), in.x + i, dx + i, dx + i, sums, sums + channels);
}

/// The weights for some channels of dx in place.
template <class T>
void pack_turned(const ConvShape& c, const T* w, int64_t first, int64_t channels, const BackwardPlan<T>& p) {
  if (by_transform(p.around)) return winograd::pack_weight(p.around, w, true, first, channels, p.packed);
  const int64_t taps = c.kh * c.kw, k = taps * c.o;
  parallel::for_range(panel_count<T>(c.c), pack_grain(k), [&](int64_t begin, int64_t end) {
    for (int64_t t = 0; t < taps; ++t)
      pack(k, c.c, t * c.o, c.o, w + (taps - 1 - t) * c.c, taps * c.c, false, p.packed, begin, end);
  });
}

/// Lines of G, assembled, as the patch under a tile of dx.
template <class T>
void load_gradient(const FusedShape& s, const FusedGradient<T>& gradient, const T* g, const BackwardPlan<T>& p, int64_t begin,
                   int64_t end, Patch<T>& patch) {
  if (p.assembled == nullptr && s.statistics)
    patch.load(begin, end, [&](int64_t at, int64_t count, T* to) {
      assemble(p.assembly, s.conv.o, count, gradient.g + at, gradient.y + at, to);
    });
  else
    patch.template load<Activation::none>(FusedInput<T>{.x = g}, p.affine, begin, end);
}

/// dx of some lines, from the patch of G under them: some of its channels; the last ones end it.
template <Activation act, class T>
void input_tile(const FusedShape& s, const FusedInput<T>& in, const BackwardPlan<T>& p, const Patch<T>& patch, int64_t begin,
                int64_t lines, int64_t first_channel, int64_t channels, T* dx, double* sums, T* scratch, Ahead* ahead) {
  const ConvShape& c = s.conv;
  const int64_t at = begin * c.w * c.c;
  if (by_transform(p.around))
    winograd::lines_tile(p.around, patch.windows(lines), p.packed, first_channel, channels, dx + at, Epilogue<T>{}, scratch, ahead);
  else
    lines_tile(patch.windows(lines), c.c, p.packed, dx + at, c.c, Epilogue<T>{});
  if (s.pending && first_channel + channels == c.c) differentiate_rows<act>(p.affine, c.c, at, lines * c.w * c.c, in, dx, sums);
}

template <Activation act, class T>
void input_gradient(const FusedShape& s, const FusedInput<T>& in, const T* w, const FusedGradient<T>& gradient, const T* g, T* dx,
                    const BackwardPlan<T>& p) {
  const ConvShape& c = s.conv;
  for_outputs(p.around, [&](int64_t first_channel, int64_t channels) {
    pack_turned(c, w, first_channel, channels, p);
    parallel::for_pieces(p.d.pieces, [&](int64_t piece, int worker) {
      T* scratch = p.input_workspace + worker * p.input_scratch_size;
      Patch<T> patch(p.around, p.d, scratch);
      double* sums = s.pending ? p.sums + piece * 2 * c.c : nullptr;
      if (sums != nullptr) std::fill_n(sums, 2 * c.c, 0.0);
      const int64_t first = piece * p.d.grain, last = min_of(c.n * c.h, first + p.d.grain);
      for (int64_t begin = first; begin < last; begin += p.d.lines) {
        const int64_t lines = min_of(p.d.lines, last - begin);
        load_gradient(s, gradient, g, p, begin, begin + lines, patch);
        input_tile<act>(s, in, p, patch, begin, lines, first_channel, channels, dx, sums, scratch + p.d.patch_size(), nullptr);
      }
    });
  });
}

/// dw and dx from each tile: the patch of G under dx holds the rows that dw wants, padded as it wants them.
template <Activation act, class T>
void both_gradients(const FusedShape& s, const FusedInput<T>& in, const T* w, const FusedGradient<T>& gradient,
                    const FusedResult<T>& out, const BackwardPlan<T>& p) {
  const ConvShape &c = s.conv, &around = p.around;
  const int64_t all = c.n * c.h, size = p.weight_size(s), first_of_g = around.ph * p.d.patch_row + around.pw * c.o;
  pack_turned(c, w, 0, c.c, p);
  parallel::for_pieces(p.c.pieces, [&](int64_t piece, int worker) {
    T* scratch = p.scratch + worker * p.scratch_size;
    T* input_scratch = p.input_workspace + worker * p.input_scratch_size;
    Patch<T> x(c, p.c, scratch + p.work_size), g(around, p.d, input_scratch);
    T* own_dw = p.c.pieces > 1 ? p.partials + piece * size : out.w;
    T* work = by_transform(c) ? input_scratch + p.d.patch_size() : scratch;
    const WeightSums<T> dw{c, own_dw, scratch + p.work_size + p.c.patch_size() + block_n<T>, work};
    double* sums = s.pending ? p.sums + piece * 2 * c.c : nullptr;
    if (sums != nullptr) std::fill_n(sums, 2 * c.c, 0.0);
    const int64_t first = piece * p.c.grain, last = min_of(all, first + p.c.grain);
    for (int64_t begin = first; begin < last; begin += p.c.lines) {
      const int64_t lines = min_of(p.c.lines, last - begin);
      Ahead ahead;  // dx's lines of this tile, then what the next one reads
      ahead.add(out.x + begin * c.w * c.c, lines * c.w * c.c);
      const int64_t next = p.c.next(all, piece, worker, begin);
      foresee(ahead, gradient.g, c.w * c.o, all, next, p.c.lines);
      if (s.statistics) foresee(ahead, gradient.y, c.w * c.o, all, next, p.c.lines);
      foresee(ahead, in.x, c.w * c.c, all, next, p.c.lines);
      load_gradient(s, gradient, gradient.g, p, begin, begin + lines, g);
      x.template load<act>(in, p.affine, begin, begin + lines);
      LinesA<T> rows = g.windows(lines);
      rows.data += first_of_g;
      dw.add(x, rows, begin, lines, begin > first, &ahead);
      input_tile<act>(s, in, p, g, begin, lines, 0, c.c, out.x, sums, input_scratch + p.d.patch_size(), &ahead);
    }
    dw.finish();
  });
  if (p.c.pieces > 1) add_partials(size, p.c.pieces, p.partials, out.w);
}

}  // namespace

bool weight_in_pieces(const ConvShape& g) { return by_transform(g) || g.o * g.kh * g.kw * g.c * 8 <= partial_elements; }

template <class T>
std::size_t dense_backward_workspace(const FusedShape& s) {
  Carver carver(nullptr);
  BackwardPlan<T>(s, carver);
  return carver.used();
}

template <class T>
void dense_backward(const FusedShape& s, const FusedInput<T>& in, const T* w, const FusedGradient<T>& gradient,
                    const FusedResult<T>& out, void* workspace) {
  Carver carver(workspace);
  const BackwardPlan<T> p(s, carver);
  const ConvShape& c = s.conv;
  const int64_t rows = s.rows(), pixels = c.n * c.h * c.w;
  if (s.pending) p.affine.fill(in, c.c);
  const T* g = gradient.g;
  if (s.statistics) p.assembly.fill(gradient, c.o, rows);
  if (p.assembled != nullptr) {
    assemble_rows(p.assembly, rows, c.o, gradient, p.assembled);
    g = p.assembled;
  }
  with(in.activation, [&]<Activation act>() {
    if (p.together) return both_gradients<act>(s, in, w, gradient, out, p);
    if (out.w != nullptr && p.partial) {
      weight_gradient<act>(s, in, gradient, g, out.w, p);
    } else if (out.w != nullptr) {
      const T* z = in.x;
      if (s.pending) {
        parallel::for_range(pixels, p.rows_grain, [&](int64_t begin, int64_t end) {
          normalise<act>(p.affine, c.c, (end - begin) * c.c, in.x + begin * c.c, p.normalised + begin * c.c);
        });
        z = p.normalised;
      }
      conv2d_backward_weight(c, z, g, out.w, p.weight_workspace);
    }
    if (out.x == nullptr) return;
    if (p.in_place) return input_gradient<act>(s, in, w, gradient, g, out.x, p);
    conv2d_backward_input(c, g, w, out.x, p.input_workspace);
    if (!s.pending) return;
    parallel::for_pieces(p.rows_pieces, [&](int64_t piece, int) {
      const int64_t at = piece * p.rows_grain * c.c, n = min_of(p.rows_grain, pixels - piece * p.rows_grain) * c.c;
      double* sums = p.sums + piece * 2 * c.c;
      std::fill_n(sums, 2 * c.c, 0.0);
      differentiate_rows<act>(p.affine, c.c, at, n, in, out.x, sums);
    });
  });
  finish_norm(in, c.c, p.rows_pieces, p.sums, out.norm);
}

#define REWIND_INSTANTIATE(T)                                                                                 \
  template std::size_t dense_backward_workspace<T>(const FusedShape&);                                        \
  template void dense_backward<T>(const FusedShape&, const FusedInput<T>&, const T*, const FusedGradient<T>&, \
                                  const FusedResult<T>&, void*);
REWIND_INSTANTIATE(float)
REWIND_INSTANTIATE(double)
#undef REWIND_INSTANTIATE

}  // namespace rewind_lib::kernels::fused
