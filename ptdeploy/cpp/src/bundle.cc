#include "bundle.hpp"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <set>

#include "paths.hpp"
#include "schema.hpp"
#include "sha256.hpp"

namespace ptdeploy::detail {
namespace {

constexpr const char* kManifestName = "manifest.json";
constexpr std::uintmax_t kMaxManifestBytes = 4 * 1024 * 1024;
constexpr std::size_t kChunk = 1 << 20;

std::uintmax_t size_of(const std::string& file) {
  std::error_code error;
  std::uintmax_t size = std::filesystem::file_size(file, error);
  if (error) throw BundleError(file + ": cannot be read (" + error.message() + ").");
  return size;
}

// Gives `take` every byte of a file, in pieces.
template <class Take>
void read_file(const std::string& file, Take take) {
  std::ifstream stream(file, std::ios::binary);
  auto chunk = std::make_unique<char[]>(kChunk);
  while (stream) {
    stream.read(chunk.get(), kChunk);
    take(chunk.get(), static_cast<std::size_t>(stream.gcount()));
  }
  if (!stream.eof()) throw BundleError(file + ": cannot be read.");
}

Manifest read_manifest(const std::string& path) {
  const std::string file = join(path, kManifestName);
  if (!is_folder(path)) throw BundleError(path + ": no such bundle folder.");
  if (!is_file(file))
    throw BundleError(path + ": has no " + kManifestName + ", so it is no bundle.",
                      "Make one with: ptdeploy compile CHECKPOINT --target ort -o BUNDLE");
  const std::string oversize =
      file + ": larger than " + std::to_string(kMaxManifestBytes) + " bytes, not a manifest.";
  if (size_of(file) > kMaxManifestBytes) throw BundleError(oversize);
  std::string text;
  read_file(file, [&](const char* bytes, std::size_t count) {
    text.append(bytes, count);
    if (text.size() > kMaxManifestBytes) throw BundleError(oversize);
  });
  return parse_manifest(text, file);
}

bool leaves(const std::string& path) {
  if (path.empty() || path[0] == '/' || path.find('\\') != std::string::npos ||
      path.find('\0') != std::string::npos)
    return true;
  const std::string framed = "/" + path + "/";
  return framed.find("/../") != std::string::npos;
}

void check_file(const std::string& folder, const FileEntry& entry) {
  const std::string where = join(folder, kManifestName) + ": " + quoted(entry.path);
  if (leaves(entry.path)) throw BundleError(where + " leaves the bundle's folder.");
  const std::string file = join(folder, entry.path);
  const std::string resolved = resolve(file);
  if (resolved.empty()) throw BundleError(where + " is a link that leads back to itself.");
  if (!is_inside(resolved, resolve(folder)))
    throw BundleError(where + " is a link that leaves the bundle's folder.");
  if (!is_file(file))
    throw BundleError(file + ": is missing.", "Copy the whole bundle folder again.");
  const std::uintmax_t size = size_of(file);
  if (entry.size < 0 || size != static_cast<std::uintmax_t>(entry.size))
    throw BundleError(file + ": has " + std::to_string(size) + " bytes, but the manifest says " +
                          std::to_string(entry.size) + ".",
                      "The file is damaged. Copy the whole bundle folder again.");
}

}  // namespace

std::string Bundle::file(const std::string& role) const {
  for (const FileEntry& entry : manifest.files)
    if (entry.role == role) return join(path, entry.path);
  return "";
}

Bundle read_bundle(const std::string& given) {
  const std::string path = tidy(given);
  Bundle bundle{path, read_manifest(path)};
  const std::string manifest = join(path, kManifestName);
  std::set<std::string> seen;
  for (const FileEntry& entry : bundle.manifest.files) {
    if (!seen.insert(entry.path).second)
      throw BundleError(manifest + ": lists " + quoted(entry.path) + " twice.");
    check_file(path, entry);
  }
  const std::string lacks = manifest + ": lists no file with the role ";
  if (bundle.file("model").empty() && bundle.file("engine").empty())
    throw BundleError(lacks + "'model' or 'engine'.");
  if (bundle.file("prompt").empty()) throw BundleError(lacks + "'prompt'.");
  return bundle;
}

void check_hashes(const Bundle& bundle) {
  for (const FileEntry& entry : bundle.manifest.files) {
    const std::string file = join(bundle.path, entry.path);
    Sha256 hash;
    read_file(file, [&](const char* bytes, std::size_t count) { hash.update(bytes, count); });
    if (hash.hex() != entry.sha256)
      throw BundleError(file + ": its SHA-256 is not the manifest's.",
                        "The file was changed or damaged. Copy the whole bundle folder again.");
  }
}

}  // namespace ptdeploy::detail
