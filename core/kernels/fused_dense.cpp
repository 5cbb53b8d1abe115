// Convolutions of any window. A tile is some whole rows of y: the rows of x under it are normalised once, into a scratch
// padded with zeros.
//
// 3x3 windows over many channels go by Winograd's transform. Otherwise, at stride 1 the windows of a line overlap in that scratch
// like rows of a matrix, and are read where they lie; dx is then a convolution of G with the kernel turned around, and both
// gradients assemble G a tile at a time: the same one, where y is as large as x. Else windows are laid out as rows of a product,
// and backward assembles G once, takes dx from conv2d_backward_input and differentiates it in place.

#include <rewind/core/kernels/conv.h>
#include <rewind/core/kernels/fused_tile.h>
#include <rewind/core/kernels/microkernel.h>
#include <rewind/core/kernels/winograd.h>
#include <rewind/core/parallel.h>

#include <algorithm>
#include <cstring>

namespace rewind_lib::kernels::fused {
namespace {

constexpr int64_t wanted_depth = 3 * block_k;  // of a product, unless one tap is deeper
constexpr int64_t tile_elements = 1 << 16;     // rows x depth: 256 KiB
constexpr int64_t wanted_rows = 40 * block_m;
constexpr int64_t most_lines = 256;  // rows of y in a tile
constexpr int64_t wanted_tiles = 16;
constexpr int64_t most_pieces = 32;
constexpr int64_t partial_elements = 1 << 22;
constexpr int64_t sums_elements = 1 << 18;  // of a dw by the transform, that a worker makes at once: 1 MiB, for L2
constexpr int64_t least_width = 6;          // of a line whose windows are read in place

/// Whether windows are read where they lie: at stride 1 those of a line overlap, like rows of a matrix with C elements from
/// row to row. Else they are laid out first.
bool in_place(const ConvShape& g) {
  return own_microkernel && g.sh == 1 && g.sw == 1 && g.ph < g.kh && g.pw < g.kw &&
         (g.out_w() >= least_width || winograd::covers(g));
}

/// Whether windows are so small that all of one fits the panel of a product: then dw is made from windows that are laid out, since
/// read in place, a row of the kernel at a time, they would leave most of each vector empty.
template <class T>
bool one_panel(const ConvShape& g) {
  return own_microkernel && g.kw * g.c < lanes<T> && g.kh * g.kw * g.c <= block_n<T>;
}

/// Whether dw's product is too small for packing windows to pay: it reads them where they lie, and a few elements behind.
bool few_outputs(const ConvShape& g) { return g.o <= 2 * block_m; }

bool by_transform(const ConvShape& g) { return in_place(g) && winograd::covers(g); }

/// dx as a convolution of G: with the kernel turned around.
ConvShape turned(const ConvShape& g) {
  return {.n = g.n,
          .h = g.out_h(),
          .w = g.out_w(),
          .c = g.o,
          .o = g.c,
          .kh = g.kh,
          .kw = g.kw,
          .ph = g.kh - 1 - g.ph,
          .pw = g.kw - 1 - g.pw};
}

/// Elements of the weights as a convolution in place wants them.
int64_t packed_weights(const ConvShape& g) {
  return by_transform(g) ? winograd::packed_size(g) : packed_size(g.kh * g.kw * g.c, g.o);
}

/// Calls pass(first, outputs) for the outputs that are made at once, one pass over x after the other.
template <class F>
void for_outputs(const ConvShape& g, F pass) {
  const int64_t step = by_transform(g) ? winograd::outputs_at_once(g) : g.o;
  for (int64_t first = 0; first < g.o; first += step) pass(first, min_of(step, g.o - first));
}

/// Tiles of `lines` rows of y (of N OH), pieces of whole tiles.
struct Cut {
  int64_t lines, grain, pieces;
  int64_t taps_at_once;  // depth of a product: taps_at_once C
  int64_t patch_rows;    // rows of x, padded, at most, under a tile
  int64_t patch_row;     // elements of such a row

