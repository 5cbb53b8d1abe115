#pragma once
// Labelled images in memory. They stay the bytes that their file holds and become float32 as a batch is read: the 60,000
// images of Fashion-MNIST take 47 MB so, and would take 188 MB.

#include <rewind/core/tensor.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace rewind_lib::data {

/// What a training step reads: `auto [x, y] = batch;`.
struct Batch {
  Tensor x;  ///< inputs [n, ...]; for images float32 [n, height, width, channels]
  Tensor y;  ///< targets [n, ...]; for images labels, int64 [n]
};

/// Bytes from the allocator that tensors use too (Category::input). Copies and slices share them.
class Bytes {
 public:
  Bytes() = default;
  /// Uninitialised. Throws OutOfMemory, and Error in a dry run, which has no memory for data.
  explicit Bytes(std::size_t count);
  Bytes(const Bytes& other);
  Bytes(Bytes&& other) noexcept;
  Bytes& operator=(Bytes other) noexcept;
  ~Bytes();

  std::size_t size() const { return size_; }
  std::uint8_t* data() const { return data_; }
  std::span<std::uint8_t> values() const { return {data_, size_}; }
  /// The bytes [begin, begin + count) of these.
  Bytes slice(std::size_t begin, std::size_t count) const;

 private:
  Storage* storage_ = nullptr;
  std::uint8_t* data_ = nullptr;
  std::size_t size_ = 0;
};

/// Mean and standard deviation of every channel, of pixels scaled to [0, 1].
struct Moments {
  std::vector<float> mean, stddev;
};

/// Copies are cheap: they share pixels and labels.
struct Dataset {
  std::string name;
  int classes = 0;
  Shape shape;            ///< of the images: [samples, height, width, channels]
  Bytes pixels;           ///< shape.numel() of them, row by row
  Tensor labels;          ///< int64 [samples], each in [0, classes)
  float white = 255;      ///< the byte that reads as 1
  Moments normalization;  ///< pixels read as (byte / white - mean) / stddev; empty: as byte / white, in [0, 1]

  std::int64_t samples() const { return shape.rank() > 0 ? shape[0] : 0; }

  /// Throws Error when shape, pixels and labels do not agree. All else here does this first.
  void check() const;

  /// The samples [begin, end) as tensors of their own. Throws Error when they are not there.
  Batch read(std::int64_t begin, std::int64_t end) const;
  /// All of it, as a test set that fits into memory is read.
  Batch read() const { return read(0, samples()); }
  /// Writes the samples `rows`, one after another, into `out`: x float32 [rows, height, width, channels], y int64 [rows].
  void read(std::span<const std::int64_t> rows, const Batch& out) const;

  /// The samples [begin, end), sharing memory with this.
  Dataset slice(std::int64_t begin, std::int64_t end) const;
  /// The samples `rows`, copied.
  Dataset select(std::span<const std::int64_t> rows) const;

  /// What normalized() is usually given: that of the training set, for the training set and the test set.
  Moments moments() const;
  /// The same images, read as (pixel - mean) / stddev. Throws Error unless `moments` has a mean and a positive stddev
  /// for every channel.
  Dataset normalized(Moments moments) const;
};

/// `auto [train, test] = digits();`
struct Split {
  Dataset train, test;
};

}  // namespace rewind_lib::data
