// The names in a manifest: its graph's, its prompts', and whose each file is. The same rules, in
// the same order and the same words, as ptdeploy/bundle/whose.py.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "manifest.hpp"

namespace ptdeploy::detail {

// The first thing that is wrong with the names, so that nobody could ask for the graph or the
// default prompt; or empty. A prompt's name is a folder's too, so this comes before anything is done
// with it.
std::string misnamed(const Manifest& manifest);

// The `of` of the file with a role that is used where no prompt is named.
std::optional<std::string> owner(const std::string& role, const Manifest& manifest);

// Whether files of this role are a graph's, or a prompt's.
bool of_graph(const std::string& role);
bool of_prompt(const std::string& role);

// Whether a prompt can have that name, which is a folder's too.
bool is_prompt_name(const std::string& name);

// Prompts' names for an error or a note, the first of them where they are many.
std::string in_words(std::vector<std::string> names);

}  // namespace ptdeploy::detail
