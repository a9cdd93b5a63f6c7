// A pack: one prompt in a folder of its own, which any bundle of its engine can take. The same rules,
// in the same order and the same words, as ptdeploy/bundle/pack.py.
#pragma once

#include <string>

#include "manifest.hpp"

namespace ptdeploy::detail {

// Reads a pack's manifest and checks every file's path and size. Throws BundleError.
PackManifest read_pack(const std::string& path);

}  // namespace ptdeploy::detail
