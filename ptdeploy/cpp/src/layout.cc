#include "layout.hpp"

#include <algorithm>
#include <set>

#include "paths.hpp"
#include "schema.hpp"
#include "sha256.hpp"
#include "task.hpp"

namespace ptdeploy::detail {
namespace {

// An engine may keep no names of its axes.
std::string axis_text(const Axis& axis) {
  if (const auto* size = std::get_if<std::int64_t>(&axis)) return std::to_string(*size);
  const auto& name = std::get<std::string>(axis);
  return name.empty() ? "?" : name;
}

std::string described(const TensorSpec* spec) {
  if (!spec) return "missing";
  return quoted(spec->name) + ": " + quoted(spec->dtype) + " " + quoted(text_of(spec->shape));
}

template <class Item>
const Item* at(const std::vector<Item>& items, std::size_t index) {
  return index < items.size() ? &items[index] : nullptr;
}

void require_size(const std::string& name, std::int64_t value) {
  require(value >= 1 && value <= kMost, name + " must be from 1 to " + std::to_string(kMost));
}

void require_limits(const Manifest& manifest) {
  const Limits& limits = manifest.limits;
  require_size("limits.max_context", limits.max_context);
  require_size("limits.vocab_size", limits.vocab_size);
  require_size("limits.max_batch", limits.max_batch.value_or(1));
  require_size("limits.max_prefill", limits.max_prefill.value_or(1));
  require(limits.type_vocab_size >= 0 && limits.type_vocab_size <= kMost,
          "limits.type_vocab_size must be from 0 to " + std::to_string(kMost));
  require(limits.type_vocab_size == 0 || manifest.graph().input(TensorRole::segments),
          "its limits have segments, but its signature takes none");
}

void require_prompt(const Manifest& manifest, const std::string& name, const PromptInfo& prompt) {
  const std::string where = place_of(name) + ".";
  require_size(where + "num_virtual_tokens", prompt.num_virtual_tokens);
  require_size(where + "token_dim", prompt.token_dim.value_or(1));
  if (prompt.prefix_kv)
    for (std::size_t i = 0; i < prompt.prefix_kv->size(); ++i)
      require_size(where + "prefix_kv[" + std::to_string(i) + "]", (*prompt.prefix_kv)[i]);
  require(prompt.token_dim || prompt.prefix_kv, where + "token_dim and prefix_kv are both null");
  require(prompt.head == Head::softmax || kind_of(manifest.task).any_head,
          where + "head is for SEQ_CLS, which it is not");
  if (const auto& padding = prompt.padding_id) {
    const std::int64_t last = manifest.limits.vocab_size - 1;
    require(*padding >= 0 && *padding <= last,
            where + "padding_id must be from 0 to " + std::to_string(last));
    require(!prompt.token_dim, where + "padding_id is for a trained prefix KV, which it is not");
  }
  require(prompt.num_virtual_tokens < manifest.limits.max_context,
          where + "num_virtual_tokens leaves no room in limits.max_context");
  require(is_sha256(prompt.sha256), where + "sha256 is no SHA-256");
}

void require_quantization(const Quantization& found) {
  auto within = [](std::int64_t value, std::int64_t most) { return value >= 0 && value <= most; };
  const std::string name = "quantization.";
  require(found.bits == 4 || found.bits == 8, name + "bits must be 4 or 8");
  require(within(found.block_size, kMost),
          name + "block_size must be from 0 to " + std::to_string(kMost));
  require(within(found.accuracy_level, 4), name + "accuracy_level must be from 0 to 4");
  require(found.min_agreement >= 0 && found.min_agreement <= 1,
          name + "min_agreement must be from 0 to 1");
  const double of_classes = found.min_class_agreement.value_or(0);
  require(of_classes >= 0 && of_classes <= 1, name + "min_class_agreement must be from 0 to 1");
  require(found.max_perplexity_ratio > 0, name + "max_perplexity_ratio must be more than 0");
  require(found.share >= 0 && found.share <= 1, name + "share must be from 0 to 1");
  require(found.calibrated >= 0 && found.calibrated <= 1, name + "calibrated must be from 0 to 1");
}

// In the order in which one thing's range is needed to say the next.
void require_any(const Manifest& manifest) {
  require_limits(manifest);
  for (const auto& [name, prompt] : manifest.prompts) require_prompt(manifest, name, prompt);
  if (manifest.quantization) require_quantization(*manifest.quantization);
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

}  // namespace

std::string text_of(const Shape& shape) {
  std::string out;
  for (const Axis& axis : shape) out += (&axis == shape.data() ? "" : ", ") + axis_text(axis);
  return "(" + out + ")";
}

std::string place_of(const std::string& prompt) { return "prompts[" + quoted(prompt) + "]"; }

void require(bool holds, const std::string& problem) {
  if (!holds) throw Problem{problem};
}

void require_alike(const std::string& side, const std::vector<TensorSpec>& found,
                   const std::vector<Wanted>& wanted) {
  auto role = [](TensorRole one) { return quoted(name_of(one)); };
  std::set<std::string> names;
  for (std::size_t i = 0; i < std::max(found.size(), wanted.size()); ++i) {
    const std::string place =
        "graphs[" + quoted(kModel) + "]." + side + "[" + std::to_string(i) + "]";
    const TensorSpec* spec = at(found, i);
    const Wanted* want = at(wanted, i);
    require(spec, place + " is missing; its role must be " + (want ? role(want->role) : ""));
    require(want, place + " has the role " + role(spec->role) +
                      ", which no engine of this task has there");
    require(spec->role == want->role,
            place + " has the role " + role(spec->role) + "; it must be " + role(want->role));
    require(spec->dtype == want->dtype,
            place + ".dtype is " + quoted(spec->dtype) + "; it must be " + quoted(want->dtype));
    require(spec->shape == want->shape, place + ".shape is " + quoted(text_of(spec->shape)) +
                                            "; it must be " + quoted(text_of(want->shape)));
    require(!spec->name.empty() && names.insert(spec->name).second,
            place + ".name is empty, or another tensor's too");
  }
}

void check_manifest(const std::string& folder, const Manifest& manifest) {
  try {
    require_any(manifest);
    kind_of(manifest.task).require(manifest);
  } catch (const Problem& problem) {
    throw BundleError(join(folder, "manifest.json") + ": " + problem.text + ".", kAgain);
  }
}

void check_signature(const std::string& where, const Graph& graph, const std::string& side,
                     const std::vector<TensorSpec>& found, bool names_axes) {
  const bool outputs = side == "outputs";
  const bool loosely = outputs || !names_axes;
  const auto& wanted = outputs ? graph.outputs : graph.inputs;
  for (std::size_t i = 0; i < std::max(found.size(), wanted.size()); ++i) {
    const TensorSpec *ours = at(found, i), *theirs = at(wanted, i);
    if (!ours || !theirs || !agree(*ours, *theirs, loosely))
      throw BundleError(where + ": its " + side + "[" + std::to_string(i) + "] is " +
                            described(ours) + ", but the manifest says " + described(theirs) + ".",
                        kAgain);
  }
}

}  // namespace ptdeploy::detail
