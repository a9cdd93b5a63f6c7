#include "prompts.hpp"

#include <cmath>
#include <numeric>

#include "layout.hpp"
#include "safetensors.hpp"
#include "schema.hpp"
#include "sha256.hpp"

namespace ptdeploy::detail {
namespace {

using Sizes = std::vector<std::int64_t>;

// A tensor of the prompt's file, `words` its name for people. Throws BundleError unless it is as the
// manifest has it.
std::vector<float> read_tensor(const std::string& file, const std::string& name,
                               const Sizes& wanted, const std::string& words) {
  std::string reason;
  try {
    Safetensors tensors(file);
    const std::string dtype = tensors.dtype(name);
    if (dtype != "F32") throw BundleError(file + ": " + name + " is " + dtype + ", not F32.", kAgain);
    const Sizes& shape = tensors.shape(name, dtype);
    if (shape != wanted)
      throw BundleError(file + ": " + words + " has shape " +
                            text_of(Shape(shape.begin(), shape.end())) + ", not the manifest's.",
                        kAgain);
    std::vector<float> values = tensors.floats(name);
    for (float value : values)
      if (!std::isfinite(value))
        throw BundleError(file + ": " + words + " holds a number that is not finite.", kAgain);
    return values;
  } catch (const SchemaError& error) {
    reason = error.what();
  } catch (const JsonError& error) {
    reason = error.what();
  }
  throw BundleError(file + ": holds no " + words + " (" + reason + ").", kAgain);
}

// The shape of a prompt's part of an input of role head.
Sizes part_of(const TensorSpec& spec, const PromptInfo& info) {
  Sizes shape;
  for (std::size_t i = 1; i < spec.shape.size(); ++i) {
    const auto* size = std::get_if<std::int64_t>(&spec.shape[i]);
    shape.push_back(size ? *size : static_cast<std::int64_t>(info.labels.size()));
  }
  return shape;
}

}  // namespace

Ids LoadedPrompt::virtual_ids(const Limits& limits) const {
  Ids ids(length());
  std::iota(ids.begin(), ids.end(), limits.vocab_size + first_row);
  return ids;
}

LoadedPrompt load_prompt(const Bundle& bundle) {
  const Manifest& manifest = bundle.manifest;
  LoadedPrompt prompt;
  prompt.name = *manifest.default_prompt;
  prompt.info = manifest.prompt();
  prompt.tensors = bundle.reading("prompt", [&](const std::string& file) {
    const PromptInfo& info = prompt.info;
    PromptTensors found;
    if (info.token_dim)
      found.virtual_tokens = read_tensor(
          file, "virtual_tokens", {info.num_virtual_tokens, *info.token_dim}, "virtual tokens");
    if (info.prefix_kv)
      found.prefix_kv = read_tensor(file, "prefix_kv", *info.prefix_kv, "prefix KV");
    for (const TensorSpec& spec : manifest.graph().inputs)
      if (spec.role == TensorRole::head)
        found.head[spec.name] = read_tensor(file, spec.name, part_of(spec, info), spec.name);
    Sha256 hash;
    const std::vector<float>& hashed = *(info.token_dim ? found.virtual_tokens : found.prefix_kv);
    hash.update(hashed.data(), hashed.size() * sizeof(float));
    if (hash.hex() != info.sha256)
      throw BundleError(file + ": its " +
                            (info.token_dim ? "virtual tokens are not those"
                                            : "prefix KV is not that") +
                            " of prompt.sha256.",
                        kAgain);
    return found;
  });
  return prompt;
}

PromptInputs::PromptInputs(Backend& backend, const Graph& graph, const LoadedPrompt& prompt) {
  for (const TensorSpec& spec : graph.inputs) {
    if (spec.role == TensorRole::table) {
      add(backend, spec, {prompt.info.num_virtual_tokens, *prompt.info.token_dim},
          *prompt.tensors.virtual_tokens);
    } else if (spec.role == TensorRole::prefix) {
      const Sizes& shape = *prompt.info.prefix_kv;
      add(backend, spec, {shape[0] * shape[1], shape[2], shape[3], shape[4]},
          *prompt.tensors.prefix_kv);
    } else if (spec.role == TensorRole::head) {
      Sizes shape = part_of(spec, prompt.info);
      shape.insert(shape.begin(), 1);
      add(backend, spec, shape, prompt.tensors.head.at(spec.name));
    }
  }
}

void PromptInputs::add(Backend& backend, const TensorSpec& spec, Sizes shape,
                       const std::vector<float>& values) {
  const ElementType type = *element_type(spec.dtype);
  const std::vector<char> bytes = rounded(values, type);
  memory_.push_back(backend.place(bytes.size()));
  char* data = memory_.back().get();
  backend.copy({{data, bytes.size(), bytes.data(), bytes.size(), bytes.size(), 1}});
  bound_.push_back({spec.name, type, std::move(shape), data, true});
}

}  // namespace ptdeploy::detail
