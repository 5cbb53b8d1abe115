#pragma once
// Why the library's namespace is called rewind_lib and yet is spelled rewind:: by everyone who uses it.
//
// The C library declares a function ::rewind(FILE*), and half of the standard headers drag it in, so the name is taken in
// the global scope. An alias that lives in a namespace of its own does not clash with it: `rewind::Tensor`,
// `namespace rw = rewind;` and `using namespace rewind;` all look for namespaces only, and find this one. Code that calls
// the C function next to it writes std::rewind(file). See docs/decisions/0006-the-name-rewind.md.

namespace rewind_lib {}
namespace rewind_spelling {
namespace rewind = ::rewind_lib;
}
using namespace rewind_spelling;
