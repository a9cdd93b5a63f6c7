#include "layout.hpp"

#include <algorithm>
#include <cmath>

#include "paths.hpp"
#include "safetensors.hpp"
#include "schema.hpp"
#include "sha256.hpp"
#include "task.hpp"

namespace ptdeploy::detail {
namespace {

std::string text_of(const Axis& axis) {
  if (const auto* size = std::get_if<std::int64_t>(&axis)) return std::to_string(*size);
  return std::get<std::string>(axis);
}

std::string text_of(const Shape& shape) {
  std::string out;
  for (const Axis& axis : shape) out += (&axis == shape.data() ? "" : ", ") + text_of(axis);
  return "(" + out + ")";
}

std::string described(const TensorSpec* spec) {
  if (!spec) return "missing";
  return quoted(spec->name) + ": " + quoted(spec->dtype) + " " + quoted(text_of(spec->shape));
}

template <class Item>
const Item* at(const std::vector<Item>& items, std::size_t index) {
  return index < items.size() ? &items[index] : nullptr;
}

void require_numbers(const Manifest& manifest) {
  const Limits& limits = manifest.limits;
  const PromptInfo& prompt = manifest.prompt;
  const std::string range = " must be from 1 to " + std::to_string(kMost);
  auto size = [&range](const std::string& name, std::int64_t value) {
    require(value >= 1 && value <= kMost, name + range);
  };
  size("limits.max_sequence", limits.max_sequence);
  size("limits.max_context", limits.max_context);
  size("limits.vocab_size", limits.vocab_size);
  size("limits.max_batch", limits.max_batch.value_or(1));
  size("limits.max_prefill", limits.max_prefill.value_or(1));
  size("prompt.num_virtual_tokens", prompt.num_virtual_tokens);
  size("prompt.token_dim", prompt.token_dim);
  if (prompt.prefix_kv)
    for (std::size_t i = 0; i < prompt.prefix_kv->size(); ++i)
      size("prompt.prefix_kv[" + std::to_string(i) + "]", (*prompt.prefix_kv)[i]);
  const std::int64_t segments = limits.type_vocab_size;
  require(segments >= 0 && segments <= kMost,
          "limits.type_vocab_size must be from 0 to " + std::to_string(kMost));
  require(segments == 0 || std::any_of(manifest.inputs.begin(), manifest.inputs.end(),
                                       [](const TensorSpec& spec) {
                                         return spec.name == "token_type_ids";
                                       }),
          "its limits have segments, but its signature takes none");
  require(manifest.head == Head::softmax || kind_of(manifest.task).any_head,
          "its head is for SEQ_CLS, which it is not");
  require(limits.max_sequence + prompt.num_virtual_tokens == limits.max_context,
          "limits.max_sequence and prompt.num_virtual_tokens do not add up to max_context");
  require(prompt.sha256.size() == 64 &&
              prompt.sha256.find_first_not_of("0123456789abcdef") == std::string::npos,
          "prompt.sha256 is no SHA-256");
  if (const auto& found = manifest.quantization) {
    auto within = [](std::int64_t value, std::int64_t most) { return value >= 0 && value <= most; };
    const std::string name = "quantization.";
    require(found->bits == 4 || found->bits == 8, name + "bits must be 4 or 8");
    require(within(found->block_size, kMost),
            name + "block_size must be from 0 to " + std::to_string(kMost));
    require(within(found->accuracy_level, 4), name + "accuracy_level must be from 0 to 4");
    require(found->min_agreement >= 0 && found->min_agreement <= 1,
            name + "min_agreement must be from 0 to 1");
    require(found->max_perplexity_ratio > 0, name + "max_perplexity_ratio must be more than 0");
  }
}

bool agree(const TensorSpec& ours, const TensorSpec& theirs, bool loosely) {
  auto same = [loosely](const Axis& axis, const Axis& other) {
    return axis == other || (loosely && axis == Axis("") &&
                             std::holds_alternative<std::string>(other));
  };
  return ours.name == theirs.name && ours.dtype == theirs.dtype &&
         std::equal(ours.shape.begin(), ours.shape.end(), theirs.shape.begin(), theirs.shape.end(),
                    same);
}

// A tensor of the prompt's file; throws BundleError unless it is as the manifest has it.
std::vector<float> read_prompt(const std::string& file, const std::string& name,
                               const std::vector<std::int64_t>& wanted, const std::string& words) {
  std::string reason;
  try {
    Safetensors tensors(file);
    const std::string dtype = tensors.dtype(name);
    if (dtype != "F32") throw BundleError(file + ": " + name + " is " + dtype + ", not F32.", kAgain);
    const auto& shape = tensors.shape(name, dtype);
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

}  // namespace

void require(bool holds, const std::string& problem) {
  if (!holds) throw Problem{problem};
}

void require_alike(const std::string& side, const std::vector<TensorSpec>& found,
                   const std::vector<Wanted>& wanted) {
  for (std::size_t i = 0; i < std::max(found.size(), wanted.size()); ++i) {
    const std::string place = side + "[" + std::to_string(i) + "]";
    const TensorSpec* spec = at(found, i);
    const Wanted* want = at(wanted, i);
    require(spec, place + " is missing; it must be " + (want ? quoted(want->name) : ""));
    require(want, place + " is " + quoted(spec->name) + ", which no engine of this task has");
    require(spec->name == want->name,
            place + " is " + quoted(spec->name) + "; it must be " + quoted(want->name));
    require(spec->dtype == want->dtype,
            place + ".dtype is " + quoted(spec->dtype) + "; it must be " + quoted(want->dtype));
    require(spec->shape == want->shape, place + ".shape is " + quoted(text_of(spec->shape)) +
                                            "; it must be " + quoted(text_of(want->shape)));
  }
}

void check_manifest(const Bundle& bundle) {
  const Manifest& manifest = bundle.manifest;
  try {
    require_numbers(manifest);
    kind_of(manifest.task).require(manifest);
  } catch (const Problem& problem) {
    throw BundleError(join(bundle.path, "manifest.json") + ": " + problem.text + ".", kAgain);
  }
}

std::optional<std::vector<float>> check_prompt(const Bundle& bundle) {
  const PromptInfo& prompt = bundle.manifest.prompt;
  return bundle.reading("prompt", [&prompt](const std::string& file) {
    const std::vector<float> tokens = read_prompt(
        file, "virtual_tokens", {prompt.num_virtual_tokens, prompt.token_dim}, "virtual tokens");
    std::optional<std::vector<float>> prefix_kv;
    if (prompt.prefix_kv)
      prefix_kv = read_prompt(file, "prefix_kv", *prompt.prefix_kv, "prefix KV");
    Sha256 hash;
    hash.update(tokens.data(), tokens.size() * sizeof(float));
    if (hash.hex() != prompt.sha256)
      throw BundleError(file + ": its virtual tokens are not those of prompt.sha256.", kAgain);
    return prefix_kv;
  });
}

void check_signature(const std::string& where, const Manifest& manifest, const std::string& side,
                     const std::vector<TensorSpec>& found) {
  const bool outputs = side == "outputs";
  const auto& wanted = outputs ? manifest.outputs : manifest.inputs;
  for (std::size_t i = 0; i < std::max(found.size(), wanted.size()); ++i) {
    const TensorSpec *ours = at(found, i), *theirs = at(wanted, i);
    if (!ours || !theirs || !agree(*ours, *theirs, outputs))
      throw BundleError(where + ": its " + side + "[" + std::to_string(i) + "] is " +
                            described(ours) + ", but the manifest says " + described(theirs) + ".",
                        kAgain);
  }
}

}  // namespace ptdeploy::detail
