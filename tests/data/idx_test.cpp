#include <doctest/doctest.h>

#include <rewind/data/idx.h>

#include <zlib.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <unistd.h>

using namespace rewind;
namespace fs = std::filesystem;

namespace {

using Data = std::vector<std::uint8_t>;

// A folder that is gone after the test.
struct Folder {
  Folder() : path(fs::temp_directory_path() / ("rewind-idx-" + std::to_string(getpid()))) { fs::create_directories(path); }
  ~Folder() { fs::remove_all(path); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  std::string write(const std::string& name, const Data& bytes) const {
    const std::string file = path / name;
    std::ofstream(file, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    return file;
  }

  fs::path path;
};

Data idx(std::initializer_list<std::uint32_t> extents, std::size_t elements, std::uint8_t type = 8) {
  Data out{0, 0, type, static_cast<std::uint8_t>(extents.size())};
  for (const std::uint32_t e : extents)
    for (int shift = 24; shift >= 0; shift -= 8) out.push_back(static_cast<std::uint8_t>(e >> shift));
  for (std::size_t i = 0; i < elements; ++i) out.push_back(static_cast<std::uint8_t>(i * 7));
  return out;
}

Data gzip(const Data& plain) {
  z_stream z{};
  REQUIRE(deflateInit2(&z, 9, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) == Z_OK);
  Data out(deflateBound(&z, plain.size()) + 32);
  z.next_in = const_cast<Bytef*>(plain.data());
  z.avail_in = static_cast<uInt>(plain.size());
  z.next_out = out.data();
  z.avail_out = static_cast<uInt>(out.size());
  REQUIRE(deflate(&z, Z_FINISH) == Z_STREAM_END);
  out.resize(z.total_out);
  deflateEnd(&z);
  return out;
}

std::string message(const std::string& file) {
  try {
    data::load_idx_images(file);
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

}  // namespace

TEST_CASE("IDX files read back as written, plain or gzip") {
  const Folder folder;
  const Data images = idx({5, 3, 2}, 30), colour = idx({2, 2, 2, 3}, 24), labels = idx({5}, 5);
  for (const bool zip : {false, true}) {
    const auto write = [&](const char* name, const Data& bytes) { return folder.write(name, zip ? gzip(bytes) : bytes); };
    const std::string file = write("images", images), colour_file = write("colour", colour), label_file = write("labels", labels);

    const data::Images read = data::load_idx_images(file);
    CHECK(read.shape == Shape{5, 3, 2, 1});
    CHECK(std::equal(images.begin() + 16, images.end(), read.pixels.data(), read.pixels.data() + 30));
    CHECK(data::load_idx_images(colour_file).shape == Shape{2, 2, 2, 3});
    CHECK(data::load_idx_labels(label_file).to_vector<std::int64_t>() == std::vector<std::int64_t>{0, 7, 14, 21, 28});

    const data::Dataset d = data::load_idx(file, label_file);
    CHECK(d.classes == 29);
    CHECK(d.read(4, 5).x.values<float>()[0] == static_cast<float>(24 * 7) / 255);
    CHECK_THROWS_WITH_AS(data::load_idx(file, label_file, 28), doctest::Contains("at byte 12: label 28 is not one of 28 classes"),
                         Error);
    CHECK_THROWS_WITH_AS(data::load_idx(colour_file, label_file), doctest::Contains("announces 2 images, but"), Error);
  }
}

TEST_CASE("gzip files of several members are read through") {
  const Folder folder;
  const Data all = idx({5, 3, 2}, 30);
  Data two = gzip(Data(all.begin(), all.begin() + 21));
  const Data rest = gzip(Data(all.begin() + 21, all.end()));
  two.insert(two.end(), rest.begin(), rest.end());
  CHECK(data::load_idx_images(folder.write("two.gz", two)).pixels.data()[29] == static_cast<std::uint8_t>(29 * 7));
}

TEST_CASE("what is wrong with an IDX file is said with file, byte and remedy") {
  const Folder folder;
  const auto wrong = [&](const Data& bytes) {
    const std::string file = folder.write("file", bytes), text = message(file);
    CHECK(text.starts_with(file + ": a"));
    return text.substr(std::min(text.size(), file.size()));
  };
  CHECK(wrong({}) == ": at byte 0: ends within the four bytes that begin an IDX file; get the file again");
  CHECK(wrong({'P', '5', '\n', '8'}).starts_with(": at byte 0: no IDX file"));
  CHECK(wrong(idx({2, 2, 2}, 8, 13)).starts_with(": at byte 2: elements of type 32-bit float; only unsigned bytes"));
  CHECK(wrong(idx({8}, 8)).starts_with(": at byte 3: an array of rank 1; images have rank 3"));
  CHECK(wrong(idx({2, 0, 2}, 0)).starts_with(": at byte 8: axis 1 has extent 0"));
  CHECK(wrong(idx({2, 2, 2}, 7)) ==
        ": at byte 23: ends here, but its header announces [2, 2, 2] elements, up to byte 24; get the file again");
  CHECK(wrong(idx({2, 2, 2}, 9)).starts_with(": at byte 24: goes on, but its header announces [2, 2, 2]"));
  CHECK(wrong(idx({~0u, ~0u, ~0u, ~0u}, 9)).find("more bytes than can be addressed") != std::string::npos);

  Data zipped = gzip(idx({2, 2, 2}, 8));
  CHECK(wrong(gzip(idx({2, 2, 2}, 9))).starts_with(": at byte 24: goes on"));
  CHECK(wrong(Data(zipped.begin(), zipped.end() - 9)).find("the gzip data is cut short") != std::string::npos);
  zipped[zipped.size() - 6] ^= 1;  // within the checksum
  CHECK(wrong(zipped) == ": after byte 0: the gzip data is damaged (incorrect data check); get the file again");

  CHECK(message(folder.path / "none") == (folder.path / "none").string() + ": cannot be opened: No such file or directory");
  CHECK(message(folder.path).find("cannot be read: Is a directory") != std::string::npos);
  CHECK_THROWS_WITH_AS(data::load_idx("a", "b", 300), doctest::Contains("classes is 300"), Error);
}

TEST_CASE("headers that announce more than the file holds take no memory") {
  const Folder folder;
  for (const auto& bytes : {idx({60000, 2048, 2048}, 100), idx({1u << 20, 1u << 10, 1}, 5000), idx({~0u, 1u << 20, 1}, 0)})
    for (const bool zip : {false, true}) {
      const std::string file = folder.write("file", zip ? gzip(bytes) : bytes);
      const memory::Scope scope;
      CHECK(message(file).find("ends here, but its header announces") != std::string::npos);
      CHECK(scope.peak().total == scope.before().total);
    }
}

TEST_CASE("cut at any byte, an IDX file is refused") {
  const Folder folder;
  const memory::Usage before = memory::live();
  const Data plain = idx({5, 3, 2}, 30), zipped = gzip(plain);
  for (const Data* whole : {&plain, &zipped})
    for (std::size_t size = 0; size < whole->size(); ++size) {
      CAPTURE(size);
      const std::string file = folder.write("file", Data(whole->begin(), whole->begin() + static_cast<std::ptrdiff_t>(size)));
      const std::string text = message(file);
      CHECK(text.starts_with(file + (whole == &plain ? ": at byte " : ": a")));
    }
  CHECK(memory::live() == before);
}

TEST_CASE("with any bit flipped, an IDX file reads as what it says or is refused, and never does harm") {
  const Folder folder;
  const memory::Usage before = memory::live();
  const Data plain = idx({5, 3, 2}, 30), zipped = gzip(plain);
  const memory::Scope scope;
  for (const Data* whole : {&plain, &zipped})
    for (std::size_t bit = 0; bit < 8 * whole->size(); ++bit) {
      CAPTURE(bit);
      Data damaged = *whole;
      damaged[bit / 8] ^= static_cast<std::uint8_t>(1 << bit % 8);
      const std::string file = folder.write("file", damaged);
      const std::string text = message(file);
      // Pixels may be anything, and so may the time, the system and the flags in gzip's own header.
      // The byte before its checksum is filled up with bits that mean nothing.
      const bool free = whole == &plain ? bit >= 16 * 8 : (bit >= 3 * 8 && bit < 10 * 8) || bit / 8 == whole->size() - 9;
      if (text == "no error")
        CHECK(free);
      else
        CHECK(text.starts_with(file + ": a"));
    }
  CHECK(memory::live() == before);
  CHECK(scope.peak().total - before.total <= std::size_t{64} << 20);
}

TEST_CASE("a missing Fashion-MNIST names the package to install") {
  CHECK_THROWS_WITH_AS(data::fashion_mnist("/nowhere"), doctest::Contains("apt-get install dataset-fashion-mnist"), Error);
  CHECK_THROWS_WITH_AS(data::fashion_mnist("/nowhere"), doctest::Contains("/nowhere/train-images-idx3-ubyte.gz: cannot be opened"),
                       Error);
}

TEST_CASE("Fashion-MNIST reads, if it is installed") {
  if (!fs::exists("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")) {
    MESSAGE("package dataset-fashion-mnist is not installed: not tested");
    return;
  }
  const auto [train, test] = data::fashion_mnist();
  CHECK(train.shape == Shape{60000, 28, 28, 1});
  CHECK(test.shape == Shape{10000, 28, 28, 1});
  for (const data::Dataset* part : {&train, &test}) {
    std::array<std::int64_t, 10> count{};
    for (const std::int64_t label : part->labels.values<std::int64_t>()) ++count.at(static_cast<std::size_t>(label));
    for (const std::int64_t n : count) CHECK(n == part->samples() / 10);
  }
  // The figures that everybody normalises with.
  const data::Moments m = train.moments();
  CHECK(m.mean[0] == doctest::Approx(0.2860406).epsilon(1e-5));
  CHECK(m.stddev[0] == doctest::Approx(0.3530242).epsilon(1e-5));
}
