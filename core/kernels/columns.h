#pragma once
// Walking over [rows, channels] in tiles that vectorise well for any number of channels: wide rows are cut into column
// blocks, narrow rows are folded, several to one wide row.

#include <rewind/core/kernels/loop.h>

#include <cstdint>

namespace rewind_lib::kernels {

/// Columns of a tile, at most; sums and parameters of a tile live on the stack.
inline constexpr std::int64_t tile_width = 512;

/// Rows of a folded row.
constexpr std::int64_t fold_of(std::int64_t channels) { return channels >= tile_width / 2 ? 1 : tile_width / channels; }

/// Rows of a piece: about `least` elements or more, at most max_pieces pieces, whole folded rows.
constexpr std::int64_t column_grain(std::int64_t rows, std::int64_t channels, std::int64_t least) {
  const std::int64_t fold = fold_of(channels);
  const std::int64_t grain = reduction_grain(rows, (least + channels - 1) / channels);
  return (grain + fold - 1) / fold * fold;
}

/// A tile: `rows` lines of `width` elements, `stride` apart, the first at `offset` from the array's start. Column j of a
/// line belongs to channel (channel + j) % channels.
struct Tile {
  std::int64_t offset, rows, stride, width, channel;
};

/// Calls body(tile) for tiles that cover rows [begin, end).
template <class F>
void for_tiles(std::int64_t begin, std::int64_t end, std::int64_t channels, F&& body) {
  const std::int64_t fold = fold_of(channels), rows = end - begin, start = begin * channels;
  if (fold == 1) {
    for (std::int64_t c = 0; c < channels; c += tile_width)
      body(Tile{start + c, rows, channels, min_of(tile_width, channels - c), c});
    return;
  }
  const std::int64_t width = fold * channels, whole = rows / fold, rest = rows % fold;
  if (whole > 0) body(Tile{start, whole, width, width, 0});
  if (rest > 0) body(Tile{start + whole * width, 1, rest * channels, rest * channels, 0});
}

/// out[j] = f(channel of column j), j in [0, width).
template <class T, class F>
void spread(const Tile& t, std::int64_t channels, T* out, F f) {
  const std::int64_t once = min_of(t.width, channels);
  for (std::int64_t j = 0; j < once; ++j) out[j] = f(t.channel + j);
  for (std::int64_t j = once; j < t.width; ++j) out[j] = out[j - channels];
}

/// total[channel - t.channel] += the sums of a tile's columns.
template <class T>
void gather_columns(const Tile& t, std::int64_t channels, const T* column, double* total) {
  for (std::int64_t j = 0; j < t.width; j += channels)
    for (std::int64_t c = 0; c < min_of(channels, t.width - j); ++c) total[c] += static_cast<double>(column[j + c]);
}

/// Lines that are summed in T before the sums go to doubles.
inline constexpr std::int64_t lines_per_flush = 64;

}  // namespace rewind_lib::kernels
