#pragma once
// The geometry of a window that slides over images [N, H, W, C]: depthwise convolutions and pools.

#include <cstdint>

namespace rewind_lib::kernels {

/// Positions of a window of `kernel` taps over `in` elements; 0 when it does not fit.
constexpr std::int64_t window_positions(std::int64_t in, std::int64_t kernel, std::int64_t stride, std::int64_t padding,
                                        std::int64_t dilation) {
  const std::int64_t room = in + 2 * padding - dilation * (kernel - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

/// Extents (h, w), kernel (k), stride (s), padding (p) and dilation (d), each for rows (h) and columns (w). Extra (e) rows and
/// columns are padding below and to the right only.
struct WindowShape {
  std::int64_t n = 0, h = 0, w = 0, c = 0;
  std::int64_t kh = 1, kw = 1;
  std::int64_t sh = 1, sw = 1;
  std::int64_t ph = 0, pw = 0;
  std::int64_t dh = 1, dw = 1;
  std::int64_t eh = 0, ew = 0;

  constexpr std::int64_t out_h() const { return window_positions(h + eh, kh, sh, ph, dh); }
  constexpr std::int64_t out_w() const { return window_positions(w + ew, kw, sw, pw, dw); }
};

}  // namespace rewind_lib::kernels
