#pragma once
// Products of one tile, on the calling thread: what gemm.cpp and conv.cpp cut their work into.
//
// Where the build may use FMA, a register block of `block_m` rows by two vectors, B in panels, A read in place (a
// broadcast needs no packing: this is what makes tall and narrow products fast). Elsewhere OpenBLAS, which chooses its
// kernels at run time.

#include <rewind/core/error.h>
#include <rewind/core/kernels/gemm.h>
#include <rewind/core/kernels/vector.h>
#include <rewind/core/parallel.h>

#include <cstdint>

namespace rewind_lib::kernels {

#if defined(__FMA__) && !defined(REWIND_BLAS_ONLY)
inline constexpr bool own_microkernel = true;
#else
inline constexpr bool own_microkernel = false;
#endif

/// Most rows of the register block; those of a tile go to its blocks evenly.
inline constexpr std::int64_t block_m = vector_bytes == 64 ? 12 : 6;
/// Depth of a panel: 24 KiB, for half of L1.
inline constexpr std::int64_t block_k = 192;
/// Widest panel of any type, in elements.
inline constexpr std::int64_t block_n_max = 2 * lanes<float>;

/// Widest panel, and the width in memory of one that holds n columns: half a vector, one, or two.
template <class T>
inline constexpr std::int64_t block_n = 2 * lanes<T>;
template <class T>
constexpr std::int64_t panel_width(std::int64_t n) {
  return n <= lanes<T> / 2 ? lanes<T> / 2 : n <= lanes<T> ? lanes<T> : block_n<T>;
}

/// Elements of scratch that gemm_tile needs.
inline constexpr std::int64_t tile_scratch = block_k * block_n_max;

/// Elements of a packed B[k,n].
constexpr std::int64_t packed_size(std::int64_t k, std::int64_t n) {
  return k * ((n + block_n_max - 1) / block_n_max) * block_n_max;
}

template <class T>
constexpr std::int64_t panel_count(std::int64_t n) {
  return (n + block_n<T> - 1) / block_n<T>;
}

/// Packs rows [k_begin, k_begin + rows) of a B[k,n] into its packed form, from b[rows,n] (or b[n,rows] if transposed).
/// Panels [panel_begin, panel_end) of panel_count<T>(n) only, so that packing can be shared out.
template <class T>
void pack(std::int64_t k, std::int64_t n, std::int64_t k_begin, std::int64_t rows, const T* b, std::int64_t ldb, bool transposed,
          T* packed, std::int64_t panel_begin, std::int64_t panel_end);

/// Panels of depth k that a thread should pack at least.
constexpr std::int64_t pack_grain(std::int64_t k) {
  const std::int64_t panels = parallel::light_grain / (k * block_n_max + 1);
  return panels < 1 ? 1 : panels;
}
/// All of a B[k,n], as above, by all threads.
template <class T>
void pack_whole(std::int64_t k, std::int64_t n, const T* b, std::int64_t ldb, bool transposed, T* packed) {
  parallel::for_range(panel_count<T>(n), pack_grain(k), [=](std::int64_t begin, std::int64_t end) {
    pack(k, n, std::int64_t{0}, k, b, ldb, transposed, packed, begin, end);
  });
}

/// B of a product: either a matrix, or packed.
template <class T>
struct TileB {
  const T* data = nullptr;
  std::int64_t ld = 0;
  bool transposed = false;
  bool packed = false;  ///< by pack(); then packed_k is the k it was packed with, k_begin where this product starts
  std::int64_t packed_k = 0;
  std::int64_t k_begin = 0;
  bool in_place = false;  ///< a matrix that is not packed, since few rows of A meet it, or its rows are whole panels; they may be
                          ///< read to the end of one
  bool dots = false;      ///< transposed, A is not: read as it lies, the elements of C are dot products
};

/// Elements of A, or of the tile of it that is read again for every few columns, that stay in L2 beside dot products.
inline constexpr std::int64_t dots_elements = 1 << 17;

/// Whether TileB::dots pays for `rows` rows of A: to pack B takes as long as some fifty rows of a product. With 32 registers dot
/// products make four fifths of the speed of products in panels; with 16, which hold half of the sums that their loads would feed,
/// half.
constexpr bool dots_pay(std::int64_t rows, std::int64_t k) {
  return own_microkernel && k >= lanes<float> && rows <= (vector_bytes == 64 ? 64 : 8) && rows * k <= dots_elements;
}

/// Memory that is wanted soon, to be brought into L2 while a product runs: a line at every step of its inner loop, since more
/// at once would hold up the product's own loads.
class Ahead {
 public:
  struct Run {
    const char *at, *end;
  };
  /// Adds n elements, to come after those that were added before. At most four times.
  template <class T>
  void add(const T* from, std::int64_t n) {
    if (from == nullptr || n <= 0) return;
    REWIND_CHECK(count_ < 4);
    runs_[count_++] = {reinterpret_cast<const char*>(from), reinterpret_cast<const char*>(from + n)};
  }
  Run& run() {
    while (now_ + 1 < count_ && runs_[now_].at >= runs_[now_].end) ++now_;
    return runs_[now_];
  }

