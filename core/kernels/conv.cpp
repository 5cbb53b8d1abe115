#include <rewind/core/kernels/conv.h>

#include <rewind/core/kernels/fused_tile.h>
#include <rewind/core/kernels/gemm.h>
#include <rewind/core/kernels/microkernel.h>
#include <rewind/core/parallel.h>

#include <algorithm>
#include <cstring>
#include <numeric>

// Forward and backward_input are both sums over taps of (a gathered tile of pixels) x (a packed slice of the weight):
// forward gathers x for pixels of y, backward_input gathers dy for pixels of x. With a stride, the pixels of x fall into
// sh x sw phases, each of which was seen through its own subset of the taps; within a phase the gather has stride 1, so
// no multiplication is spent on zeros and no two tiles write the same pixel.

namespace rewind_lib::kernels {
namespace {

using std::int64_t;

// Depth (taps x channels) that is gathered at once, unless one tap is deeper; rows x depth of a gathered tile (256 KiB).
constexpr int64_t wanted_depth = 3 * block_k;
constexpr int64_t tile_elements = 1 << 16;
constexpr int64_t max_rows = 20 * block_m;
constexpr int64_t min_rows = 4 * block_m;
constexpr int64_t wanted_tiles = 16;

constexpr int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }
constexpr int64_t floor_mod(int64_t a, int64_t b) { return a - floor_div(a, b) * b; }

// Images that tiles are gathered from.
template <class T>
struct Source {
  const T* data;
  int64_t h, w, channels;
};

// A grid of pixels, n x h x w of them, that read source pixel (i stride_h + offset_h(tap), j stride_w + offset_w(tap)).
struct Grid {
  int64_t h, w, stride_h, stride_w;
};

struct Offset {
  int64_t h, w;
};

// out[rows, ld] at column 0: `count` channels from `first` of the source pixels that grid pixels [begin, begin + rows)
// meet at an offset; zero outside the image.
template <class T>
void gather(const Source<T>& source, const Grid& grid, Offset offset, int64_t begin, int64_t rows, int64_t first, int64_t count,
            T* out, int64_t ld) {
  int64_t j = begin % grid.w, i = begin / grid.w % grid.h, n = begin / grid.w / grid.h;
  while (rows > 0) {
    const int64_t run = std::min(rows, grid.w - j);
    const int64_t ih = i * grid.stride_h + offset.h;
    for (int64_t r = 0; r < run; ++r, out += ld) {
      const int64_t iw = (j + r) * grid.stride_w + offset.w;
      if (ih < 0 || ih >= source.h || iw < 0 || iw >= source.w) {
        for (int64_t c = 0; c < count; ++c) out[c] = T(0);
      } else {
        const T* pixel = source.data + ((n * source.h + ih) * source.w + iw) * source.channels + first;
        if (count >= 64)
          std::memcpy(out, pixel, sizeof(T) * count);
        else
          for (int64_t c = 0; c < count; ++c) out[c] = pixel[c];
      }
    }
    rows -= run;
    j = 0;
    if (++i == grid.h) {
      i = 0;
      ++n;
    }
  }
}

int64_t depth_of(int64_t taps, int64_t channels) {
  return std::min(taps, std::max<int64_t>(1, wanted_depth / std::max<int64_t>(1, channels))) * channels;
}

int64_t tile_rows(int64_t pixels, int64_t depth) {
  const int64_t fit = std::clamp(tile_elements / std::max<int64_t>(1, depth) / block_m * block_m, min_rows, max_rows);
  const int64_t share = round_up(ceil_div(pixels, wanted_tiles), block_m);
  return std::max<int64_t>(1, std::min(fit, std::max(min_rows, share)));
}

// ---- forward and backward_input: pixels of one grid from pixels of a source ----

struct Product {
  int64_t taps;
  int64_t depth;  // channels of the source, a group
  int64_t width;  // channels of the result, a group
  int64_t groups;
  int64_t result_channels;
};

// Elements of scratch a worker needs.
int64_t product_scratch(const Product& p, int64_t rows, bool scatter) {
  return tile_scratch + rows * depth_of(p.taps, p.depth) + (scatter ? rows * p.width : 0);
}

// result[row(pixel)][group g] = epilogue(sum over taps of gathered x packed_g), packed_g of p.taps * p.depth rows.
// offset_of(tap) is where a tap reads; row_of(pixel) is where in the result a pixel of the grid lies; contiguous: it is the pixel
// itself.
template <class T, class OffsetOf, class RowOf>
void product(const Product& p, const Source<T>& source, const Grid& grid, const OffsetOf& offset_of, int64_t begin, int64_t rows,
             const T* packed, int64_t packed_stride, int64_t packed_k, const Epilogue<T>& epilogue, T* result, bool contiguous,
             const RowOf& row_of, T* scratch) {
  const int64_t depth = depth_of(p.taps, p.depth);
  T* columns = scratch + tile_scratch;
  T* staged = columns + rows * depth;
  const int64_t taps_at_once = p.depth == 0 ? p.taps : depth / p.depth;
  for (int64_t g = 0; g < p.groups; ++g) {
    T* out = contiguous ? result + begin * p.result_channels + g * p.width : staged;
    const int64_t ldc = contiguous ? p.result_channels : p.width;
    for (int64_t tap = 0; tap < p.taps; tap += taps_at_once) {
      const int64_t taps = std::min(taps_at_once, p.taps - tap);
      const int64_t ld = taps * p.depth;
      for (int64_t t = 0; t < taps; ++t)
        gather(source, grid, offset_of(tap + t), begin, rows, g * p.depth, p.depth, columns + t * p.depth, ld);
      const bool last = tap + taps == p.taps;
      const Epilogue<T> finish{.bias = last && epilogue.bias != nullptr ? epilogue.bias + g * p.width : nullptr,
                               .activation = last ? epilogue.activation : Activation::none,
                               .accumulate = tap > 0};
      const TileB<T> b{.data = packed + g * packed_stride, .packed = true, .packed_k = packed_k, .k_begin = tap * p.depth};
      gemm_tile(rows, p.width, ld, columns, ld, false, b, out, ldc, finish, scratch);
    }
    if (!contiguous)
      for (int64_t r = 0; r < rows; ++r)
        std::memcpy(result + row_of(begin + r) * p.result_channels + g * p.width, staged + r * p.width, sizeof(T) * p.width);
  }
}

// The taps k = first + i step, i in [0, count), with (phase + padding - k dilation) divisible by the stride.
struct PhaseTaps {
  int64_t first, step, count;
};

PhaseTaps taps_of_phase(int64_t phase, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  const int64_t step = stride / std::gcd(stride, dilation);
  for (int64_t k = 0; k < std::min(step, kernel); ++k)
    if (floor_mod(phase + padding - k * dilation, stride) == 0) return {k, step, (kernel - k - 1) / step + 1};
  return {0, step, 0};
}

struct Phase {
  int64_t h, w;            // the pixels of x with these remainders
  int64_t grid_h, grid_w;  // how many of them
  PhaseTaps taps_h, taps_w;
};

// Those that have pixels.
int64_t phases_across(const ConvShape& s) { return std::min(s.sw, s.w); }
int64_t phases(const ConvShape& s) { return std::min(s.sh, s.h) * phases_across(s); }

Phase phase_of(const ConvShape& s, int64_t index) {
  Phase p{};
  p.h = index / phases_across(s);
  p.w = index % phases_across(s);
  p.grid_h = (s.h - p.h - 1) / s.sh + 1;
  p.grid_w = (s.w - p.w - 1) / s.sw + 1;
  p.taps_h = taps_of_phase(p.h, s.kh, s.sh, s.ph, s.dh);
  p.taps_w = taps_of_phase(p.w, s.kw, s.sw, s.pw, s.dw);
  return p;
}

Product forward_product(const ConvShape& s) { return {s.kh * s.kw, s.c / s.groups, s.o / s.groups, s.groups, s.o}; }

GemmShape pointwise_forward(const ConvShape& s) { return {.m = s.n * s.h * s.w, .n = s.o, .k = s.c, .transpose_b = true}; }
GemmShape pointwise_backward_input(const ConvShape& s) { return {.m = s.n * s.h * s.w, .n = s.c, .k = s.o}; }
// A fused convolution that fuses nothing.
FusedShape plain(const ConvShape& s, bool dx = true) { return {.conv = s, .statistics = false, .dx = dx, .dw = !dx}; }
// Of a workspace that serves both types, from the bytes that each needs.
int64_t elements(std::size_t floats, std::size_t doubles) {
  return static_cast<int64_t>(
      std::max((floats + sizeof(float) - 1) / sizeof(float), (doubles + sizeof(double) - 1) / sizeof(double)));
}
int64_t plain_backward_workspace(const FusedShape& s) {
  return elements(fused::dense_backward_workspace<float>(s), fused::dense_backward_workspace<double>(s));
}

GemmShape pointwise_backward_weight(const ConvShape& s) { return {.m = s.o, .n = s.c, .k = s.n * s.h * s.w, .transpose_a = true}; }

}  // namespace

