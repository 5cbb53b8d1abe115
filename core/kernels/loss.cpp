#include <rewind/core/kernels/loss.h>

#include <rewind/core/kernels/loop.h>
#include <rewind/core/kernels/vector_math.h>

namespace rewind_lib::kernels {
namespace {

constexpr std::int64_t light = parallel::light_grain;

// f(row) for every row of a matrix.
template <class F>
void for_rows(std::int64_t rows, std::int64_t classes, F f) {
  if (classes == 0) return;
  parallel::for_range(rows, max_of(1, heavy_grain / classes), [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) f(r);
  });
}

// Sum of exp(x - m) over a row, m its maximum.
template <class T>
double sum_exp(const T* x, std::int64_t n, T m) {
  constexpr std::int64_t block = 1024;
  T e[block];
  double total = 0;
  for (std::int64_t from = 0; from < n; from += block) {
    const std::int64_t count = min_of(block, n - from);
    for (std::int64_t j = 0; j < count; ++j) e[j] = math::exp(x[from + j] - m);
    total += lane_sum(e, count);
  }
  return total;
}

// log of the sum of exp(x) over a row.
template <class T>
T log_sum_exp(const T* x, std::int64_t n) {
  const T m = lane_max(x, n);
  return static_cast<T>(static_cast<double>(m) + std::log(sum_exp(x, n, m)));
}

}  // namespace

template <class T>
void softmax(const T* x, std::int64_t rows, std::int64_t classes, T* y) {
  for_rows(rows, classes, [=](std::int64_t r) {
    const T* from = x + r * classes;
    T* to = y + r * classes;
    const T m = lane_max(from, classes);
    REWIND_INDEPENDENT
    for (std::int64_t c = 0; c < classes; ++c) to[c] = math::exp(from[c] - m);
    const T k = static_cast<T>(1 / lane_sum(to, classes));
    REWIND_INDEPENDENT
    for (std::int64_t c = 0; c < classes; ++c) to[c] *= k;
  });
}

template <class T>
void softmax_backward(const T* y, const T* g, std::int64_t rows, std::int64_t classes, T* dx) {
  for_rows(rows, classes, [=](std::int64_t r) {
    const T *yr = y + r * classes, *gr = g + r * classes;
    T* to = dx + r * classes;
    const T dot = static_cast<T>(lane_sum<T>(
        classes, [=](std::int64_t i) { return load<Vector<T>>(yr + i) * load<Vector<T>>(gr + i); },
        [=](std::int64_t i) { return yr[i] * gr[i]; }));
    REWIND_INDEPENDENT
    for (std::int64_t c = 0; c < classes; ++c) to[c] = yr[c] * (gr[c] - dot);
  });
}

template <class T>
void log_softmax(const T* x, std::int64_t rows, std::int64_t classes, T* y) {
  for_rows(rows, classes, [=](std::int64_t r) {
    const T* from = x + r * classes;
    T* to = y + r * classes;
    // The maximum is taken off first: subtracting the sum whole would lose digits where |m| is large.
    const T m = lane_max(from, classes), log_sum = static_cast<T>(std::log(sum_exp(from, classes, m)));
    REWIND_INDEPENDENT
    for (std::int64_t c = 0; c < classes; ++c) to[c] = (from[c] - m) - log_sum;
  });
}

template <class T>
void log_softmax_backward(const T* y, const T* g, std::int64_t rows, std::int64_t classes, T* dx) {
  for_rows(rows, classes, [=](std::int64_t r) {
    const T *yr = y + r * classes, *gr = g + r * classes;
    T* to = dx + r * classes;
    const T sum = static_cast<T>(lane_sum(gr, classes));
    REWIND_INDEPENDENT
    for (std::int64_t c = 0; c < classes; ++c) to[c] = gr[c] - math::exp(yr[c]) * sum;
  });
}

template <class Label>
std::int64_t first_bad_label(const Label* labels, std::int64_t rows, std::int64_t classes) {
  for (std::int64_t r = 0; r < rows; ++r)
    if (labels[r] < 0 || static_cast<std::int64_t>(labels[r]) >= classes) return r;
  return -1;
}

