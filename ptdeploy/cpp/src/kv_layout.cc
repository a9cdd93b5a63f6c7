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

// What keeps rows apart that come as one sequence: of each token its place in its row, and how many
// of the first and of the last slots of the past are not its row's; or the place alone.
const Shape kOffsets{std::int64_t{3}, "sequence"}, kPlaces{"sequence"};

bool is_size(const Axis& axis) {
  const auto* size = std::get_if<std::int64_t>(&axis);
  return size && *size >= 1 && *size <= kMost;
}

// Virtual tokens that are run are looked up in a table.
bool looks_up(const Manifest& manifest) {
  return manifest.default_prompt && !manifest.prompt().prefix_kv;
}

// The shape of what keeps rows apart, none where nothing does.
std::optional<Shape> offsets_of(const Manifest& manifest) {
  const TensorSpec* offsets = manifest.graph().input(TensorRole::offsets);
  return offsets ? std::optional<Shape>(offsets->shape) : std::nullopt;
}

// What may differ from model to model, taken from the first array of the buffer: the others are held
// against it.
struct Buffer {
  explicit Buffer(const Manifest& manifest) : offsets(offsets_of(manifest)) {
    const std::vector<TensorSpec>& inputs = manifest.graph().inputs;
    const std::size_t before = looks_up(manifest) ? 4 : 3;
    if (inputs.size() > before) {
      layers = std::max<std::size_t>(1, (inputs.size() - (offsets ? 1 : 0) - before + 1) / 2);
      const TensorSpec& first = inputs[before];
      if (first.dtype == "float16" || first.dtype == "bfloat16") dtype = first.dtype;
      if (first.shape.size() == 4) shape = first.shape;
    }
    heads = is_size(shape[1]) ? std::get<std::int64_t>(shape[1]) : 1;
    width = is_size(shape[3]) ? std::get<std::int64_t>(shape[3]) : 1;
    Axis slots = "slots";
    if (std::holds_alternative<std::int64_t>(shape[2])) slots = manifest.limits.max_context;
    shape = {"batch", heads, slots, width};
  }

  std::optional<Shape> offsets;  // by which rows may come as one sequence
  std::size_t layers = 1;
  std::string dtype = "float32";
  Shape shape{"batch", std::int64_t{1}, "slots", std::int64_t{1}};
  std::int64_t heads = 1, width = 1;
};

std::vector<Wanted> wanted_inputs(const Manifest& manifest, const Buffer& buffer) {
  std::vector<Wanted> inputs{{TensorRole::ids, "int64", {"batch", "sequence"}},
                             {TensorRole::lengths, "int64", {"batch"}},
                             {TensorRole::positions, "int64", {"kept"}}};
  if (looks_up(manifest))
    inputs.push_back(
        {TensorRole::table, buffer.dtype, {"virtual", manifest.prompt().token_dim.value_or(0)}});
  inputs.insert(inputs.end(), 2 * buffer.layers, {TensorRole::past, buffer.dtype, buffer.shape});
  // Without what of the past is hidden, rows have one prompt.
  if (buffer.offsets)
    inputs.push_back(
        {TensorRole::offsets, "int64", buffer.offsets == kPlaces ? kPlaces : kOffsets});
  return inputs;
}

}  // namespace

void require_decoder(const Manifest& manifest) {
  const Graph& graph = manifest.graph();
  const Limits& limits = manifest.limits;
  const PromptInfo& prompt = manifest.prompt();
  require(manifest.generation.has_value(), "it has no generation defaults");
  if (const auto problem = out_of_range(*manifest.generation, limits.vocab_size))
    throw Problem{std::string("generation.") + problem->name + " must be " + problem->range};
  require(prompt.labels.empty(), "labels are a classifier's");
  const Buffer buffer(manifest);
  require_alike("inputs", graph.inputs, wanted_inputs(manifest, buffer));
  std::int64_t vocabulary = limits.vocab_size;
  if (!graph.outputs.empty() && !graph.outputs[0].shape.empty() &&
      is_size(graph.outputs[0].shape.back()))
    vocabulary = std::get<std::int64_t>(graph.outputs[0].shape.back());
  Shape fresh = buffer.shape;
  if (!graph.fused) fresh[2] = "sequence";
  std::vector<Wanted> outputs{{TensorRole::logits, "float32", {"batch", "kept", vocabulary}}};
  outputs.insert(outputs.end(), 2 * buffer.layers, {TensorRole::present, buffer.dtype, fresh});
  require_alike("outputs", graph.outputs, outputs);
  require(!buffer.offsets || graph.fused,
          "the plain route keeps no rows apart that come as one: it has no offsets");
  require(vocabulary >= limits.vocab_size, "limits.vocab_size is more than the logits have");
  if (!prompt.prefix_kv) return;
  require(*prompt.prefix_kv == std::vector<std::int64_t>{static_cast<std::int64_t>(buffer.layers), 2,
                                                         buffer.heads, prompt.num_virtual_tokens,
                                                         buffer.width},
          place_of(*manifest.default_prompt) +
              ".prefix_kv is not the shape of the KV buffer's first slots");
}

KVLayout layout_of(const Manifest& manifest) {
  const Graph& graph = manifest.graph();
  KVLayout layout;
  layout.ids = graph.input(TensorRole::ids)->name;
  layout.lengths = graph.input(TensorRole::lengths)->name;
  layout.positions = graph.input(TensorRole::positions)->name;
  if (const TensorSpec* offsets = graph.input(TensorRole::offsets)) {
    layout.offsets = offsets->name;
    layout.mixes = offsets->shape == kOffsets;
  }
  layout.logits = graph.outputs[0].name;
  for (const TensorSpec& spec : graph.inputs)
    if (spec.role == TensorRole::past) layout.past.push_back(spec.name);
  for (const TensorSpec& spec : graph.outputs)
    if (spec.role == TensorRole::present) layout.present.push_back(spec.name);
  auto size = [](const Axis& axis) {
    return static_cast<std::size_t>(std::get<std::int64_t>(axis));
  };
  const TensorSpec& first = *graph.input(TensorRole::past);
  layout.type = *element_type(first.dtype);
  layout.heads = size(first.shape[1]);
  layout.width = size(first.shape[3]);
  if (std::holds_alternative<std::int64_t>(first.shape[2]))
    layout.fixed_slots = size(first.shape[2]);
  layout.vocabulary = size(graph.outputs[0].shape.back());
  layout.context = static_cast<std::size_t>(manifest.limits.max_context);
  layout.in_place = graph.fused;
  const auto& most = manifest.limits.max_prefill;
  layout.prefill = static_cast<std::size_t>(std::min(kPrefill, most.value_or(kPrefill)));
  layout.kept = most ? std::min(kKept, layout.prefill) : layout.prefill;
  return layout;
}

}  // namespace ptdeploy::detail
