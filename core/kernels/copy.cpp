#include <rewind/core/kernels/copy.h>

#include <rewind/core/kernels/loop.h>

namespace rewind_lib::kernels {
namespace {

constexpr std::int64_t light = parallel::light_grain;
constexpr int max_rank = 8;

template <class T>
void copy_run(const T* x, T* y, std::int64_t n) {
  std::memcpy(y, x, static_cast<std::size_t>(n) * sizeof(T));
}

// y [b, a] = x [a, b] for one block; xs and ys are the elements from row to row.
template <class T>
void transpose_block(const T* x, std::int64_t xs, T* y, std::int64_t ys, std::int64_t a, std::int64_t b) {
  constexpr std::int64_t side = 16;
  if (a == side && b == side) {
    T tile[side * side];
    for (std::int64_t i = 0; i < side; ++i) std::memcpy(tile + i * side, x + i * xs, sizeof(T) * side);
    for (std::int64_t j = 0; j < side; ++j)
      for (std::int64_t i = 0; i < side; ++i) y[j * ys + i] = tile[i * side + j];
    return;
  }
  for (std::int64_t j = 0; j < b; ++j)
    for (std::int64_t i = 0; i < a; ++i) y[j * ys + i] = x[i * xs + j];
}

// The box `size` at `start` of an array, axes that are taken whole merged into the one before: lines of `width` elements.
struct Box {
  int rank = 0;
  std::int64_t lines = 1, width = 1, first = 0;
  std::int64_t size[max_rank] = {}, step[max_rank] = {};

  Box(const std::int64_t* extent, int n, const std::int64_t* start, const std::int64_t* count) {
    std::int64_t stride = 1;
    bool whole = true;  // every axis so far is taken whole
    for (int i = n - 1; i >= 0; --i) {
      first += start[i] * stride;
      if (whole) {
        width *= count[i];
        whole = count[i] == extent[i];
      } else {
        size[rank] = count[i];
        step[rank] = stride;
        lines *= count[i];
        ++rank;
      }
      stride *= extent[i];
    }
  }

  std::int64_t line(std::int64_t k) const {
    std::int64_t at = first;
    for (int i = 0; i < rank; ++i) {
      at += k % size[i] * step[i];
      k /= size[i];
    }
    return at;
  }
};

template <class F>
void for_lines(const Box& box, F f) {
  if (box.width == 0 || box.lines == 0) return;
  const std::int64_t chunk = min_of(box.width, light), chunks = parallel::pieces(box.width, chunk);
  parallel::for_range(box.lines * chunks, light / chunk, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t u = begin; u < end; ++u) {
      const std::int64_t k = u / chunks, at = u % chunks * chunk;
      f(box.line(k) + at, k * box.width + at, min_of(chunk, box.width - at));
    }
  });
}

template <class To, class From>
To convert(From v) {
  if constexpr (std::is_floating_point_v<From> && std::is_integral_v<To>) {
    constexpr From limit = sizeof(To) == 4 ? From(0x1p31) : From(0x1p63);
    constexpr To top = static_cast<To>(~(std::uint64_t{1} << (sizeof(To) * 8 - 1)) & (sizeof(To) == 4 ? 0x7FFFFFFFu : ~0ull));
    if (v >= limit) return top;
    if (v < -limit) return static_cast<To>(-top - 1);
    return v == v ? static_cast<To>(v) : To{0};
  } else {
    return static_cast<To>(v);
  }
}

}  // namespace

template <class T>
void copy(const T* x, T* y, std::int64_t n) {
  parallel::for_range(n, light, [=](std::int64_t begin, std::int64_t end) { copy_run(x + begin, y + begin, end - begin); });
}

template <class T>
void copy_rows(const T* x, std::int64_t x_stride, T* y, std::int64_t y_stride, std::int64_t rows, std::int64_t width) {
  if (width == 0) return;
  if (x_stride == width && y_stride == width) return copy(x, y, rows * width);
  const std::int64_t chunk = min_of(width, light), chunks = parallel::pieces(width, chunk);
  parallel::for_range(rows * chunks, light / chunk, [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t u = begin; u < end; ++u) {
      const std::int64_t r = u / chunks, at = u % chunks * chunk;
      copy_run(x + r * x_stride + at, y + r * y_stride + at, min_of(chunk, width - at));
    }
  });
}

