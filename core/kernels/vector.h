#pragma once
// The widest vectors of the machine the code is compiled for, in GCC's portable vector extensions.

#include <rewind/core/kernels/activation.h>

#include <cstdint>
#include <type_traits>

namespace rewind_lib::kernels {

#if defined(__AVX512F__)
inline constexpr int vector_bytes = 64;
#elif defined(__AVX__)
inline constexpr int vector_bytes = 32;
#else
inline constexpr int vector_bytes = 16;
#endif

template <class T, int Bytes = vector_bytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(Bytes)));
};
template <class T>
using Vector = typename VectorOf<T>::type;

template <class T>
inline constexpr int lanes = vector_bytes / static_cast<int>(sizeof(T));

// V is a vector of T, or T itself: kernels written on load, store and splat take both.
template <class V, class T>
inline V load(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}
template <class V, class T>
inline void store(T* p, V v) {
  __builtin_memcpy(p, &v, sizeof(V));
}

// A result that is larger than the caches is streamed: stored past them, so that its lines are not fetched just to be
// overwritten, and what is in the caches stays. A vector may be half a line; then only kernels that write a line's halves one after
// the other may stream, since a half that waits for the other is written alone.

/// Bytes of a result from which on it is streamed.
inline constexpr std::int64_t stream_bytes = 8 << 20;
/// Vectors and elements of a line.
inline constexpr int vectors_a_line = 64 / vector_bytes;
template <class T>
inline constexpr int line_elements = 64 / static_cast<int>(sizeof(T));
/// Whether a result of n elements in rows of `row` should be streamed, when it is aligned, by a kernel that writes whole lines.
template <class T>
constexpr bool streams_lines(std::int64_t row, std::int64_t n) {
  return vector_bytes >= 32 && row % line_elements<T> == 0 && n * static_cast<std::int64_t>(sizeof(T)) >= stream_bytes;
}
/// And by one that writes vectors in any order.
template <class T>
constexpr bool streams(std::int64_t row, std::int64_t n) {
  return vector_bytes == 64 && streams_lines<T>(row, n);
}
/// Whether one that begins at `to` can be.
template <class T>
inline bool streams_lines(const T* to, std::int64_t row, std::int64_t n) {
  return streams_lines<T>(row, n) && reinterpret_cast<std::uintptr_t>(to) % 64 == 0;
}
template <class T>
inline bool streams(const T* to, std::int64_t row, std::int64_t n) {
  return vector_bytes == 64 && streams_lines(to, row, n);
}
/// store(), or, where `past` says so, past the caches, for a kernel that writes whole lines; stream_end() comes before anybody else
/// may read.
template <class V, class T>
inline void stream_line(T* p, V v, bool past) {
  if constexpr (sizeof(V) == vector_bytes && vector_bytes >= 32)
    if (past) {
#if defined(__clang__)
      return __builtin_nontemporal_store(v, reinterpret_cast<V*>(p));
#elif defined(__AVX512F__)
      if constexpr (sizeof(T) == 4)
        return __builtin_ia32_movntps512(p, v);
      else
        return __builtin_ia32_movntpd512(p, v);
#elif defined(__AVX__)
      if constexpr (sizeof(T) == 4)
        return __builtin_ia32_movntps256(p, v);
      else
        return __builtin_ia32_movntpd256(p, v);
#endif
    }
  store(p, v);
}
/// And for one that writes vectors in any order.
template <class V, class T>
inline void stream(T* p, V v, bool past) {
  stream_line(p, v, sizeof(V) == 64 && past);
}
inline void stream_end() {
#if defined(__SSE__)
  __builtin_ia32_sfence();
#endif
}

template <class V, class T>
inline V splat(T x) {
  return V{} + x;
}

/// a * b + c, rounded once where the machine can. It is spelled out where that has a spelling: the compiler's choice differs from
/// kernel to kernel, and with it the bits.
template <class V>
inline V multiply_add(V a, V b, V c) {
#if defined(__FMA__)
  if constexpr (std::is_same_v<V, float>)
    return __builtin_fmaf(a, b, c);
  else if constexpr (std::is_same_v<V, double>)
    return __builtin_fma(a, b, c);
#if !defined(__clang__)
  else if constexpr (std::is_same_v<V, VectorOf<float, 16>::type>)
    return __builtin_ia32_vfmaddps(a, b, c);
  else if constexpr (std::is_same_v<V, VectorOf<double, 16>::type>)
    return __builtin_ia32_vfmaddpd(a, b, c);
  else if constexpr (std::is_same_v<V, VectorOf<float, 32>::type>)
    return __builtin_ia32_vfmaddps256(a, b, c);
  else if constexpr (std::is_same_v<V, VectorOf<double, 32>::type>)
    return __builtin_ia32_vfmaddpd256(a, b, c);
#if defined(__AVX512F__)
  else if constexpr (std::is_same_v<V, VectorOf<float, 64>::type>)
    return __builtin_ia32_vfmaddps512_mask(a, b, c, -1, 4);
  else if constexpr (std::is_same_v<V, VectorOf<double, 64>::type>)
    return __builtin_ia32_vfmaddpd512_mask(a, b, c, -1, 4);
#endif
#endif
  else
#endif
    return a * b + c;
}

/// v, which no multiplication that made it is contracted with what is added to it. (Clang does not across statements.)
template <class V>
inline V rounded(V v) {
#if defined(__clang__)
  return v;
#else
  return __builtin_assoc_barrier(v);
#endif
}

/// activate() for vectors as well.
template <class V>
inline V activate_lanes(Activation activation, V v) {
  if (activation == Activation::none) return v;
  const V zero = {};
  v = v < zero ? zero : v;
  if (activation == Activation::relu6) {
    const V six = zero + 6;
    v = v > six ? six : v;
  }
  return v;
}

template <class V>
struct VectorTag {
  using type = V;
};

/// Calls body(tag, c) for vectors (V = decltype(tag)::type: full ones, then of 16 bytes, then T) that cover [begin, end). In line,
/// so that what the body refers to stays in registers: for all that the compiler knows, a vector that is stored overwrites it. For
/// the same reason kernels that call this are given structs by value.
template <class T, class F>
[[gnu::always_inline]] inline void for_vectors(std::int64_t begin, std::int64_t end, F&& body) {
  constexpr int small = 16 / static_cast<int>(sizeof(T));
  std::int64_t c = begin;
  for (; c + lanes<T> <= end; c += lanes<T>) body(VectorTag<Vector<T>>{}, c);
  for (; c + small <= end; c += small) body(VectorTag<typename VectorOf<T, 16>::type>{}, c);
  for (; c < end; ++c) body(VectorTag<T>{}, c);
}

/// As for_vectors, but instead of single T the last vector overlaps the one before, where there is one: for bodies that may see an
/// element twice.
template <class T, class F>
[[gnu::always_inline]] inline void for_overlapping_vectors(std::int64_t begin, std::int64_t end, F&& body) {
  constexpr int small = 16 / static_cast<int>(sizeof(T));
  if (end - begin < small) return for_vectors<T>(begin, end, body);
  std::int64_t c = begin;
  for (; c + lanes<T> <= end; c += lanes<T>) body(VectorTag<Vector<T>>{}, c);
  for (; c + small <= end; c += small) body(VectorTag<typename VectorOf<T, 16>::type>{}, c);
  if (c < end) body(VectorTag<typename VectorOf<T, 16>::type>{}, end - small);
}

}  // namespace rewind_lib::kernels
