#include <rewind/core/random.h>
#include <rewind/data/digits.h>

#include <zlib.h>

namespace rewind_lib::data {
namespace {

constexpr std::int64_t samples = 1797, height = 8, width = 8, pixels = height * width;

// zlib's compression of 1797 rows of 64 pixels and a label, eight bytes a word, the first byte lowest.
constexpr std::uint64_t packed[] = {
#include <rewind/data/digits/packed.inc>
};

}  // namespace

Dataset all_digits() {
  std::vector<std::uint8_t> bytes;
  bytes.reserve(sizeof packed);
  for (const std::uint64_t word : packed)
    for (int i = 0; i < 64; i += 8) bytes.push_back(static_cast<std::uint8_t>(word >> i));
  std::vector<std::uint8_t> rows(samples * (pixels + 1));
  uLongf size = rows.size();
  uLong used = bytes.size();
  REWIND_CHECK(uncompress2(rows.data(), &size, bytes.data(), &used) == Z_OK && size == rows.size());

  const memory::CategoryScope scope(Category::input);
  Dataset d;
  d.name = "digits";
  d.classes = 10;
  d.shape = {samples, height, width, 1};
  d.pixels = Bytes(samples * pixels);
  d.labels = empty({samples}, int64);
  d.white = 16;
  const auto label = d.labels.mutate<std::int64_t>();
  for (std::size_t i = 0; i < samples; ++i) {
    const std::uint8_t* row = rows.data() + i * (pixels + 1);
    for (std::size_t j = 0; j < pixels; ++j) d.pixels.data()[i * pixels + j] = row[j];
    label[i] = row[pixels];
  }
  return d;
}

Split digits() {
  constexpr std::size_t train = 1437;
  const Dataset all = all_digits();
  std::vector<std::int64_t> order(samples);
  random::fill_permutation(order.data(), samples, 0, 0);
  const std::span<const std::int64_t> rows = order;
  Split split{all.select(rows.first(train)), all.select(rows.subspan(train))};
  split.train.name += " train";
  split.test.name += " test";
  return split;
}

}  // namespace rewind_lib::data
