#include "backend.hpp"

#include "schema.hpp"

namespace ptdeploy::detail {

std::unique_ptr<Backend> open_backend(const Bundle& bundle, const OpenOptions& options) {
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
  throw InputError("No target " + quoted(target) + "; there is ort, trt.");
}

}  // namespace ptdeploy::detail
