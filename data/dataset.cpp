#include <rewind/data/dataset.h>

#include <algorithm>
#include <cmath>
#include <utility>

namespace rewind_lib::data {

Bytes::Bytes(std::size_t count) {
  if (DryLedger::active()) fail("a data set cannot be read in a dry run, which has no memory for data; read it before");
  storage_ = new_storage(count, Category::input);
  data_ = reinterpret_cast<std::uint8_t*>(storage_->data);
  size_ = count;
}
Bytes::Bytes(const Bytes& other) : storage_(other.storage_), data_(other.data_), size_(other.size_) {
  if (storage_ != nullptr) retain(storage_);
}
Bytes::Bytes(Bytes&& other) noexcept
    : storage_(std::exchange(other.storage_, nullptr)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}
Bytes& Bytes::operator=(Bytes other) noexcept {
  std::swap(storage_, other.storage_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}
Bytes::~Bytes() {
  if (storage_ != nullptr) release(storage_);
}
Bytes Bytes::slice(std::size_t begin, std::size_t count) const {
  REWIND_CHECK(begin <= size_ && count <= size_ - begin);
  Bytes part = *this;
  part.data_ += begin;
  part.size_ = count;
  return part;
}

namespace {

std::int64_t image_bytes(const Dataset& d) { return d.shape[1] * d.shape[2] * d.shape[3]; }

void check_rows(const Dataset& d, std::int64_t begin, std::int64_t end) {
  if (begin < 0 || begin > end || end > d.samples())
    fail(str("data set '", d.name, "': samples [", begin, ", ", end, ") do not lie in its ", d.samples()));
}

// Divisions, as ToTensor and Normalize of torchvision have them: exact in [0, 1], and the same bits from every compiler.
void convert(const std::uint8_t* from, float* to, std::int64_t n, float white) {
  for (std::int64_t i = 0; i < n; ++i) to[i] = static_cast<float>(from[i]) / white;
}
void convert(const std::uint8_t* from, float* to, std::int64_t n, float white, float mean, float stddev) {
  for (std::int64_t i = 0; i < n; ++i) to[i] = (static_cast<float>(from[i]) / white - mean) / stddev;
}
void convert(const std::uint8_t* from, float* to, std::int64_t n, float white, const Moments& moments) {
  const auto channels = static_cast<std::int64_t>(moments.mean.size());
  if (channels == 0) return convert(from, to, n, white);
  if (channels == 1) return convert(from, to, n, white, moments.mean[0], moments.stddev[0]);
  for (std::int64_t i = 0; i < n; i += channels)
    for (std::int64_t c = 0; c < channels; ++c)
      convert(from + i + c, to + i + c, 1, white, moments.mean[static_cast<std::size_t>(c)],
              moments.stddev[static_cast<std::size_t>(c)]);
}

}  // namespace

namespace {

void check_moments(const Dataset& d, const Moments& moments) {
  const auto channels = static_cast<std::size_t>(d.shape[3]);
  if (moments.mean.size() != channels || moments.stddev.size() != channels)
    fail(str("data set '", d.name, "': images ", d.shape, " have ", channels, " channels, and were given ", moments.mean.size(),
             " means and ", moments.stddev.size(), " standard deviations"));
  for (const float s : moments.stddev)
    if (!(s > 0)) fail(str("data set '", d.name, "': a standard deviation is to be positive, and is ", static_cast<double>(s)));
}

}  // namespace

void Dataset::check() const {
  if (shape.rank() != 4 || static_cast<std::int64_t>(pixels.size()) != shape.numel())
    fail(str("data set '", name, "': shape ", shape, " does not describe its ", pixels.size(),
             " pixels; it is to be [samples, height, width, channels]"));
  if (!labels.defined() || labels.dtype() != int64 || !(labels.shape() == Shape{shape[0]}))
    fail(str("data set '", name, "': labels are to be int64 [", shape[0], "], and are ",
             labels.defined() ? str(labels.dtype(), " ", labels.shape()) : std::string("undefined")));
  if (!normalization.mean.empty() || !normalization.stddev.empty()) check_moments(*this, normalization);
}

void Dataset::read(std::span<const std::int64_t> rows, const Batch& out) const {
  check();
  const auto n = static_cast<std::int64_t>(rows.size());
  const std::int64_t size = image_bytes(*this);
  Batch to = out;
  if (!(to.x.shape() == Shape{n, shape[1], shape[2], shape[3]}) || !(to.y.shape() == Shape{n}))
    fail(str("data set '", name, "': ", n, " samples of ", shape, " do not fit into x ", to.x.shape(), " and y ", to.y.shape()));
  const std::span<float> x = to.x.mutate<float>();
  const std::span<std::int64_t> y = to.y.mutate<std::int64_t>();
  const std::span<const std::int64_t> label = labels.values<std::int64_t>();
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t row = rows[static_cast<std::size_t>(i)];
    if (row < 0 || row >= samples()) fail(str("data set '", name, "': there is no sample ", row, " among its ", samples()));
    convert(pixels.data() + row * size, x.data() + i * size, size, white, normalization);
    y[static_cast<std::size_t>(i)] = label[static_cast<std::size_t>(row)];
  }
}

Batch Dataset::read(std::int64_t begin, std::int64_t end) const {
  check();
  check_rows(*this, begin, end);
  const memory::CategoryScope scope(Category::input);
  Batch out{empty({end - begin, shape[1], shape[2], shape[3]}), empty({end - begin}, int64)};
  if (DryLedger::active()) return out;
  std::vector<std::int64_t> rows(static_cast<std::size_t>(end - begin));
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = begin + static_cast<std::int64_t>(i);
  read(rows, out);
  return out;
}

Dataset Dataset::slice(std::int64_t begin, std::int64_t end) const {
  check();
  check_rows(*this, begin, end);
  Dataset part = *this;
  part.shape.set(0, end - begin);
  part.pixels = pixels.slice(static_cast<std::size_t>(begin * image_bytes(*this)), static_cast<std::size_t>(part.shape.numel()));
  part.labels = view_rows(labels, begin, end);
  return part;
}

Dataset Dataset::select(std::span<const std::int64_t> rows) const {
  check();
  const memory::CategoryScope scope(Category::input);
  const std::int64_t size = image_bytes(*this);
  Dataset part = *this;
  part.shape.set(0, static_cast<std::int64_t>(rows.size()));
  part.pixels = Bytes(static_cast<std::size_t>(part.shape.numel()));
  part.labels = empty({part.shape[0]}, int64);
  const std::span<const std::int64_t> label = labels.values<std::int64_t>();
  const std::span<std::int64_t> to = part.labels.mutate<std::int64_t>();
  for (std::size_t i = 0; i < rows.size(); ++i) {
    check_rows(*this, rows[i], rows[i] + 1);
    std::copy_n(pixels.data() + rows[i] * size, size, part.pixels.data() + static_cast<std::int64_t>(i) * size);
    to[i] = label[static_cast<std::size_t>(rows[i])];
  }
  return part;
}

Moments Dataset::moments() const {
  check();
  const auto channels = static_cast<std::size_t>(shape[3]);
  if (pixels.size() == 0) fail(str("data set '", name, "': shape ", shape, " has no pixels to take moments of"));
  // In integers, so exact, whatever the order.
  std::vector<std::uint64_t> sum(channels), squares(channels);
  for (std::size_t i = 0; i < pixels.size(); i += channels)
    for (std::size_t c = 0; c < channels; ++c) {
      const std::uint64_t v = pixels.data()[i + c];
      sum[c] += v;
      squares[c] += v * v;
    }
  Moments out;
  const double n = static_cast<double>(pixels.size() / channels), one = static_cast<double>(white);
  for (std::size_t c = 0; c < channels; ++c) {
    const double mean = static_cast<double>(sum[c]) / n;
    const double variance = std::max(0.0, static_cast<double>(squares[c]) / n - mean * mean);
    out.mean.push_back(static_cast<float>(mean / one));
    out.stddev.push_back(static_cast<float>(std::sqrt(variance) / one));
  }
  return out;
}

Dataset Dataset::normalized(Moments moments) const {
  check();
  check_moments(*this, moments);
  Dataset same = *this;
  same.normalization = std::move(moments);
  return same;
}

}  // namespace rewind_lib::data