template <class T>
void permute(const T* x, const std::int64_t* extent, int rank, const int* axes, T* y) {
  // Axes of y from the last to the first, those of extent 1 dropped, neighbours in both x and y merged.
  std::int64_t stride[max_rank + 1];
  std::int64_t total = 1;
  for (int i = rank - 1; i >= 0; --i) {
    stride[i] = total;
    total *= extent[i];
  }
  if (total == 0) return;
  int n = 0;
  std::int64_t size[max_rank], x_step[max_rank], y_step[max_rank];
  for (int i = rank - 1; i >= 0; --i) {
    const std::int64_t e = extent[axes[i]], s = stride[axes[i]];
    if (e == 1) continue;
    if (n > 0 && s == x_step[n - 1] * size[n - 1]) {
      size[n - 1] *= e;
    } else {
      size[n] = e;
      x_step[n++] = s;
    }
  }
  if (n <= 1) return copy(x, y, total);
  for (std::int64_t i = 0, s = 1; i < n; ++i) {
    y_step[i] = s;
    s *= size[i];
  }
  if (x_step[0] == 1) {  // whole runs keep their order
    const std::int64_t width = size[0], lines = total / width;
    parallel::for_range(lines, max_of(1, light / width), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t k = begin; k < end; ++k) {
        std::int64_t at = 0, rest = k;
        for (int i = 1; i < n; ++i) {
          at += rest % size[i] * x_step[i];
          rest /= size[i];
        }
        copy_run(x + at, y + k * width, width);
      }
    });
    return;
  }
  // Blocks of the plane of y's last axis (0 here) and x's last axis (q here).
  int q = 1;
  while (x_step[q] != 1) ++q;
  constexpr std::int64_t side = 16;
  const std::int64_t a = size[0], b = size[q], a_blocks = parallel::pieces(a, side), b_blocks = parallel::pieces(b, side);
  const std::int64_t planes = total / (a * b);
  parallel::for_range(planes * b_blocks * a_blocks, light / (side * side), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t u = begin; u < end; ++u) {
      const std::int64_t i0 = u % a_blocks * side, j0 = u / a_blocks % b_blocks * side;
      std::int64_t rest = u / a_blocks / b_blocks, x_at = i0 * x_step[0] + j0, y_at = j0 * y_step[q] + i0;
      for (int i = 1; i < n; ++i) {
        if (i == q) continue;
        x_at += rest % size[i] * x_step[i];
        y_at += rest % size[i] * y_step[i];
        rest /= size[i];
      }
      transpose_block(x + x_at, x_step[0], y + y_at, y_step[q], min_of(side, a - i0), min_of(side, b - j0));
    }
  });
}

template <class T>
void slice(const T* x, const std::int64_t* extent, int rank, const std::int64_t* start, const std::int64_t* size, T* y) {
  for_lines(Box(extent, rank, start, size),
            [=](std::int64_t whole, std::int64_t part, std::int64_t n) { copy_run(x + whole, y + part, n); });
}

template <class T>
void paste(const T* x, const std::int64_t* extent, int rank, const std::int64_t* start, const std::int64_t* size, T value, T* y) {
  std::int64_t total = 1;
  for (int i = 0; i < rank; ++i) total *= extent[i];
  for_each(total, light, [=](std::int64_t i) { y[i] = value; });
  for_lines(Box(extent, rank, start, size),
            [=](std::int64_t whole, std::int64_t part, std::int64_t n) { copy_run(x + part, y + whole, n); });
}

template <class From, class To>
void cast(const From* x, To* y, std::int64_t n) {
  for_each(n, light, [=](std::int64_t i) { y[i] = convert<To>(x[i]); });
}

#define INSTANTIATE(T)                                                                                      \
  template void copy(const T*, T*, std::int64_t);                                                           \
  template void copy_rows(const T*, std::int64_t, T*, std::int64_t, std::int64_t, std::int64_t);            \
  template void permute(const T*, const std::int64_t*, int, const int*, T*);                                \
  template void slice(const T*, const std::int64_t*, int, const std::int64_t*, const std::int64_t*, T*);    \
  template void paste(const T*, const std::int64_t*, int, const std::int64_t*, const std::int64_t*, T, T*); \
  template void cast(const T*, float*, std::int64_t);                                                       \
  template void cast(const T*, double*, std::int64_t);                                                      \
  template void cast(const T*, std::int32_t*, std::int64_t);                                                \
  template void cast(const T*, std::int64_t*, std::int64_t);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(std::int32_t)
INSTANTIATE(std::int64_t)
#undef INSTANTIATE

}  // namespace rewind_lib::kernels
