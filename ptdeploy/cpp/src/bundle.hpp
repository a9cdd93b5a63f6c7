// A bundle on disk: its manifest, read and checked, and its files.
#pragma once

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "held.hpp"
#include "manifest.hpp"
#include "ptdeploy/ptdeploy.hpp"

namespace ptdeploy::detail {

// Its files are held open, so that it stays this bundle whatever takes its place.
struct Bundle {
  std::string path;
  Manifest manifest;
  std::shared_ptr<Held> held;

  // The path of the one file with this role, of prompts the default one's, or empty: for people,
  // not to open.
  std::string file(const std::string& role) const;
  // A path to read the very file with this role that was checked, or empty.
  std::string opened(const std::string& role) const;
  // The bytes of the very file with this role, hashed again as they are read; or nothing.
  std::optional<std::string> content(const std::string& role) const;
  // Like `opened`, for what finds other files beside it; `check_unchanged` must follow.
  std::string in_folder(const std::string& role) const;
  // What the manifest lists with this role and of this prompt; of none: of the base model alone.
  const FileEntry* entry(const std::string& role, const std::optional<std::string>& of) const;
  // Throws BundleError if a file was replaced since the bundle was read.
  void check_unchanged() const;
  // What `body` makes of `opened`'s path; errors name the file's own.
  template <class Body>
  auto reading(const std::string& role, Body body) const {
    const std::string path_opened = opened(role);
    try {
      return body(path_opened);
    } catch (const BundleError& error) {
      throw BundleError(renamed(error.problem(), path_opened, file(role)), error.fix());
    }
  }

  static std::string renamed(std::string text, const std::string& from, const std::string& to);

 private:
  const FileEntry* entry(const std::string& role) const;
};

// Reads the manifest and checks every file's path and size. Throws BundleError.
Bundle read_bundle(const std::string& path);
// Throws BundleError if a file's SHA-256 is not the manifest's.
void check_hash(const Bundle& bundle, const FileEntry& entry);
// Of every file but those of other prompts than the default one, which are hashed when they are read.
void check_hashes(const Bundle& bundle);

// Does what opens the bundle at `path`, again where it failed and the bundle was replaced.
template <class Work>
auto whole(const std::string& path, Work work) {
  constexpr int kAttempts = 200;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    const auto before = standing(path);
    try {
      return work();
    } catch (const Error&) {
      if (standing(path) == before) throw;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(std::min(attempt, 50)));
  }
  throw BundleError(path + ": was replaced again and again while it was read.",
                    "Read it once it stays as it is.");
}

}  // namespace ptdeploy::detail
