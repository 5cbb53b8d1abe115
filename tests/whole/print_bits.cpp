// What blas_variants_test.py runs under every OpenBLAS: prints which one was loaded, and a hash of the bits of a few training
// runs and of products that go to it directly.

#include "bits.h"

#include <rewind/core/kernels/blas.h>

#include <cstdio>

namespace {

namespace rw = rewind;

std::uint64_t mix(std::uint64_t hash, std::uint64_t value) { return (hash ^ value) * 0x9e3779b97f4a7c15; }

/// Large enough that OpenBLAS would use its own threads if it was let.
template <class T>
std::uint64_t product(bool transpose_a, bool transpose_b) {
  constexpr std::int64_t m = 301, n = 253, k = 511;
  constexpr rw::DType dtype = sizeof(T) == 4 ? rw::float32 : rw::float64;
  rw::random::seed(11);
  const rw::Tensor a = rw::randn({m, k}, dtype), b = rw::randn({k, n}, dtype), c = rw::zeros({m, n}, dtype);
  rewind_lib::kernels::blas_gemm<T>(transpose_a, transpose_b, m, n, k, a.raw<T>(), transpose_a ? m : k, b.raw<T>(),
                                    transpose_b ? k : n, T{0}, c.raw<T>(), n);
  return rw::hash(c);
}

}  // namespace

int main() {
  const auto info = rewind_lib::kernels::blas_info();
  std::uint64_t hash = 0, products = 0;
  // Before, between and after parallel loops: an OpenBLAS on OpenMP takes over the program's thread count, and back.
  for (const bits::Case& c : bits::cases) {
    for (const bool a : {false, true})
      for (const bool b : {false, true}) products = mix(mix(products, product<float>(a, b)), product<double>(a, b));
    for (const std::uint64_t h : bits::train(c, 2)) hash = mix(hash, h);
  }
  std::printf("{\"threading\": \"%s\", \"core\": \"%s\", \"threads\": %d, \"bits\": \"%016llx\", \"products\": \"%016llx\"}\n",
              info.threading, info.core, rw::parallel::threads(), static_cast<unsigned long long>(hash),
              static_cast<unsigned long long>(products));
}
