// One addition in PyTorch's C++: what add.py measures in its Python, and framework.cpp in Rewind.
//
//   add THREADS ELEMENTS:REPEAT...      prints {"version", "sizes": [{"no_gradient_ns", "forward_ns", "forward_backward_ns"}]}

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/api/include/torch/version.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <limits>
#include <string>

namespace {

/// Nanoseconds of one f(), when many are done: the least of five rounds, after one that warms.
template <class F>
double ns(int repeat, F&& f) {
  using Clock = std::chrono::steady_clock;
  double least = std::numeric_limits<double>::infinity();
  for (int round = 0; round <= 5; ++round) {
    const auto start = Clock::now();
    for (int i = 0; i < repeat; ++i) f();
    const std::chrono::duration<double, std::nano> all = Clock::now() - start;
    if (round > 0) least = std::min(least, all.count() / repeat);
  }
  return least;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  at::set_num_threads(std::stoi(argv[1]));
  std::printf("{\"version\": \"%s\", \"sizes\": [", TORCH_VERSION);
  for (int i = 2; i < argc; ++i) {
    const std::string size = argv[i];
    const int repeat = std::stoi(size.substr(size.find(':') + 1));
    at::Tensor a = at::ones({std::stoll(size)}), b = at::ones_like(a);
    const at::Tensor g = at::ones_like(a);
    const double no_gradient = ns(repeat, [&] { at::add(a, b); });
    a.set_requires_grad(true);
    b.set_requires_grad(true);
    const double forward = ns(repeat, [&] { at::add(a, b); });
    const double both = ns(repeat, [&] {
      at::add(a, b).backward(g);
      a.mutable_grad() = b.mutable_grad() = at::Tensor();
    });
    std::printf("%s{\"no_gradient_ns\": %f, \"forward_ns\": %f, \"forward_backward_ns\": %f}", i > 2 ? ", " : "", no_gradient,
                forward, both);
  }
  std::printf("]}\n");
}
