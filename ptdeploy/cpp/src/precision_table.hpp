// The table of ptdeploy/bundle/precision.py, written by `make schema`: change it there.
#pragma once

#include "thresholds.hpp"

namespace ptdeploy::detail {

struct PrecisionThresholds {
  const char* name;
  Thresholds bounds;
};

inline constexpr PrecisionThresholds kPrecisions[] = {
    {"fp32", {1e-05, 1e-05, 0.99999, 1e-06}},
    {"tf32", {0.005, 0.005, 0.9999, 0.0001}},
    {"fp16", {0.01, 0.01, 0.999, 0.001}},
    {"bf16", {0.08, 0.08, 0.95, 0.01}},
};

// Quantized weights are judged by what they do to text; cases only have to be finite.
inline constexpr Thresholds kFinite{1e+30, 0, -1, 1e+30};

}  // namespace ptdeploy::detail
