#include <rewind/core/kernels/fused.h>

#include <rewind/core/kernels/fused_tile.h>
#include <rewind/core/parallel.h>

namespace rewind_lib::kernels {
namespace {

bool is_pointwise(const FusedShape& s) {
  const ConvShape& c = s.conv;
  return !s.depthwise && c.kh == 1 && c.kw == 1 && c.sh == 1 && c.sw == 1 && c.ph == 0 && c.pw == 0;
}

}  // namespace

template <class T>
std::size_t fused_forward_workspace(const FusedShape& s) {
  if (s.depthwise) return fused::depthwise_forward_workspace<T>(s);
  return is_pointwise(s) ? fused::pointwise_forward_workspace<T>(s) : fused::dense_forward_workspace<T>(s);
}

template <class T>
void fused_forward(const FusedShape& s, const FusedInput<T>& in, const T* w, const T* residual, T* y, T* mean, T* var,
                   void* workspace) {
  if (s.depthwise) return fused::depthwise_forward(s, in, w, residual, y, mean, var, workspace);
  if (is_pointwise(s)) return fused::pointwise_forward(s, in, w, residual, y, mean, var, workspace);
  fused::dense_forward(s, in, w, residual, y, mean, var, workspace);
}

template <class T>
std::size_t fused_backward_workspace(const FusedShape& s) {
  if (s.depthwise) return fused::depthwise_backward_workspace<T>(s);
  return is_pointwise(s) ? fused::pointwise_backward_workspace<T>(s) : fused::dense_backward_workspace<T>(s);
}

template <class T>
void fused_backward(const FusedShape& s, const FusedInput<T>& in, const T* w, const FusedGradient<T>& gradient,
                    const FusedResult<T>& out, void* workspace) {
  if (s.depthwise) return fused::depthwise_backward(s, in, w, gradient, out, workspace);
  if (is_pointwise(s)) return fused::pointwise_backward(s, in, w, gradient, out, workspace);
  fused::dense_backward(s, in, w, gradient, out, workspace);
}

template <class T>
std::size_t assemble_gradient_workspace(std::int64_t channels) {
  fused::Carver carver(nullptr);
  fused::Assembly<T>::carve(carver, channels);
  return carver.used();
}

template <class T>
void assemble_gradient(std::int64_t rows, std::int64_t channels, const FusedGradient<T>& gradient, T* out, void* workspace) {
  fused::Carver carver(workspace);
  const auto assembly = fused::Assembly<T>::carve(carver, channels);
  assembly.fill(gradient, channels, rows);
  const std::int64_t fold = fused::line_of(channels) / channels;
  const std::int64_t grain = max_of(1, parallel::light_grain / (channels * fold)) * fold;
  parallel::for_range(rows, grain, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t at = begin * channels;
    fused::assemble(assembly, channels, (end - begin) * channels, gradient.g + at, gradient.y + at, out + at);
  });
}

#define REWIND_INSTANTIATE(T)                                                                                                 \
  template std::size_t fused_forward_workspace<T>(const FusedShape&);                                                         \
  template void fused_forward<T>(const FusedShape&, const FusedInput<T>&, const T*, const T*, T*, T*, T*, void*);             \
  template std::size_t fused_backward_workspace<T>(const FusedShape&);                                                        \
  template void fused_backward<T>(const FusedShape&, const FusedInput<T>&, const T*, const FusedGradient<T>&,                 \
                                  const FusedResult<T>&, void*);                                                              \
  template std::size_t assemble_gradient_workspace<T>(std::int64_t);                                                          \
  template void assemble_gradient<T>(std::int64_t, std::int64_t, const FusedGradient<T>&, T*, void*);
REWIND_INSTANTIATE(float)
REWIND_INSTANTIATE(double)
#undef REWIND_INSTANTIATE

}  // namespace rewind_lib::kernels
