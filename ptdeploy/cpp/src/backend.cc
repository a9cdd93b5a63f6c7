#include "backend.hpp"

#include "schema.hpp"

namespace ptdeploy::detail {

std::unique_ptr<Backend> open_backend(const Bundle& bundle, const OpenOptions& options) {
  const std::string& target = bundle.manifest.target;
  if (target == "ort") return open_ort(bundle, options);
  if (target == "trt")
    throw TargetUnavailable("The C++ library has no backend for the target trt.",
                            "Run the bundle in Python, or compile it with --target ort.");
  throw InputError("No target " + quoted(target) + "; there is ort, trt.");
}

}  // namespace ptdeploy::detail
