// The kernels that measure the machine do the work that they report.

#include <rewind/core/kernels/peak.h>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace kernels = rewind_lib::kernels;

TEST_CASE("multiply-adds are counted by the piece, and are done") {
  std::vector<float> sink(3, 0.0f);
  const std::int64_t flops = kernels::multiply_adds(3, sink.data());
  CHECK(flops == 3 * kernels::multiply_adds(1, sink.data()));
  CHECK(flops > 0);
  // x -> 0.9999 x + 0.0001 goes to 1, in twelve chains that are added.
  for (const float s : sink) CHECK(s == doctest::Approx(12).epsilon(0.02));
}

TEST_CASE("the triad is a = b + s c, and moves three words an element") {
  constexpr std::int64_t n = (std::int64_t{1} << 21) + 3;  // streamed from 8 MB on
  std::vector<float> memory(n + 16), b(n, 2.0f), c(n, 3.0f);
  c.back() = 5;
  float* const aligned = memory.data() + (64 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64) % 64 / sizeof(float);
  for (const bool past : {false, true}) {
    std::fill(memory.begin(), memory.end(), 0.0f);
    CHECK(kernels::triad(n, aligned, b.data(), c.data(), 0.5f, past) == 12 * n);
    CHECK(std::all_of(aligned, aligned + n - 1, [](float x) { return x == 3.5f; }));
    CHECK(aligned[n - 1] == 4.5f);
  }
}
