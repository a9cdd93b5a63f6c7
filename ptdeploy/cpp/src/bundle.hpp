// A bundle on disk: its manifest, read and checked, and its files.
#pragma once

#include <string>

#include "manifest.hpp"

namespace ptdeploy::detail {

struct Bundle {
  std::string path;
  Manifest manifest;

  // The path of the one file with this role, or empty.
  std::string file(const std::string& role) const;
};

// Reads the manifest and checks every file's path and size. Throws BundleError.
Bundle read_bundle(const std::string& path);
// Hashes every file. Throws BundleError on the first whose SHA-256 is not the manifest's.
void check_hashes(const Bundle& bundle);

}  // namespace ptdeploy::detail
