#include "kv_layout.hpp"

#include <algorithm>

#include "layout.hpp"
#include "sampling.hpp"

namespace ptdeploy::detail {
namespace {

// A prefill longer than this, or than the engine takes, runs in pieces: an engine's scratch space
// grows with its square.
constexpr std::int64_t kPrefill = 512;
// An engine built for fixed sizes has room for the logits of so many positions of one run.
constexpr std::size_t kKept = 64;

bool is_size(const Axis& axis) {
  const auto* size = std::get_if<std::int64_t>(&axis);
  return size && *size >= 1 && *size <= kMost;
}

}  // namespace

void require_decoder(const Manifest& manifest) {
  const Limits& limits = manifest.limits;
  require(manifest.generation.has_value(), "it has no generation defaults");
  if (const auto problem = out_of_range(*manifest.generation, limits.vocab_size))
    throw Problem{std::string("generation.") + problem->name + " must be " + problem->range};
  require(manifest.labels.empty(), "labels are a classifier's");
  const std::size_t count = manifest.inputs.size();
  const std::size_t layers = std::max<std::size_t>(1, count > 2 ? (count - 2) / 2 : 0);
  // What may differ from model to model is taken from the first, and the others held against it.
  std::string dtype = "float32";
  Shape first{"batch", std::int64_t{1}, "slots", std::int64_t{1}};
  if (count > 3) {
    const TensorSpec* spec = &manifest.inputs[3];
    if (spec->dtype == "float16" || spec->dtype == "bfloat16") dtype = spec->dtype;
    if (spec->shape.size() == 4) first = spec->shape;
  }
  auto size = [](const Axis& axis) { return is_size(axis) ? std::get<std::int64_t>(axis) : 1; };
  const std::int64_t heads = size(first[1]), width = size(first[3]);
  Axis slots = "slots";
  if (std::holds_alternative<std::int64_t>(first[2])) slots = limits.max_context;
  const Shape buffer{"batch", heads, slots, width};
  std::vector<Wanted> inputs{{"input_ids", "int64", {"batch", "sequence"}},
                             {"past_lengths", "int64", {"batch"}},
                             {"logits_positions", "int64", {"kept"}}};
  Shape fresh = buffer;
  if (!manifest.fused) fresh[2] = "sequence";
  std::int64_t vocabulary = limits.vocab_size;
  if (!manifest.outputs.empty() && !manifest.outputs[0].shape.empty() &&
      is_size(manifest.outputs[0].shape.back()))
    vocabulary = std::get<std::int64_t>(manifest.outputs[0].shape.back());
  std::vector<Wanted> outputs{{"logits", "float32", {"batch", "kept", vocabulary}}};
  for (std::size_t layer = 0; layer < layers; ++layer)
    for (const char* part : {".key", ".value"}) {
      inputs.push_back({"past_key_values." + std::to_string(layer) + part, dtype, buffer});
      outputs.push_back({"present." + std::to_string(layer) + part, dtype, fresh});
    }
  require_alike("inputs", manifest.inputs, inputs);
  require_alike("outputs", manifest.outputs, outputs);
  require(vocabulary >= limits.vocab_size, "limits.vocab_size is more than the logits have");
  const auto& prefix = manifest.prompt.prefix_kv;
  require(
      prefix || vocabulary == limits.vocab_size,
      "limits.vocab_size is not that of the logits, behind which the virtual tokens stand");
  require(!prefix || *prefix == std::vector<std::int64_t>{static_cast<std::int64_t>(layers), 2,
                                                          heads,
                                                          manifest.prompt.num_virtual_tokens,
                                                          width},
          "prompt.prefix_kv is not the shape of the KV buffer's first slots");
}

KVLayout layout_of(const Manifest& manifest) {
  KVLayout layout;
  for (std::size_t i = 3; i < manifest.inputs.size(); ++i)
    layout.past.push_back(manifest.inputs[i].name);
  for (std::size_t i = 1; i < manifest.outputs.size(); ++i)
    layout.present.push_back(manifest.outputs[i].name);
  auto size = [](const Axis& axis) {
    return static_cast<std::size_t>(std::get<std::int64_t>(axis));
  };
  const TensorSpec& first = manifest.inputs[3];
  layout.type = *element_type(first.dtype);
  layout.heads = size(first.shape[1]);
  layout.width = size(first.shape[3]);
  if (std::holds_alternative<std::int64_t>(first.shape[2]))
    layout.fixed_slots = size(first.shape[2]);
  layout.vocabulary = size(manifest.outputs[0].shape.back());
  layout.in_place = manifest.fused;
  const auto& most = manifest.limits.max_prefill;
  layout.prefill = static_cast<std::size_t>(std::min(kPrefill, most.value_or(kPrefill)));
  layout.kept = most ? std::min(kKept, layout.prefill) : layout.prefill;
  return layout;
}

}  // namespace ptdeploy::detail
