#include "onnx_bundle.hpp"

#include <filesystem>
#include <set>

#include "layout.hpp"
#include "onnx_file.hpp"
#include "schema.hpp"

namespace ptdeploy::detail {

void check_onnx(const Bundle& bundle) {
  namespace fs = std::filesystem;
  const std::string model = bundle.file("model");
  if (model.empty()) throw BundleError(bundle.path + ": lists no file with the role 'model'.");
  const Graph& graph = bundle.manifest.graph();
  OnnxFile found;
  std::string reason;
  try {
    found = read_onnx_file(bundle.opened("model"), graph.input(TensorRole::ids)->name);
  } catch (const OnnxError& error) {
    reason = error.what();
  }
  if (!reason.empty()) throw BundleError(model + ": is no ONNX file (" + reason + ").", kAgain);
  auto tidied = [](const fs::path& path) { return path.lexically_normal().string(); };
  std::set<std::string> listed;
  fs::path folder;
  for (const FileEntry& entry : bundle.manifest.files) {
    listed.insert(tidied(entry.path));
    if (entry.role == "model" && folder.empty()) folder = fs::path(entry.path).parent_path();
  }
  for (const std::string& name : found.external)
    if (name.find('\0') != std::string::npos || listed.count(tidied(folder / name)) == 0)
      throw BundleError(
          model + ": takes weights from " + quoted(name) + ", which the manifest does not list.",
          kAgain);
  const std::int64_t wanted = bundle.manifest.limits.vocab_size;
  // Virtual tokens stand right behind the words.
  const bool exact = graph.input(TensorRole::table) != nullptr;
  if (found.words && (*found.words < wanted || (exact && *found.words != wanted)))
    throw BundleError(model + ": has " + std::to_string(*found.words) +
                          " words, but the manifest's vocab_size is " + std::to_string(wanted) +
                          ".",
                      kAgain);
}

}  // namespace ptdeploy::detail
