#include <rewind/core/kernels/loss.h>

#include <rewind/core/kernels/loop.h>
#include <rewind/core/kernels/vector_math.h>

#include <algorithm>
#include <limits>

namespace rewind_lib::kernels {
namespace {

constexpr std::int64_t light = parallel::light_grain;

// Rows of a piece: whole vectors of them, where they are short.
template <class T>
std::int64_t row_grain(std::int64_t rows, std::int64_t classes) {
  const std::int64_t least = max_of(1, heavy_grain / classes);
  return even_grain(rows, least, least < lanes<T> ? 1 : lanes<T>);
}

// f(row) for every row of a matrix.
template <class T, class F>
void for_rows(std::int64_t rows, std::int64_t classes, F f) {
  if (classes == 0) return;
  parallel::for_range(rows, row_grain<T>(rows, classes), [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) f(r);
  });
}

// Rows are taken in groups of at most w = lanes<T>. Their columns are, as far as whole vectors of a row go, taken by the row; the
// few that are left over, a column at a time, a vector of rows.

// Bytes of a group of several rows, which forward reads twice: half of an L2 of 512 KB.
constexpr std::int64_t group_bytes = 256 << 10;

// f(row, count) for groups of rows, the last ones smaller.
template <class T, class F>
void for_groups(std::int64_t rows, std::int64_t classes, F f) {
  if (classes == 0) return;
  const std::int64_t fit = group_bytes / (classes * static_cast<std::int64_t>(sizeof(T)));
  const std::int64_t group = std::clamp<std::int64_t>(fit, 1, lanes<T>);
  parallel::for_range(rows, row_grain<T>(rows, classes), [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; row += group) f(row, min_of(group, end - row));
  });
}

template <class T>
constexpr std::int64_t whole_vectors(std::int64_t classes) {
  return classes / lanes<T> * lanes<T>;
}

// The larger. A NaN, and what came before it, may be lost: the sum of exponentials is NaN all the same.
constexpr auto greater = [](auto a, auto b) { return a > b ? a : b; };
constexpr auto sum_of = [](auto a, auto b) { return a + b; };

// The largest in each lane of x[n], n whole vectors.
template <class T>
Vector<T> greatest(const T* x, std::int64_t n) {
  using V = Vector<T>;
  constexpr std::int64_t w = lanes<T>;
  V m = splat<V>(-std::numeric_limits<T>::infinity()), m2 = m;
  for (std::int64_t i = 0; i < n; i += 2 * w) {
    m = greater(m, load<V>(x + i));
    m2 = greater(m2, load<V>(x + min_of(i + w, n - w)));
  }
  return greater(m, m2);
}

// Sum of exp(x[i] - max) in each lane, i < n, n whole vectors. One vector at a time: its constants take all of 16 registers.
template <class T>
Vector<T> sum_exp(const T* x, std::int64_t n, T max) {
  Vector<T> sum = {};
  for (std::int64_t i = 0; i < n; i += lanes<T>) sum += math::exp_of_difference(load<Vector<T>>(x + i) - max);
  return sum;
}

// to[i] = exp(x[i] - log_sum) scale - subtract, i < n, n whole vectors. On its own, for its registers.
template <class T>
[[gnu::noinline]] void softmax_gradient(const T* x, std::int64_t n, T log_sum, T scale, T subtract, T* to) {
  using V = Vector<T>;
  const V k = splat<V>(scale), less = splat<V>(-subtract);
  for (std::int64_t i = 0; i < n; i += lanes<T>)
    store(to + i, multiply_add(math::exp_of_difference(load<V>(x + i) - log_sum), k, less));
}

