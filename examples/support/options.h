#pragma once
// What the programs ask of their options. CLI11's own checks answer with the 300 digits of the largest double, take 010 for 8, and
// let -1 through as the largest number without a sign.

#include <CLI/CLI.hpp>

#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <string>

namespace support {

/// A number in decimal, with or without a point. NaN when it is none.
inline double number_in(const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  const bool octal = text.size() > 1 && text[0] == '0' && text[1] != '.';
  return *end == '\0' && std::isfinite(value) && !octal ? value : NAN;
}

/// A number above 0.
inline const CLI::Validator positive{
    [](const std::string& text) { return number_in(text) > 0 ? std::string() : text + " is not a number above 0"; }, "POSITIVE",
    "positive"};
/// A number from 0 on.
inline const CLI::Validator not_negative{
    [](const std::string& text) { return number_in(text) >= 0 ? std::string() : text + " is not a number from 0 on"; },
    "NOT NEGATIVE", "not_negative"};
/// A whole number from 0 on that 64 bits hold.
inline const CLI::Validator seed{[](const std::string& text) {
                                   const bool digits = !text.empty() && text.find_first_not_of("0123456789") == text.npos;
                                   errno = 0;
                                   std::strtoull(text.c_str(), nullptr, 10);
                                   return digits && errno == 0 && !std::isnan(number_in(text))
                                              ? std::string()
                                              : text + " is not a whole number from 0 to 2^64 - 1";
                                 },
                                 "SEED", "seed"};

}  // namespace support
