#pragma once
// 3x3 convolutions at stride 1 by Winograd's transform F(2x2, 3x3): 16 multiplications where 36 are counted, for every 2 x 2
// pixels of y and pair of channels (Lavin and Gray 2016, section 4.1; Winograd 1980). A tile d of 4 x 4 pixels of x gives
// y = A^T [(G g G^T) o (B^T d B)] A; summed over channels, the product in the middle is 16 products of matrices.
//
// Sums of transformed values round a little more: about twice the error of the direct sum (tested).

#include <rewind/core/kernels/conv.h>
#include <rewind/core/kernels/microkernel.h>

#include <cstdint>

namespace rewind_lib::kernels::winograd {

/// Whether the transform serves a shape: 3x3 at stride 1, an even y, and so many channels that products outweigh transforms, but
/// not so many that the transformed weights leave the caches.
bool covers(const ConvShape& shape);

/// Elements of the transformed weights, and of the scratch that a worker needs.
std::int64_t packed_size(const ConvShape& shape);
std::int64_t scratch_size(const ConvShape& shape);

/// The weights [O, 3, 3, C] of `shape`, transformed. turned: w is that of the convolution whose dx this one makes, [C, 3, 3, O].
template <class T>
void pack_weight(const ConvShape& shape, const T* w, bool turned, T* packed);

/// As lines_tile, for an even number of lines, which follow each other two by two in an image.
template <class T>
void lines_tile(const ConvShape& shape, const LinesA<T>& a, const T* packed, T* y, const Epilogue<T>& epilogue, T* scratch);

}  // namespace rewind_lib::kernels::winograd