  Cut(const ConvShape& g, int64_t pieces_wanted) {
    const int64_t out_h = max_of(1, g.out_h()), width = max_of(1, g.out_w());  // a turned shape may have none
    const int64_t all = g.n * out_h, taps = g.kh * g.kw;
    taps_at_once = std::clamp<int64_t>(wanted_depth / g.c, 1, taps);
    const int64_t a_row = in_place(g) ? g.c + g.o : taps_at_once * g.c;
    const int64_t fit = std::clamp(tile_elements / a_row, 4 * block_m, wanted_rows);
    lines = std::clamp<int64_t>(fit / width, 1, most_lines);
    lines = max_of(1, min_of(lines, parallel::pieces(all, wanted_tiles)));
    if (by_transform(g)) lines = (lines + 1) / 2 * 2;
    const int64_t tiles = parallel::pieces(all, lines);
    grain = max_of(1, parallel::pieces(tiles, pieces_wanted)) * lines;
    pieces = parallel::pieces(all, grain);
    const int64_t segments = min_of(lines, (lines + out_h - 2) / out_h + 1);
    patch_rows = lines * g.sh + segments * max_of(0, g.kh - g.sh);
    patch_row = max_of((width - 1) * g.sw + g.kw, g.w + g.pw) * g.c;
  }
  int64_t patch_size() const { return patch_rows * patch_row; }

  /// Brings in the lines of x, `row` elements each, that come after the tile at `begin`: the next tile's, or those of the piece
  /// that this thread is likely to take next.
  template <class T>
  void foresee(Ahead& ahead, int64_t all, int64_t piece, int64_t begin, const T* x, int64_t row) const {
    int64_t next = begin + lines;
    if (next >= min_of(all, (piece + 1) * grain)) next = (piece + parallel::threads()) * grain;
    if (next < all) ahead.add(x + next * row, min_of(lines, all - next) * row);
  }
};

/// Outputs of dw that are made at once. By the transform few, where channels are many: x is transformed for them again.
int64_t weight_block(const ConvShape& g) {
  if (!by_transform(g)) return max_of(1, g.o);
  return min_of(g.o, max_of(32, sums_elements / winograd::sums_size({.c = g.c, .o = 1}) / 32 * 32));
}

/// Pieces of y whose parts of dw are made on their own and added up.
int64_t weight_pieces(const ConvShape& g) {
  const int64_t blocks = parallel::pieces(g.o, weight_block(g));
  if (blocks > 1) return parallel::pieces(wanted_tiles, blocks);
  return std::clamp<int64_t>(partial_elements / (g.o * g.kh * g.kw * g.c), 8, most_pieces);
}

/// The rows of x under a tile, normalised and padded.
template <class T>
struct Patch {
  const ConvShape& g;
  const Cut& cut;
  T* own;
  const T* data = nullptr;
  int64_t top[most_lines] = {};  // of every row of the tile: where its window's first row begins

  Patch(const ConvShape& shape, const Cut& c, T* scratch) : g(shape), cut(c), own(scratch) {}

  template <Activation act>
  void load(const FusedInput<T>& in, const Affine<T>& affine, int64_t begin, int64_t end) {
    if (in.mean != nullptr)
      return load(begin, end, [&](int64_t at, int64_t count, T* to) { normalise<act>(affine, g.c, count, in.x + at, to); });
    if (g.ph > 0 || g.pw > 0 || few_outputs(g))
      return load(begin, end, [&](int64_t at, int64_t count, T* to) { std::copy_n(in.x + at, count, to); });
    data = in.x;  // as it lies
    for (int64_t line = begin; line < end; ++line)
      top[line - begin] = (line / g.out_h() * g.h + line % g.out_h() * g.sh) * g.w * g.c;
  }

