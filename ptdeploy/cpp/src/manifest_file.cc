#include "manifest_file.hpp"

#include <cerrno>
#include <cstdint>
#include <set>

#include "paths.hpp"
#include "schema.hpp"

namespace ptdeploy::detail {
namespace {

constexpr std::uintmax_t kMaxManifestBytes = 4 * 1024 * 1024;

// The most bytes of a file of a role whose reader takes it whole, many times what any has had. Of
// the others the reader knows how many there must be, or the engine maps them.
struct MostBytes {
  const char* role;
  std::int64_t bytes;
};
constexpr MostBytes kMostOfRole[] = {{"model", 2147483647},  // as protobuf has it
                                     {"engine_info", 4 << 20},
                                     {"tokenizer", 512 << 20},
                                     {"chat_template", 16 << 20},
                                     {"tokenizer_program", 512 << 20},
                                     {"tokenizer_weights", 2147483647},
                                     {"parity", 128 << 20},
                                     {"graph_parity", 128 << 20}};

constexpr const char* kPointer = "version https://git-lfs.github.com/spec/";
constexpr std::size_t kPointerBytes = 1024;

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

bool leaves(const std::string& path) {
  if (path.empty() || path[0] == '/' || path.find('\\') != std::string::npos ||
      path.find('\0') != std::string::npos)
    return true;
  const std::string framed = "/" + path + "/";
  return framed.find("/../") != std::string::npos;
}

// A link may lead anywhere, as in the hub's cache: what it leads to must be a regular file of the
// listed size and hash, so that nothing can be read that the bundle does not hold already.
std::uintmax_t listed_size(Held& held, const std::string& folder, const FileEntry& entry,
                           bool keep) {
  const std::string file = join(folder, entry.path);
  try {
    return keep ? held.size(entry.path) : held.look(entry.path);
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

// That reading it takes no longer than its place on a disk accounts for.
void check_cost(const Held& held, const std::string& file, const FileEntry& entry) {
  const std::string has = file + ": has " + std::to_string(entry.size) + " bytes";
  for (const MostBytes& most : kMostOfRole)
    if (entry.role == most.role && entry.size > most.bytes)
      throw BundleError(has + "; at most " + std::to_string(most.bytes) +
                            " are read of a file with the role " + quoted(entry.role) + ".",
                        "Compile the checkpoint again.");
  bool hollow = false;
  try {
    hollow = held.is_hollow(entry.path);
  } catch (const FileFault& fault) {
    throw BundleError(file + ": cannot be read (" + reason_of(fault.number) + ").");
  }
  if (hollow)
    throw BundleError(has + ", but nearly all of them are holes, which are on no disk.",
                      "The file is damaged. Copy the whole bundle folder again.");
}

void check_file(Held& held, const std::string& folder, const FileEntry& entry, bool keep) {
  if (leaves(entry.path))
    throw BundleError(join(folder, kManifestName) + ": " + quoted(entry.path) +
                      " leaves the bundle's folder.");
  const std::string file = join(folder, entry.path);
  const std::uintmax_t size = listed_size(held, folder, entry, keep);
  if (entry.size >= 0 && size == static_cast<std::uintmax_t>(entry.size))
    return check_cost(held, file, entry);
  try {
    refuse_pointer(file, read_text(held, entry.path, kPointerBytes + 1));
  } catch (const FileFault& fault) {
    throw BundleError(file + ": cannot be read (" + reason_of(fault.number) + ").");
  }
  throw BundleError(file + ": has " + std::to_string(size) + " bytes, but the manifest says " +
                        std::to_string(entry.size) + ".",
                    "The file is damaged. Copy the whole bundle folder again.");
}

}  // namespace

std::shared_ptr<Held> hold(const std::string& path, const FolderKind& kind) {
  try {
    return std::make_shared<Held>(path);
  } catch (const FileFault& fault) {
    if (fault.number == EACCES || fault.number == EMFILE || fault.number == ENFILE)
      throw BundleError(path + ": cannot be read (" + reason_of(fault.number) + ").");
    throw BundleError(path + ": no such " + kind.noun + " folder.");
  }
}

std::string manifest_text(Held& held, const std::string& path, const FolderKind& kind) {
  const std::string file = join(path, kManifestName);
  std::string text;
  try {
    text = read_text(held, kManifestName, kMaxManifestBytes + 1);
  } catch (const FileFault& fault) {
    if (fault.number != ENOENT && fault.number != kNotAFile && fault.number != ELOOP)
      throw BundleError(file + ": cannot be read (" + reason_of(fault.number) + ").");
    throw BundleError(path + ": has no " + kManifestName + ", so it is no " + kind.noun + ".",
                      std::string("Make one with: ") + kind.make);
  }
  if (text.size() > kMaxManifestBytes)
    throw BundleError(file + ": larger than " + std::to_string(kMaxManifestBytes) +
                      " bytes, not a manifest.");
  refuse_pointer(file, text);
  return text;
}

bool is_pack(const std::string& path) {
  try {
    Held held(path);
    const std::string text = read_text(held, kManifestName, kMaxManifestBytes + 1);
    return text.size() <= kMaxManifestBytes && says_pack(text);
  } catch (const FileFault&) {
    return false;
  }
}

void check_files(Held& held, const std::string& folder, const std::vector<FileEntry>& files,
                 const std::set<std::string>& kept) {
  std::set<std::string> seen;
  for (const FileEntry& entry : files) {
    if (!seen.insert(entry.path).second)
      throw BundleError(join(folder, kManifestName) + ": lists " + quoted(entry.path) + " twice.");
    check_file(held, folder, entry, kept.count(entry.path) > 0);
  }
}

}  // namespace ptdeploy::detail