 private:
  Run runs_[4] = {};
  int count_ = 0, now_ = 0;
};

/// to[columns, rows] = from[rows, columns]^T.
template <class T>
void transpose(std::int64_t rows, std::int64_t columns, const T* from, std::int64_t ld_from, T* to, std::int64_t ld_to);

/// C[m,n] = epilogue(op(A) B). k = 0 gives the epilogue of zero.
template <class T>
void gemm_tile(std::int64_t m, std::int64_t n, std::int64_t k, const T* a, std::int64_t lda, bool transpose_a, const TileB<T>& b,
               T* c, std::int64_t ldc, const Epilogue<T>& epilogue, T* scratch, Ahead* ahead = nullptr);

/// What takes a register block of a product, [rows, width] at row i and column j, while it is in L1.
template <class T>
using TakesBlock = void (*)(void* self, std::int64_t i, std::int64_t j, std::int64_t rows, std::int64_t width, const T* block);

/// A[m,k] B[k,n] in blocks, B packed. k is at most block_k, n whole vectors. Only with own_microkernel.
template <class T>
void product_in_blocks(std::int64_t m, std::int64_t n, std::int64_t k, const T* a, std::int64_t lda, const T* packed, Ahead& ahead,
                       void* self, TakesBlock<T> take);
/// take(i, j, rows, width, block) for each.
template <class T, class F>
void product_in_blocks(std::int64_t m, std::int64_t n, std::int64_t k, const T* a, std::int64_t lda, const T* packed, Ahead& ahead,
                       F take) {
  product_in_blocks<T>(m, n, k, a, lda, packed, ahead, &take,
                       [](void* self, std::int64_t i, std::int64_t j, std::int64_t rows, std::int64_t width, const T* block) {
                         (*static_cast<F*>(self))(i, j, rows, width, block);
                       });
}

/// Where a block of rows of A lies whose rows overlap: `lines` runs of `width` rows, `step` elements from row to row. A row is
/// `segments` runs of `run` elements, `jump` elements from one to the next.
template <class T>
struct LinesA {
  const T* data = nullptr;
  const std::int64_t* begin = nullptr;  ///< of every line, in elements from data
  std::int64_t lines = 0, width = 0, step = 0;
  std::int64_t segments = 0, run = 0, jump = 0;
};

/// C[lines width, n] = epilogue(A B), B packed with k = segments run. Only with own_microkernel.
template <class T>
void lines_tile(const LinesA<T>& a, std::int64_t n, const T* packed, T* c, std::int64_t ldc, const Epilogue<T>& epilogue);

}  // namespace rewind_lib::kernels
