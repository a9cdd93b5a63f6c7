#include "prompts.hpp"

#include <cmath>
#include <optional>

#include "bundle.hpp"
#include "layout.hpp"
#include "safetensors.hpp"
#include "schema.hpp"
#include "sha256.hpp"

namespace ptdeploy::detail {
namespace {

// A prompt's file, opened and its header read when the first tensor is asked for.
class PromptFile {
 public:
  explicit PromptFile(const std::string& path) : path_(path) {}

  // A tensor, `words` its name for people. Throws BundleError unless it is as the manifest has it.
  std::vector<float> read(const std::string& name, const Sizes& wanted, const std::string& words) {
    std::string reason;
    try {
      if (!tensors_) tensors_.emplace(path_);
      return checked(name, wanted, words);
    } catch (const SchemaError& error) {
      reason = error.what();
    } catch (const JsonError& error) {
      reason = error.what();
    }
    throw BundleError(path_ + ": holds no " + words + " (" + reason + ").", kAgain);
  }

 private:
  std::vector<float> checked(const std::string& name, const Sizes& wanted,
                             const std::string& words) {
    const std::string dtype = tensors_->dtype(name);
    if (dtype != "F32")
      throw BundleError(path_ + ": " + name + " is " + dtype + ", not F32.", kAgain);
    const Sizes& shape = tensors_->shape(name, dtype);
    if (shape != wanted)
      throw BundleError(path_ + ": " + words + " has shape " +
                            text_of(Shape(shape.begin(), shape.end())) + ", not the manifest's.",
                        kAgain);
    std::vector<float> values = tensors_->floats(name);
    for (float value : values)
      if (!std::isfinite(value))
        throw BundleError(path_ + ": " + words + " holds a number that is not finite.", kAgain);
    return values;
  }

  std::string path_;
  std::optional<Safetensors> tensors_;
};

PromptTensors read_tensors(const std::string& file, const Graph& graph, const PromptInfo& info) {
  PromptFile tensors(file);
  PromptTensors found;
  if (info.token_dim)
    found.virtual_tokens = tensors.read(
        "virtual_tokens", {info.num_virtual_tokens, *info.token_dim}, "virtual tokens");
  if (info.prefix_kv) found.prefix_kv = tensors.read("prefix_kv", *info.prefix_kv, "prefix KV");
  for (const TensorSpec& spec : graph.inputs)
    if (spec.role == TensorRole::head)
      found.head[spec.name] = tensors.read(spec.name, head_part(spec, info), spec.name);
  Sha256 hash;
  const std::vector<float>& hashed = info.token_dim ? found.virtual_tokens : found.prefix_kv;
  hash.update(hashed.data(), hashed.size() * sizeof(float));
  if (hash.hex() != info.sha256)
    throw BundleError(file + ": its " +
                          (info.token_dim ? "virtual tokens are not those" : "prefix KV is not that") +
                          " of prompt.sha256.",
                      kAgain);
  // Virtual tokens whose keys and values stand before a row are never looked up.
  if (!graph.input(TensorRole::table)) found.virtual_tokens = {};
  return found;
}

}  // namespace

Sizes head_part(const TensorSpec& spec, const PromptInfo& info) {
  Sizes shape;
  for (std::size_t i = 1; i < spec.shape.size(); ++i) {
    const auto* size = std::get_if<std::int64_t>(&spec.shape[i]);
    shape.push_back(size ? *size : static_cast<std::int64_t>(info.labels.size()));
  }
  return shape;
}

RowPrompt read_prompt(const std::string& file, const std::string& opened, const Graph& graph,
                      const std::string& name, const PromptInfo& info) {
  try {
    return std::make_shared<LoadedPrompt>(
        LoadedPrompt{name, info, read_tensors(opened, graph, info)});
  } catch (const BundleError& error) {
    throw BundleError(Bundle::renamed(error.problem(), opened, file), error.fix());
  }
}

void check_prefix(const std::string& where, const PromptInfo& info, const PromptInfo& first) {
  if (!info.prefix_kv || !first.prefix_kv || (*info.prefix_kv)[0] == (*first.prefix_kv)[0]) return;
  throw BundleError(where + ": its prefix KV is of " + std::to_string((*info.prefix_kv)[0]) +
                        " layers, and those beside it are of " +
                        std::to_string((*first.prefix_kv)[0]) + ".",
                    kAgain);
}

}  // namespace ptdeploy::detail
