#pragma once
// OpenBLAS, always on the calling thread: its own threading changes bits with the number of threads.

#include <cstdint>

namespace rewind_lib::kernels {

/// What the loaded BLAS says of itself, for start-up reports.
struct BlasInfo {
  const char* config;     ///< version and build options
  const char* core;       ///< the CPU type whose kernels were chosen
  const char* threading;  ///< "serial", "pthread" or "openmp"
};
BlasInfo blas_info();

/// C[m,n] = op(A)[m,k] op(B)[k,n] + beta C, row-major, on the calling thread. The extents must fit in 31 bits.
template <class T>
void blas_gemm(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k, const T* a, std::int64_t lda,
               const T* b, std::int64_t ldb, T beta, T* c, std::int64_t ldc);

}  // namespace rewind_lib::kernels
