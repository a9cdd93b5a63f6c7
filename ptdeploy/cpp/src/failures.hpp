// What of a report departs, in the words of ptdeploy's Python report.
#pragma once

#include <string>
#include <vector>

#include "manifest.hpp"

namespace ptdeploy::detail {

std::vector<std::string> failures_of(const ParityReport& report, const Manifest& manifest);

// A number as printf's %.*FORMAT writes it.
std::string formatted(double number, int digits, char format);

}  // namespace ptdeploy::detail
