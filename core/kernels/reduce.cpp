#include <rewind/core/kernels/reduce.h>

#include <rewind/core/kernels/columns.h>

namespace rewind_lib::kernels {
namespace {

constexpr std::int64_t light = parallel::light_grain;
constexpr int max_rank = 8;

// A walk over several axes at once: position k, counted row-major, to an offset.
struct Walk {
  int rank = 0;
  std::int64_t count = 1;
  std::int64_t size[max_rank] = {}, step[max_rank] = {};  // the last axis first

  void push(std::int64_t extent, std::int64_t stride) {
    size[rank] = extent;
    step[rank++] = stride;
    count *= extent;
  }
  std::int64_t operator()(std::int64_t k) const {
    std::int64_t at = 0;
    for (int i = 0; i < rank; ++i) {
      at += k % size[i] * step[i];
      k /= size[i];
    }
    return at;
  }
};

// The array as runs of `run` contiguous elements, either all reduced to one or all kept, and walks over the other axes,
// neighbours of the same kind merged.
struct Plan {
  bool run_reduced = false;
  std::int64_t run = 1;
  Walk kept, reduced;
  std::int64_t total = 1, outputs = 1;

  Plan(const std::int64_t* extent, int rank, std::uint32_t axes) {
    bool in_run = true, started = false;
    std::int64_t stride = 1;
    bool last_kind = false;
    for (int i = rank - 1; i >= 0; --i) {
      const bool kind = ((axes >> i) & 1u) != 0;
      const std::int64_t e = extent[i];
      total *= e;
      if (!kind) outputs *= e;
      if (e == 1) continue;
      if (!started) {
        started = true;
        run_reduced = last_kind = kind;
      }
      in_run = in_run && kind == run_reduced;
      Walk& walk = kind ? reduced : kept;
      if (in_run) {
        run *= e;
      } else if (kind == last_kind) {
        walk.size[walk.rank - 1] *= e;
        walk.count *= e;
      } else {
        walk.push(e, stride);
      }
      last_kind = kind;
      stride *= e;
    }
    if (!started) run_reduced = false;
  }

  // [outer, n, inner] with n reduced, when the array has that form; outer 0 otherwise.
  struct Block {
    std::int64_t outer = 0, n = 1, inner = 1;
  };
  Block block() const {
    if (run_reduced && reduced.rank == 0) return {kept.count, run, 1};
    if (!run_reduced && reduced.rank == 1 && kept.rank == 0) return {1, reduced.count, run};
    if (!run_reduced && reduced.rank == 1 && kept.rank == 1 && kept.step[0] == reduced.count * run)
      return {kept.count, reduced.count, run};
    return {};
  }
};

// Rows of [n, inner] that one partial sum covers. With many outer blocks there is work enough without cutting them.
std::int64_t sum_grain(const Plan::Block& b) {
  if (b.outer >= max_pieces) return b.n;
  return b.inner == 1 ? reduction_grain(b.n, light) : column_grain(b.n, b.inner, light);
}

// Sums of columns over rows [begin, end) of x [., channels]: emit(first channel, count, sums).
template <class T, class Emit>
void column_piece(const T* x, std::int64_t begin, std::int64_t end, std::int64_t channels, Emit emit) {
  double total[tile_width] = {};
  const bool folded = fold_of(channels) > 1;
  for_tiles(begin, end, channels, [&](const Tile& t) {
    if (!folded)
      for (double& v : total) v = 0;
    T sum[tile_width];
    for (std::int64_t from = 0; from < t.rows; from += lines_per_flush) {
      const std::int64_t to = min_of(t.rows, from + lines_per_flush);
      for (std::int64_t j = 0; j < t.width; ++j) sum[j] = 0;
      std::int64_t r = from;
      for (; r + 4 <= to; r += 4) {
        const T* a = x + t.offset + r * t.stride;
        const T *b = a + t.stride, *c = b + t.stride, *d = c + t.stride;
        for (std::int64_t j = 0; j < t.width; ++j) sum[j] += (a[j] + b[j]) + (c[j] + d[j]);
      }
      for (; r < to; ++r) {
        const T* a = x + t.offset + r * t.stride;
        for (std::int64_t j = 0; j < t.width; ++j) sum[j] += a[j];
      }
      gather_columns(t, channels, sum, total);
    }
    if (!folded) emit(t.channel, t.width, total);
  });
  if (folded) emit(std::int64_t{0}, channels, total);
}

template <class T>
void sum_block(const T* x, const Plan::Block& b, double scale, T* y, double* scratch) {
  const std::int64_t grain = sum_grain(b), pieces = parallel::pieces(b.n, grain);
  const std::int64_t work = min_of(grain, b.n) * b.inner;
  parallel::for_range(b.outer * pieces, max_of(1, light / work), [=](std::int64_t first, std::int64_t last) {
    for (std::int64_t u = first; u < last; ++u) {
      const std::int64_t o = u / pieces, begin = u % pieces * grain, end = min_of(b.n, begin + grain);
      const T* from = x + o * b.n * b.inner;
      const auto emit = [=](std::int64_t channel, std::int64_t count, const double* total) {
        if (pieces > 1)
          for (std::int64_t c = 0; c < count; ++c) scratch[u * b.inner + channel + c] = total[c];
        else
          for (std::int64_t c = 0; c < count; ++c) y[o * b.inner + channel + c] = static_cast<T>(total[c] * scale);
      };
      if (b.inner == 1) {
        const double total = lane_sum(from + begin, end - begin);
        emit(0, 1, &total);
      } else {
        column_piece(from, begin, end, b.inner, emit);
      }
    }
  });
  if (pieces == 1) return;
  for (std::int64_t o = 0; o < b.outer; ++o)
    for (std::int64_t c = 0; c < b.inner; ++c) {
      double total = 0;
      for (std::int64_t p = 0; p < pieces; ++p) total += scratch[(o * pieces + p) * b.inner + c];
      y[o * b.inner + c] = static_cast<T>(total * scale);
    }
}

// Calls body(kept offset, output position, first column, columns) for lines of kept runs, in tiles.
template <class F>
void for_kept_tiles(const Plan& p, F body) {
  const std::int64_t tiles = parallel::pieces(p.run, tile_width), lines = p.kept.count;
  const std::int64_t work = p.reduced.count * min_of(p.run, tile_width);
  parallel::for_range(lines * tiles, max_of(1, light / max_of(1, work)), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t u = begin; u < end; ++u) {
      const std::int64_t line = u / tiles, column = u % tiles * tile_width;
      body(p.kept(line) + column, line * p.run + column, min_of(tile_width, p.run - column));
    }
  });
}

