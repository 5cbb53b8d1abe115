#pragma once
// The files of the page as CMake puts them into the program (cmake/report.cmake), so that it runs from anywhere.

namespace rewind_lib::report::embedded {

extern const char* const html;  ///< page.html
extern const char* const css;   ///< page.css
extern const char* const js;    ///< the scripts, one after the other

}  // namespace rewind_lib::report::embedded
