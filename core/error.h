#pragma once
// Errors. A user's mistake throws Error; a defect of Rewind itself throws InternalError. Their texts read differently.

#include <rewind/core/namespace.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

namespace rewind_lib {

/// A mistake that the caller can mend: the text names the op, every shape, and what to do.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A defect of Rewind: the text says that it is ours and asks for a report.
class InternalError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

namespace detail {
inline void append(std::string& out, std::string_view text) { out += text; }
inline void append(std::string& out, const char* text) { out += text; }
inline void append(std::string& out, char c) { out += c; }
inline void append(std::string& out, int v) { out += std::to_string(v); }
inline void append(std::string& out, long v) { out += std::to_string(v); }
inline void append(std::string& out, long long v) { out += std::to_string(v); }
inline void append(std::string& out, unsigned v) { out += std::to_string(v); }
inline void append(std::string& out, unsigned long v) { out += std::to_string(v); }
inline void append(std::string& out, unsigned long long v) { out += std::to_string(v); }
void append(std::string& out, double v);
}  // namespace detail

/// Joins text, numbers and shapes into one string; what error messages are made with.
/// A type joins in by an overload `append(std::string&, const T&)` in its own namespace.
template <class... Parts>
std::string str(const Parts&... parts) {
  using detail::append;
  std::string out;
  (append(out, parts), ...);
  return out;
}

[[noreturn]] void fail(std::string message);

namespace detail {
[[noreturn]] void internal_failure(const char* condition, const char* file, int line);
}
}  // namespace rewind_lib

/// Checks what Rewind promises itself. When it fails, the fault is ours, and the message says so.
#define REWIND_CHECK(condition) \
  ((condition) ? static_cast<void>(0) : ::rewind_lib::detail::internal_failure(#condition, __FILE__, __LINE__))