// Calls body(kept offset, output position) for outputs of reduced runs.
template <class F>
void for_outputs(const Plan& p, F body) {
  const std::int64_t work = p.reduced.count * p.run;
  parallel::for_range(p.kept.count, max_of(1, light / max_of(1, work)), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t k = begin; k < end; ++k) body(p.kept(k), k);
  });
}

template <class T>
void sum_general(const T* x, const Plan& p, double scale, T* y) {
  if (p.run_reduced) {
    for_outputs(p, [=, &p](std::int64_t at, std::int64_t out) {
      double total = 0;
      for (std::int64_t r = 0; r < p.reduced.count; ++r) total += lane_sum(x + at + p.reduced(r), p.run);
      y[out] = static_cast<T>(total * scale);
    });
    return;
  }
  for_kept_tiles(p, [=, &p](std::int64_t at, std::int64_t out, std::int64_t n) {
    double total[tile_width] = {};
    for (std::int64_t r = 0; r < p.reduced.count; ++r) {
      const T* line = x + at + p.reduced(r);
      for (std::int64_t j = 0; j < n; ++j) total[j] += static_cast<double>(line[j]);
    }
    for (std::int64_t j = 0; j < n; ++j) y[out + j] = static_cast<T>(total[j] * scale);
  });
}

// Whether a takes the place of the best so far, which came first: NaN is greatest.
template <class T>
bool beats(T a, T best) {
  return !(a <= best) && best == best;
}

// Position of the first element that equals m, the maximum of x[0, n).
template <class T>
std::int64_t find(const T* x, std::int64_t n, T m) {
  std::int64_t i = 0;
  if (m == m) {
    while (i + 1 < n && x[i] != m) ++i;
  } else {
    while (i + 1 < n && x[i] == x[i]) ++i;
  }
  return i;
}

template <class T>
std::int64_t max_of_run(const T* x, std::int64_t n) {
  return find(x, n, lane_max(x, n));
}

template <class T>
std::int64_t max_of_all(const T* x, std::int64_t n) {
  std::int64_t part[max_pieces] = {};
  const std::int64_t grain = reduction_grain(n, light), pieces = parallel::pieces(n, grain);
  parallel::for_pieces(pieces, [&](std::int64_t piece, int) {
    const std::int64_t begin = piece * grain;
    part[piece] = begin + max_of_run(x + begin, min_of(grain, n - begin));
  });
  std::int64_t best = part[0];
  for (std::int64_t k = 1; k < pieces; ++k)
    if (beats(x[part[k]], x[best])) best = part[k];
  return best;
}

}  // namespace

std::int64_t sum_scratch(const std::int64_t* extent, int rank, std::uint32_t axes) {
  const Plan p(extent, rank, axes);
  const Plan::Block b = p.block();
  if (p.total == 0 || b.outer == 0) return 0;
  const std::int64_t pieces = parallel::pieces(b.n, sum_grain(b));
  return pieces > 1 ? b.outer * pieces * b.inner : 0;
}

template <class T>
void sum(const T* x, const std::int64_t* extent, int rank, std::uint32_t axes, T scale, T* y, double* scratch) {
  const Plan p(extent, rank, axes);
  if (p.total == 0) {
    for_each(p.outputs, light, [=](std::int64_t i) { y[i] = T{0}; });
    return;
  }
  if (p.outputs == p.total) {
    for_each(p.total, light, [=](std::int64_t i) { y[i] = scale * x[i]; });
    return;
  }
  const Plan::Block b = p.block();
  if (b.outer > 0) return sum_block(x, b, static_cast<double>(scale), y, scratch);
  sum_general(x, p, static_cast<double>(scale), y);
}