std::int64_t conv2d_forward_workspace(const ConvShape& s) {
  if (is_pointwise(s)) return gemm_workspace(pointwise_forward(s));
  if (fused::covers_plain(s))
    return elements(fused::dense_forward_workspace<float>(plain(s)), fused::dense_forward_workspace<double>(plain(s)));
  const Product p = forward_product(s);
  const int64_t rows = tile_rows(s.n * s.out_h() * s.out_w(), depth_of(p.taps, p.depth));
  return s.groups * packed_size(p.taps * p.depth, p.width) + parallel::threads() * product_scratch(p, rows, false);
}

template <class T>
void conv2d_forward(const ConvShape& s, const T* x, const T* weight, const T* bias, Activation activation, T* y, T* workspace) {
  const Epilogue<T> epilogue{.bias = bias, .activation = activation};
  if (is_pointwise(s)) return gemm(pointwise_forward(s), x, weight, y, workspace, epilogue);
  if (fused::covers_plain(s))
    return fused::dense_forward(plain(s), FusedInput<T>{.x = x}, weight, static_cast<const T*>(nullptr), y,
                                static_cast<T*>(nullptr), static_cast<T*>(nullptr), workspace, epilogue);
  const Product p = forward_product(s);
  const Grid grid{s.out_h(), s.out_w(), s.sh, s.sw};
  const int64_t pixels = s.n * grid.h * grid.w;
  if (pixels * s.o == 0) return;

  const int64_t k = p.taps * p.depth, packed_stride = packed_size(k, p.width);
  const int64_t panels = panel_count<T>(p.width);
  parallel::for_range(s.groups * panels, pack_grain(k), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t g = i / panels, panel = i % panels;
      pack(k, p.width, int64_t{0}, k, weight + g * p.width * k, k, true, workspace + g * packed_stride, panel, panel + 1);
    }
  });

  T* scratch = workspace + s.groups * packed_stride;
  const int64_t rows = tile_rows(pixels, depth_of(p.taps, p.depth));
  const int64_t scratch_size = product_scratch(p, rows, false);
  const auto offset_of = [&](int64_t t) { return Offset{t / s.kw * s.dh - s.ph, t % s.kw * s.dw - s.pw}; };
  const Source<T> source{x, s.h, s.w, s.c};
  parallel::for_pieces(parallel::pieces(pixels, rows), [&](int64_t piece, int worker) {
    const int64_t begin = piece * rows;
    product(
        p, source, grid, offset_of, begin, std::min(rows, pixels - begin), workspace, packed_stride, k, epilogue, y, true,
        [](int64_t i) { return i; }, scratch + worker * scratch_size);
  });
}

