#pragma once
// Matrix products, row-major, cut into fixed tiles: the same bits for any number of threads.
//
// Kernels take scratch memory as `workspace`; the function of the same name with _workspace says how many elements of T
// it must hold (0: workspace may be null). It depends on the shape and on parallel::threads() only. Workspaces and
// outputs may hold anything on entry. Extents of zero are fine.

#include <rewind/core/kernels/activation.h>

#include <cstdint>

namespace rewind_lib::kernels {

/// C[m,n] = op(A)[m,k] op(B)[k,n], `batch` times.
struct GemmShape {
  std::int64_t m = 0, n = 0, k = 0;
  bool transpose_a = false;                ///< A is stored [k,m]
  bool transpose_b = false;                ///< B is stored [n,k]
  std::int64_t lda = 0, ldb = 0, ldc = 0;  ///< elements from row to row; 0: rows are contiguous
  std::int64_t batch = 1;
  std::int64_t stride_a = 0, stride_b = 0, stride_c = 0;  ///< from one product to the next; A and B may stay (0)
};

/// What happens to a product before it is stored: C = activation(product + bias (+ C)).
template <class T>
struct Epilogue {
  const T* bias = nullptr;  ///< [n], added to every row; null: none
  Activation activation = Activation::none;
  bool accumulate = false;  ///< add what C holds
};

std::int64_t gemm_workspace(const GemmShape& shape);
template <class T>
void gemm(const GemmShape& shape, const T* a, const T* b, T* c, T* workspace, const Epilogue<T>& epilogue = {});

}  // namespace rewind_lib::kernels
