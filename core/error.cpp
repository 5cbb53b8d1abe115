#include <rewind/core/error.h>

#include <cstdio>

namespace rewind_lib {

void fail(std::string message) { throw Error(std::move(message)); }

namespace detail {

void append(std::string& out, double v) {
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", v);
  out += text;
}

void internal_failure(const char* condition, const char* file, int line) {
  throw InternalError(str("This is a bug in Rewind, not in your program: ", file, ":", line, ": check failed: ", condition,
                          ". Please report it with this message."));
}

}  // namespace detail
}  // namespace rewind_lib
