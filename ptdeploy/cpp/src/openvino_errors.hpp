// What OpenVINO throws, in one line.
#pragma once

#include <exception>
#include <string>

namespace ptdeploy::detail {

// What it says without its sources' places, the operator and its module before it; without a full
// stop. The words of ptdeploy/backends/openvino/errors.py.
std::string openvino_reason(const std::exception& error);

}  // namespace ptdeploy::detail
