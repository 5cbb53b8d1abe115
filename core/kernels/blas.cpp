#include <rewind/core/kernels/blas.h>
#include <rewind/core/parallel.h>

#include <cblas.h>

#include <type_traits>

namespace rewind_lib::kernels {
namespace {

// openblas_get_parallel
constexpr int pthread_build = 1;
constexpr int openmp_build = 2;

// The pthread build keeps a thread count of its own. The openmp build would pass the count on to the whole program, so
// there a SerialRegion guards each call instead.
bool is_openmp() {
  static const bool openmp = [] {
    const int build = openblas_get_parallel();
    if (build == pthread_build) openblas_set_num_threads(1);
    return build == openmp_build;
  }();
  return openmp;
}

template <class T>
void call(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k, const T* a, std::int64_t lda,
          const T* b, std::int64_t ldb, T beta, T* c, std::int64_t ldc) {
  const auto op_a = transpose_a ? CblasTrans : CblasNoTrans;
  const auto op_b = transpose_b ? CblasTrans : CblasNoTrans;
  const auto i = [](std::int64_t v) { return static_cast<blasint>(v); };
  if constexpr (std::is_same_v<T, float>)
    cblas_sgemm(CblasRowMajor, op_a, op_b, i(m), i(n), i(k), 1.0F, a, i(lda), b, i(ldb), beta, c, i(ldc));
  else
    cblas_dgemm(CblasRowMajor, op_a, op_b, i(m), i(n), i(k), 1.0, a, i(lda), b, i(ldb), beta, c, i(ldc));
}

}  // namespace

BlasInfo blas_info() {
  const int build = openblas_get_parallel();
  return {openblas_get_config(), openblas_get_corename(),
          build == openmp_build    ? "openmp"
          : build == pthread_build ? "pthread"
                                   : "serial"};
}

template <class T>
void blas_gemm(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k, const T* a, std::int64_t lda,
               const T* b, std::int64_t ldb, T beta, T* c, std::int64_t ldc) {
  if (is_openmp()) {
    const parallel::SerialRegion serial;
    call(transpose_a, transpose_b, m, n, k, a, lda, b, ldb, beta, c, ldc);
  } else {
    call(transpose_a, transpose_b, m, n, k, a, lda, b, ldb, beta, c, ldc);
  }
}

template void blas_gemm<float>(bool, bool, std::int64_t, std::int64_t, std::int64_t, const float*, std::int64_t, const float*,
                               std::int64_t, float, float*, std::int64_t);
template void blas_gemm<double>(bool, bool, std::int64_t, std::int64_t, std::int64_t, const double*, std::int64_t, const double*,
                                std::int64_t, double, double*, std::int64_t);

}  // namespace rewind_lib::kernels