namespace {

Product backward_product(const ConvShape& s, const Phase& phase) {
  return {phase.taps_h.count * phase.taps_w.count, s.o / s.groups, s.c / s.groups, s.groups, s.c};
}

// Over the phases: the most scratch, per worker.
int64_t backward_input_scratch(const ConvShape& s) {
  const bool scatter = s.sh * s.sw > 1;
  int64_t most = 0;
  for (int64_t i = 0; i < phases(s); ++i) {
    const Phase phase = phase_of(s, i);
    const Product p = backward_product(s, phase);
    const int64_t rows = tile_rows(s.n * phase.grid_h * phase.grid_w, depth_of(p.taps, p.depth));
    most = std::max(most, product_scratch(p, rows, scatter));
  }
  return most;
}

// ---- backward_input where x has few channels ----
// A product with few columns leaves most of a vector empty. So the gradients of all windows are made, dy W with KH KW C columns,
// and each row of them is added to the window of x that it belongs to, in a band of rows of x with room on all sides.

constexpr int64_t few_channels = 8;
constexpr int64_t window_rows = 5 * block_m;  // windows at once
constexpr int64_t band_elements = 1 << 14;    // unless that is too few rows

bool by_windows(const ConvShape& s) {
  return own_microkernel && s.groups == 1 && s.dh == 1 && s.dw == 1 && s.c <= few_channels && s.kh * s.kw > 1;
}

struct WindowPlan {
  int64_t run;              // elements of a row of a window: KW C, and those that fill up the last vector
  int64_t pitch;            // of a row of the band
  int64_t bands, band;      // an image; rows of x in each
  int64_t windows, packed;  // elements

