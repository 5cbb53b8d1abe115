#include <rewind/core/kernels/fused.h>

#include <rewind/core/kernels/fused_tile.h>
#include <rewind/core/parallel.h>

#include <algorithm>

namespace rewind_lib::kernels {
namespace {

/// The shape without statistics: where a kernel cannot assemble G, it is assembled first, in the residual's gradient, and passed as
/// g.
FusedShape assembled(FusedShape s) {
  s.statistics = false;
  return s;
}

/// The gradients of a batch of no images: sums of nothing.
template <class T>
void fill_zero(const FusedShape& s, const FusedResult<T>& out) {
  for (T* norm : {out.norm.gamma, out.norm.beta, out.norm.mean, out.norm.var})
    if (norm != nullptr) std::fill_n(norm, s.conv.c, T(0));
  if (out.w != nullptr) std::fill_n(out.w, (s.depthwise ? 1 : s.conv.o) * s.conv.kh * s.conv.kw * s.conv.c, T(0));
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
  const auto of = [](const FusedShape& shape) {
    if (shape.depthwise) return fused::depthwise_backward_workspace<T>(shape);
    return is_pointwise(shape) ? fused::pointwise_backward_workspace<T>(shape) : fused::dense_backward_workspace<T>(shape);
  };
  return s.residual && s.statistics && !is_pointwise(s) ? max_of(of(assembled(s)), assemble_gradient_workspace<T>(s.conv.o))
                                                        : of(s);
}

template <class T>
void fused_backward(const FusedShape& s, const FusedInput<T>& in, const T* w, const FusedGradient<T>& gradient,
                    const FusedResult<T>& out, void* workspace) {
  if (s.rows() == 0) return fill_zero(s, out);
  if (is_pointwise(s)) return fused::pointwise_backward(s, in, w, gradient, out, workspace);
  FusedShape shape = s;
  FusedGradient<T> g = gradient;
  if (s.residual && s.statistics) {
    assemble_gradient(s.rows(), s.conv.o, gradient, out.residual, workspace);
    shape = assembled(s);
    g = {.g = out.residual};
  }
  if (s.depthwise) return fused::depthwise_backward(shape, in, w, g, out, workspace);
  fused::dense_backward(shape, in, w, g, out, workspace);
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
  fused::assemble_rows(assembly, rows, channels, gradient, out);
}

namespace {

// z = act(x normalised + k), k being normalised, with an activation of its own, where it is pending.
template <Activation act, Activation other, class T>
void settle_both(fused::Affine<T> p, fused::Affine<T> q, bool pending, std::int64_t channels, std::int64_t n, const T* x,
                 const T* shortcut, T* z) {
  const std::int64_t line = fused::line_of(channels);
  for (std::int64_t i = 0; i < n; i += line)
    for_vectors<T>(0, min_of(line, n - i), [&](auto tag, std::int64_t j) {
      using V = typename decltype(tag)::type;
      const V v = multiply_add(load<V>(x + i + j) - load<V>(p.mean + j), load<V>(p.scale + j), load<V>(p.beta + j));
      V k = load<V>(shortcut + i + j);
      if (pending) k = fused::activated<other, T>(multiply_add(k - load<V>(q.mean + j), load<V>(q.scale + j), load<V>(q.beta + j)));
      store(z + i + j, fused::activated<act, T>(v + k));
    });
}

}  // namespace

template <class T>
std::size_t settle_forward_workspace(std::int64_t channels) {
  fused::Carver carver(nullptr);
  fused::Affine<T>::carve(carver, channels);
  fused::Affine<T>::carve(carver, channels);
  return carver.used();
}

template <class T>
void settle_forward(std::int64_t rows, std::int64_t channels, const FusedInput<T>& in, const FusedInput<T>& shortcut, T* z,
                    void* workspace) {
  fused::Carver carver(workspace);
  const auto p = fused::Affine<T>::carve(carver, channels), q = fused::Affine<T>::carve(carver, channels);
  p.fill(in, channels);
  if (shortcut.mean != nullptr) q.fill(shortcut, channels);
  const std::int64_t line = fused::line_of(channels), fold = line / channels;
  const std::int64_t grain = max_of(1, parallel::light_grain / line) * fold;
  const auto range = [&](auto&& f) {
    parallel::for_range(rows, grain, [&](std::int64_t begin, std::int64_t end) { f(begin * channels, (end - begin) * channels); });
  };
  fused::with(in.activation, [&]<Activation act>() {
    if (shortcut.x == nullptr)
      return range([&](std::int64_t at, std::int64_t n) { fused::normalise<act>(p, channels, n, in.x + at, z + at); });
    if constexpr (goes_by_result(act))
      fused::with(shortcut.mean == nullptr ? Activation::none : shortcut.activation, [&]<Activation other>() {
        range([&](std::int64_t at, std::int64_t n) {
          settle_both<act, other>(p, q, shortcut.mean != nullptr, channels, n, in.x + at, shortcut.x + at, z + at);
        });
      });
  });
}

namespace {

template <class T>
struct SettlePlan {
  fused::Affine<T> affine;
  std::int64_t grain, pieces;
  double* sums;

