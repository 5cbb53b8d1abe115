#pragma once
// Checks of windows that slide over images: convolutions and pools.

#include <rewind/autograd/functional.h>
#include <rewind/core/kernels/window.h>

namespace rewind_lib {

/// "3x3"
inline void append(std::string& out, const Pair& pair) { out += str(pair.h, "x", pair.w); }

namespace ops {

/// `describe` tells the shapes and options for the end of an error.
template <class Describe>
void check_window(const char* op, std::int64_t h, std::int64_t w, std::int64_t kh, std::int64_t kw, Pair stride, Pair padding,
                  Pair dilation, Describe describe) {
  if (kh < 1 || kw < 1) fail(str(op, ": the kernel must be at least 1x1: ", describe()));
  if (stride.h < 1 || stride.w < 1) fail(str(op, ": stride must be at least 1: ", describe()));
  if (padding.h < 0 || padding.w < 0) fail(str(op, ": padding must not be negative: ", describe()));
  if (dilation.h < 1 || dilation.w < 1) fail(str(op, ": dilation must be at least 1: ", describe()));
  const std::int64_t span_h = std::int64_t{dilation.h} * (kh - 1) + 1, span_w = std::int64_t{dilation.w} * (kw - 1) + 1;
  const std::int64_t room_h = h + 2 * std::int64_t{padding.h}, room_w = w + 2 * std::int64_t{padding.w};
  if (span_h > room_h || span_w > room_w)
    fail(str(op, ": the kernel covers ", span_h, "x", span_w, " pixels, but the padded image has ", room_h, "x", room_w, ": ",
             describe(), "; pad more, or use a smaller kernel (images are [N, H, W, C])"));
}

}  // namespace ops
}  // namespace rewind_lib