  template <class T>
  static WindowPlan of(const ConvShape& s) {
    WindowPlan p{};
    p.run = panel_count<T>(s.kw * s.c) * block_n<T>;
    p.pitch = std::max((s.out_w() - 1) * s.sw * s.c + p.run, (s.pw + s.w) * s.c);
    const int64_t wanted = std::max(ceil_div(wanted_tiles, std::max<int64_t>(1, s.n)), ceil_div(s.h * p.pitch, band_elements));
    p.bands = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, s.h / (4 * s.kh)));
    p.band = ceil_div(s.h, p.bands);
    p.windows = window_rows * s.kh * p.run;
    p.packed = s.kh * s.o * p.run;
    return p;
  }
  int64_t scratch() const { return tile_scratch + windows + band * pitch; }
};

template <class T>
void backward_input_by_windows(const ConvShape& s, const T* dy, const T* weight, T* dx, T* workspace) {
  const WindowPlan p = WindowPlan::of<T>(s);
  const int64_t out_h = s.out_h(), out_w = s.out_w(), run = s.kw * s.c;
  for (int64_t kh = 0; kh < s.kh; ++kh)
    for (int64_t o = 0; o < s.o; ++o) {
      T* to = workspace + (kh * s.o + o) * p.run;
      std::copy_n(weight + (o * s.kh + kh) * run, run, to);
      std::fill(to + run, to + p.run, T(0));
    }
  T* scratch = workspace + p.packed;
  parallel::for_pieces(s.n * p.bands, [&](int64_t piece, int worker) {
    T* own = scratch + worker * p.scratch();
    T *windows = own + tile_scratch, *band = windows + p.windows;
    const int64_t n = piece / p.bands, top = std::min(s.h, piece % p.bands * p.band), bottom = std::min(s.h, top + p.band);
    std::fill_n(band, (bottom - top) * p.pitch, T(0));
    const int64_t first = std::max<int64_t>(0, floor_div(top + s.ph - s.kh, s.sh) + 1);
    const int64_t end = std::min(out_h, floor_div(bottom - 1 + s.ph, s.sh) + 1) * out_w;
    for (int64_t at = first * out_w; at < end; at += window_rows) {
      const int64_t rows = std::min(window_rows, end - at);
      for (int64_t kh = 0; kh < s.kh; ++kh)
        gemm_tile(rows, p.run, s.o, dy + (n * out_h * out_w + at) * s.o, s.o, false,
                  TileB<T>{.data = workspace + kh * s.o * p.run, .ld = p.run, .in_place = true}, windows + kh * p.run, s.kh * p.run,
                  Epilogue<T>{}, own);
      // Neighbouring windows overlap: each sum is left alone for a while after it was stored, so that loading it does not wait.
      const int64_t apart = s.kw + 1;
      for (int64_t q = 0, r = 0; q < rows; ++q, r = r + apart < rows ? r + apart : r % apart + 1) {
        const int64_t above = (at + r) / out_w * s.sh - s.ph, left = (at + r) % out_w * s.sw;
        for (int64_t kh = std::max<int64_t>(0, top - above); kh < std::min(s.kh, bottom - above); ++kh) {
          const T* from = windows + (r * s.kh + kh) * p.run;
          T* to = band + (above + kh - top) * p.pitch + left * s.c;
          for (int64_t i = 0; i < p.run; i += lanes<T>) store(to + i, load<Vector<T>>(to + i) + load<Vector<T>>(from + i));
        }
      }
    }
    for (int64_t row = top; row < bottom; ++row)
      std::copy_n(band + (row - top) * p.pitch + s.pw * s.c, s.w * s.c, dx + (n * s.h + row) * s.w * s.c);
  });
}

}  // namespace

