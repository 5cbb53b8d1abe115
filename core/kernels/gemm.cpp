#include <rewind/core/kernels/gemm.h>

#include <rewind/core/kernels/loop.h>
#include <rewind/core/kernels/microkernel.h>
#include <rewind/core/parallel.h>

#include <algorithm>

namespace rewind_lib::kernels {
namespace {

using std::int64_t;

// Multiplications below which waking a thread does not pay.
constexpr int64_t serial_work = 1 << 18;
// Enough to share evenly among several threads.
constexpr int64_t wanted_pieces = 16;
// A tile packs the B under it, a panel at a time into L1: with so many rows that this pays, and so few that A's stay in L2. For
// more rows than most_by_tile, B is packed once for all tiles, if it has at most max_packed elements.
constexpr int64_t least_tile_m = 64, most_tile_m = 256, most_by_tile = 512, max_packed = 1 << 20;
// Columns of a tile come in so many, and C's stay in L2.
constexpr int64_t step_tile_n = own_microkernel ? block_n_max : 128, most_tile_n = 256;
constexpr int64_t min_tile_k = 2 * block_k;
// The partial sums of a long reduction may take this many elements.
constexpr int64_t max_partials = 1 << 20;

struct Plan {
  int64_t tile_m, tile_n, tile_k;
  int64_t tiles_m, tiles_n, tiles_k;
  bool dots, pack_b;
  bool by_columns;  // tiles are in the order of columns, instead of rows
  int64_t tiles(const GemmShape& s) const { return tiles_m * tiles_n * tiles_k * s.batch; }
};

Plan plan(const GemmShape& s) {
  Plan p{std::max<int64_t>(s.m, 1), std::max<int64_t>(s.n, 1), std::max<int64_t>(s.k, 1), 1, 1, 1, false, false, s.m <= s.k};
  const int64_t per_batch = s.m * s.n * s.k;
  if (s.batch > 0 && per_batch > 0 && per_batch * s.batch > serial_work) {
    const bool split = s.batch == 1 && s.k >= 2 * min_tile_k && s.k >= 2 * std::max(s.m, s.n) && s.m * s.n * 2 <= max_partials;
    if (split) {
      // A long reduction: rows stay whole, k is cut.
      const int64_t cuts = std::min({wanted_pieces, max_partials / (s.m * s.n), s.k / min_tile_k});
      p.tile_k = round_up(ceil_div(s.k, cuts), block_k);
    } else {
      // Where B is the larger matrix, each thread reads its part of it; where C is, each writes its part: halves of the rows at
      // least, since a thread has the first tiles or the last.
      const int64_t wanted = std::max<int64_t>(1, wanted_pieces / s.batch), steps = parallel::pieces(s.n, step_tile_n);
      const int64_t halves = std::min<int64_t>(wanted, p.by_columns ? 1 : 2);
      const int64_t least_down = std::max(halves, ceil_div(wanted, steps));
      const int64_t down = std::max(std::min(least_down, s.m / least_tile_m), ceil_div(s.m, most_tile_m));
      p.tile_m = ceil_div(s.m, down);
      const int64_t across = std::max(ceil_div(wanted, ceil_div(s.m, p.tile_m)), ceil_div(s.n, most_tile_n));
      p.tile_n = std::min(s.n, step_tile_n * ceil_div(steps, across));
    }
  }
  p.tiles_m = parallel::pieces(s.m, p.tile_m);
  p.tiles_n = parallel::pieces(s.n, p.tile_n);
  p.tiles_k = std::max<int64_t>(1, parallel::pieces(s.k, p.tile_k));
  p.dots = s.transpose_b && !s.transpose_a && p.tiles_k == 1 && dots_pay(s.m, s.k);
  p.pack_b = own_microkernel && !p.dots && p.tiles_k == 1 && s.m > most_by_tile && s.k * s.n <= max_packed &&
             (s.batch == 1 || s.stride_b == 0);
  return p;
}

// A piece of work small enough to be shared, large enough to be worth it, over `batch` products of `work` each.
int64_t batch_grain(const GemmShape& s, const Plan& p) {
  const int64_t work = p.tile_m * p.tile_n * std::min(p.tile_k, std::max<int64_t>(s.k, 1));
  return std::max<int64_t>(1, serial_work / std::max<int64_t>(1, work));
}

// C = A B^T may be made turned, C^T = B A^T: rows of B are read in place, and what is packed is A.
struct TurnedPlan {
  int64_t tile_m, tile_n;  // rows of B, and of A
  explicit TurnedPlan(const GemmShape& s)
      : tile_m(std::clamp(ceil_div(s.n, wanted_pieces), 2 * block_m, most_tile_m)),
        tile_n(round_up(ceil_div(s.m, ceil_div(s.m, most_tile_n)), block_n_max)) {}
  int64_t part() const { return tile_m * tile_n; }
};

// Where A, which makes whole panels, is much smaller than B: to pack B takes longer then than to write C and read it once more.
bool turns(const GemmShape& s) {
  constexpr int64_t much = 6;
  return own_microkernel && s.transpose_b && !s.transpose_a && s.batch == 1 && s.m >= block_n_max && s.n >= much * s.m &&
         s.k >= s.m && s.m * s.n * s.k > serial_work && plan(s).tiles_k == 1;
}

int64_t turned_workspace(const GemmShape& s) {
  const TurnedPlan p(s);
  return packed_size(s.k, s.m) + parallel::threads() * parallel::worker_stride<float>(p.part(), p.tile_n);
}

template <class T>
void gemm_turned(const GemmShape& s, const T* a, const T* b, T* c, T* workspace, const Epilogue<T>& epilogue) {
  const int64_t lda = s.lda != 0 ? s.lda : s.k, ldb = s.ldb != 0 ? s.ldb : s.k, ldc = s.ldc != 0 ? s.ldc : s.n;
  const TurnedPlan p(s);
  const int64_t tiles_n = parallel::pieces(s.m, p.tile_n);
  T* packed = workspace;
  T* parts = packed + packed_size(s.k, s.m);
  pack_whole(s.k, s.m, a, lda, true, packed);
  parallel::for_pieces(parallel::pieces(s.n, p.tile_m) * tiles_n, [&](int64_t tile, int worker) {
    const int64_t i = tile / tiles_n * p.tile_m, j = tile % tiles_n * p.tile_n;  // in B's rows, and in A's
    const int64_t rows = std::min(p.tile_m, s.n - i), columns = std::min(p.tile_n, s.m - j);
    T* part = parts + worker * parallel::worker_stride<float>(p.part(), p.tile_n);  // of C^T
    T* out = c + j * ldc + i;
    if (epilogue.accumulate) transpose(columns, rows, out, ldc, part, columns);
    gemm_tile(rows, columns, s.k, b + i * ldb, ldb, false, TileB<T>{.data = packed + j * s.k, .packed = true, .packed_k = s.k},
              part, columns, Epilogue<T>{.accumulate = epilogue.accumulate}, static_cast<T*>(nullptr));
    const bool plain = epilogue.bias == nullptr && epilogue.activation == Activation::none;
    for (int64_t r = 0; r < rows && !plain; ++r) {
      const T bias = epilogue.bias != nullptr ? epilogue.bias[i + r] : T(0);
      T* row = part + r * columns;
      for_vectors<T>(0, columns, [=](auto tag, int64_t q) {
        store(row + q, activate_lanes(epilogue.activation, load<typename decltype(tag)::type>(row + q) + bias));
      });
    }
    // A few of C's rows at a time, in whole lines: where C's width is a power of two, L1 does not hold a line of each of its rows.
    constexpr int64_t strip = 8;
    for (int64_t q = 0; q < columns; q += strip)
      transpose(rows, std::min(strip, columns - q), part + q, columns, out + q * ldc, ldc);
  });
}

}  // namespace

std::int64_t gemm_workspace(const GemmShape& s) {
  if (turns(s)) return turned_workspace(s);
  const Plan p = plan(s);
  const int64_t partials = p.tiles_k > 1 ? p.tiles_k * s.m * s.n : 0;
  return (p.pack_b ? packed_size(s.k, s.n) : partials) + parallel::threads() * tile_scratch;
}

template <class T>
void gemm(const GemmShape& s, const T* a, const T* b, T* c, T* workspace, const Epilogue<T>& epilogue) {
  if (s.m <= 0 || s.n <= 0 || s.batch <= 0) return;
  if (turns(s)) return gemm_turned(s, a, b, c, workspace, epilogue);
  const Plan p = plan(s);
  const int64_t lda = s.lda != 0 ? s.lda : (s.transpose_a ? s.m : s.k);
  const int64_t ldb = s.ldb != 0 ? s.ldb : (s.transpose_b ? s.k : s.n);
  const int64_t ldc = s.ldc != 0 ? s.ldc : s.n;
  T* scratch = workspace;
  T* partials = scratch + parallel::threads() * tile_scratch;
  T* packed = partials;  // where nothing is packed as a whole that is cut along k
  if (p.pack_b) pack_whole(s.k, s.n, b, ldb, s.transpose_b, packed);

  const int64_t tiles = p.tiles(s);
  const int64_t grain = batch_grain(s, p);
  parallel::for_pieces(parallel::pieces(tiles, grain), [&](int64_t piece, int worker) {
    for (int64_t t = piece * grain; t < std::min(tiles, (piece + 1) * grain); ++t) {
      const int64_t tk = t % p.tiles_k;
      const int64_t at = t / p.tiles_k % (p.tiles_m * p.tiles_n);
      const int64_t tn = p.by_columns ? at / p.tiles_m : at % p.tiles_n, tm = p.by_columns ? at % p.tiles_m : at / p.tiles_n;
      const int64_t batch = t / p.tiles_k / p.tiles_n / p.tiles_m;
      const int64_t i = tm * p.tile_m, j = tn * p.tile_n, k = tk * p.tile_k;
      const int64_t rows = std::min(p.tile_m, s.m - i), columns = std::min(p.tile_n, s.n - j);
      const int64_t depth = std::min(p.tile_k, s.k - k);
      const T* tile_a = a + batch * s.stride_a + (s.transpose_a ? k * lda + i : i * lda + k);
      TileB<T> tile_b{.data = packed + j * s.k, .packed = true, .packed_k = s.k};
      if (!p.pack_b)
        tile_b = {.data = b + batch * s.stride_b + (s.transpose_b ? j * ldb + k : k * ldb + j),
                  .ld = ldb,
                  .transposed = s.transpose_b,
                  .dots = p.dots};
      T* own = scratch + worker * tile_scratch;
      if (p.tiles_k > 1) {
        gemm_tile(rows, columns, depth, tile_a, lda, s.transpose_a, tile_b, partials + tk * s.m * s.n + i * s.n + j, s.n,
                  Epilogue<T>{}, own);
        continue;
      }
      Epilogue<T> finish = epilogue;
      if (finish.bias != nullptr) finish.bias += j;
      T* out = c + batch * s.stride_c + i * ldc + j;
      gemm_tile(rows, columns, depth, tile_a, lda, s.transpose_a, tile_b, out, ldc, finish, own);
    }
  });

  if (p.tiles_k > 1) {
    const int64_t rows_a_piece = std::max<int64_t>(1, parallel::light_grain / (p.tiles_k * s.n));
    parallel::for_range(s.m, rows_a_piece, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        T* first = partials + i * s.n;
        T* out = c + i * ldc;
        for (int64_t tk = 1; tk < p.tiles_k; ++tk) {
          const T* next = first + tk * s.m * s.n;
          for (int64_t j = 0; j < s.n; ++j) first[j] += next[j];
        }
        if (epilogue.accumulate)
          for (int64_t j = 0; j < s.n; ++j) first[j] += out[j];
        if (epilogue.bias != nullptr)
          for (int64_t j = 0; j < s.n; ++j) first[j] += epilogue.bias[j];
        for (int64_t j = 0; j < s.n; ++j) out[j] = activate(epilogue.activation, first[j]);
      }
    });
  }
}

template void gemm(const GemmShape&, const float*, const float*, float*, float*, const Epilogue<float>&);
template void gemm(const GemmShape&, const double*, const double*, double*, double*, const Epilogue<double>&);

}  // namespace rewind_lib::kernels
