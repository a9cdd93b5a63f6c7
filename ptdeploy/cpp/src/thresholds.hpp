// What a precision may cost: the table of ptdeploy/bundle/precision.py.
#pragma once

#include "manifest.hpp"
#include "measure.hpp"

namespace ptdeploy::detail {

struct Thresholds {
  double max_abs, relative, cosine, kl;
};

// Quantized weights are judged by what they do to text; their cases only have to be finite.
// Throws InputError on a precision that has no thresholds.
Thresholds thresholds_of(const Manifest& manifest);

// Whether a case's numbers are within the thresholds; what is not finite never is.
bool within(const Measured& found, const Thresholds& thresholds, double allowed);

}  // namespace ptdeploy::detail
