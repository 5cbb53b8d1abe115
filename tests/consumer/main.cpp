// A user's program: trains a small net of its own on data of its own. Linked in every way that we promise to work, and
// timed: compiling it takes at most 3 CPU-seconds and 350 MB.
#include <rewind/rewind.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <utility>
#include <vector>

namespace rw = rewind;

// Images of 8x8 with one bright stripe; the label is its direction: 0 across, 1 down, 2 diagonal.
struct Stripes {
  std::vector<float> pixels;
  std::vector<std::int64_t> labels;
};

Stripes make_stripes(int count) {
  Stripes data;
  std::uint32_t state = 12345;
  const auto next = [&state](int n) {
    state = state * 1664525u + 1013904223u;
    return static_cast<int>((state >> 16) % static_cast<std::uint32_t>(n));
  };
  for (int i = 0; i < count; ++i) {
    const int label = next(3), at = next(8);
    for (int y = 0; y < 8; ++y)
      for (int x = 0; x < 8; ++x) {
        const int across[] = {y, x, (x + y) % 8};
        const float noise = 0.01f * static_cast<float>(next(30));
        data.pixels.push_back(noise + (across[label] == at ? 1.0f : 0.0f));
      }
    data.labels.push_back(label);
  }
  return data;
}

int main() {
  rw::nn::Sequential net{rw::nn::Conv2d{{.in = 1, .out = 8, .kernel = 3, .padding = 1}},
                         rw::nn::BatchNorm2d{8},
                         rw::nn::ReLU6{},
                         rw::nn::InvertedBottleneck{{.in = 8, .out = 16, .expand = 4, .stride = 2}},
                         rw::nn::GlobalAvgPool{},
                         rw::nn::Linear{16, 3}};
  rw::optim::Adam adam{net.parameters(), {.lr = 1e-2}};

  const Stripes data = make_stripes(64);
  double first = 0, last = 0;
  for (int step = 0; step < 30; ++step) {
    rw::Tensor x = rw::from(data.pixels, {64, 8, 8, 1});
    rw::Tensor y = rw::from(data.labels, {64});
    rw::Tensor loss = rw::cross_entropy(net(std::move(x)), std::move(y));
    last = loss.item();
    if (step == 0) first = last;
    rw::backward(std::move(loss));
    adam.step();
  }
  std::printf("loss %.4f -> %.4f\n%s\n", first, last, rw::memory::report().c_str());
  return std::isfinite(last) && last < 0.5 * first ? 0 : 1;
}
