#pragma once
// More training data for nothing: a piece of clothing in a mirror is the same piece of clothing.

#include <rewind/rewind.h>

#include <algorithm>
#include <random>

namespace support {

/// A training set of which every image is read mirrored half of the time. The coin goes on from epoch to epoch: what a later epoch
/// sees depends on those before.
class Mirrored final : public rewind::data::Source {
 public:
  Mirrored(rewind::data::Dataset set, std::uint64_t seed) : set_(std::move(set)), coin_(seed) {}

  Layout layout() const override {
    const rewind::Shape& s = set_.shape;
    return {.samples = s[0], .x = {s[1], s[2], s[3]}};
  }

  void read(std::span<const std::int64_t> rows, const rewind::data::Batch& out) override {
    set_.read(rows, out);
    const auto width = static_cast<std::size_t>(set_.shape[2]), channels = static_cast<std::size_t>(set_.shape[3]);
    rewind::Tensor x = out.x;
    const std::span<float> pixels = x.mutate<float>();
    const std::size_t image = pixels.size() / rows.size();
    for (std::size_t at = 0; at < pixels.size(); at += image) {
      if (coin_() % 2 == 0) continue;
      for (std::size_t row = at; row < at + image; row += width * channels)
        for (std::size_t left = 0, right = width - 1; left < right; ++left, --right)
          for (std::size_t c = 0; c < channels; ++c)
            std::swap(pixels[row + left * channels + c], pixels[row + right * channels + c]);
    }
  }

 private:
  rewind::data::Dataset set_;
  std::mt19937_64 coin_;
};

}  // namespace support
