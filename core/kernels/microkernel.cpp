#include <rewind/core/kernels/microkernel.h>

#include <rewind/core/kernels/blas.h>
#include <rewind/core/kernels/loop.h>
#include <rewind/core/parallel.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <type_traits>
#include <utility>

namespace rewind_lib::kernels {
namespace {

using std::int64_t;

struct Finish {
  bool load_c;
  Activation activation;
};

// The inner extent of a product: `segments` runs of `run` elements of A, `jump` from the end of one to the next.
struct Depth {
  int64_t run, segments = 1, jump = 0;
};

// Steps of the depth between two turns of a loop: more where the depth is a multiple of them, so that its counters and what it asks
// for cost less. Six rows by two vectors of eight lanes are six cycles of multiply-adds a step, in which a core takes 36
// instructions, but only 18 of each of two hyperthreads; a loop of single steps has 31. Twelve rows of 16 lanes need no more than
// one.
constexpr int most_steps = vector_bytes == 64 ? 1 : 2;

// C[MR, columns] = A B (+ C) (+ bias), columns being NV vectors of `bytes`, and half of one more where `halved`; rows of B are ldb
// elements apart; bias has as many elements or is null. k.run is a multiple of `steps`. This for `blocks` blocks of rows, one
// below the other: where the depth is small, a call costs a quarter of what a block does.
template <class T, int MR, int NV, bool halved, int bytes, bool TransposeA, int steps>
void micro(int64_t blocks, const Depth& depth, const T* a, int64_t lda, const T* panel, int64_t ldb, T* c, int64_t ldc,
           const T* bias, Finish finish, Ahead::Run& ahead) {
  const Depth k = depth;
  using V = typename VectorOf<T, bytes>::type;
  using Half = typename VectorOf<T, halved ? bytes / 2 : bytes>::type;
  constexpr int w = bytes / static_cast<int>(sizeof(T));
  const char *next = ahead.at, *const end = ahead.end;
  do {
    asm("" : "+r"(lda), "+r"(ldc));  // else their multiples are all made before the loop, and stored, for a single block, too
    const T* b = panel;
    V acc[MR][NV] = {};
    Half part[MR] = {};
    // Row by row from every third: their addresses fit the registers so. The compiler would rather keep a register a row, and has
    // not got them.
    constexpr int bases = TransposeA ? 1 : (MR + 2) / 3;
    const T* base[bases];
#pragma GCC unroll 16
    for (int i = 0; i < bases; ++i) {
      base[i] = a + 3 * i * lda;
      asm("" : "+r"(base[i]));  // nor in a vector, two at a time
    }
    for (int64_t s = 0; s < k.segments; ++s) {
      for (int64_t p = k.run; p > 0; p -= steps) {
        __builtin_prefetch(next, 0, 2);
        next = next + 64 < end ? next + 64 : end;
#pragma GCC unroll 2
        for (int at = 0; at < steps; ++at) {
          V row[NV];
#pragma GCC unroll 2
          for (int v = 0; v < NV; ++v) row[v] = load<V>(b + v * w);
          Half rest = {};
          if constexpr (halved) rest = load<Half>(b + NV * w);
          b += ldb;
          if constexpr (steps > 1) asm volatile("" : : : "memory");  // else the compiler loads the row anew for every multiply-add
#pragma GCC unroll 16
          for (int r = 0; r < MR; ++r) {
            const T x = TransposeA ? base[0][at * lda + r] : base[r / 3][r % 3 * lda + at];
#pragma GCC unroll 2
            for (int v = 0; v < NV; ++v) acc[r][v] += x * row[v];
            if constexpr (halved) part[r] += x * rest;
          }
        }
#pragma GCC unroll 16
        for (int i = 0; i < bases; ++i) {
          base[i] += TransposeA ? steps * lda : steps;
          asm("" : "+r"(base[i]));
        }
      }
#pragma GCC unroll 16
      for (int i = 0; i < bases; ++i) {
        base[i] += k.jump;
        asm("" : "+r"(base[i]));
      }
    }
    if (!finish.load_c && bias == nullptr && finish.activation == Activation::none) {
#pragma GCC unroll 16
      for (int r = 0; r < MR; ++r) {
        T* const out = c + r * ldc;
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) store(out + v * w, acc[r][v]);
        if constexpr (halved) store(out + NV * w, part[r]);
      }
    } else {
#pragma GCC unroll 16
      for (int r = 0; r < MR; ++r) {
        T* const out = c + r * ldc;
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) {
          V y = acc[r][v];
          if (finish.load_c) y += load<V>(out + v * w);
          if (bias != nullptr) y += load<V>(bias + v * w);
          store(out + v * w, activate_lanes(finish.activation, y));
        }
        if constexpr (halved) {
          Half y = part[r];
          if (finish.load_c) y += load<Half>(out + NV * w);
          if (bias != nullptr) y += load<Half>(bias + NV * w);
          store(out + NV * w, activate_lanes(finish.activation, y));
        }
      }
    }
    a += TransposeA ? MR : MR * lda;
    c += MR * ldc;
  } while (--blocks > 0);
  ahead.at = next;
}