// f(row, max, log of the sum of exp(x - max)) for every row of a matrix. A group at a time, a pass after the other, so that
// what one row has to wait for does not hold up the next. Sums are in doubles across blocks of columns.
template <class T, class F>
void for_log_sums(const T* x, std::int64_t rows, std::int64_t classes, F f) {
  for_groups<T>(rows, classes, [=](std::int64_t row, std::int64_t count) {
    constexpr std::int64_t w = lanes<T>, block = 128 * w;
    const std::int64_t whole = whole_vectors<T>(classes);
    const T* group = x + row * classes;
    Vector<T> part[w] = {};
    T max[w], log_sum[w];
    if (whole > 0) {
      for (std::int64_t r = 0; r < count; ++r) part[r] = greatest(group + r * classes, whole);
      store(max, fold_all<T>(part, greater));
    } else {
      std::fill_n(max, w, -std::numeric_limits<T>::infinity());
    }
    for (std::int64_t c = whole; c < classes; ++c) {
      REWIND_INDEPENDENT
      for (std::int64_t r = 0; r < count; ++r) max[r] = greater(max[r], group[r * classes + c]);
    }
    double sum[w] = {};
    for (std::int64_t c = 0; c < whole; c += block) {
      for (std::int64_t r = 0; r < count; ++r) part[r] = sum_exp(group + r * classes + c, min_of(block, whole - c), max[r]);
      const Vector<T> sums = fold_all<T>(part, sum_of);
      for (std::int64_t r = 0; r < w; ++r) sum[r] += static_cast<double>(sums[r]);
    }
    for (std::int64_t r = 0; r < w; ++r) log_sum[r] = r < count ? static_cast<T>(sum[r]) : T(1);
    for (std::int64_t c = whole; c < classes; ++c) {
      REWIND_INDEPENDENT
      for (std::int64_t r = 0; r < count; ++r) log_sum[r] += math::exp_of_difference(group[r * classes + c] - max[r]);
    }
    REWIND_INDEPENDENT
    for (std::int64_t r = 0; r < w; ++r) log_sum[r] = math::log(log_sum[r]);
    for (std::int64_t r = 0; r < count; ++r) f(row + r, max[r], log_sum[r]);
  });
}

// to[c] = f(x[c]) for a row, in whole vectors: the last one overlaps the one before it. to may be x.
template <class T, class F>
void map_row(const T* x, std::int64_t n, T* to, F f) {
  constexpr std::int64_t w = lanes<T>;
  if (n < w) {
    for (std::int64_t j = 0; j < n; ++j) to[j] = f(x[j]);
    return;
  }
  T last[w];
  REWIND_INDEPENDENT
  for (std::int64_t j = 0; j < w; ++j) last[j] = f(x[n - w + j]);
  for (std::int64_t c = 0; c + w <= n; c += w) {
    REWIND_INDEPENDENT
    for (std::int64_t j = 0; j < w; ++j) to[c + j] = f(x[c + j]);
  }
  std::memcpy(to + n - w, last, sizeof last);
}

}  // namespace

template <class T>
void softmax(const T* x, std::int64_t rows, std::int64_t classes, T* y) {
  for_rows<T>(rows, classes, [=](std::int64_t r) {
    const T* from = x + r * classes;
    T* to = y + r * classes;
    const T m = lane_max(from, classes);
    map_row(from, classes, to, [=](T v) { return math::exp_of_difference(v - m); });
    const T k = static_cast<T>(1 / lane_sum(to, classes));
    REWIND_INDEPENDENT
    for (std::int64_t c = 0; c < classes; ++c) to[c] *= k;
  });
}

