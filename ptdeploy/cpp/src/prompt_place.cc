#include "prompt_place.hpp"

#include "layout.hpp"
#include "manifest_file.hpp"
#include "pack.hpp"
#include "paths.hpp"
#include "same_engine.hpp"
#include "schema.hpp"
#include "sha256.hpp"
#include "whose.hpp"

namespace ptdeploy::detail {
namespace {

constexpr const char* kPutBack =
    "Put back the file that it was loaded from, or unload the prompt.";

// Whether a file still has the bytes that the manifest lists.
bool unchanged(const Held::Reading& opened, const FileEntry& entry) {
  if (entry.size < 0) return false;
  Sha256 hash;
  // One byte more shows a file that has grown, and no more is read of it.
  opened.read(static_cast<std::uintmax_t>(entry.size) + 1,
              [&hash](const char* bytes, std::size_t count) { hash.update(bytes, count); });
  return hash.hex() == entry.sha256;
}

// What a pack, or a bundle, says of its prompts, and the engine that they were proven over. Prompts'
// files are hashed when they are read.
struct Offered {
  bool pack;
  Named<PromptInfo> prompts;
  std::optional<std::string> default_prompt;
  std::vector<FileEntry> files;
  std::string engine;
};

Offered read_offered(const std::string& path) {
  if (!is_folder(path)) throw BundleError(tidy(path) + ": no such pack or bundle.");
  if (is_pack(path)) {
    PackManifest pack = read_pack(path);
    return {true, {{pack.name, pack.prompt}}, pack.name, pack.files, pack.engine_sha256};
  }
  const Manifest manifest = read_bundle(path).manifest;
  return {false, manifest.prompts, manifest.default_prompt, manifest.files,
          engine_sha256(manifest)};
}

std::string choose(const Offered& theirs, const std::string& path, const std::string& name) {
  const bool any = theirs.pack || name.empty();
  if (any && theirs.prompts.size() == 1) return theirs.prompts[0].first;
  if (find(theirs.prompts, name)) return name;
  if (name.empty() && theirs.default_prompt) return *theirs.default_prompt;
  std::vector<std::string> names;
  for (const auto& one : theirs.prompts) names.push_back(one.first);
  throw InputError(path + ": has no " + (name.empty() ? "default prompt" : "prompt " + quoted(name)) +
                       "; it has " + in_words(std::move(names)) + ".",
                   "Give the name that it has there; a pack's prompt takes any name.");
}

const FileEntry* file_of(const std::vector<FileEntry>& files, const std::string& name) {
  for (const FileEntry& one : files)
    if (one.role == "prompt" && one.of == name) return &one;
  return nullptr;
}

PromptPlace place_in(const std::string& folder, const std::string& name, const PromptInfo& info,
                     const std::vector<FileEntry>& files, std::shared_ptr<Held> held) {
  const FileEntry* file = file_of(files, name);
  return {folder, name, info, file ? std::optional(*file) : std::nullopt, std::move(held)};
}

}  // namespace

// Of their manifest what is the prompt's; what an engine has to be like, this one's says.
void PromptPlace::check(const Manifest& engine) const {
  Manifest alone = engine;
  alone.prompts = {{name, info}};
  alone.default_prompt = name;
  check_manifest(folder, alone);
}

RowPrompt PromptPlace::read(const Manifest& engine, const std::string& as) const {
  // Whoever runs a prompt takes its sizes from what the manifest says of it.
  check(engine);
  if (engine.default_prompt) check_prefix(folder, info, engine.prompt());
  const Graph& graph = engine.graph();
  if (!file)
    throw BundleError(folder + ": lists no file of the prompt " + quoted(name) + ".");
  if (held) {
    // Where another folder took the bundle's place, as ptdeploy prompt puts one there, that may have
    // the same file; its hash says so.
    try {
      return read_from(*held, graph, as);
    } catch (const FileFault&) {
    }
  }
  try {
    const Held opened(folder);
    return read_from(opened, graph, as);
  } catch (const FileFault& fault) {
    throw BundleError(join(folder, file->path) + ": cannot be read (" + reason_of(fault.number) +
                          ").",
                      kPutBack);
  }
}

RowPrompt PromptPlace::read_from(const Held& from, const Graph& graph, const std::string& as) const {
  const std::string shown = join(folder, file->path);
  // The file that is hashed is the one that is read, whatever takes its place meanwhile.
  const Held::Reading opened(from, file->path);
  if (!unchanged(opened, *file))
    throw BundleError(shown + ": was changed since the prompt was loaded.", kPutBack);
  return read_prompt(shown, opened.path(), graph, as, info);
}

PromptPlace own_place(const Bundle& bundle, const std::string& name, const PromptInfo& info) {
  return place_in(bundle.path, name, info, bundle.manifest.files, bundle.held);
}

PromptPlace prompt_place(const Bundle& own, const std::string& given, const std::string& name) {
  const std::string path = tidy(given);
  const Offered theirs = read_offered(path);
  const std::string found = choose(theirs, path, name);
  if (theirs.engine != engine_sha256(own.manifest))
    throw BundleError(
        path + ": its engine is another one than that of " + own.path + ".",
        "A prompt goes over to a bundle of the same engine: the same base model, compiled by the "
        "same versions for the same target. ptdeploy prompt add proves one over another.");
  PromptPlace place =
      place_in(path, found, *find(theirs.prompts, found), theirs.files, nullptr);
  place.check(own.manifest);
  return place;
}

}  // namespace ptdeploy::detail
