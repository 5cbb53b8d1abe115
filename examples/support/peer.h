#pragma once
// Other frameworks beside us: programs in the folder peers/ next to the one that runs.

#include <nlohmann/json.hpp>

#include <string>

namespace support {

/// What the peer `name` prints, as JSON. Null when it is not there, or when it says with status 77 that what it measures is not
/// installed; a line says so. Throws Error when it fails otherwise.
nlohmann::json peer(const char* name, const std::string& arguments);

}  // namespace support
