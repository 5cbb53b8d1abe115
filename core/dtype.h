#pragma once
// Element types: float32 and float64 for computing, int32 and int64 for labels and indices.

#include <rewind/core/namespace.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace rewind_lib {

enum class DType : std::uint8_t { float32, float64, int32, int64 };
inline constexpr DType float32 = DType::float32, float64 = DType::float64, int32 = DType::int32, int64 = DType::int64;

constexpr std::size_t size_of(DType t) { return t == float32 || t == int32 ? 4 : 8; }
constexpr bool is_float(DType t) { return t == float32 || t == float64; }
constexpr const char* name_of(DType t) {
  constexpr const char* names[] = {"float32", "float64", "int32", "int64"};
  return names[static_cast<int>(t)];
}
inline void append(std::string& out, DType t) { out += name_of(t); }

template <class T>
inline constexpr bool is_element = false;
template <>
inline constexpr bool is_element<float> = true;
template <>
inline constexpr bool is_element<double> = true;
template <>
inline constexpr bool is_element<std::int32_t> = true;
template <>
inline constexpr bool is_element<std::int64_t> = true;

template <class T>
  requires is_element<T>
inline constexpr DType dtype_of = float32;
template <>
inline constexpr DType dtype_of<double> = float64;
template <>
inline constexpr DType dtype_of<std::int32_t> = int32;
template <>
inline constexpr DType dtype_of<std::int64_t> = int64;

/// Calls f(float{}) or f(double{}) by dtype. The caller has checked that the dtype is a float.
template <class F>
decltype(auto) visit_float(DType t, F&& f) {
  if (t == float64) return f(double{});
  return f(float{});
}

/// Calls f(T{}) with the element type of any dtype.
template <class F>
decltype(auto) visit_dtype(DType t, F&& f) {
  switch (t) {
    case float64: return f(double{});
    case int32: return f(std::int32_t{});
    case int64: return f(std::int64_t{});
    case float32: break;
  }
  return f(float{});
}

}  // namespace rewind_lib
