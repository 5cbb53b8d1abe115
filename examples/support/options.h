#pragma once
// What the programs ask of their options.

#include <CLI/CLI.hpp>

#include <cstdlib>
#include <string>

namespace support {

/// A number above 0. CLI11's own check answers with the 300 digits of the largest double.
inline const CLI::Validator positive{[](const std::string& text) {
                                       char* end = nullptr;
                                       const double value = std::strtod(text.c_str(), &end);
                                       return *end == '\0' && value > 0 ? std::string() : text + " is not a number above 0";
                                     },
                                     "POSITIVE", "positive"};

}  // namespace support
