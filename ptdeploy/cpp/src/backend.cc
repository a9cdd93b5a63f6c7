#include "backend.hpp"

#include <utility>

#include "cores.hpp"
#include "schema.hpp"

namespace ptdeploy::detail {
namespace {

// The targets of each device.
const std::vector<std::pair<std::string, std::string>> kTargets = {
    {"cpu", "ort, openvino"}, {"cuda", "ort, trt"}, {"gpu", "openvino"}, {"npu", "openvino"}};

}  // namespace

TargetUnavailable of_another_target(const std::string& target, const std::string& own,
                                    const std::string& device) {
  std::string compiled;
  for (const auto& [name, targets] : kTargets)
    if (name == device)
      compiled = ", or compile for a target that runs on " + device + ": " + targets;
  return TargetUnavailable(
      "The target " + target + " runs on " + own + ", not on " + quoted(device) + ".",
      "Leave the device out" + compiled + ".");
}

std::unique_ptr<Backend> open_backend(const Bundle& bundle, const OpenOptions& options) {
  if (options.threads < 0 || options.threads > kMostThreads)
    throw InputError("threads is " + std::to_string(options.threads) +
                     "; it must be a whole number from 0 to " + std::to_string(kMostThreads) + ".");
  const std::string& target = bundle.manifest.target;
  if (target == "ort") return open_ort(bundle, options);
  if (target == "trt") {
#ifdef PTDEPLOY_TENSORRT
    return open_trt(bundle, options);
#else
    throw TargetUnavailable(
        "This build of ptdeploy's C++ library has no backend for the target trt.",
        "Build it with -DPTDEPLOY_TENSORRT=ON -DTENSORRT_ROOT=/path/to/TensorRT, or compile the "
        "bundle with --target ort.");
#endif
  }
  if (target == "openvino") {
#ifdef PTDEPLOY_OPENVINO
    return open_openvino(bundle, options);
#else
    throw TargetUnavailable(
        "This build of ptdeploy's C++ library has no backend for the target openvino.",
        "Build it with -DPTDEPLOY_OPENVINO=ON -DOpenVINO_DIR=/path/to/openvino/cmake, or compile "
        "the bundle with --target ort.");
#endif
  }
  throw InputError("No target " + quoted(target) + "; there is ort, openvino, trt.");
}

}  // namespace ptdeploy::detail
