// What reading a bundle and reading a pack have in common: a manifest, and the files it lists. The same
// rules, in the same order and the same words, as ptdeploy/bundle/manifest_file.py.
#pragma once

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "held.hpp"
#include "manifest.hpp"

namespace ptdeploy::detail {

constexpr const char* kManifestName = "manifest.json";

// A folder held open. Throws BundleError if there is none, or it cannot be read.
std::shared_ptr<Held> hold(const std::string& path, const FolderKind& kind);

// The manifest of a folder that is held. Throws BundleError if there is none, or it is too large.
std::string manifest_text(Held& held, const std::string& path, const FolderKind& kind);

// Whether `path` looks like a pack, whole or damaged: a folder with a manifest of one.
bool is_pack(const std::string& path);

// Throws BundleError unless all files are inside the folder, once each, and of the listed sizes. `kept`
// are the paths of those that are held open from now on.
void check_files(Held& held, const std::string& folder, const std::vector<FileEntry>& files,
                 const std::set<std::string>& kept);

}  // namespace ptdeploy::detail