  /// row(at, count, to): makes `count` elements of x from element `at` on.
  template <class Row>
  void load(int64_t begin, int64_t end, Row row) {
    data = own;
    const int64_t out_h = g.out_h();
    const int64_t inside = min_of(g.w, cut.patch_row / g.c - g.pw) * g.c, behind = cut.patch_row - g.pw * g.c - inside;
    T* to = own;
    for (int64_t line = begin; line < end;) {
      const int64_t n = line / out_h, first = line % out_h, count = min_of(end - line, out_h - first);
      const int64_t from = first * g.sh - g.ph, rows = (count - 1) * g.sh + g.kh;
      for (int64_t i = 0; i < count; ++i) top[line - begin + i] = to - own + i * g.sh * cut.patch_row;
      for (int64_t r = 0; r < rows; ++r, to += cut.patch_row) {
        const int64_t ih = from + r;
        if (ih < 0 || ih >= g.h) {
          std::fill_n(to, cut.patch_row, T(0));
          continue;
        }
        std::fill_n(to, g.pw * g.c, T(0));
        T* middle = to + g.pw * g.c;
        row((n * g.h + ih) * g.w * g.c, inside, middle);
        std::fill_n(middle + inside, behind, T(0));
      }
      line += count;
    }
  }

  /// Columns of taps [tap, tap + count): out [lines OW, count C], `ld` elements from row to row.
  void unfold(int64_t lines, int64_t tap, int64_t count, T* out, int64_t ld) const {
    const int64_t width = g.out_w();
    // Neighbouring taps of one kernel row lie side by side.
    for (int64_t t = tap; t < tap + count;) {
      const int64_t kh = t / g.kw, kw = t % g.kw, run = min_of(g.kw - kw, tap + count - t), length = run * g.c;
      T* to = out + (t - tap) * g.c;
      for (int64_t i = 0; i < lines; ++i) {
        const T* from = data + top[i] + kh * cut.patch_row + kw * g.c;
        for (int64_t j = 0; j < width; ++j, to += ld, from += g.sw * g.c) {
          if (length >= 64)
            std::memcpy(to, from, sizeof(T) * static_cast<std::size_t>(length));
          else
            for_overlapping_vectors<T>(0, length, [&](auto tag, int64_t c) {
              using V = typename decltype(tag)::type;
              store(to + c, kernels::load<V>(from + c));
            });
        }
      }
      t += run;
    }
  }

  /// The windows of the tile's first lines, in place.
  LinesA<T> windows(int64_t lines) const {
    return {.data = data,
            .begin = top,
            .lines = lines,
            .width = g.out_w(),
            .step = g.c,
            .segments = g.kh,
            .run = g.kw * g.c,
            .jump = cut.patch_row};
  }
};

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

/// The convolution that makes so many of the outputs.
ConvShape part_of(ConvShape g, int64_t outputs) {
  g.o = outputs;
  return g;
}

/// dw of some lines, from x's patch where it lies.
template <class T>
struct WeightSums {
  const ConvShape& c;
  T* dw;
  T *sums, *scratch;  // of the transform; else of products
  bool transformed;

