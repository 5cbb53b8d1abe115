#pragma once
// The IDX format of MNIST and its relatives (Y. LeCun, http://yann.lecun.com/exdb/mnist), plain or compressed by gzip: two
// zero bytes, the element type, the rank, the extents as big-endian 32-bit numbers, the elements. Unsigned bytes only.
//
// A file that is missing, cut short, damaged or something else throws Error, with the file's name, the byte where it went
// wrong (of the uncompressed data) and what to do. Nothing is believed that the file does not hold: a header that announces
// gigabytes does not make us allocate them.

#include <rewind/data/dataset.h>

#include <string>

namespace rewind_lib::data {

struct Images {
  Shape shape;   ///< [samples, height, width, channels]
  Bytes pixels;  ///< shape.numel() of them
};

/// A file of rank 3 [samples, height, width], read with one channel, or 4 [samples, height, width, channels].
Images load_idx_images(const std::string& path);
/// A file of rank 1, as int64 [samples] (Category::input).
Tensor load_idx_labels(const std::string& path);

/// Both together. Their numbers have to agree, and labels to lie below `classes`; classes 0 means as many as the labels use.
Dataset load_idx(const std::string& images_path, const std::string& labels_path, int classes = 0);

/// Fashion-MNIST (H. Xiao, K. Rasul, R. Vollgraf 2017; MIT licence): 60,000 and 10,000 images of 28x28 in 10 classes, from
/// where Debian's package dataset-fashion-mnist puts them. Reads any folder with files of these names, MNIST's own too,
/// with or without .gz.
Split fashion_mnist(const std::string& folder = "/usr/share/datasets/fashion-mnist");

}  // namespace rewind_lib::data
