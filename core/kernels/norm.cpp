#include <rewind/core/kernels/norm.h>

#include <rewind/core/error.h>
#include <rewind/core/kernels/columns.h>
#include <rewind/core/kernels/vector_math.h>

namespace rewind_lib::kernels {
namespace {

constexpr std::int64_t light = parallel::light_grain;

template <class F>
void with(Activation act, F&& f) {
  if (act == Activation::relu) return f.template operator()<Activation::relu>();
  if (act == Activation::relu6) return f.template operator()<Activation::relu6>();
  REWIND_CHECK(act == Activation::none);
  f.template operator()<Activation::none>();
}

// g where the activation of z passes it on.
template <Activation act, class T>
REWIND_INLINE T masked(T g, T z) {
  if constexpr (act == Activation::none) return g;
  const T above = z <= T{0} ? T{0} : g;  // one choice after the other vectorises without masked loads
  if constexpr (act == Activation::relu6) return z >= T{6} ? T{0} : above;
  return above;
}

// What a tile needs of the parameters: z = (x - mean) scale + beta.
template <class T>
struct Affine {
  T mean[tile_width], scale[tile_width], beta[tile_width];

  Affine(const Tile& t, std::int64_t channels, const T* mean_of, const T* rstd, const T* gamma, const T* beta_of) {
    spread(t, channels, mean, [=](std::int64_t c) { return mean_of[c]; });
    spread(t, channels, scale, [=](std::int64_t c) { return gamma == nullptr ? rstd[c] : rstd[c] * gamma[c]; });
    spread(t, channels, beta, [=](std::int64_t c) { return beta_of == nullptr ? T{0} : beta_of[c]; });
  }
};

// Two sums a channel, over the lines of a tile: term(offset, column) returns both terms of an element.
template <class T>
struct Two {
  T first, second;
};
template <class T, class Term>
void two_sums(const Tile& t, std::int64_t channels, Term term, double* first_total, double* second_total) {
  T first[tile_width], second[tile_width];
  for (std::int64_t from = 0; from < t.rows; from += lines_per_flush) {
    const std::int64_t to = min_of(t.rows, from + lines_per_flush);
    for (std::int64_t j = 0; j < t.width; ++j) first[j] = second[j] = 0;
    std::int64_t r = from;
    for (; r + 2 <= to; r += 2) {
      const std::int64_t a = t.offset + r * t.stride, b = a + t.stride;
      REWIND_INDEPENDENT
      for (std::int64_t j = 0; j < t.width; ++j) {
        const Two<T> u = term(a + j, j), v = term(b + j, j);
        first[j] += u.first + v.first;
        second[j] += u.second + v.second;
      }
    }
    for (; r < to; ++r) {
      const std::int64_t a = t.offset + r * t.stride;
      REWIND_INDEPENDENT
      for (std::int64_t j = 0; j < t.width; ++j) {
        const Two<T> u = term(a + j, j);
        first[j] += u.first;
        second[j] += u.second;
      }
    }
    gather_columns(t, channels, first, first_total + t.channel);
    gather_columns(t, channels, second, second_total + t.channel);
  }
}

// f(offset, column) for every element of a tile.
template <class F>
void each(const Tile& t, F f) {
  for (std::int64_t r = 0; r < t.rows; ++r) {
    const std::int64_t at = t.offset + r * t.stride;
    REWIND_INDEPENDENT
    for (std::int64_t j = 0; j < t.width; ++j) f(at + j, j);
  }
}

// Pieces of rows, of which each thread takes the last of those that it had in the pass before first: what that left in its cache.
template <class F>
void for_pieces_backwards(std::int64_t rows, std::int64_t channels, F body) {
  const std::int64_t grain = column_grain(rows, channels, light), pieces = parallel::pieces(rows, grain);
  parallel::for_pieces(pieces, [=](std::int64_t k, int) {
    const std::int64_t begin = parallel::backwards(k, pieces) * grain;
    for_tiles(begin, min_of(rows, begin + grain), channels, body);
  });
}

// scratch [pieces, 2, channels]: adds the pieces up into the first, in order.
void add_pieces(double* scratch, std::int64_t pieces, std::int64_t channels) {
  for (std::int64_t p = 1; p < pieces; ++p)
    for (std::int64_t c = 0; c < 2 * channels; ++c) scratch[c] += scratch[p * 2 * channels + c];
}

std::int64_t two_sums_scratch(std::int64_t rows, std::int64_t channels) {
  if (rows == 0 || channels == 0) return 2 * channels;
  return 2 * channels * parallel::pieces(rows, column_grain(rows, channels, light));
}

}  // namespace

std::int64_t batch_norm_scratch(std::int64_t rows, std::int64_t channels) { return two_sums_scratch(rows, channels); }

template <class T>
void batch_norm_statistics(const T* x, std::int64_t rows, std::int64_t channels, T* mean, T* var, double* scratch) {
  if (channels == 0) return;
  const std::int64_t grain = column_grain(rows, channels, light), pieces = parallel::pieces(rows, grain);
  // Sums of x - shift and of its square, shift being the median of three rows of the piece: no cancellation when |mean| >> std, nor
  // where one row, of a masked image's margin, is far from the others.
  const auto shift_of = [=](std::int64_t piece, std::int64_t c) {
    const std::int64_t begin = piece * grain, count = min_of(grain, rows - begin);
    const T *row = x + begin * channels + c, p = row[0], q = row[count / 2 * channels], r = row[(count - 1) * channels];
    return std::max(std::min(p, q), std::min(std::max(p, q), r));
  };
  parallel::for_pieces(pieces, [=](std::int64_t piece, int) {
    double* sums = scratch + piece * 2 * channels;
    for (std::int64_t c = 0; c < 2 * channels; ++c) sums[c] = 0;
    const std::int64_t begin = piece * grain;
    for_tiles(begin, min_of(rows, begin + grain), channels, [=](const Tile& t) {
      T shift[tile_width];
      spread(t, channels, shift, [=](std::int64_t c) { return shift_of(piece, c); });
      const T* base = shift;
      two_sums<T>(
          t, channels,
          [=](std::int64_t i, std::int64_t j) {
            const T d = x[i] - base[j];
            return Two<T>{d, d * d};
          },
          sums, sums + channels);
    });
  });
  for (std::int64_t c = 0; c < channels; ++c) {
    double count = 0, m = 0, squares = 0;
    for (std::int64_t p = 0; p < pieces; ++p) {
      const double n = static_cast<double>(min_of(grain, rows - p * grain));
      const double s1 = scratch[p * 2 * channels + c], s2 = scratch[(p * 2 + 1) * channels + c];
      const double delta = static_cast<double>(shift_of(p, c)) + s1 / n - m;
      const double spread_within = s2 - s1 * s1 / n;
      m += delta * n / (count + n);
      squares += (spread_within < 0 ? 0 : spread_within) + delta * delta * count * n / (count + n);
      count += n;
    }
    mean[c] = static_cast<T>(m);
    var[c] = static_cast<T>(rows > 0 ? squares / static_cast<double>(rows) : 0);
  }
}

template <class T>
void reciprocal_std(const T* var, std::int64_t channels, double eps, T* rstd) {
  for (std::int64_t c = 0; c < channels; ++c) rstd[c] = static_cast<T>(1 / std::sqrt(static_cast<double>(var[c]) + eps));
}

template <class T>
void update_running(const T* mean, const T* var, std::int64_t rows, std::int64_t channels, double momentum, T* running_mean,
                    T* running_var) {
  const double unbiased = rows > 1 ? static_cast<double>(rows) / static_cast<double>(rows - 1) : 1;
  for (std::int64_t c = 0; c < channels; ++c) {
    running_mean[c] =
        static_cast<T>((1 - momentum) * static_cast<double>(running_mean[c]) + momentum * static_cast<double>(mean[c]));
    running_var[c] =
        static_cast<T>((1 - momentum) * static_cast<double>(running_var[c]) + momentum * unbiased * static_cast<double>(var[c]));
  }
}

template <class T>
void batch_norm_forward(const T* x, std::int64_t rows, std::int64_t channels, const T* mean, const T* rstd, const T* gamma,
                        const T* beta, Activation act, T* y) {
  if (rows == 0 || channels == 0) return;
  with(act, [=]<Activation a>() {
    for_pieces_backwards(rows, channels, [=](const Tile& t) {
      const Affine<T> p(t, channels, mean, rstd, gamma, beta);
      each(t, [x, y, &p](std::int64_t i, std::int64_t j) {
        const T z = (x[i] - p.mean[j]) * p.scale[j] + p.beta[j];
        y[i] = activate(a, z);
      });
    });
  });
}

template <class T>
void batch_norm_backward(const T* x, std::int64_t rows, std::int64_t channels, const T* mean, const T* rstd, const T* gamma,
                         const T* beta, Activation act, bool batch_statistics, const T* g, T* dx, T* dgamma, T* dbeta,
                         double* scratch) {
  if (channels == 0) return;
  const std::int64_t grain = column_grain(rows, channels, light), pieces = parallel::pieces(rows, grain);
  if (dgamma != nullptr || dbeta != nullptr || (batch_statistics && dx != nullptr)) {
    for (std::int64_t c = 0; c < 2 * channels; ++c) scratch[c] = 0;
    with(act, [=]<Activation a>() {
      parallel::for_pieces(pieces, [=](std::int64_t piece, int) {
        double* sums = scratch + piece * 2 * channels;
        for (std::int64_t c = 0; c < 2 * channels; ++c) sums[c] = 0;
        for_tiles(piece * grain, min_of(rows, (piece + 1) * grain), channels, [=](const Tile& t) {
          const Affine<T> p(t, channels, mean, rstd, gamma, beta);
          two_sums<T>(
              t, channels,
              [x, g, &p](std::int64_t i, std::int64_t j) {
                const T d = x[i] - p.mean[j];
                const T dz = masked<a>(g[i], d * p.scale[j] + p.beta[j]);
                return Two<T>{dz, dz * d};
              },
              sums, sums + channels);
        });
      });
    });
    add_pieces(scratch, pieces, channels);
    if (dbeta != nullptr)
      for (std::int64_t c = 0; c < channels; ++c) dbeta[c] = static_cast<T>(scratch[c]);
    if (dgamma != nullptr)
      for (std::int64_t c = 0; c < channels; ++c) dgamma[c] = static_cast<T>(scratch[channels + c] * static_cast<double>(rstd[c]));
  }
  if (dx == nullptr || rows == 0) return;
  // dx = scale (dz - mean(dz) - (x - mean) rstd^2 mean(dz (x - mean))), without the means for constant statistics.
  const double share = batch_statistics ? 1 / static_cast<double>(rows) : 0;
  with(act, [=]<Activation a>() {
    for_pieces_backwards(rows, channels, [=](const Tile& t) {
      const Affine<T> p(t, channels, mean, rstd, gamma, beta);
      if (!batch_statistics) {
        each(t, [x, g, dx, &p](std::int64_t i, std::int64_t j) {
          dx[i] = p.scale[j] * masked<a>(g[i], (x[i] - p.mean[j]) * p.scale[j] + p.beta[j]);
        });
        return;
      }
      T constant[tile_width], slope[tile_width];
      spread(t, channels, constant, [=](std::int64_t c) { return static_cast<T>(scratch[c] * share); });
      spread(t, channels, slope, [=](std::int64_t c) {
        const double r = static_cast<double>(rstd[c]);
        return static_cast<T>(scratch[channels + c] * share * r * r);
      });
      const T *k = constant, *s = slope;
      each(t, [x, g, dx, k, s, &p](std::int64_t i, std::int64_t j) {
        const T d = x[i] - p.mean[j];
        const T dz = masked<a>(g[i], d * p.scale[j] + p.beta[j]);
        dx[i] = p.scale[j] * ((dz - k[j]) - d * s[j]);
      });
    });
  });
}

template <class T>
void layer_norm_forward(const T* x, std::int64_t rows, std::int64_t columns, const T* gamma, const T* beta, double eps, T* y,
                        T* mean, T* rstd) {
  if (columns == 0) return;
  const double share = 1 / static_cast<double>(columns);
  parallel::for_range(rows, max_of(1, heavy_grain / columns), [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const T* from = x + r * columns;
      T* to = y + r * columns;
      const T m = static_cast<T>(lane_sum(from, columns) * share);
      const double squares = lane_sum<T>(
          columns,
          [=](std::int64_t i) {
            const auto d = load<Vector<T>>(from + i) - m;
            return d * d;
          },
          [=](std::int64_t i) { return (from[i] - m) * (from[i] - m); });
      const T s = static_cast<T>(1 / std::sqrt(squares * share + eps));
      if (mean != nullptr) mean[r] = m;
      if (rstd != nullptr) rstd[r] = s;
      if (gamma != nullptr && beta != nullptr) {
        REWIND_INDEPENDENT
        for (std::int64_t c = 0; c < columns; ++c) to[c] = (from[c] - m) * s * gamma[c] + beta[c];
      } else {
        REWIND_INDEPENDENT
        for (std::int64_t c = 0; c < columns; ++c)
          to[c] = (from[c] - m) * s * (gamma != nullptr ? gamma[c] : T{1}) + (beta != nullptr ? beta[c] : T{0});
      }
    }
  });
}

