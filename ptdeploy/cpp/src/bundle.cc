#include "bundle.hpp"

#include <cstdint>
#include <set>
#include <vector>

#include "manifest_file.hpp"
#include "paths.hpp"
#include "sha256.hpp"
#include "whose.hpp"

namespace ptdeploy::detail {
namespace {

// Gives `take` a file's bytes in pieces. Throws BundleError, after the last of them, unless they are
// the listed ones.
template <class Take>
void take_hashed(const Bundle& bundle, const FileEntry& entry, Take take) {
  const std::string file = join(bundle.path, entry.path);
  // One byte more shows a file that has grown, and no more is read of it.
  const std::uintmax_t most = static_cast<std::uintmax_t>(entry.size) + 1;
  Sha256 hash;
  try {
    bundle.held->read(entry.path, most, [&](const char* bytes, std::size_t count) {
      hash.update(bytes, count);
      take(bytes, count);
    });
  } catch (const FileFault& fault) {
    throw BundleError(file + ": cannot be read (" + reason_of(fault.number) + ").");
  }
  if (hash.hex() != entry.sha256)
    throw BundleError(file + ": its SHA-256 is not the manifest's.",
                      "The file was changed or damaged. Copy the whole bundle folder again.");
}

// All files but those of other prompts than the default one.
bool is_needed(const FileEntry& file, const Manifest& manifest) {
  return !of_prompt(file.role) || file.of == manifest.default_prompt;
}

// The paths of the files that are held open, so that they stay what they are: all that an engine opens
// with; of other prompts as many as there are descriptors for, what runs before what shows of it. The
// others are refused, when they are read, if they were replaced.
std::set<std::string> kept_files(const Manifest& manifest) {
  std::set<std::string> kept;
  std::size_t spare = spare_descriptors();
  for (const FileEntry& one : manifest.files)
    if (is_needed(one, manifest)) kept.insert(one.path);
  for (const bool runs : {true, false})
    for (const FileEntry& one : manifest.files)
      if (!is_needed(one, manifest) && (one.role == "prompt") == runs && spare > 0) {
        --spare;
        kept.insert(one.path);
      }
  return kept;
}

Bundle read_once(const std::string& path) {
  std::shared_ptr<Held> held = hold(path, kBundle);
  const std::string manifest = join(path, kManifestName);
  Bundle bundle{path, parse_manifest(manifest_text(*held, path, kBundle), manifest), held};
  const std::string problem = misnamed(bundle.manifest);
  if (!problem.empty())
    throw BundleError(manifest + ": " + problem + ".", "Compile the checkpoint again.");
  check_files(*held, path, bundle.manifest.files, kept_files(bundle.manifest));
  const std::string lacks = manifest + ": lists no file with the role ";
  if (bundle.file("model").empty() && bundle.file("engine").empty())
    throw BundleError(lacks + "'model' or 'engine'.");
  if (bundle.manifest.default_prompt && bundle.file("prompt").empty())
    throw BundleError(lacks + "'prompt'.");
  return bundle;
}

}  // namespace

const FileEntry* Bundle::entry(const std::string& role,
                               const std::optional<std::string>& of) const {
  for (const FileEntry& one : manifest.files)
    if (one.role == role && one.of == of) return &one;
  return nullptr;
}

const FileEntry* Bundle::entry(const std::string& role) const {
  return entry(role, owner(role, manifest));
}

std::string Bundle::file(const std::string& role) const {
  const FileEntry* found = entry(role);
  return found ? join(path, found->path) : "";
}

std::string Bundle::opened(const std::string& role) const {
  const FileEntry* found = entry(role);
  return found ? held->reopened(found->path) : "";
}

std::optional<std::string> Bundle::content(const std::string& role) const {
  const FileEntry* found = entry(role);
  if (!found) return std::nullopt;
  std::string text;
  take_hashed(*this, *found, [&text](const char* bytes, std::size_t count) {
    text.append(bytes, count);
  });
  return text;
}

std::string Bundle::in_folder(const std::string& role) const {
  const FileEntry* found = entry(role);
  return found ? held->inside(found->path) : "";
}

void Bundle::check_unchanged() const {
  std::vector<std::string> names;
  for (const FileEntry& one : manifest.files) names.push_back(one.path);
  if (!held->same(names))
    throw BundleError(path + ": its files were replaced while they were opened.", "Open it again.");
}

std::string Bundle::renamed(std::string text, const std::string& from, const std::string& to) {
  if (from.empty()) return text;
  for (std::size_t at = text.find(from); at != std::string::npos; at = text.find(from, at))
    text.replace(at, from.size(), to), at += to.size();
  return text;
}

Bundle read_bundle(const std::string& given) {
  const std::string path = tidy(given);
  return whole(path, [&path] { return read_once(path); });
}

void check_hash(const Bundle& bundle, const FileEntry& entry) {
  take_hashed(bundle, entry, [](const char*, std::size_t) {});
}

void check_hashes(const Bundle& bundle) {
  for (const FileEntry& entry : bundle.manifest.files)
    if (is_needed(entry, bundle.manifest)) check_hash(bundle, entry);
}

}  // namespace ptdeploy::detail
