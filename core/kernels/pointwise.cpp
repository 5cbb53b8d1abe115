#include <rewind/core/kernels/pointwise.h>

#include <rewind/core/kernels/loop.h>
#include <rewind/core/kernels/philox.h>
#include <rewind/core/kernels/vector_math.h>

namespace rewind_lib::kernels {
namespace {

constexpr std::int64_t light = parallel::light_grain;

// Calls f with the operator as a function object.
template <class F>
void with(Binary op, F&& f) {
  switch (op) {
    case Binary::add: return f([](auto a, auto b) { return a + b; });
    case Binary::sub: return f([](auto a, auto b) { return a - b; });
    case Binary::mul: return f([](auto a, auto b) { return a * b; });
    case Binary::div: return f([](auto a, auto b) { return a / b; });
  }
}

// Two operands over the same output, axes merged and reversed (the last axis first): a step is 0 where the operand is
// repeated.
struct Broadcast {
  int rank = 0;
  std::int64_t extent[8] = {}, a_step[8] = {}, b_step[8] = {};
};

Broadcast merge(const std::int64_t* a_extent, int a_rank, const std::int64_t* b_extent, int b_rank) {
  Broadcast m;
  std::int64_t a_size = 1, b_size = 1;
  for (int i = 0; i < (a_rank > b_rank ? a_rank : b_rank); ++i) {
    const std::int64_t ea = i < a_rank ? a_extent[a_rank - 1 - i] : 1, eb = i < b_rank ? b_extent[b_rank - 1 - i] : 1;
    const std::int64_t e = ea == 1 ? eb : ea;
    if (e == 1) continue;
    const std::int64_t a_step = ea == 1 ? 0 : a_size, b_step = eb == 1 ? 0 : b_size;
    a_size *= ea;
    b_size *= eb;
    const int last = m.rank - 1;
    if (last >= 0 && (a_step == 0) == (m.a_step[last] == 0) && (b_step == 0) == (m.b_step[last] == 0)) {
      m.extent[last] *= e;
    } else {
      m.extent[m.rank] = e;
      m.a_step[m.rank] = a_step;
      m.b_step[m.rank] = b_step;
      ++m.rank;
    }
  }
  if (m.rank == 0) m = {1, {1}, {1}, {1}};
  return m;
}

// One contiguous run of output.
template <class T, class Op>
void run(Op op, const T* a, bool a_moves, const T* b, bool b_moves, T* y, std::int64_t n) {
  if (a_moves && b_moves) {
    REWIND_INDEPENDENT
    for (std::int64_t i = 0; i < n; ++i) y[i] = op(a[i], b[i]);
  } else if (a_moves) {
    const T right = *b;
    REWIND_INDEPENDENT
    for (std::int64_t i = 0; i < n; ++i) y[i] = op(a[i], right);
  } else {
    const T left = *a;
    REWIND_INDEPENDENT
    for (std::int64_t i = 0; i < n; ++i) y[i] = op(left, b[i]);
  }
}

// [rows, width] with a row of `width` elements repeated, too short to vectorise over: several copies side by side.
template <class T, class Op>
void short_rows(Op op, const T* full, const T* row, T* y, std::int64_t rows, std::int64_t width) {
  constexpr std::int64_t room = 512;
  const std::int64_t fold = room / width, wide = fold * width;
  parallel::for_range(rows, (light / wide + 1) * fold, [=](std::int64_t begin, std::int64_t end) {
    T copies[room];
    for (std::int64_t i = 0; i < wide; ++i) copies[i] = row[i % width];
    for (std::int64_t r = begin; r < end; r += fold)
      run(op, full + r * width, true, copies, true, y + r * width, min_of(fold, end - r) * width);
  });
}

template <class T, class Op>
void apply(Op op, const T* a, const T* b, T* y, const Broadcast& m) {
  const std::int64_t width = m.extent[0];
  const bool a_moves = m.a_step[0] != 0, b_moves = m.b_step[0] != 0;
  std::int64_t rows = 1;
  for (int i = 1; i < m.rank; ++i) rows *= m.extent[i];
  if (rows == 0 || width == 0) return;
  if (m.rank == 2 && width <= 256 && rows > 8 && a_moves && b_moves) {
    if (m.b_step[1] == 0) return short_rows(op, a, b, y, rows, width);
    return short_rows([op](T right, T left) { return op(left, right); }, b, a, y, rows, width);
  }
  const std::int64_t chunk = min_of(width, light), chunks = parallel::pieces(width, chunk);
  parallel::for_range(rows * chunks, light / chunk, [=, &m](std::int64_t begin, std::int64_t end) {
    for (std::int64_t u = begin; u < end; ++u) {
      const std::int64_t row = u / chunks, at = u % chunks * chunk;
      std::int64_t rest = row, a_at = a_moves ? at : 0, b_at = b_moves ? at : 0;
      for (int i = 1; i < m.rank; ++i) {
        const std::int64_t position = rest % m.extent[i];
        rest /= m.extent[i];
        a_at += position * m.a_step[i];
        b_at += position * m.b_step[i];
      }
      run(op, a + a_at, a_moves, b + b_at, b_moves, y + row * width + at, min_of(chunk, width - at));
    }
  });
}

// Each activation: its value, and d and d' as functions of what is saved. relu, relu6 and the like let NaN through.
template <class T>
constexpr T third = T{1} / T{3};
template <class T>
constexpr T sixth = T{1} / T{6};

template <class T>
REWIND_INLINE T hard(T x) {  // relu6(x + 3) / 6
  const T y = (x + T{3}) * sixth<T>;
  const T low = x <= T{-3} ? T{0} : y;
  return x >= T{3} ? T{1} : low;
}

template <Unary op, class T>
REWIND_INLINE T value(T x) {
  using enum Unary;
  if constexpr (op == neg) return -x;
  if constexpr (op == exp) return math::exp(x);
  if constexpr (op == log) return math::log(x);
  if constexpr (op == sqrt) return math::sqrt(x);
  if constexpr (op == tanh) return math::tanh(x);
  if constexpr (op == sigmoid) return math::sigmoid(x);
  if constexpr (op == relu) return x < T{0} ? T{0} : x;
  if constexpr (op == relu6) {
    const T y = x < T{0} ? T{0} : x;
    return y > T{6} ? T{6} : y;
  }
  if constexpr (op == silu) return x / (T{1} + math::exp(-x));
  if constexpr (op == hardswish) return x * hard(x);
  if constexpr (op == hardsigmoid) return hard(x);
  if constexpr (op == gelu) return x * math::normal(x).cumulative;
  if constexpr (op == square) return x * x;
  if constexpr (op == abs) return x < T{0} ? -x : x + T{0};
}

template <Unary op, class T>
REWIND_INLINE T first(T s) {
  using enum Unary;
  if constexpr (op == exp) return s;
  if constexpr (op == sqrt) return T{0.5} / s;
  if constexpr (op == tanh) return T{1} - s * s;
  if constexpr (op == sigmoid) return s * (T{1} - s);
  if constexpr (op == silu) {
    const T f = math::sigmoid(s);
    return f * (T{1} + s * (T{1} - f));
  }
  if constexpr (op == hardswish) {
    const T d = s * third<T> + T{0.5};
    const T low = s <= T{-3} ? T{0} : d;
    return s >= T{3} ? T{1} : low;
  }
  if constexpr (op == hardsigmoid) return ((s <= T{-3}) | (s >= T{3})) ? T{0} : sixth<T>;
  if constexpr (op == gelu) {
    const auto n = math::normal(s);
    return n.cumulative + s * n.density;
  }
  if constexpr (op == square) return s + s;
  if constexpr (op == abs) {
    const T up = s > T{0} ? T{1} : T{0};
    return s < T{0} ? T{-1} : up;
  }
}

template <Unary op, class T>
REWIND_INLINE T second(T s) {
  using enum Unary;
  if constexpr (op == neg || op == relu || op == relu6 || op == hardsigmoid || op == abs) return T{0};
  if constexpr (op == exp) return T{1};
  if constexpr (op == log) return T{-1} / (s * s);
  if constexpr (op == sqrt) return T{-0.5} / (s * s);
  if constexpr (op == tanh) return T{-2} * s;
  if constexpr (op == sigmoid) return T{1} - (s + s);
  if constexpr (op == silu) {
    const T f = math::sigmoid(s);
    return f * (T{1} - f) * (T{2} + s * (T{1} - (f + f)));
  }
  if constexpr (op == hardswish) return ((s <= T{-3}) | (s >= T{3})) ? T{0} : third<T>;
  if constexpr (op == gelu) return math::normal(s).density * (T{2} - s * s);
  if constexpr (op == square) return T{2};
}

// g where relu or relu6 passes it on: no product, so that an infinite g outside gives 0. One choice after the other
// vectorises without masked loads.
template <Unary op, class T>
REWIND_INLINE T inside(T g, T s) {
  const T above = s <= T{0} ? T{0} : g;
  if constexpr (op == Unary::relu6) return s >= T{6} ? T{0} : above;
  return above;
}
// The same of a product with a slope, where that is 0.
template <Unary op, class T>
REWIND_INLINE T sloped(T g, T s) {
  const T r = g * first<op>(s);
  if constexpr (op == Unary::hardswish) return s <= T{-3} ? T{0} : r;
  if constexpr (op == Unary::hardsigmoid) return ((s <= T{-3}) | (s >= T{3})) ? T{0} : r;
  return r;
}

constexpr std::int64_t grain_of(Unary op) {
  switch (op) {
    case Unary::exp:
    case Unary::log:
    case Unary::tanh:
    case Unary::sigmoid:
    case Unary::silu:
    case Unary::gelu: return heavy_grain;
    default: return light;
  }
}

// Calls f.template operator()<op>() with the run-time op as a constant.
template <class F>
void with(Unary op, F&& f) {
  using enum Unary;
  switch (op) {
    case neg: return f.template operator()<neg>();
    case exp: return f.template operator()<exp>();
    case log: return f.template operator()<log>();
    case sqrt: return f.template operator()<sqrt>();
    case tanh: return f.template operator()<tanh>();
    case sigmoid: return f.template operator()<sigmoid>();
    case relu: return f.template operator()<relu>();
    case relu6: return f.template operator()<relu6>();
    case silu: return f.template operator()<silu>();
    case hardswish: return f.template operator()<hardswish>();
    case hardsigmoid: return f.template operator()<hardsigmoid>();
    case gelu: return f.template operator()<gelu>();
    case square: return f.template operator()<square>();
    case abs: return f.template operator()<abs>();
  }
}

}  // namespace

template <class T>
void binary(Binary op, const T* a, const T* b, T* y, std::int64_t n) {
  with(op, [=](auto f) { for_each(n, light, [=](std::int64_t i) { y[i] = f(a[i], b[i]); }); });
}

template <class T>
void binary(Binary op, const T* a, const std::int64_t* a_extent, int a_rank, const T* b, const std::int64_t* b_extent, int b_rank,
            T* y) {
  const Broadcast m = merge(a_extent, a_rank, b_extent, b_rank);
  with(op, [=, &m](auto f) { apply(f, a, b, y, m); });
}

template <class T>
void unary(Unary op, const T* x, T* y, std::int64_t n) {
  with(op, [=]<Unary u>() { for_each(n, grain_of(u), [=](std::int64_t i) { y[i] = value<u>(x[i]); }); });
}

template <class T>
void unary_first(Unary op, const T* s, const T* g, T* r, std::int64_t n) {
  with(op, [=]<Unary u>() {
    if constexpr (saves_nothing(u)) {
      for_each(n, light, [=](std::int64_t i) { r[i] = -g[i]; });
    } else if constexpr (u == Unary::relu || u == Unary::relu6) {
      for_each(n, light, [=](std::int64_t i) { r[i] = inside<u>(g[i], s[i]); });
    } else if constexpr (u == Unary::log) {  // 1 / s may be infinite where g / s is not
      for_each(n, grain_of(u), [=](std::int64_t i) { r[i] = g[i] / s[i]; });
    } else {
      for_each(n, grain_of(u), [=](std::int64_t i) { r[i] = sloped<u>(g[i], s[i]); });
    }
  });
}

template <class T>
void unary_second(Unary op, const T* s, const T* g, T* r, std::int64_t n) {
  with(op, [=]<Unary u>() {
    if constexpr (saves_nothing(u)) {
      fill(r, T{0}, n);
    } else {
      for_each(n, grain_of(u), [=](std::int64_t i) { r[i] = g[i] * second<u>(s[i]); });
    }
  });
}

template <class T>
void affine(T a, const T* x, T b, T* y, std::int64_t n) {
  for_each(n, light, [=](std::int64_t i) { y[i] = a * x[i] + b; });
}

template <class T>
void fill(T* y, T v, std::int64_t n) {
  for_each(n, light, [=](std::int64_t i) { y[i] = v; });
}

template <class T>
void dropout(const T* x, T* y, std::int64_t n, double p, std::uint64_t seed, std::uint64_t offset) {
  const auto drop = static_cast<std::uint64_t>(p * 0x1p32);  // so many of the 2^32 words drop their element
  if (drop == 0) return affine(T{1}, x, T{0}, y, n);
  const auto last_dropped = static_cast<std::uint32_t>(drop - 1);
  const T keep = p < 1 ? static_cast<T>(1 / (1 - p)) : T{0};
  constexpr std::int64_t grain = heavy_grain / philox_group * philox_group;
  parallel::for_range(n, grain, [=](std::int64_t begin, std::int64_t end) {
    std::uint32_t word[philox_group];
    for (std::int64_t at = begin; at < end; at += philox_group) {
      philox_fill(seed, offset + static_cast<std::uint64_t>(at), word);
      const T* from = x + at;
      T* to = y + at;
      const int count = static_cast<int>(min_of(philox_group, end - at));
      REWIND_INDEPENDENT
      for (int j = 0; j < count; ++j) {
        const T kept = from[j] * keep;
        to[j] = word[j] > last_dropped ? kept : T{0};
      }
    }
  });
}

#define INSTANTIATE(T)                                                                                      \
  template void binary(Binary, const T*, const T*, T*, std::int64_t);                                       \
  template void binary(Binary, const T*, const std::int64_t*, int, const T*, const std::int64_t*, int, T*); \
  template void unary(Unary, const T*, T*, std::int64_t);                                                   \
  template void unary_first(Unary, const T*, const T*, T*, std::int64_t);                                   \
  template void unary_second(Unary, const T*, const T*, T*, std::int64_t);                                  \
  template void affine(T, const T*, T, T*, std::int64_t);                                                   \
  template void fill(T*, T, std::int64_t);                                                                  \
  template void dropout(const T*, T*, std::int64_t, double, std::uint64_t, std::uint64_t);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE
template void fill(std::int32_t*, std::int32_t, std::int64_t);
template void fill(std::int64_t*, std::int64_t, std::int64_t);

}  // namespace rewind_lib::kernels