std::int64_t layer_norm_scratch(std::int64_t rows, std::int64_t columns) {
  if (rows == 0 || columns == 0) return 2 * columns;
  return 2 * columns * parallel::pieces(rows, reduction_grain(rows, (light + columns - 1) / columns));
}

template <class T>
void layer_norm_backward(const T* x, std::int64_t rows, std::int64_t columns, const T* mean, const T* rstd, const T* gamma,
                         const T* g, T* dx, T* dgamma, T* dbeta, double* scratch) {
  if (columns == 0) return;
  const bool sums_wanted = dgamma != nullptr || dbeta != nullptr;
  const std::int64_t grain = reduction_grain(rows, (light + columns - 1) / columns), pieces = parallel::pieces(rows, grain);
  const T share = static_cast<T>(1 / static_cast<double>(columns));
  for (std::int64_t c = 0; c < 2 * columns; ++c) scratch[c] = 0;
  parallel::for_pieces(pieces, [=](std::int64_t piece, int) {
    double *beta_sum = scratch + piece * 2 * columns, *gamma_sum = beta_sum + columns;
    for (std::int64_t c = 0; c < 2 * columns; ++c) beta_sum[c] = 0;
    const std::int64_t end = min_of(rows, (piece + 1) * grain);
    // A few rows at a time, so that the second look at them finds them in cache.
    for (std::int64_t from = piece * grain; from < end; from += lines_per_flush) {
      const std::int64_t to = min_of(end, from + lines_per_flush);
      for (std::int64_t c0 = 0; sums_wanted && c0 < columns; c0 += tile_width) {
        const std::int64_t width = min_of(tile_width, columns - c0);
        T a[tile_width] = {}, b[tile_width] = {};
        for (std::int64_t r = from; r < to; ++r) {
          const T m = mean[r], s = rstd[r];
          const T *xr = x + r * columns + c0, *gr = g + r * columns + c0;
          REWIND_INDEPENDENT
          for (std::int64_t j = 0; j < width; ++j) {
            a[j] += gr[j];
            b[j] += gr[j] * ((xr[j] - m) * s);
          }
        }
        for (std::int64_t j = 0; j < width; ++j) {
          beta_sum[c0 + j] += static_cast<double>(a[j]);
          gamma_sum[c0 + j] += static_cast<double>(b[j]);
        }
      }
      for (std::int64_t r = from; dx != nullptr && r < to; ++r) {
        const T m = mean[r], s = rstd[r];
        const T *xr = x + r * columns, *gr = g + r * columns;
        T* out = dx + r * columns;
        using V = Vector<T>;
        const auto weighted = [=](std::int64_t i) {
          return gamma != nullptr ? load<V>(gr + i) * load<V>(gamma + i) : load<V>(gr + i);
        };
        const auto weighted_one = [=](std::int64_t i) { return gamma != nullptr ? gr[i] * gamma[i] : gr[i]; };
        const T k = static_cast<T>(lane_sum<T>(columns, weighted, weighted_one)) * share;
        const T slope = static_cast<T>(lane_sum<T>(
                            columns, [=](std::int64_t i) { return weighted(i) * ((load<V>(xr + i) - m) * s); },
                            [=](std::int64_t i) { return weighted_one(i) * ((xr[i] - m) * s); })) *
                        share;
        if (gamma != nullptr) {
          REWIND_INDEPENDENT
          for (std::int64_t c = 0; c < columns; ++c) out[c] = s * ((gr[c] * gamma[c] - k) - (xr[c] - m) * s * slope);
        } else {
          REWIND_INDEPENDENT
          for (std::int64_t c = 0; c < columns; ++c) out[c] = s * ((gr[c] - k) - (xr[c] - m) * s * slope);
        }
      }
    }
  });
  add_pieces(scratch, pieces, columns);
  for (std::int64_t c = 0; c < columns; ++c) {
    if (dbeta != nullptr) dbeta[c] = static_cast<T>(scratch[c]);
    if (dgamma != nullptr) dgamma[c] = static_cast<T>(scratch[columns + c]);
  }
}

#define INSTANTIATE(T)                                                                                                            \
  template void batch_norm_statistics(const T*, std::int64_t, std::int64_t, T*, T*, double*);                                     \
  template void reciprocal_std(const T*, std::int64_t, double, T*);                                                               \
  template void update_running(const T*, const T*, std::int64_t, std::int64_t, double, T*, T*);                                   \
  template void batch_norm_forward(const T*, std::int64_t, std::int64_t, const T*, const T*, const T*, const T*, Activation, T*); \
  template void batch_norm_backward(const T*, std::int64_t, std::int64_t, const T*, const T*, const T*, const T*, Activation,     \
                                    bool, const T*, T*, T*, T*, double*);                                                         \
  template void layer_norm_forward(const T*, std::int64_t, std::int64_t, const T*, const T*, double, T*, T*, T*);                 \
  template void layer_norm_backward(const T*, std::int64_t, std::int64_t, const T*, const T*, const T*, const T*, T*, T*, T*,     \
                                    double*);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace rewind_lib::kernels
