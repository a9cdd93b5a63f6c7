#include "pack.hpp"

#include <set>

#include "bundle.hpp"
#include "layout.hpp"
#include "manifest_file.hpp"
#include "paths.hpp"
#include "schema.hpp"
#include "sha256.hpp"
#include "whose.hpp"

namespace ptdeploy::detail {
namespace {

// The first thing that is wrong with names and roles; or empty.
std::string pack_problem(const PackManifest& manifest) {
  if (!is_prompt_name(manifest.name)) return "name is one that no prompt can have";
  if (!is_sha256(manifest.engine_sha256)) return "engine_sha256 is no SHA-256";
  std::set<std::string> roles;
  for (std::size_t i = 0; i < manifest.files.size(); ++i) {
    const FileEntry& entry = manifest.files[i];
    const std::string where = "files[" + std::to_string(i) + "].";
    if (!of_prompt(entry.role))
      return where + "role is " + quoted(entry.role) + ", which is no file of a prompt";
    if (!roles.insert(entry.role).second)
      return "lists two files with the role " + quoted(entry.role);
    if (entry.of != manifest.name) return where + "of is not the pack's name";
  }
  for (const char* role : {"prompt", "reference"})
    if (roles.count(role) == 0) return "lists no file with the role " + quoted(role);
  return "";
}

PackManifest read_pack_once(const std::string& path) {
  const std::shared_ptr<Held> held = hold(path, kPack);
  const std::string file = join(path, kManifestName);
  PackManifest manifest = parse_pack(manifest_text(*held, path, kPack), file);
  const std::string problem = pack_problem(manifest);
  if (!problem.empty()) throw BundleError(file + ": " + problem + ".", kAgain);
  check_files(*held, path, manifest.files, {});
  return manifest;
}

}  // namespace

PackManifest read_pack(const std::string& path) {
  return whole(path, [&path] { return read_pack_once(path); });
}

}  // namespace ptdeploy::detail
