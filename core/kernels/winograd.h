#pragma once
// 3x3 convolutions at stride 1 by Winograd's transform F(2x2, 3x3): 16 multiplications where 36 are counted, for every 2 x 2
// pixels of y and pair of channels (Lavin and Gray 2016, section 4.1; Winograd 1980). A tile d of 4 x 4 pixels of x gives
// y = A^T [(G g G^T) o (B^T d B)] A; summed over channels, the product in the middle is 16 products of matrices. So is that of
// dg = G^T [(A dy A^T) o (B^T d B)] G, summed over tiles.
//
// Sums of transformed values round a little more: about twice the error of the direct sum (tested).

#include <rewind/core/kernels/conv.h>
#include <rewind/core/kernels/microkernel.h>

#include <cstdint>

namespace rewind_lib::kernels::winograd {

/// Whether the transform serves a shape: 3x3 at stride 1, an even y, channels in sixteens, and not so many that the transformed
/// weights leave the last cache.
bool covers(const ConvShape& shape);

/// Outputs whose weights are transformed at once, where all of them would take more memory than is well spent.
std::int64_t outputs_at_once(const ConvShape& shape);
/// Elements of these weights, and of the scratch that a worker needs for so many lines.
std::int64_t packed_size(const ConvShape& shape);
std::int64_t scratch_size(const ConvShape& shape, std::int64_t lines);

/// The weights [O, 3, 3, C] of some outputs of `shape`, transformed. turned: w is that of the convolution whose dx this one makes,
/// [C, 3, 3, O].
template <class T>
void pack_weight(const ConvShape& shape, const T* w, bool turned, std::int64_t first_output, std::int64_t outputs, T* packed);

/// Elements of dw's sums.
std::int64_t sums_size(const ConvShape& shape);
/// sums (+)= what some lines add to dw, before the last transform: x as for lines_tile, g the lines of G, of which `begin` and
/// `jump` matter.
template <class T>
void weight_tile(const ConvShape& shape, const LinesA<T>& x, const LinesA<T>& g, bool accumulate, T* sums, T* scratch,
                 Ahead* ahead);
/// dw [O, 3, 3, C] from its sums.
template <class T>
void weight_gradient(const ConvShape& shape, const T* sums, T* dw);

/// As lines_tile, for an even number of lines, which follow each other two by two in an image, and some of the outputs.
template <class T>
void lines_tile(const ConvShape& shape, const LinesA<T>& a, const T* packed, std::int64_t first_output, std::int64_t outputs, T* y,
                const Epilogue<T>& epilogue, T* scratch, Ahead* ahead);

}  // namespace rewind_lib::kernels::winograd
