#include <rewind/core/kernels/update.h>

#include <rewind/core/kernels/loop.h>
#include <rewind/core/kernels/vector_math.h>

#include <numeric>

namespace rewind_lib::kernels {
namespace {

constexpr std::int64_t light = parallel::light_grain;

// Adam's update with m / m_scale / (sqrt(v) / v_root + eps) written with multiplications: what is constant in a step is
// made once, in double. `decay` goes into the gradient, `shrink` multiplies w (decoupled weight decay).
template <class T>
void adam_pass(T* w, const T* g, T* m, T* v, std::int64_t n, const AdamOptions& o, double decay, double shrink, double step_size,
               double root_scale, double eps) {
  const T b1 = static_cast<T>(o.beta1), b2 = static_cast<T>(o.beta2), c1 = static_cast<T>(1 - o.beta1),
          c2 = static_cast<T>(1 - o.beta2), l2 = static_cast<T>(decay), keep = static_cast<T>(shrink),
          size = static_cast<T>(step_size), scale = static_cast<T>(root_scale), e = static_cast<T>(eps);
  for_each(n, light, [=](std::int64_t i) {
    const T d = g[i] + l2 * w[i];
    const T mi = b1 * m[i] + c1 * d;
    const T vi = b2 * v[i] + c2 * d * d;  // c2 first: the square of a large gradient may be infinite
    m[i] = mi;
    v[i] = vi;
    w[i] = keep * w[i] - size * mi / (math::sqrt(vi) * scale + e);
  });
}

double correction(double beta, std::int64_t step) { return 1 - std::pow(beta, static_cast<double>(step)); }

}  // namespace

template <class T>
void sgd(T* w, const T* g, std::int64_t n, double lr, double weight_decay) {
  const T rate = static_cast<T>(lr), decay = static_cast<T>(weight_decay);
  for_each(n, light, [=](std::int64_t i) { w[i] -= rate * (g[i] + decay * w[i]); });
}

template <class T>
void momentum(T* w, const T* g, T* buffer, std::int64_t n, const MomentumOptions& o, std::int64_t step) {
  const T rate = static_cast<T>(o.lr), decay = static_cast<T>(o.weight_decay), mu = static_cast<T>(o.momentum),
          fresh = static_cast<T>(1 - o.dampening);
  const auto pass = [=](auto first, auto nesterov) {
    for_each(n, light, [=](std::int64_t i) {
      const T d = g[i] + decay * w[i];
      T b = d;
      if constexpr (!decltype(first)::value) b = mu * buffer[i] + fresh * d;
      buffer[i] = b;
      if constexpr (decltype(nesterov)::value) b = d + mu * b;
      w[i] -= rate * b;
    });
  };
  using yes = std::true_type;
  using no = std::false_type;
  if (step == 1) return o.nesterov ? pass(yes{}, yes{}) : pass(yes{}, no{});
  return o.nesterov ? pass(no{}, yes{}) : pass(no{}, no{});
}

template <class T>
void adam(T* w, const T* g, T* m, T* v, std::int64_t n, const AdamOptions& o, std::int64_t step) {
  adam_pass(w, g, m, v, n, o, o.weight_decay, 1, o.lr / correction(o.beta1, step), 1 / std::sqrt(correction(o.beta2, step)), o.eps);
}

template <class T>
void adam_efficient(T* w, const T* g, T* m, T* v, std::int64_t n, const AdamOptions& o, std::int64_t step) {
  const double root = std::sqrt(correction(o.beta2, step));
  adam_pass(w, g, m, v, n, o, o.weight_decay, 1, o.lr * root / correction(o.beta1, step), 1, o.eps * root);
}

template <class T>
void adamw(T* w, const T* g, T* m, T* v, std::int64_t n, const AdamOptions& o, std::int64_t step) {
  adam_pass(w, g, m, v, n, o, 0, 1 - o.lr * o.weight_decay, o.lr / correction(o.beta1, step),
            1 / std::sqrt(correction(o.beta2, step)), o.eps);
}

template <class T>
double sum_of_squares(const T* x, std::int64_t n) {
  const std::int64_t grain = reduction_grain(n, parallel::light_grain), pieces = parallel::pieces(n, grain);
  const auto sum = [&](auto&& of_piece) {
    double part[max_pieces];
    parallel::for_pieces(pieces, [&](std::int64_t k, int) { part[k] = of_piece(x + k * grain, min_of(grain, n - k * grain)); });
    return std::accumulate(part, part + pieces, 0.0);
  };
  const double total = sum([](const T* p, std::int64_t count) {
    const auto squares = [p](std::int64_t i) {
      const auto v = load<Vector<T>>(p + i);
      return v * v;
    };
    return lane_sum<T>(count, squares, [p](std::int64_t i) { return p[i] * p[i]; });
  });
  // A square overflowed, or an element is not finite; or squares were lost that are too small for T.
  if (std::isfinite(total) && (sizeof(T) == sizeof(double) || total >= 1e-30)) return total;
  return sum([](const T* p, std::int64_t count) {
    double squares = 0;
    for (std::int64_t i = 0; i < count; ++i) squares += static_cast<double>(p[i]) * static_cast<double>(p[i]);
    return squares;
  });
}

template <class T>
void scale(T* x, T a, std::int64_t n) {
  for_each(n, light, [=](std::int64_t i) { x[i] *= a; });
}

#define INSTANTIATE(T)                                                                                \
  template void sgd(T*, const T*, std::int64_t, double, double);                                      \
  template void momentum(T*, const T*, T*, std::int64_t, const MomentumOptions&, std::int64_t);       \
  template void adam(T*, const T*, T*, T*, std::int64_t, const AdamOptions&, std::int64_t);           \
  template void adam_efficient(T*, const T*, T*, T*, std::int64_t, const AdamOptions&, std::int64_t); \
  template void adamw(T*, const T*, T*, T*, std::int64_t, const AdamOptions&, std::int64_t);          \
  template double sum_of_squares(const T*, std::int64_t);                                             \
  template void scale(T*, T, std::int64_t);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace rewind_lib::kernels