template <class T>
using Micro = void (*)(int64_t, const Depth&, const T*, int64_t, const T*, int64_t, T*, int64_t, const T*, Finish, Ahead::Run&);

template <class T, int NV, bool halved, int bytes, bool TransposeA, int steps, std::size_t... R>
constexpr std::array<Micro<T>, sizeof...(R)> table(std::index_sequence<R...>) {
  return {micro<T, static_cast<int>(R) + 1, NV, halved, bytes, TransposeA, steps>...};
}

// columns: those of one to four halves of a vector.
template <class T, int steps>
Micro<T> micro_in_steps(int64_t rows, int64_t columns, bool transpose_a) {
  using Rows = std::make_index_sequence<static_cast<std::size_t>(block_m)>;
  constexpr int whole = vector_bytes, half = whole / 2;
  static constexpr std::array<Micro<T>, static_cast<std::size_t>(block_m)> kernels[4][2] = {
      {table<T, 1, false, half, false, steps>(Rows{}), table<T, 1, false, half, true, steps>(Rows{})},
      {table<T, 1, false, whole, false, steps>(Rows{}), table<T, 1, false, whole, true, steps>(Rows{})},
      {table<T, 1, true, whole, false, steps>(Rows{}), table<T, 1, true, whole, true, steps>(Rows{})},
      {table<T, 2, false, whole, false, steps>(Rows{}), table<T, 2, false, whole, true, steps>(Rows{})}};
  return kernels[2 * columns / lanes<T> - 1][transpose_a ? 1 : 0][static_cast<std::size_t>(rows - 1)];
}

template <class T>
Micro<T> micro_for(int64_t rows, int64_t columns, const Depth& k, bool transpose_a) {
  return k.run % most_steps == 0 ? micro_in_steps<T, most_steps>(rows, columns, transpose_a)
                                 : micro_in_steps<T, 1>(rows, columns, transpose_a);
}

template <class T>
void copy_columns(int64_t n, const T* from, T* to) {
  for_overlapping_vectors<T>(0, n, [&](auto tag, int64_t j) {
    using V = typename decltype(tag)::type;
    store(to + j, load<V>(from + j));
  });
}