template <class T>
void expand(const T* g, const std::int64_t* extent, int rank, std::uint32_t axes, T scale, T* y) {
  const Plan p(extent, rank, axes);
  if (p.total == 0) return;
  if (p.run_reduced) {
    const std::int64_t chunk = min_of(p.run, light), chunks = parallel::pieces(p.run, chunk);
    const std::int64_t lines = p.reduced.count * chunks;
    parallel::for_range(p.kept.count * lines, light / chunk, [=, &p](std::int64_t begin, std::int64_t end) {
      for (std::int64_t u = begin; u < end; ++u) {
        const std::int64_t k = u / lines, r = u % lines / chunks, at = u % chunks * chunk, n = min_of(chunk, p.run - at);
        T* line = y + p.kept(k) + p.reduced(r) + at;
        const T v = scale * g[k];
        for (std::int64_t j = 0; j < n; ++j) line[j] = v;
      }
    });
    return;
  }
  for_kept_tiles(p, [=, &p](std::int64_t at, std::int64_t out, std::int64_t n) {
    T value[tile_width];
    for (std::int64_t j = 0; j < n; ++j) value[j] = scale * g[out + j];
    for (std::int64_t r = 0; r < p.reduced.count; ++r)
      std::memcpy(y + at + p.reduced(r), value, static_cast<std::size_t>(n) * sizeof(T));
  });
}

template <class T>
void max(const T* x, const std::int64_t* extent, int rank, std::uint32_t axes, T* y, std::int64_t* index) {
  const Plan p(extent, rank, axes);
  if (p.total == 0) return;
  if (p.run_reduced && p.kept.rank == 0 && p.reduced.rank == 0) {
    index[0] = max_of_all(x, p.total);
    y[0] = x[index[0]];
    return;
  }
  if (p.run_reduced) {
    for_outputs(p, [=, &p](std::int64_t at, std::int64_t out) {
      std::int64_t best = at + max_of_run(x + at, p.run);
      for (std::int64_t r = 1; r < p.reduced.count; ++r) {
        const std::int64_t from = at + p.reduced(r);
        const T m = lane_max(x + from, p.run);
        if (beats(m, x[best])) best = from + find(x + from, p.run, m);
      }
      index[out] = best;
      y[out] = x[best];
    });
    return;
  }
  for_kept_tiles(p, [=, &p](std::int64_t at, std::int64_t out, std::int64_t n) {
    for (std::int64_t j = 0; j < n; ++j) {
      y[out + j] = x[at + j];
      index[out + j] = at + j;
    }
    for (std::int64_t r = 1; r < p.reduced.count; ++r) {
      const std::int64_t from = at + p.reduced(r);
      REWIND_INDEPENDENT
      for (std::int64_t j = 0; j < n; ++j) {
        const bool better = beats(x[from + j], y[out + j]);
        y[out + j] = better ? x[from + j] : y[out + j];
        index[out + j] = better ? from + j : index[out + j];
      }
    }
  });
}

template <class T, class Index>
void argmax(const T* x, std::int64_t outer, std::int64_t n, std::int64_t inner, Index* index) {
  if (n == 0) return;
  parallel::for_range(outer * inner, max_of(1, light / n), [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t u = begin; u < end; ++u) {
      const T* from = x + u / inner * n * inner + u % inner;
      if (inner == 1) {
        index[u] = static_cast<Index>(max_of_run(from, n));
        continue;
      }
      std::int64_t best = 0;
      for (std::int64_t k = 1; k < n; ++k)
        if (beats(from[k * inner], from[best * inner])) best = k;
      index[u] = static_cast<Index>(best);
    }
  });
}

template <class T>
void gather(const T* x, const std::int64_t* index, std::int64_t n, T* y) {
  for_each(n, light, [=](std::int64_t i) { y[i] = x[index[i]]; });
}

template <class T>
void scatter(const T* g, const std::int64_t* index, std::int64_t n, T* y, std::int64_t y_size) {
  for_each(y_size, light, [=](std::int64_t i) { y[i] = T{0}; });
  for_each(n, light, [=](std::int64_t i) { y[index[i]] = g[i]; });
}

#define INSTANTIATE(T)                                                                     \
  template void sum(const T*, const std::int64_t*, int, std::uint32_t, T, T*, double*);    \
  template void expand(const T*, const std::int64_t*, int, std::uint32_t, T, T*);          \
  template void max(const T*, const std::int64_t*, int, std::uint32_t, T*, std::int64_t*); \
  template void argmax(const T*, std::int64_t, std::int64_t, std::int64_t, std::int32_t*); \
  template void argmax(const T*, std::int64_t, std::int64_t, std::int64_t, std::int64_t*); \
  template void gather(const T*, const std::int64_t*, std::int64_t, T*);                   \
  template void scatter(const T*, const std::int64_t*, std::int64_t, T*, std::int64_t);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace rewind_lib::kernels
