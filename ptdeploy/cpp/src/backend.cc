#include "backend.hpp"

#include "schema.hpp"

namespace ptdeploy::detail {

std::unique_ptr<Backend> open_backend(const Bundle& bundle, const OpenOptions& options) {
  const std::string& target = bundle.manifest.target;
  if (target == "ort") return open_ort(bundle, options);
  throw InputError("No target " + quoted(target) + "; there is ort.");
}

}  // namespace ptdeploy::detail
