// Which engine a bundle holds: prompts go over to every bundle of the same one.
#pragma once

#include <string>

#include "manifest.hpp"

namespace ptdeploy::detail {

// SHA-256 of what runs, as engine_sha256() of ptdeploy/bundle/same_engine.py has it: the graph's files
// by role and hash, and its signature.
std::string engine_sha256(const Manifest& manifest);

}  // namespace ptdeploy::detail
