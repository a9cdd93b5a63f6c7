// The names in a manifest: its graph's, its prompts', and whose each file is. The same rules, in
// the same order and the same words, as ptdeploy/bundle/whose.py.
#pragma once

#include <optional>
#include <string>

#include "manifest.hpp"

namespace ptdeploy::detail {

// The first thing that is wrong with the names, so that nobody could ask for the graph or the
// default prompt; or empty. A prompt's name is a folder's too, so this comes before anything is done
// with it.
std::string misnamed(const Manifest& manifest);

// The `of` of the file with a role that is used where no prompt is named.
std::optional<std::string> owner(const std::string& role, const Manifest& manifest);

}  // namespace ptdeploy::detail
