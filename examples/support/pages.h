#pragma once
// What programs put into their report pages: memory timelines, schedules, profiles.

#include "progress.h"

namespace support {

/// Live bytes by category after every change, thinned to what a screen can show.
nlohmann::json timeline(const rewind::DryRun& plan);
/// What simulate() finds for each action.
nlohmann::json trace(const rewind::schedule::Chain& chain, const std::vector<rewind::schedule::Action>& actions);

/// The page of a profile. `j` is to_json(p) with what the program knows besides.
void write_profile_report(const std::string& path, const nlohmann::json& j, const rewind::Profile& p, rewind::nn::Sequential& net,
                          const rewind::Tensor& input);

}  // namespace support
