#pragma once
// VGG (Simonyan and Zisserman 2015, table 1) without batch normalisation, as torchvision defines it: the same counts and the
// same names.

#include <rewind/nn/sequential.h>

namespace rewind_lib::nn::models {

struct VGGOptions {
  int depth = 16;    ///< layers with weights: 11, 13, 16 or 19 (columns A, B, D and E of the table)
  double width = 1;  ///< multiplies channels, rounded to multiples of 8
  int classes = 1000;
  double dropout = 0.5;
};
/// [N, H, W, 3] -> [N, classes], H and W at least 32. The first Linear takes its inputs in the order [H, W, C]; PyTorch's
/// takes them as [C, H, W]. Throws Error for another depth.
Sequential vgg(VGGOptions options = {});

}  // namespace rewind_lib::nn::models