// out[i] = column i of the square of rows `in`.
template <class V>
void transpose_square(const V (&in)[4], V (&out)[4]) {
  const V lo01 = __builtin_shufflevector(in[0], in[1], 0, 4, 1, 5), hi01 = __builtin_shufflevector(in[0], in[1], 2, 6, 3, 7);
  const V lo23 = __builtin_shufflevector(in[2], in[3], 0, 4, 1, 5), hi23 = __builtin_shufflevector(in[2], in[3], 2, 6, 3, 7);
  out[0] = __builtin_shufflevector(lo01, lo23, 0, 1, 4, 5);
  out[1] = __builtin_shufflevector(lo01, lo23, 2, 3, 6, 7);
  out[2] = __builtin_shufflevector(hi01, hi23, 0, 1, 4, 5);
  out[3] = __builtin_shufflevector(hi01, hi23, 2, 3, 6, 7);
}
template <class V>
void transpose_square(const V (&in)[8], V (&out)[8]) {
  V pair[8], four[8];  // within halves of a vector, where shuffles are cheap; halves change places last
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    pair[i] = __builtin_shufflevector(in[i], in[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    pair[i + 1] = __builtin_shufflevector(in[i], in[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      four[i + 2 * h] = __builtin_shufflevector(pair[i + h], pair[i + 2 + h], 0, 1, 8, 9, 4, 5, 12, 13);
      four[i + 2 * h + 1] = __builtin_shufflevector(pair[i + h], pair[i + 2 + h], 2, 3, 10, 11, 6, 7, 14, 15);
    }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    out[i] = __builtin_shufflevector(four[i], four[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    out[i + 4] = __builtin_shufflevector(four[i], four[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

// dst[rows, columns] = b[columns, rows]^T, rows of dst `width` elements apart.
template <class T, int columns>
void transpose_columns(int64_t rows, const T* b, int64_t ldb, T* dst, int64_t width) {
  using V = typename VectorOf<T, columns * sizeof(T)>::type;
  int64_t p = 0;
  for (; p + columns <= rows; p += columns) {
    V in[columns], out[columns];
#pragma GCC unroll 8
    for (int i = 0; i < columns; ++i) in[i] = load<V>(b + i * ldb + p);
    transpose_square(in, out);
#pragma GCC unroll 8
    for (int i = 0; i < columns; ++i) store(dst + (p + i) * width, out[i]);
  }
  for (; p < rows; ++p)
    for (int64_t i = 0; i < columns; ++i) dst[p * width + i] = b[i * ldb + p];
}

// dst[rows, width] = b[rows, n] or b[n, rows]^T, the columns from n to width zero.
template <class T>
void pack_panel(int64_t rows, int64_t n, int64_t width, const T* b, int64_t ldb, bool transposed, T* dst) {
  if (!transposed) {
    if (n == block_n<T>) {
      for (int64_t p = 0; p < rows; ++p) std::memcpy(dst + p * width, b + p * ldb, sizeof(T) * block_n<T>);
    } else if (n == lanes<T>) {
      for (int64_t p = 0; p < rows; ++p) std::memcpy(dst + p * width, b + p * ldb, sizeof(T) * lanes<T>);
    } else {
      for (int64_t p = 0; p < rows; ++p) {
        std::fill_n(dst + p * width, width, T(0));
        copy_columns(n, b + p * ldb, dst + p * width);
      }
    }
    return;
  }
  transpose(n, rows, b, ldb, dst, width);
  for (int64_t j = n; j < width; ++j)
    for (int64_t p = 0; p < rows; ++p) dst[p * width + j] = T(0);
}

// Brings in what is written soon: by the time that a deep product is made, it is there.
constexpr int64_t deep_product = 48;
template <class T>
[[gnu::noinline]] void ask_for(const T* c, int64_t ldc, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; j += line_elements<T>) __builtin_prefetch(c + i * ldc + j, 1);
  asm volatile("");  // else nothing seems to happen here, and calls are dropped
}

// All rows of C against one panel, rows of which are ldb elements apart.
template <class T>
void panel_product(int64_t m, int64_t n, const Depth& k, const T* a, int64_t lda, bool transpose_a, const T* panel, int64_t ldb,
                   T* c, int64_t ldc, const T* bias, Finish finish, Ahead& ahead) {
  const int64_t width = panel_width<T>(n);
  const int64_t columns = n > lanes<T> && n <= 3 * lanes<T> / 2 ? 3 * lanes<T> / 2 : width;  // that are made
  alignas(vector_bytes) T bias_row[block_n<T>] = {};
  if (bias != nullptr) {
    for (int64_t j = 0; j < n; ++j) bias_row[j] = bias[j];
    bias = bias_row;
  }
  const bool deep = k.run * k.segments >= deep_product;
  const int64_t blocks = std::max<int64_t>(1, (m + block_m - 1) / block_m);
  const int64_t rows_a_block = (m + blocks - 1) / blocks;  // about the same in each: a block of a single row is slow
  for (int64_t i = 0; i < m;) {
    // Blocks of so many rows, made by one call.
    const int64_t rows = std::min(rows_a_block, m - i), alike = !deep && n == columns ? (m - i) / rows : 1;
    const T* from = transpose_a ? a + i : a + i * lda;
    const Micro<T> kernel = micro_for<T>(rows, columns, k, transpose_a);
    T* out = c + i * ldc;
    i += alike * rows;
    if (n == columns) {
      if (deep) ask_for(out, ldc, rows, columns);
      kernel(alike, k, from, lda, panel, ldb, out, ldc, bias, finish, ahead.run());
      continue;
    }
    alignas(vector_bytes) T block[block_m * block_n<T>];
    if (finish.load_c)
      for (int64_t r = 0; r < rows; ++r) {
        std::fill_n(block + r * width, width, T(0));
        copy_columns(n, out + r * ldc, block + r * width);
      }
    kernel(1, k, from, lda, panel, ldb, block, width, bias, finish, ahead.run());
    for (int64_t r = 0; r < rows; ++r) copy_columns(n, block + r * width, out + r * ldc);
  }
}

// Products against a transposed B that is read as it lies, in a stream: the depth goes along the lanes of a vector, which are added
// up at the end, for as many elements of C at a time as a vector has lanes.
constexpr int dot_columns = 4;
template <class T>
inline constexpr int dot_rows = lanes<T> / dot_columns;

// from, from + 1, ...
template <class V, class T>
V ascending(T from) {
  V v;
  for (std::size_t i = 0; i < sizeof(V) / sizeof(T); ++i) v[i] = from + static_cast<T>(i);
  return v;
}

// C[rows, n <= dot_columns] = A B^T (+ C) (+ bias).
template <class T, int rows>
void dot_block(int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc, const T* bias,
               Finish finish) {
  using V = Vector<T>;
  constexpr int w = lanes<T>;
  static_assert(dot_rows<T> * dot_columns == w);
  V acc[w] = {};
  const T* const last = b + (n - 1) * ldb;  // in place of the columns that are missing
  const T* const row_b[dot_columns] = {b, n > 1 ? b + ldb : last, n > 2 ? b + 2 * ldb : last, last};
  for (int64_t p = 0; p < k; p += w) {
    const int64_t at = std::min(p, k - w);
    V x[rows], y[dot_columns];
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) x[r] = load<V>(a + r * lda + at);
#pragma GCC unroll 4
    for (int q = 0; q < dot_columns; ++q) y[q] = load<V>(row_b[q] + at);
    if (at < p) {
      // The last vector overlaps the one before. What was added is masked on both sides: it may be infinite.
      const V depth = ascending<V>(static_cast<T>(at - p));
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) x[r] = depth < 0 ? V{} : x[r];
#pragma GCC unroll 4
      for (int q = 0; q < dot_columns; ++q) y[q] = depth < 0 ? V{} : y[q];
    }
#pragma GCC unroll 4
    for (int q = 0; q < dot_columns; ++q)
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) acc[r * dot_columns + q] += x[r] * y[q];
  }
  alignas(vector_bytes) T sums[w];
  store(sums, fold_all<T>(acc, [](auto x, auto y) { return x + y; }));
  using Row = typename VectorOf<T, dot_columns * sizeof(T)>::type;
  for (int r = 0; r < rows; ++r) {
    T* const out = c + r * ldc;
    T* const sum = sums + r * dot_columns;
    if (n == dot_columns) {
      Row y = load<Row>(sum);
      if (finish.load_c) y += load<Row>(out);
      if (bias != nullptr) y += load<Row>(bias);
      store(out, activate_lanes(finish.activation, y));
      continue;
    }
    for (int64_t q = 0; q < n; ++q) {
      if (finish.load_c) sum[q] += out[q];
      if (bias != nullptr) sum[q] += bias[q];
      out[q] = activate(finish.activation, sum[q]);
    }
  }
}

template <class T>
using Dots = void (*)(int64_t, int64_t, const T*, int64_t, const T*, int64_t, T*, int64_t, const T*, Finish);

template <class T, std::size_t... R>
constexpr std::array<Dots<T>, sizeof...(R)> dot_table(std::index_sequence<R...>) {
  return {dot_block<T, static_cast<int>(R) + 1>...};
}

template <class T>
void dots_tile(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc,
               const Epilogue<T>& epilogue) {
  static constexpr auto kernels = dot_table<T>(std::make_index_sequence<static_cast<std::size_t>(dot_rows<T>)>{});
  const Finish finish{epilogue.accumulate, epilogue.activation};
  const int64_t blocks = (m + dot_rows<T> - 1) / dot_rows<T>;
  for (int64_t j = 0; j < n; j += dot_columns) {
    const T* bias = epilogue.bias != nullptr ? epilogue.bias + j : nullptr;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t i = m * block / blocks, rows = m * (block + 1) / blocks - i;
      kernels[static_cast<std::size_t>(rows - 1)](std::min<int64_t>(dot_columns, n - j), k, a + i * lda, lda, b + j * ldb, ldb,
                                                  c + i * ldc + j, ldc, bias, finish);
    }
  }
}

// Into L2. Blocks of a column-wise A are read a few columns of many rows at a time, which hardware does not foresee.
template <class T>
void prefetch(const T* a, int64_t lda, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; j += line_elements<T>) __builtin_prefetch(a + i * lda + j, 0, 2);
}

template <class T>
void own_tile(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, bool transpose_a, const TileB<T>& b, T* c, int64_t ldc,
              const Epilogue<T>& epilogue, T* scratch, Ahead& ahead) {
  REWIND_CHECK(!b.dots || k >= lanes<T>);  // dot products read whole vectors
  if (b.dots) return dots_tile(m, n, k, a, lda, b.data, b.ld, c, ldc, epilogue);
  for (int64_t p = 0; p == 0 || p < k; p += block_k) {
    const int64_t depth = std::min(block_k, k - p);
    const bool last = p + depth >= k;
    if (transpose_a && p + depth < k) prefetch(a + (p + depth) * lda, lda, std::min(block_k, k - p - depth), m);
    const Finish finish{epilogue.accumulate || p > 0, last ? epilogue.activation : Activation::none};
    for (int64_t j = 0; j < n; j += block_n<T>) {
      const int64_t columns = std::min(block_n<T>, n - j);
      const int64_t width = panel_width<T>(columns);
      const T* panel = scratch;
      int64_t ldb = width;
      if (b.in_place) {
        panel = b.data + p * b.ld + j;
        ldb = b.ld;
      } else if (b.packed) {
        panel = b.data + j * b.packed_k + (b.k_begin + p) * width;
      } else {
        const T* from = b.transposed ? b.data + j * b.ld + p : b.data + p * b.ld + j;
        pack_panel(depth, columns, width, from, b.ld, b.transposed, scratch);
      }
      panel_product(m, columns, Depth{depth}, transpose_a ? a + p * lda : a + p, lda, transpose_a, panel, ldb, c + j, ldc,
                    last && epilogue.bias != nullptr ? epilogue.bias + j : nullptr, finish, ahead);
    }
  }
}

}  // namespace

template <class T>
void transpose(int64_t rows, int64_t columns, const T* from, int64_t ld_from, T* to, int64_t ld_to) {
  int64_t i = 0;
  if constexpr (sizeof(T) == 4 && vector_bytes >= 32)
    for (; i + 8 <= rows; i += 8) transpose_columns<T, 8>(columns, from + i * ld_from, ld_from, to + i, ld_to);
  for (; i + 4 <= rows; i += 4) transpose_columns<T, 4>(columns, from + i * ld_from, ld_from, to + i, ld_to);
  for (; i < rows; ++i)
    for (int64_t p = 0; p < columns; ++p) to[p * ld_to + i] = from[i * ld_from + p];
}

template <class T>
void product_in_blocks(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* packed, Ahead& ahead, void* self,
                       TakesBlock<T> take) {
  REWIND_CHECK(k <= block_k && n % lanes<T> == 0);
  const int64_t rows_a_block = parallel::pieces(m, parallel::pieces(m, block_m));
  const Depth depth{k};
  alignas(vector_bytes) T block[block_m * block_n<T>];
  for (int64_t j = 0; j < n; j += block_n<T>) {
    const int64_t width = std::min(block_n<T>, n - j);
    for (int64_t i = 0; i < m; i += rows_a_block) {
      const int64_t rows = std::min(rows_a_block, m - i);
      micro_for<T>(rows, width, depth, false)(1, depth, a + i * lda, lda, packed + j * k, width, block, width, nullptr, Finish{},
                                              ahead.run());
      take(self, i, j, rows, width, block);
    }
  }
}

template <class T>
void lines_tile(const LinesA<T>& a, int64_t n, const T* packed, T* c, int64_t ldc, const Epilogue<T>& epilogue) {
  const int64_t k = a.segments * a.run;
  // A panel's part for L1: some whole segments, or a part of one.
  Ahead none;
  const int64_t whole = std::max<int64_t>(1, block_k / std::max<int64_t>(1, a.run)), part = std::min(block_k, a.run);
  for (int64_t s = 0; s < a.segments; s += whole)
    for (int64_t p = 0; p < a.run; p += part) {
      const Depth depth{.run = std::min(part, a.run - p), .segments = std::min(whole, a.segments - s), .jump = a.jump - a.run};
      const int64_t at = s * a.run + p;
      const bool last = at + depth.segments * depth.run >= k;
      const Finish finish{epilogue.accumulate || at > 0, last ? epilogue.activation : Activation::none};
      for (int64_t j = 0; j < n; j += block_n<T>) {
        const int64_t columns = std::min(block_n<T>, n - j);
        const T* panel = packed + j * k + at * panel_width<T>(columns);
        const T* bias = last && epilogue.bias != nullptr ? epilogue.bias + j : nullptr;
        for (int64_t l = 0; l < a.lines; ++l)
          panel_product(a.width, columns, depth, a.data + a.begin[l] + s * a.jump + p, a.step, false, panel,
                        panel_width<T>(columns), c + l * a.width * ldc + j, ldc, bias, finish, none);
      }
    }
}

namespace {

// Without panels, "packed" is the plain matrix [k,n].
template <class T>
void blas_tile(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, bool transpose_a, const TileB<T>& b, T* c, int64_t ldc,
               const Epilogue<T>& epilogue) {
  if (k == 0) {
    for (int64_t i = 0; i < m && !epilogue.accumulate; ++i) std::fill_n(c + i * ldc, n, T(0));
  } else {
    const T* data = b.packed ? b.data + b.k_begin * n : b.data;
    blas_gemm(transpose_a, b.transposed && !b.packed, m, n, k, a, lda, data, b.packed ? n : b.ld, epilogue.accumulate ? T(1) : T(0),
              c, ldc);
  }
  if (epilogue.bias == nullptr && epilogue.activation == Activation::none) return;
  for (int64_t i = 0; i < m; ++i) {
    T* row = c + i * ldc;
    if (epilogue.bias != nullptr)
      for (int64_t j = 0; j < n; ++j) row[j] += epilogue.bias[j];
    if (epilogue.activation == Activation::relu)
      for (int64_t j = 0; j < n; ++j) row[j] = activate(Activation::relu, row[j]);
    if (epilogue.activation == Activation::relu6)
      for (int64_t j = 0; j < n; ++j) row[j] = activate(Activation::relu6, row[j]);
  }
}

}  // namespace

template <class T>
void pack(int64_t k, int64_t n, int64_t k_begin, int64_t rows, const T* b, int64_t ldb, bool transposed, T* packed,
          int64_t panel_begin, int64_t panel_end) {
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const int64_t j = panel * block_n<T>;
    const int64_t columns = std::min(block_n<T>, n - j);
    const T* from = transposed ? b + j * ldb : b + j;
    if constexpr (own_microkernel) {
      const int64_t width = panel_width<T>(columns);
      pack_panel(rows, columns, width, from, ldb, transposed, packed + j * k + k_begin * width);
    } else {
      for (int64_t p = 0; p < rows; ++p)
        for (int64_t q = 0; q < columns; ++q)
          packed[(k_begin + p) * n + j + q] = transposed ? from[q * ldb + p] : from[p * ldb + q];
    }
  }
}