std::int64_t conv2d_backward_input_workspace(const ConvShape& s) {
  if (is_pointwise(s)) return gemm_workspace(pointwise_backward_input(s));
  if (by_windows(s)) {
    const WindowPlan p = WindowPlan::of<float>(s), q = WindowPlan::of<double>(s);
    return std::max(p.packed, q.packed) + parallel::threads() * std::max(p.scratch(), q.scratch());
  }
  if (fused::covers_plain(s)) return plain_backward_workspace(plain(s));
  return s.groups * packed_size(s.kh * s.kw * (s.o / s.groups), s.c / s.groups) + parallel::threads() * backward_input_scratch(s);
}

template <class T>
void conv2d_backward_input(const ConvShape& s, const T* dy, const T* weight, T* dx, T* workspace) {
  if (is_pointwise(s)) return gemm(pointwise_backward_input(s), dy, weight, dx, workspace);
  if (s.n * s.h * s.w * s.c == 0) return;
  if (by_windows(s)) return backward_input_by_windows(s, dy, weight, dx, workspace);
  if (fused::covers_plain(s)) return fused::dense_backward<T>(plain(s), {}, weight, {.g = dy}, {.x = dx}, workspace);
  const Source<T> source{dy, s.out_h(), s.out_w(), s.o};
  const int64_t c = s.c / s.groups, o = s.o / s.groups, taps = s.kh * s.kw;
  const int64_t packed_stride = packed_size(taps * o, c);
  T* scratch = workspace + s.groups * packed_stride;
  const int64_t scratch_size = backward_input_scratch(s);
  const int64_t panels = panel_count<T>(c);

  for (int64_t index = 0; index < phases(s); ++index) {
    const Phase phase = phase_of(s, index);
    const Grid grid{phase.grid_h, phase.grid_w, 1, 1};
    const int64_t pixels = s.n * grid.h * grid.w;
    if (pixels == 0) continue;
    const auto row_of = [&](int64_t i) {
      const int64_t col = i % grid.w, row = i / grid.w % grid.h, n = i / grid.w / grid.h;
      return (n * s.h + phase.h + row * s.sh) * s.w + phase.w + col * s.sw;
    };
    const Product p = backward_product(s, phase);
    if (p.taps * p.depth == 0) {
      parallel::for_range(pixels, std::max<int64_t>(1, parallel::light_grain / s.c), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) std::fill_n(dx + row_of(i) * s.c, s.c, T(0));
      });
      continue;
    }
    const auto kernel_h = [&](int64_t t) { return phase.taps_h.first + t / phase.taps_w.count * phase.taps_h.step; };
    const auto kernel_w = [&](int64_t t) { return phase.taps_w.first + t % phase.taps_w.count * phase.taps_w.step; };
    const auto offset_of = [&](int64_t t) {
      return Offset{floor_div(phase.h + s.ph - kernel_h(t) * s.dh, s.sh), floor_div(phase.w + s.pw - kernel_w(t) * s.dw, s.sw)};
    };
    const int64_t k = p.taps * o;
    parallel::for_range(s.groups * panels, pack_grain(k), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t g = i / panels, panel = i % panels;
        for (int64_t t = 0; t < p.taps; ++t)
          pack(k, c, t * o, o, weight + (g * o * taps + kernel_h(t) * s.kw + kernel_w(t)) * c, taps * c, false,
               workspace + g * packed_stride, panel, panel + 1);
      }
    });
    const int64_t rows = tile_rows(pixels, depth_of(p.taps, p.depth));
    parallel::for_pieces(parallel::pieces(pixels, rows), [&](int64_t piece, int worker) {
      const int64_t begin = piece * rows;
      product(p, source, grid, offset_of, begin, std::min(rows, pixels - begin), workspace, packed_stride, k, Epilogue<T>{}, dx,
              s.sh * s.sw == 1, row_of, scratch + worker * scratch_size);
    });
  }
}

