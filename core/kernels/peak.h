#pragma once
// What the machine can do at best, for rooflines: multiply-adds in registers, and streams from memory.

#include <cstdint>

namespace rewind_lib::kernels {

/// `pieces` pieces of multiply-adds on registers alone, in parallel; `sink` [pieces] takes a value of each, so that they are
/// done. Returns the FLOPs (1 multiply-add = 2).
std::int64_t multiply_adds(std::int64_t pieces, float* sink);

/// a = b + s c over n elements, in parallel: the triad of STREAM (McCalpin 1995); `past`: stored past the caches, where a is
/// 64-byte aligned, so that its lines are not fetched to be overwritten. Returns the bytes read and written, as STREAM counts them:
/// 12 an element. (Stored as usual, 16 move.)
std::int64_t triad(std::int64_t n, float* a, const float* b, const float* c, float s, bool past);

}  // namespace rewind_lib::kernels
