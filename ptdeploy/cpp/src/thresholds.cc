#include "thresholds.hpp"

#include "schema.hpp"

namespace ptdeploy::detail {

namespace {

Thresholds of_precision(const Manifest& manifest) {
  if (manifest.precision == "fp32") return {1e-5, 1e-5, 0.99999, 1e-6};
  if (manifest.precision == "tf32") return {5e-3, 5e-3, 0.9999, 1e-4};
  if (manifest.precision == "fp16") return {1e-2, 1e-2, 0.999, 1e-3};
  if (manifest.precision == "bf16") return {8e-2, 8e-2, 0.95, 1e-2};
  throw InputError("There are no thresholds for the precision " + quoted(manifest.precision) + ".",
                   "Verify the bundle with the ptdeploy that made it.");
}

}  // namespace

Thresholds thresholds_of(const Manifest& manifest) {
  if (manifest.quantization) return {1e30, 0, -1, 1e30};
  Thresholds found = of_precision(manifest);
  if (manifest.head != Head::softmax) {
    // Directions and probabilities of all outputs together mean nothing there.
    found.cosine = -1;
    found.kl = 1e30;
  }
  return found;
}

bool within(const Measured& found, const Thresholds& thresholds, double allowed) {
  return found.max_abs && *found.max_abs <= allowed && found.cosine &&
         *found.cosine >= thresholds.cosine && found.kl && *found.kl <= thresholds.kl &&
         found.clear_agreement;
}

}  // namespace ptdeploy::detail