// ---- backward_weight: dW[o, tap, c] = sum over pixels of dy[pixel, o] x[pixel at tap, c] ----
//
// A small weight: pixels are cut into pieces, each with its own partial sums. A large one: the weight is cut, by taps and
// output channels, and each piece goes over all pixels.

namespace {

constexpr int64_t max_partials = 1 << 20;
constexpr int64_t gathered_rows = block_k;

struct WeightPlan {
  bool by_pixels;
  int64_t pieces;
  int64_t grain;   // pixels a piece, by pixels
  int64_t o_tile;  // output channels a piece, by weight
  int64_t o_tiles;
  int64_t depth;    // gathered at once
  int64_t scratch;  // a worker
};

WeightPlan weight_plan(const ConvShape& s) {
  WeightPlan p{};
  const int64_t c = s.c / s.groups, o = s.o / s.groups, taps = s.kh * s.kw;
  const int64_t pixels = s.n * s.out_h() * s.out_w();
  const int64_t size = std::max<int64_t>(1, s.o * taps * c);
  const int64_t cuts = std::min(max_partials / size, 2 * wanted_tiles);
  p.by_pixels = cuts >= wanted_tiles;
  if (p.by_pixels) {
    p.grain = std::max(round_up(ceil_div(pixels, std::max<int64_t>(1, cuts)), gathered_rows), gathered_rows);
    p.pieces = parallel::pieces(pixels, p.grain);
    p.depth = depth_of(taps, c);
  } else {
    const int64_t wanted = ceil_div(wanted_tiles, taps * s.groups);
    p.o_tile = std::max<int64_t>(1, round_up(ceil_div(o, wanted), block_m));
    p.o_tiles = parallel::pieces(o, p.o_tile);
    p.pieces = taps * s.groups * p.o_tiles;
    p.depth = c;
  }
  p.scratch = tile_scratch + gathered_rows * p.depth;
  return p;
}

}  // namespace

std::int64_t conv2d_backward_weight_workspace(const ConvShape& s) {
  if (is_pointwise(s)) return gemm_workspace(pointwise_backward_weight(s));
  if (fused::covers_plain(s)) return plain_backward_workspace(plain(s, false));
  const WeightPlan p = weight_plan(s);
  const int64_t partials = p.by_pixels && p.pieces > 1 ? p.pieces * s.o * s.kh * s.kw * (s.c / s.groups) : 0;
  return partials + parallel::threads() * p.scratch;
}

