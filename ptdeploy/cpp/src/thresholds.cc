#include "thresholds.hpp"

#include "precision_table.hpp"
#include "schema.hpp"

namespace ptdeploy::detail {

namespace {

Thresholds of_precision(const Manifest& manifest) {
  for (const PrecisionThresholds& one : kPrecisions)
    if (manifest.precision == one.name) return one.bounds;
  throw InputError("There are no thresholds for the precision " + quoted(manifest.precision) + ".",
                   "Verify the bundle with the ptdeploy that made it.");
}

}  // namespace

Thresholds thresholds_of(const Manifest& manifest) {
  if (manifest.quantization) return kFinite;
  Thresholds found = of_precision(manifest);
  if (manifest.head != Head::softmax) {
    // Directions and probabilities of all outputs together mean nothing there.
    found.cosine = kFinite.cosine;
    found.kl = kFinite.kl;
  }
  return found;
}

bool within(const Measured& found, const Thresholds& thresholds, double allowed) {
  return found.max_abs && *found.max_abs <= allowed && found.cosine &&
         *found.cosine >= thresholds.cosine && found.kl && *found.kl <= thresholds.kl &&
         found.clear_agreement;
}

}  // namespace ptdeploy::detail