  SettlePlan(std::int64_t rows, std::int64_t channels, fused::Carver& carver) {
    affine = fused::Affine<T>::carve(carver, channels);
    const std::int64_t fold = fused::line_of(channels) / channels;
    grain = round_up(max_of(parallel::light_grain / channels, ceil_div(rows, std::int64_t{32})), fold);
    pieces = parallel::pieces(rows, grain);
    sums = carver.take<double>(max_of(1, pieces) * 2 * channels);
  }
};

}  // namespace

template <class T>
std::size_t settle_backward_workspace(std::int64_t rows, std::int64_t channels) {
  fused::Carver carver(nullptr);
  SettlePlan<T>(rows, channels, carver);
  return carver.used();
}

template <class T>
void settle_backward(std::int64_t rows, std::int64_t channels, const FusedInput<T>& in, const T* z, const T* g, T* dx, T* dshortcut,
                     const NormGradient<T>& norm, void* workspace) {
  fused::Carver carver(workspace);
  const SettlePlan<T> p(rows, channels, carver);
  p.affine.fill(in, channels);
  const std::int64_t line = fused::line_of(channels), step = line * std::clamp<std::int64_t>(8192 / line, 32, 64);  // summed in T
  fused::with(in.activation, [&]<Activation act>() {
    parallel::for_pieces(p.pieces, [&](std::int64_t piece, int) {
      double* sums = p.sums + piece * 2 * channels;
      for (std::int64_t c = 0; c < 2 * channels; ++c) sums[c] = 0;
      const std::int64_t first = piece * p.grain * channels, last = min_of(rows * channels, first + p.grain * channels);
      for (std::int64_t i = first; i < last; i += step)
        fused::differentiate<act, true>(p.affine, channels, min_of(step, last - i), in.x + i, g + i, dx + i, sums, sums + channels,
                                        z == nullptr ? nullptr : z + i, dshortcut == nullptr ? nullptr : dshortcut + i);
    });
  });
  fused::finish_norm(in, channels, p.pieces, p.sums, norm);
}

#define REWIND_INSTANTIATE(T)                                                                                         \
  template std::size_t fused_forward_workspace<T>(const FusedShape&);                                                 \
  template void fused_forward<T>(const FusedShape&, const FusedInput<T>&, const T*, const T*, T*, T*, T*, void*);     \
  template std::size_t fused_backward_workspace<T>(const FusedShape&);                                                \
  template void fused_backward<T>(const FusedShape&, const FusedInput<T>&, const T*, const FusedGradient<T>&,         \
                                  const FusedResult<T>&, void*);                                                      \
  template std::size_t assemble_gradient_workspace<T>(std::int64_t);                                                  \
  template void assemble_gradient<T>(std::int64_t, std::int64_t, const FusedGradient<T>&, T*, void*);                 \
  template std::size_t settle_forward_workspace<T>(std::int64_t);                                                     \
  template void settle_forward<T>(std::int64_t, std::int64_t, const FusedInput<T>&, const FusedInput<T>&, T*, void*); \
  template std::size_t settle_backward_workspace<T>(std::int64_t, std::int64_t);                                      \
  template void settle_backward<T>(std::int64_t, std::int64_t, const FusedInput<T>&, const T*, const T*, T*, T*,      \
                                   const NormGradient<T>&, void*);
REWIND_INSTANTIATE(float)
REWIND_INSTANTIATE(double)
#undef REWIND_INSTANTIATE

}  // namespace rewind_lib::kernels
