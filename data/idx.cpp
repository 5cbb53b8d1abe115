#include <rewind/data/idx.h>

#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace rewind_lib::data {
namespace {

// A file of bytes, plain or gzip: zlib looks at the first bytes, not at the name, and reads either.
class File {
 public:
  File(std::string path, const std::string& hint) : path_(std::move(path)) {
    errno = 0;
    file_ = gzopen(path_.c_str(), "rb");
    if (file_ == nullptr) fail(str(path_, ": cannot be opened: ", errno != 0 ? std::strerror(errno) : "out of memory", hint));
    gzbuffer(file_, 1u << 18);
  }
  ~File() { gzclose_r(file_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  /// Reads up to `count` bytes; fewer at the end of the file only.
  std::size_t read(std::uint8_t* to, std::size_t count) {
    std::size_t done = 0;
    while (done < count) {
      const auto want = static_cast<unsigned>(std::min(count - done, std::size_t{1} << 30));
      const int got = gzread(file_, to + done, want);
      int code = Z_OK;
      const char* reason = gzerror(file_, &code);
      if (got < 0 || (code != Z_OK && code != Z_STREAM_END)) {
        const std::size_t at = offset_ + done + static_cast<std::size_t>(std::max(got, 0));
        if (code == Z_ERRNO) wrong(at, str("cannot be read: ", std::strerror(errno)));
        if (code == Z_MEM_ERROR) wrong(at, "zlib has no memory to read it");
        if (code == Z_BUF_ERROR) wrong(at, str("the gzip data is cut short; ", mend));
        // zlib keeps to itself how much of a damaged block it could read, and begins its reason with the path.
        if (std::string_view(reason).starts_with(path_)) reason += path_.size() + 2;
        fail(str(path_, ": after byte ", at, ": the gzip data is damaged (", reason, "); ", mend));
      }
      if (got == 0) break;
      done += static_cast<std::size_t>(got);
    }
    offset_ += done;
    return done;
  }

  /// The size of what read() has still to give, as far as `enough`. Takes no memory to speak of.
  std::size_t measure(std::size_t enough) {
    const std::size_t start = offset_;
    std::vector<std::uint8_t> scratch(std::size_t{1} << 18);
    while (offset_ - start < enough && read(scratch.data(), scratch.size()) == scratch.size()) {
    }
    const std::size_t size = offset_ - start;
    if (gzseek(file_, static_cast<z_off_t>(start), SEEK_SET) < 0) wrong(start, "cannot be read twice");
    offset_ = start;
    return size;
  }

  std::size_t offset() const { return offset_; }
  [[noreturn]] void wrong(std::size_t at, const std::string& what) const { fail(str(path_, ": at byte ", at, ": ", what)); }

  static constexpr const char* mend = "get the file again";

 private:
  std::string path_;
  gzFile file_;
  std::size_t offset_ = 0;
};

struct Idx {
  Shape shape;
  Bytes elements;
};

const char* type_name(std::uint8_t type) {
  switch (type) {
    case 0x08: return "unsigned byte";
    case 0x09: return "signed byte";
    case 0x0B: return "16-bit integer";
    case 0x0C: return "32-bit integer";
    case 0x0D: return "32-bit float";
    case 0x0E: return "64-bit float";
    default: return nullptr;
  }
}

// Above this, the file is read to its end once before memory is taken on its header's word.
constexpr std::size_t believed = std::size_t{64} << 20;

Idx read_idx(const std::string& path, int least_rank, int most_rank, const char* what, const std::string& hint) {
  File file(path, hint);
  std::uint8_t head[4];
  if (const std::size_t got = file.read(head, 4); got < 4)
    file.wrong(got, str("ends within the four bytes that begin an IDX file; ", File::mend));
  if (head[0] != 0 || head[1] != 0 || type_name(head[2]) == nullptr)
    file.wrong(
        0, "no IDX file: it is to begin with two zero bytes and the code of an element type; give a *-ubyte or *-ubyte.gz file");
  if (head[2] != 0x08)
    file.wrong(2, str("elements of type ", type_name(head[2]), "; only unsigned bytes are read, convert the file"));
  const int rank = head[3];
  if (rank < least_rank || rank > most_rank)
    file.wrong(3, str("an array of rank ", rank, "; ", what, ". Were the files of images and labels interchanged?"));

  Idx idx;
  std::size_t count = 1;
  for (int axis = 0; axis < rank; ++axis) {
    std::uint8_t b[4];
    if (const std::size_t got = file.read(b, 4); got < 4)
      file.wrong(file.offset(), str("ends within the extents of its ", rank, " axes; ", File::mend));
    const std::uint32_t extent = std::uint32_t{b[0]} << 24 | std::uint32_t{b[1]} << 16 | std::uint32_t{b[2]} << 8 | b[3];
    if (extent == 0) file.wrong(file.offset() - 4, str("axis ", axis, " has extent 0; there is nothing to read in this file"));
    if (__builtin_mul_overflow(count, std::size_t{extent}, &count) || count > (std::size_t{1} << 62))
      file.wrong(file.offset() - 4,
                 str("axis ", axis, " has extent ", extent, ", and the array more bytes than can be addressed; ", File::mend));
    idx.shape.push_back(extent);
  }

  const std::size_t begin = file.offset(), end = begin + count;
  const auto cut_short = [&](std::size_t size) {
    file.wrong(begin + size,
               str("ends here, but its header announces ", idx.shape, " elements, up to byte ", end, "; ", File::mend));
  };
  if (count > believed)
    if (const std::size_t size = file.measure(count); size < count) cut_short(size);
  idx.elements = Bytes(count);
  if (const std::size_t got = file.read(idx.elements.data(), count); got < count) cut_short(got);
  // Reading on also makes zlib check what it read.
  std::uint8_t more;
  if (file.read(&more, 1) != 0)
    file.wrong(end, str("goes on, but its header announces ", idx.shape, " elements, which end here; ", File::mend));
  return idx;
}

Images read_images(const std::string& path, const std::string& hint = {}) {
  Idx idx = read_idx(path, 3, 4, "images have rank 3 [samples, height, width] or 4 [samples, height, width, channels]", hint);
  if (idx.shape.rank() == 3) idx.shape.push_back(1);
  return {idx.shape, std::move(idx.elements)};
}

Tensor read_labels(const std::string& path, const std::string& hint = {}) {
  const Idx idx = read_idx(path, 1, 1, "labels have rank 1", hint);
  const memory::CategoryScope scope(Category::input);
  Tensor labels = empty(idx.shape, int64);
  std::ranges::copy(idx.elements.values(), labels.mutate<std::int64_t>().begin());
  return labels;
}

Dataset read_both(const std::string& images_path, const std::string& labels_path, int classes, const std::string& hint = {}) {
  Images images = read_images(images_path, hint);
  Tensor labels = read_labels(labels_path, hint);
  if (images.shape[0] != labels.size(0))
    fail(str(images_path, ": at byte 4: announces ", images.shape[0], " images, but ", labels_path, " has ", labels.size(0),
             " labels; give files that belong together"));
  const auto label = labels.values<std::int64_t>();
  if (classes == 0) classes = static_cast<int>(*std::ranges::max_element(label)) + 1;
  for (std::size_t i = 0; i < label.size(); ++i)
    if (label[i] >= classes)
      fail(str(labels_path, ": at byte ", 8 + i, ": label ", label[i], " is not one of ", classes, " classes, 0 to ", classes - 1));
  Dataset d;
  d.name = images_path;
  d.classes = classes;
  d.shape = images.shape;
  d.pixels = std::move(images.pixels);
  d.labels = std::move(labels);
  return d;
}

bool exists(const std::string& path) {
  gzFile file = gzopen(path.c_str(), "rb");
  if (file == nullptr) return false;
  gzclose_r(file);
  return true;
}

}  // namespace

Images load_idx_images(const std::string& path) { return read_images(path); }
Tensor load_idx_labels(const std::string& path) { return read_labels(path); }
Dataset load_idx(const std::string& images_path, const std::string& labels_path, int classes) {
  if (classes < 0 || classes > 256)
    fail(str("load_idx: classes is ", classes, "; a label is a byte, so 1 to 256, or 0 to find out"));
  return read_both(images_path, labels_path, classes);
}

Split fashion_mnist(const std::string& folder) {
  const std::string hint =
      "; install Debian's package dataset-fashion-mnist (apt-get install dataset-fashion-mnist), or give the folder that holds "
      "train-images-idx3-ubyte.gz and its three companions";
  const auto path = [&](const char* name) {
    const std::string plain = str(folder, "/", name);
    return exists(plain) ? plain : plain + ".gz";
  };
  const auto part = [&](const char* name, const char* images, const char* labels) {
    Dataset d = read_both(path(images), path(labels), 10, hint);
    d.name = name;
    return d;
  };
  return {part("fashion-mnist train", "train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
          part("fashion-mnist test", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")};
}

}  // namespace rewind_lib::data
