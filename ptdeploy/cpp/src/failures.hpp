// What of a report does not match, in the words of ptdeploy's Python report.
#pragma once

#include <string>
#include <vector>

#include "manifest.hpp"

namespace ptdeploy::detail {

// Why the engine failed, each reason once, with how often and where first.
std::vector<std::string> faults_of(const ParityReport& report);

// What does not match where the engine did not fail.
std::vector<std::string> failures_of(const ParityReport& report, const Manifest& manifest);

}  // namespace ptdeploy::detail