template <class T>
void softmax_backward(const T* y, const T* g, std::int64_t rows, std::int64_t classes, T* dx) {
  for_rows<T>(rows, classes, [=](std::int64_t r) {
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
  for_log_sums(x, rows, classes, [=](std::int64_t r, T m, T log_sum) {
    const T* from = x + r * classes;
    T* to = y + r * classes;
    // The maximum is taken off first: subtracting the sum whole would lose digits where |m| is large.
    REWIND_INDEPENDENT
    for (std::int64_t c = 0; c < classes; ++c) to[c] = (from[c] - m) - log_sum;
  });
}

template <class T>
void log_softmax_backward(const T* y, const T* g, std::int64_t rows, std::int64_t classes, T* dx) {
  for_rows<T>(rows, classes, [=](std::int64_t r) {
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
                           T* lse, T* rest) {
  for_log_sums(logits, rows, classes, [=](std::int64_t r, T m, T log_of_sum) {
    const T* x = logits + r * classes;
    const double log_sum = static_cast<double>(log_of_sum), top = static_cast<double>(m);
    const double all = top + log_sum;
    lse[r] = static_cast<T>(all);
    rest[r] = static_cast<T>((all - static_cast<double>(lse[r])) + (log_sum - (all - top)));
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
void cross_entropy_backward(const T* logits, const Label* labels, const T* lse, const T* rest, std::int64_t rows,
                            std::int64_t classes, double smoothing, const T* g, T scale, T* dx) {
  const T k = scale * *g;
  const T spread = static_cast<T>(smoothing / static_cast<double>(classes)), peak = static_cast<T>(1 - smoothing) + spread;
  const T less = spread * k;
  for_groups<T>(rows, classes, [=](std::int64_t row, std::int64_t count) {
    constexpr std::int64_t w = lanes<T>;
    const std::int64_t whole = whole_vectors<T>(classes);
    const T* x = logits + row * classes;
    T* to = dx + row * classes;
    T sum[w], of_exp[w], at_label[w];  // of_exp: k, and what is left of the sum
    for (std::int64_t r = 0; r < w; ++r) {
      const std::int64_t from = min_of(r, count - 1);
      sum[r] = lse[row + from];
      of_exp[r] = -rest[row + from];
      at_label[r] = x[from * classes + static_cast<std::int64_t>(labels[row + from])] - sum[r];
    }
    REWIND_INDEPENDENT
    for (std::int64_t r = 0; r < w; ++r) {
      of_exp[r] = math::exp(of_exp[r]) * k;
      at_label[r] = math::exp_of_difference(at_label[r]) * of_exp[r] - peak * k;
    }
    for (std::int64_t r = 0; r < count; ++r) softmax_gradient(x + r * classes, whole, sum[r], of_exp[r], less, to + r * classes);
    for (std::int64_t c = whole; c < classes; ++c) {
      REWIND_INDEPENDENT
      for (std::int64_t r = 0; r < count; ++r)
        to[r * classes + c] = math::exp_of_difference(x[r * classes + c] - sum[r]) * of_exp[r] - less;
    }
    for (std::int64_t r = 0; r < count; ++r) to[r * classes + static_cast<std::int64_t>(labels[row + r])] = at_label[r];
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
void mse_backward(const T* a, const T* b, std::int64_t n, T g, T* da) {
  const T k = static_cast<T>(2 * static_cast<double>(g) / static_cast<double>(n));
  for_each(n, light, [=](std::int64_t i) { da[i] = (a[i] - b[i]) * k; });
}

#define INSTANTIATE_LABEL(T, L)                                                                            \
  template void cross_entropy_forward(const T*, const L*, std::int64_t, std::int64_t, double, T*, T*, T*); \
  template void cross_entropy_backward(const T*, const L*, const T*, const T*, std::int64_t, std::int64_t, double, const T*, T, T*);
#define INSTANTIATE(T)                                                                    \
  template void softmax(const T*, std::int64_t, std::int64_t, T*);                        \
  template void softmax_backward(const T*, const T*, std::int64_t, std::int64_t, T*);     \
  template void log_softmax(const T*, std::int64_t, std::int64_t, T*);                    \
  template void log_softmax_backward(const T*, const T*, std::int64_t, std::int64_t, T*); \
  template T mse_forward(const T*, const T*, std::int64_t);                               \
  template void mse_backward(const T*, const T*, std::int64_t, T, T*);                    \
  INSTANTIATE_LABEL(T, std::int32_t)                                                      \
  INSTANTIATE_LABEL(T, std::int64_t)
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE
#undef INSTANTIATE_LABEL
template std::int64_t first_bad_label(const std::int32_t*, std::int64_t, std::int64_t);
template std::int64_t first_bad_label(const std::int64_t*, std::int64_t, std::int64_t);

}  // namespace rewind_lib::kernels