template <class T, class Label>
void cross_entropy_forward(const T* logits, const Label* labels, std::int64_t rows, std::int64_t classes, double smoothing, T* loss,
                           T* lse) {
  for_rows(rows, classes, [=](std::int64_t r) {
    const T* x = logits + r * classes;
    const T m = lane_max(x, classes);
    const double log_sum = std::log(sum_exp(x, classes, m)), top = static_cast<double>(m);
    lse[r] = static_cast<T>(top + log_sum);
    double value = (1 - smoothing) * (log_sum + (top - static_cast<double>(x[labels[r]])));
    if (smoothing > 0) {
      const double mean =
          lane_sum<T>(
              classes, [=](std::int64_t i) { return load<Vector<T>>(x + i) - m; }, [=](std::int64_t i) { return x[i] - m; }) /
          static_cast<double>(classes);
      value += smoothing * (log_sum - mean);
    }
    loss[r] = static_cast<T>(value);
  });
}

template <class T, class Label>
void cross_entropy_backward(const T* logits, const Label* labels, const T* lse, std::int64_t rows, std::int64_t classes,
                            double smoothing, const T* g, bool g_per_row, T scale, T* dx) {
  const T spread = static_cast<T>(smoothing / static_cast<double>(classes)), peak = static_cast<T>(1 - smoothing) + spread;
  for_rows(rows, classes, [=](std::int64_t r) {
    const T* x = logits + r * classes;
    T* to = dx + r * classes;
    const T k = scale * g[g_per_row ? r : 0], whole = lse[r];
    const std::int64_t label = static_cast<std::int64_t>(labels[r]);
    const T at_label = (math::exp(x[label] - whole) - peak) * k;
    REWIND_INDEPENDENT
    for (std::int64_t c = 0; c < classes; ++c) to[c] = (math::exp(x[c] - whole) - spread) * k;
    to[label] = at_label;
  });
}

template <class T>
T mse_forward(const T* a, const T* b, std::int64_t n) {
  double part[max_pieces];
  const std::int64_t grain = reduction_grain(n, light), pieces = parallel::pieces(n, grain);
  parallel::for_pieces(pieces, [&](std::int64_t piece, int) {
    const T *p = a + piece * grain, *q = b + piece * grain;
    part[piece] = lane_sum<T>(
        min_of(grain, n - piece * grain),
        [=](std::int64_t i) {
          const auto d = load<Vector<T>>(p + i) - load<Vector<T>>(q + i);
          return d * d;
        },
        [=](std::int64_t i) { return (p[i] - q[i]) * (p[i] - q[i]); });
  });
  double total = 0;
  for (std::int64_t k = 0; k < pieces; ++k) total += part[k];
  return static_cast<T>(total / static_cast<double>(n));
}

template <class T>
void mse_backward(const T* a, const T* b, std::int64_t n, T g, T* da, T* db) {
  const T k = static_cast<T>(2 * static_cast<double>(g) / static_cast<double>(n));
  if (da != nullptr && db != nullptr) {
    for_each(n, light, [=](std::int64_t i) {
      const T d = (a[i] - b[i]) * k;
      da[i] = d;
      db[i] = -d;
    });
  } else if (da != nullptr) {
    for_each(n, light, [=](std::int64_t i) { da[i] = (a[i] - b[i]) * k; });
  } else if (db != nullptr) {
    for_each(n, light, [=](std::int64_t i) { db[i] = (b[i] - a[i]) * k; });
  }
}

#define INSTANTIATE_LABEL(T, L)                                                                        \
  template void cross_entropy_forward(const T*, const L*, std::int64_t, std::int64_t, double, T*, T*); \
  template void cross_entropy_backward(const T*, const L*, const T*, std::int64_t, std::int64_t, double, const T*, bool, T, T*);
#define INSTANTIATE(T)                                                                    \
  template void softmax(const T*, std::int64_t, std::int64_t, T*);                        \
  template void softmax_backward(const T*, const T*, std::int64_t, std::int64_t, T*);     \
  template void log_softmax(const T*, std::int64_t, std::int64_t, T*);                    \
  template void log_softmax_backward(const T*, const T*, std::int64_t, std::int64_t, T*); \
  template T mse_forward(const T*, const T*, std::int64_t);                               \
  template void mse_backward(const T*, const T*, std::int64_t, T, T*, T*);                \
  INSTANTIATE_LABEL(T, std::int32_t)                                                      \
  INSTANTIATE_LABEL(T, std::int64_t)
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE
#undef INSTANTIATE_LABEL
template std::int64_t first_bad_label(const std::int32_t*, std::int64_t, std::int64_t);
template std::int64_t first_bad_label(const std::int64_t*, std::int64_t, std::int64_t);

}  // namespace rewind_lib::kernels
