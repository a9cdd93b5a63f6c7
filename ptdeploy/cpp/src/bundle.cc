#include "bundle.hpp"

#include <cerrno>
#include <cstdint>
#include <set>
#include <system_error>
#include <vector>

#include "paths.hpp"
#include "schema.hpp"
#include "sha256.hpp"
#include "whose.hpp"

namespace ptdeploy::detail {
namespace {

constexpr const char* kManifestName = "manifest.json";
constexpr std::uintmax_t kMaxManifestBytes = 4 * 1024 * 1024;

constexpr const char* kPointer = "version https://git-lfs.github.com/spec/";
constexpr std::size_t kPointerBytes = 1024;

std::string reason_of(int number) { return std::generic_category().message(number); }

// As much of a file as `most`, as text.
std::string read_text(Held& held, const std::string& name, std::uintmax_t most) {
  held.size(name);
  std::string text;
  held.read(name, most,
            [&text](const char* bytes, std::size_t count) { text.append(bytes, count); });
  return text;
}

// What Git LFS leaves in a clone where the file itself was not fetched.
void refuse_pointer(const std::string& file, const std::string& content) {
  if (content.size() <= kPointerBytes && content.rfind(kPointer, 0) == 0)
    throw BundleError(file + ": is a Git LFS pointer, not the file it stands for.",
                      "Fetch the files themselves: git lfs pull");
}

std::shared_ptr<Held> hold(const std::string& path) {
  try {
    return std::make_shared<Held>(path);
  } catch (const FileFault& fault) {
    if (fault.number == EACCES || fault.number == EMFILE || fault.number == ENFILE)
      throw BundleError(path + ": cannot be read (" + reason_of(fault.number) + ").");
    throw BundleError(path + ": no such bundle folder.");
  }
}

Manifest read_manifest(Held& held, const std::string& path) {
  const std::string file = join(path, kManifestName);
  std::string text;
  try {
    text = read_text(held, kManifestName, kMaxManifestBytes + 1);
  } catch (const FileFault& fault) {
    if (fault.number != ENOENT && fault.number != kNotAFile && fault.number != ELOOP)
      throw BundleError(file + ": cannot be read (" + reason_of(fault.number) + ").");
    throw BundleError(path + ": has no " + kManifestName + ", so it is no bundle.",
                      "Make one with: ptdeploy compile CHECKPOINT --target ort -o BUNDLE");
  }
  if (text.size() > kMaxManifestBytes)
    throw BundleError(file + ": larger than " + std::to_string(kMaxManifestBytes) +
                      " bytes, not a manifest.");
  refuse_pointer(file, text);
  return parse_manifest(text, file);
}

bool leaves(const std::string& path) {
  if (path.empty() || path[0] == '/' || path.find('\\') != std::string::npos ||
      path.find('\0') != std::string::npos)
    return true;
  const std::string framed = "/" + path + "/";
  return framed.find("/../") != std::string::npos;
}

// A link may lead anywhere, as in the hub's cache: what it leads to must be a regular file of the
// listed size and hash, so that nothing can be read that the bundle does not hold already.
std::uintmax_t listed_size(Held& held, const std::string& folder, const FileEntry& entry) {
  const std::string file = join(folder, entry.path);
  try {
    return held.size(entry.path);
  } catch (const FileFault& fault) {
    if (fault.number == ELOOP)
      throw BundleError(join(folder, kManifestName) + ": " + quoted(entry.path) +
                        " is a link that leads back to itself.");
    for (int number : {EACCES, EMFILE, ENFILE, EIO})
      if (fault.number == number)
        throw BundleError(file + ": cannot be read (" + reason_of(number) + ").");
    if (is_link(file))
      throw BundleError(file + ": is a link to no file.",
                        "Copy what the links lead to, too: cp -rL");
    throw BundleError(file + ": is missing.", "Copy the whole bundle folder again.");
  }
}

void check_file(Held& held, const std::string& folder, const FileEntry& entry) {
  if (leaves(entry.path))
    throw BundleError(join(folder, kManifestName) + ": " + quoted(entry.path) +
                      " leaves the bundle's folder.");
  const std::string file = join(folder, entry.path);
  const std::uintmax_t size = listed_size(held, folder, entry);
  if (entry.size >= 0 && size == static_cast<std::uintmax_t>(entry.size)) return;
  refuse_pointer(file, read_text(held, entry.path, kPointerBytes + 1));
  throw BundleError(file + ": has " + std::to_string(size) + " bytes, but the manifest says " +
                        std::to_string(entry.size) + ".",
                    "The file is damaged. Copy the whole bundle folder again.");
}

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

Bundle read_once(const std::string& path) {
  std::shared_ptr<Held> held = hold(path);
  Bundle bundle{path, read_manifest(*held, path), held};
  const std::string manifest = join(path, kManifestName);
  const std::string problem = misnamed(bundle.manifest);
  if (!problem.empty())
    throw BundleError(manifest + ": " + problem + ".", "Compile the checkpoint again.");
  std::set<std::string> seen;
  for (const FileEntry& entry : bundle.manifest.files) {
    if (!seen.insert(entry.path).second)
      throw BundleError(manifest + ": lists " + quoted(entry.path) + " twice.");
    check_file(*held, path, entry);
  }
  const std::string lacks = manifest + ": lists no file with the role ";
  if (bundle.file("model").empty() && bundle.file("engine").empty())
    throw BundleError(lacks + "'model' or 'engine'.");
  if (bundle.manifest.default_prompt && bundle.file("prompt").empty())
    throw BundleError(lacks + "'prompt'.");
  return bundle;
}

}  // namespace

const FileEntry* Bundle::entry(const std::string& role) const {
  const std::optional<std::string> of = owner(role, manifest);
  for (const FileEntry& one : manifest.files)
    if (one.role == role && one.of == of) return &one;
  return nullptr;
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

void check_hashes(const Bundle& bundle) {
  for (const FileEntry& entry : bundle.manifest.files)
    take_hashed(bundle, entry, [](const char*, std::size_t) {});
}

}  // namespace ptdeploy::detail
