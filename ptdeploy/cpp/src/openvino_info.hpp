// engine.json of the target openvino: what an engine computes in and keeps its KV cache in.
#pragma once

#include <cstdint>

#include "block_cache.hpp"
#include "bundle.hpp"

namespace ptdeploy::detail {

const char* name_of(KVPrecision precision);

// Products with quantized weights are computed in int8, with a scale for each `group` activations; 0
// computes in float32. What a bundle without the file has is the default.
struct OpenVinoInfo {
  KVPrecision kv_precision = KVPrecision::f32;
  std::int64_t group = 0;
};

// Throws BundleError if the bundle's file says anything else.
OpenVinoInfo openvino_info(const Bundle& bundle);

}  // namespace ptdeploy::detail
