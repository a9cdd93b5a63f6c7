// Paths as ptdeploy's Python reader spells them.
#pragma once

#include <string>

namespace ptdeploy::detail {

// Without empty and "." parts, as pathlib.Path prints it.
std::string tidy(const std::string& path);
std::string join(const std::string& folder, const std::string& inside);
bool is_folder(const std::string& path);
bool is_link(const std::string& path);

}  // namespace ptdeploy::detail
