#include <rewind/core/kernels/loop.h>
#include <rewind/core/kernels/peak.h>

namespace rewind_lib::kernels {

std::int64_t multiply_adds(std::int64_t pieces, float* sink) {
  // Enough independent chains to fill the pipelines (two units of four cycles), few enough for sixteen registers.
  constexpr int chains = 12;
  constexpr std::int64_t rounds = 20000;
  parallel::for_pieces(pieces, [&](std::int64_t piece, int) {
    using V = Vector<float>;
    V v[chains];
    for (int k = 0; k < chains; ++k) v[k] = splat<V>(1.0f + 0.01f * static_cast<float>(k));
    const V a = splat<V>(0.9999f), b = splat<V>(1e-4f);
    for (std::int64_t r = 0; r < rounds; ++r)
      for (int k = 0; k < chains; ++k) v[k] = multiply_add(v[k], a, b);
    V sum = {};
    for (int k = 0; k < chains; ++k) sum += v[k];
    sink[piece] = sum[0];
  });
  return pieces * rounds * chains * lanes<float> * 2;
}

std::int64_t triad(std::int64_t n, float* a, const float* b, const float* c, float s, bool past) {
  past = past && streams_lines(a, line_elements<float>, n);
  parallel::for_range(n, parallel::light_grain, [=](std::int64_t begin, std::int64_t end) {
    for_vectors<float>(begin, end, [=](auto tag, std::int64_t i) {
      using V = typename decltype(tag)::type;
      stream_line(a + i, load<V>(b + i) + s * load<V>(c + i), past);
    });
    if (past) stream_end();
  });
  return n * 3 * static_cast<std::int64_t>(sizeof(float));
}

}  // namespace rewind_lib::kernels
