#include "ptdeploy/ptdeploy.hpp"

namespace ptdeploy {

Error::Error(std::string problem, std::string fix)
    : std::runtime_error(fix.empty() ? printable(problem)
                                     : printable(problem) + "\n" + printable(fix)),
      problem_(std::move(problem)),
      fix_(std::move(fix)) {}

// Defined here so that each class has one type_info, also across a shared library's border.
Error::~Error() = default;
BundleError::~BundleError() = default;
InputError::~InputError() = default;
OutOfMemory::~OutOfMemory() = default;
TargetUnavailable::~TargetUnavailable() = default;
EngineFault::~EngineFault() = default;

const char* version() noexcept { return PTDEPLOY_VERSION; }

}  // namespace ptdeploy
