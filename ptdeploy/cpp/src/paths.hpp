// Paths as ptdeploy's Python reader treats them: pathlib's spelling, realpath's links.
#pragma once

#include <string>

namespace ptdeploy::detail {

// Without empty and "." parts, as pathlib.Path prints it.
std::string tidy(const std::string& path);
std::string join(const std::string& folder, const std::string& inside);
bool is_folder(const std::string& path);
bool is_file(const std::string& path);
// Absolute, with all links followed, whether there is anything or not. Empty if links go in
// circles.
std::string resolve(const std::string& path);
bool is_inside(const std::string& path, const std::string& folder);

}  // namespace ptdeploy::detail
