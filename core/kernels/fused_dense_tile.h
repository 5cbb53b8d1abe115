#pragma once
// What dense convolutions share, forward and backward: which way a shape goes, how y is cut, and the rows of x under a tile of it.
// See fused_dense.cpp.

#include <rewind/core/kernels/conv.h>
#include <rewind/core/kernels/fused_tile.h>
#include <rewind/core/kernels/microkernel.h>
#include <rewind/core/kernels/winograd.h>
#include <rewind/core/parallel.h>

#include <algorithm>
#include <cstring>

namespace rewind_lib::kernels::fused {

inline constexpr int64_t wanted_depth = 3 * block_k;  // of a product, unless one tap is deeper
inline constexpr int64_t tile_elements = 1 << 16;     // rows x depth: 256 KiB
inline constexpr int64_t wanted_rows = 40 * block_m;
inline constexpr int64_t most_lines = 256;  // rows of y in a tile
inline constexpr int64_t wanted_tiles = 16;
inline constexpr int64_t most_pieces = 32;
inline constexpr int64_t least_width = 6;    // of a line whose windows are read in place
inline constexpr int64_t small_window = 32;  // elements

/// Whether windows are read where they lie: at stride 1 those of a line overlap, like rows of a matrix with C elements from
/// row to row. Else they are laid out first.
inline bool in_place(const ConvShape& g) {
  return own_microkernel && g.sh == 1 && g.sw == 1 && g.ph < g.kh && g.pw < g.kw &&
         (g.out_w() >= least_width || winograd::covers(g));
}

/// Whether windows are so small that dw is made from windows that are laid out, in rows of whole panels: read in place, a row of
/// the kernel at a time, they would fill more of these.
template <class T>
bool small_windows(const ConvShape& g) {
  return own_microkernel && g.kh * g.kw * g.c <= small_window &&
         panel_count<T>(g.kh * g.kw * g.c) < g.kh * panel_count<T>(g.kw * g.c);
}

/// Whether dw's product is too small for packing windows to pay: it reads them where they lie, and a few elements behind.
inline bool few_outputs(const ConvShape& g) { return g.o <= 2 * block_m; }

inline bool by_transform(const ConvShape& g) { return in_place(g) && winograd::covers(g); }

/// dx as a convolution of G: with the kernel turned around.
inline ConvShape turned(const ConvShape& g) {
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
inline int64_t packed_weights(const ConvShape& g) {
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
    lines = max_of(1, min_of(lines, ceil_div(all, wanted_tiles)));
    if (by_transform(g)) lines = (lines + 1) / 2 * 2;
    const int64_t tiles = parallel::pieces(all, lines);
    grain = max_of(1, ceil_div(tiles, pieces_wanted)) * lines;
    pieces = parallel::pieces(all, grain);
    const int64_t segments = min_of(lines, (lines + out_h - 2) / out_h + 1);
    patch_rows = lines * g.sh + segments * max_of(0, g.kh - g.sh);
    patch_row = max_of((width - 1) * g.sw + g.kw, g.w + g.pw) * g.c;
  }
  /// In whole lines, for what lies behind it.
  int64_t patch_size() const { return round_up(patch_rows * patch_row, 16); }

  /// Where the tile begins that comes after the one at `begin`: in this piece, or in the one that this worker is likely to get
  /// next; negative, or `all` and more, if there is none.
  int64_t next(int64_t all, int64_t piece, int worker, int64_t begin) const {
    return begin + lines < min_of(all, (piece + 1) * grain) ? begin + lines : parallel::next_piece(piece, worker) * grain;
  }
};

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

}  // namespace rewind_lib::kernels::fused