template <class T>
void conv2d_backward_weight(const ConvShape& s, const T* x, const T* dy, T* dweight, T* workspace) {
  if (is_pointwise(s)) return gemm(pointwise_backward_weight(s), dy, x, dweight, workspace);
  if (fused::covers_plain(s))
    return fused::dense_backward<T>(plain(s, false), {.x = x}, nullptr, {.g = dy}, {.w = dweight}, workspace);
  const int64_t c = s.c / s.groups, o = s.o / s.groups, taps = s.kh * s.kw;
  const int64_t size = s.o * taps * c;
  const Grid grid{s.out_h(), s.out_w(), s.sh, s.sw};
  const int64_t pixels = s.n * grid.h * grid.w;
  if (size == 0) return;
  if (pixels == 0) {
    std::fill_n(dweight, size, T(0));
    return;
  }
  const WeightPlan p = weight_plan(s);
  const Source<T> source{x, s.h, s.w, s.c};
  T* scratch = workspace;
  T* partials = workspace + parallel::threads() * p.scratch;

  // Adds pixels [begin, end) to the columns of taps [tap, tap + count) and rows [first, first + rows) of group g.
  const auto add = [&](int64_t begin, int64_t end, int64_t g, int64_t tap, int64_t count, int64_t first, int64_t rows, T* out,
                       T* own) {
    T* columns = own + tile_scratch;
    const int64_t ld = count * c;
    for (int64_t row = begin; row < end; row += gathered_rows) {
      const int64_t gathered = std::min(gathered_rows, end - row);
      for (int64_t t = tap; t < tap + count; ++t)
        gather(source, grid, {t / s.kw * s.dh - s.ph, t % s.kw * s.dw - s.pw}, row, gathered, g * c, c, columns + (t - tap) * c,
               ld);
      gemm_tile(rows, ld, gathered, dy + row * s.o + g * o + first, s.o, true, TileB<T>{.data = columns, .ld = ld},
                out + (g * o + first) * taps * c + tap * c, taps * c, Epilogue<T>{.accumulate = row > begin}, own);
    }
  };

  if (p.by_pixels) {
    const int64_t taps_at_once = p.depth / c;
    parallel::for_pieces(p.pieces, [&](int64_t piece, int worker) {
      T* out = p.pieces > 1 ? partials + piece * size : dweight;
      const int64_t begin = piece * p.grain, end = std::min(pixels, begin + p.grain);
      for (int64_t g = 0; g < s.groups; ++g)
        for (int64_t tap = 0; tap < taps; tap += taps_at_once)
          add(begin, end, g, tap, std::min(taps_at_once, taps - tap), int64_t{0}, o, out, scratch + worker * p.scratch);
    });
    if (p.pieces > 1) add_partials(size, p.pieces, partials, dweight);
  } else {
    parallel::for_pieces(p.pieces, [&](int64_t piece, int worker) {
      const int64_t tile = piece % p.o_tiles, tap = piece / p.o_tiles % taps, g = piece / p.o_tiles / taps;
      const int64_t first = tile * p.o_tile;
      add(int64_t{0}, pixels, g, tap, int64_t{1}, first, std::min(p.o_tile, o - first), dweight, scratch + worker * p.scratch);
    });
  }
}

#define REWIND_INSTANTIATE(T)                                                                          \
  template void conv2d_forward<T>(const ConvShape&, const T*, const T*, const T*, Activation, T*, T*); \
  template void conv2d_backward_input<T>(const ConvShape&, const T*, const T*, T*, T*);                \
  template void conv2d_backward_weight<T>(const ConvShape&, const T*, const T*, T*, T*);
REWIND_INSTANTIATE(float)
REWIND_INSTANTIATE(double)
#undef REWIND_INSTANTIATE

}  // namespace rewind_lib::kernels