  /// own: where the transform keeps its sums, with its scratch behind them unless that is given.
  WeightSums(const ConvShape& shape, T* out, T* own, T* product_scratch, T* transform_scratch = nullptr)
      : c(shape), dw(out), sums(own), scratch(product_scratch), transformed(by_transform(shape)) {
    if (transformed) scratch = transform_scratch != nullptr ? transform_scratch : own + winograd::sums_size(c);
  }
  /// Elements of own. lines: of a tile, where the scratch is there.
  static int64_t size(const ConvShape& shape, int64_t lines) {
    if (!by_transform(shape)) return 0;
    return winograd::sums_size(shape) + (lines > 0 ? winograd::scratch_size(shape, lines) : 0);
  }
  /// g: the same lines of G, with as many columns as the patch, zeros where a window would reach over the end of a line.
  void add(const Patch<T>& x, const LinesA<T>& g, int64_t begin, int64_t lines, bool accumulate, Ahead* ahead) const {
    if (transformed) return winograd::weight_tile(c, x.windows(lines), g, accumulate, sums, scratch, ahead);
    const int64_t pitch = x.cut.patch_row / c.c;
    for (int64_t l = 0; l < lines;) {  // the lines of one image follow each other
      const int64_t some = min_of(lines - l, c.out_h() - (begin + l) % c.out_h());
      for (int64_t kh = 0; kh < c.kh; ++kh)
        gemm_tile(c.o, c.kw * c.c, (some - 1) * pitch + c.out_w(), g.data + g.begin[l], c.o, true,
                  TileB<T>{.data = x.data + x.top[l] + kh * x.cut.patch_row, .ld = c.c, .in_place = few_outputs(c)},
                  dw + kh * c.kw * c.c, c.kh * c.kw * c.c, Epilogue<T>{.accumulate = accumulate || l > 0}, scratch, ahead);
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
  int64_t scratch_size, input_scratch_size, rows_grain, rows_pieces;
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
    rows_grain = parallel::pieces(max_of(parallel::light_grain / g.c, parallel::pieces(pixels, most_pieces)), fold) * fold;
    lay_out = one_panel<T>(g) || !fused::in_place(g);
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
      columns = one_panel<T>(g) ? panel_width<T>(c.taps_at_once * g.c) : c.taps_at_once * g.c;
      const int64_t laid_out = c.lines * g.out_w() * (columns + (assembled == nullptr && s.statistics ? g.o : 0));
      const int64_t lines_of_g = together ? 0 : c.lines * c.patch_row / g.c * block;
      scratch_size = tile_scratch + c.patch_size() + block_n<T> +
                     (lay_out ? laid_out : lines_of_g + WeightSums<T>::size(part_of(g, block), together ? 0 : c.lines));
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
    Patch<T> patch(c, p.c, scratch + tile_scratch);
    T* behind = scratch + tile_scratch + p.c.patch_size() + block_n<T>;
    T* out = (p.c.pieces > 1 ? p.partials + piece * size : dw) + first_output * taps * c.c;
    const int64_t first = piece * p.c.grain, last = min_of(all, first + p.c.grain);
    if (!p.lay_out) {
      const ConvShape part = part_of(c, min_of(p.block, c.o - first_output));
      const int64_t row = p.c.patch_row / c.c * part.o;
      int64_t lines_of_g[most_lines];
      for (int64_t l = 0; l < p.c.lines; ++l) lines_of_g[l] = l * row;
      const LinesA<T> rows{.data = behind, .begin = lines_of_g, .jump = row};
      const WeightSums<T> sums(part, out, behind + p.c.lines * row, scratch);
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
    for (int64_t begin = first; begin < last; begin += p.c.lines) {
      const int64_t lines = min_of(p.c.lines, last - begin);
      patch.template load<act>(in, p.affine, begin, begin + lines);
      const T* from = g + begin * width * c.o;
      if (by_tile) {
        const int64_t at = begin * width * c.o;
        assemble(p.assembly, c.o, lines * width * c.o, gradient.g + at, gradient.y + at, assembled);
        from = assembled;
      }
      for (int64_t tap = 0; tap < taps; tap += p.c.taps_at_once) {
        const int64_t count = min_of(p.c.taps_at_once, taps - tap), depth = count * c.c;
        const bool packed = one_panel<T>(c);
        const int64_t ld = packed ? p.columns : depth;
        patch.unfold(lines, tap, count, columns, ld);
        gemm_tile(c.o, depth, lines * width, from, c.o, true,
                  TileB<T>{.data = columns, .ld = ld, .packed = packed, .packed_k = lines * width}, out + tap * c.c, taps * c.c,
                  Epilogue<T>{.accumulate = begin > first}, scratch);
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
  const int64_t taps = c.kh * c.kw, k = taps * c.o, grain = max_of(1, parallel::light_grain / (k * block_n_max + 1));
  parallel::for_range(panel_count<T>(c.c), grain, [&](int64_t begin, int64_t end) {
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
  const int64_t all = c.n * c.h, size = p.weight_size(s), inside = around.ph * p.d.patch_row + around.pw * c.o;
  pack_turned(c, w, 0, c.c, p);
  parallel::for_pieces(p.c.pieces, [&](int64_t piece, int worker) {
    T* scratch = p.scratch + worker * p.scratch_size;
    T* input_scratch = p.input_workspace + worker * p.input_scratch_size;
    Patch<T> x(c, p.c, scratch + tile_scratch), g(around, p.d, input_scratch);
    const WeightSums<T> weight_sums(c, p.c.pieces > 1 ? p.partials + piece * size : out.w,
                                    scratch + tile_scratch + p.c.patch_size() + block_n<T>, scratch,
                                    input_scratch + p.d.patch_size());
    double* sums = s.pending ? p.sums + piece * 2 * c.c : nullptr;
    if (sums != nullptr) std::fill_n(sums, 2 * c.c, 0.0);
    const int64_t first = piece * p.c.grain, last = min_of(all, first + p.c.grain);
    for (int64_t begin = first; begin < last; begin += p.c.lines) {
      const int64_t lines = min_of(p.c.lines, last - begin);
      Ahead ahead;  // dx's lines of this tile, then what the next one reads
      ahead.add(out.x + begin * c.w * c.c, lines * c.w * c.c);
      p.c.foresee(ahead, all, piece, begin, gradient.g, c.w * c.o);
      if (s.statistics) p.c.foresee(ahead, all, piece, begin, gradient.y, c.w * c.o);
      p.c.foresee(ahead, all, piece, begin, in.x, c.w * c.c);
      load_gradient(s, gradient, gradient.g, p, begin, begin + lines, g);
      x.template load<act>(in, p.affine, begin, begin + lines);
      LinesA<T> rows = g.windows(lines);
      rows.data += inside;
      weight_sums.add(x, rows, begin, lines, begin > first, &ahead);
      input_tile<act>(s, in, p, g, begin, lines, 0, c.c, out.x, sums, input_scratch + p.d.patch_size(), &ahead);
    }
    weight_sums.finish();
  });
  if (p.c.pieces > 1) add_partials(size, p.c.pieces, p.partials, out.w);
}

}  // namespace

bool weight_in_pieces(const ConvShape& g) { return by_transform(g) || g.o * g.kh * g.kw * g.c * 8 <= partial_elements; }
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
  const int64_t grain = max_of(1, parallel::light_grain / (k * block_n_max + 1));
  for_outputs(g, [&](int64_t first_output, int64_t outputs) {
    if (transformed)
      winograd::pack_weight(g, w, false, first_output, outputs, p.packed);
    else
      parallel::for_range(panel_count<T>(g.o), grain,
                          [&](int64_t begin, int64_t end) { pack(k, g.o, int64_t{0}, k, w, k, true, p.packed, begin, end); });
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
          if (g.h == g.out_h()) p.c.foresee(ahead, all, piece, begin, in.x, g.w * g.c);
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
    const int64_t fold = line_of(c.o) / c.o, grain = max_of(1, parallel::light_grain / (c.o * fold)) * fold;
    parallel::for_range(rows, grain, [&](int64_t begin, int64_t end) {
      const int64_t at = begin * c.o;
      assemble(p.assembly, c.o, (end - begin) * c.o, gradient.g + at, gradient.y + at, p.assembled + at);
    });
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
  if (out.parameters != nullptr) finish_parameters(in, c.c, p.rows_pieces, p.sums, out.parameters);
}

#define REWIND_INSTANTIATE(T)                                                                                    \
  template std::size_t dense_forward_workspace<T>(const FusedShape&);                                            \
  template void dense_forward<T>(const FusedShape&, const FusedInput<T>&, const T*, const T*, T*, T*, T*, void*, \
                                 const Epilogue<T>&);                                                            \
  template std::size_t dense_backward_workspace<T>(const FusedShape&);                                           \
  template void dense_backward<T>(const FusedShape&, const FusedInput<T>&, const T*, const FusedGradient<T>&,    \
                                  const FusedResult<T>&, void*);
REWIND_INSTANTIATE(float)
REWIND_INSTANTIATE(double)
#undef REWIND_INSTANTIATE

}  // namespace rewind_lib::kernels::fused