template <class T>
void gemm_tile(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, bool transpose_a, const TileB<T>& b, T* c, int64_t ldc,
               const Epilogue<T>& epilogue, T* scratch, Ahead* ahead) {
  if (m <= 0 || n <= 0) return;
  Ahead none;
  if constexpr (own_microkernel)
    own_tile(m, n, k, a, lda, transpose_a, b, c, ldc, epilogue, scratch, ahead == nullptr ? none : *ahead);
  else
    blas_tile(m, n, k, a, lda, transpose_a, b, c, ldc, epilogue);
}

#define REWIND_INSTANTIATE(T)                                                                                                      \
  template void transpose<T>(int64_t, int64_t, const T*, int64_t, T*, int64_t);                                                    \
  template void product_in_blocks<T>(int64_t, int64_t, int64_t, const T*, int64_t, const T*, Ahead&, void*, TakesBlock<T>);        \
  template void lines_tile<T>(const LinesA<T>&, int64_t, const T*, T*, int64_t, const Epilogue<T>&);                               \
  template void pack<T>(int64_t, int64_t, int64_t, int64_t, const T*, int64_t, bool, T*, int64_t, int64_t);                        \
  template void gemm_tile<T>(int64_t, int64_t, int64_t, const T*, int64_t, bool, const TileB<T>&, T*, int64_t, const Epilogue<T>&, \
                             T*, Ahead*);
REWIND_INSTANTIATE(float)
REWIND_INSTANTIATE(double)
#undef REWIND_INSTANTIATE

}  // namespace rewind_lib::kernels
