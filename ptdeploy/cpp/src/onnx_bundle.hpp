// A bundle's ONNX, held against its manifest before an engine reads it: the same rules, in the same
// order and the same words, as ptdeploy/backends/onnx_bundle.py.
#pragma once

#include "bundle.hpp"

namespace ptdeploy::detail {

// Throws BundleError unless every file that the graph names is one of the bundle's, and its words are
// the manifest's: engines read whatever lies beside the graph, and only what the manifest lists has
// a hash.
void check_onnx(const Bundle& bundle);

}  // namespace ptdeploy::detail
