// Where a prompt is read from, and which prompts may be loaded into an engine that is open. The same
// rules, in the same order and the same words, as ptdeploy/runtime/prompt_places.py and
// prompt_store.py.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "bundle.hpp"
#include "prompts.hpp"

namespace ptdeploy::detail {

// A folder, and what its manifest says of one prompt. `held` keeps the engine's own bundle open;
// other folders are opened anew for each read: a thousand of them would take more descriptors than a
// process has.
struct PromptPlace {
  std::string folder, name;  // its name there
  PromptInfo info;
  std::optional<FileEntry> file;  // none where the manifest lists none
  std::shared_ptr<Held> held;

  // Throws BundleError if what the manifest says of it does not fit an engine of that manifest.
  void check(const Manifest& engine) const;
  // The prompt under another name. Throws BundleError if it does not fit an engine of that manifest,
  // alone or beside its default prompt, or its file is gone, or not the one it was.
  RowPrompt read(const Manifest& engine, const std::string& as) const;

 private:
  RowPrompt read_from(const Held& from, const Graph& graph, const std::string& as) const;
};

// Where a prompt of the engine's own bundle is.
PromptPlace own_place(const Bundle& bundle, const std::string& name, const PromptInfo& info);

// Where the prompt is that the pack or the bundle at `path` has under a name, or has alone; an empty
// name is none. Throws InputError if there is no such prompt, BundleError if what is there is damaged,
// its engine is another one, or the prompt does not fit.
PromptPlace prompt_place(const Bundle& own, const std::string& path, const std::string& name);

}  // namespace ptdeploy::detail
