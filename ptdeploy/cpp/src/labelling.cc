#include "labelling.hpp"

#include <algorithm>
#include <cmath>

#include "layout.hpp"
#include "rows.hpp"

namespace ptdeploy::detail {
namespace {

// No class of what is not finite is likeliest.
void check_finite(const float* logits, std::size_t count) {
  if (!std::all_of(logits, logits + count, [](float logit) { return std::isfinite(logit); }))
    throw EngineFault("The engine gave logits that are not finite.",
                      "Hold the bundle against its reference: ptdeploy verify BUNDLE");
}

void check_batch_size(std::size_t size) {
  if (size < 1 || size > static_cast<std::size_t>(kMost))
    throw InputError("batch_size is " + std::to_string(size) +
                     "; it must be a whole number from 1 to " + std::to_string(kMost) + ".");
}

// The shape of a head's parameters, which only the model knows, if it can be one.
Shape head_shape(const TensorSpec& spec) {
  const Axis prompts = "prompts", classes = "classes";
  const Shape& shape = spec.shape;
  auto fits = [&classes](const Axis& axis) {
    const auto* size = std::get_if<std::int64_t>(&axis);
    return axis == classes || (size && *size >= 1 && *size <= kMost);
  };
  if ((shape.size() == 2 || shape.size() == 3) && shape[0] == prompts &&
      std::all_of(shape.begin() + 1, shape.end(), fits) &&
      std::count(shape.begin(), shape.end(), classes) <= 1)
    return shape;
  return {prompts, classes};
}

// What may differ from model to model is taken from where it is, and all else held against it.
std::vector<Wanted> wanted_inputs(const Manifest& manifest) {
  const Graph& graph = manifest.graph();
  const PromptInfo& prompt = manifest.prompt();
  const Shape text{"batch", "sequence"}, rows{"batch"};
  const TensorSpec* first = graph.input(prompt.prefix_kv ? TensorRole::prefix : TensorRole::table);
  const auto type = first ? element_type(first->dtype) : std::nullopt;
  const std::string dtype = type && *type != ElementType::int64 ? first->dtype : "float32";
  std::vector<Wanted> inputs{{TensorRole::ids, "int64", text}, {TensorRole::mask, "int64", text}};
  if (manifest.limits.type_vocab_size > 0) inputs.push_back({TensorRole::segments, "int64", text});
  if (const auto& shape = prompt.prefix_kv) {
    inputs.push_back({TensorRole::prefix, dtype, {"prefixes", (*shape)[2], "prefix", (*shape)[4]}});
    inputs.push_back({TensorRole::lengths, "int64", rows});
  } else {
    inputs.push_back({TensorRole::table, dtype, {"virtual", prompt.token_dim.value_or(0)}});
  }
  if (prompt.prefix_kv || graph.input(TensorRole::head))
    inputs.push_back({TensorRole::prompt, "int64", rows});
  for (const TensorSpec& spec : graph.inputs)
    if (spec.role == TensorRole::head)
      inputs.push_back({TensorRole::head, dtype, head_shape(spec)});
  return inputs;
}

}  // namespace

std::vector<double> softmax(const float* logits, std::size_t count) {
  check_finite(logits, count);
  const double top = *std::max_element(logits, logits + count);
  std::vector<double> weights(count);
  double total = 0;
  for (std::size_t i = 0; i < count; ++i) total += weights[i] = std::exp(logits[i] - top);
  for (double& weight : weights) weight /= total;
  return weights;
}

std::vector<double> sigmoid(const float* logits, std::size_t count) {
  check_finite(logits, count);
  std::vector<double> out(count);
  for (std::size_t i = 0; i < count; ++i) {
    // Whichever way, the exponential is of a number below 0.
    const double small = std::exp(-std::abs(static_cast<double>(logits[i])));
    out[i] = (logits[i] < 0 ? small : 1) / (1 + small);
  }
  return out;
}

std::size_t likeliest(const std::vector<double>& probabilities) {
  auto top = std::max_element(probabilities.begin(), probabilities.end());
  return static_cast<std::size_t>(top - probabilities.begin());
}

void require_classifier(const Manifest& manifest, Shape logits) {
  const Graph& graph = manifest.graph();
  const PromptInfo& prompt = manifest.prompt();
  require(manifest.default_prompt.has_value(),
          "default_prompt is null, and a head belongs to a prompt");
  const std::string where = place_of(*manifest.default_prompt) + ".";
  require(!prompt.labels.empty(), where + "labels are missing");
  if (const auto& shape = prompt.prefix_kv)
    require(shape->size() == 5 && (*shape)[1] == 2 && (*shape)[3] == prompt.num_virtual_tokens,
            where + "prefix_kv is not the shape of a prefix KV");
  require(prompt.prefix_kv.has_value() == (graph.input(TensorRole::prefix) != nullptr),
          where + "prefix_kv is not what the graph takes");
  require_alike("inputs", graph.inputs, wanted_inputs(manifest));
  bool heads = false, classes = false;
  for (const TensorSpec& spec : graph.inputs) {
    if (spec.role != TensorRole::head) continue;
    heads = true;
    classes = classes || std::count(spec.shape.begin(), spec.shape.end(), Axis("classes")) > 0;
  }
  logits.push_back(heads ? Axis("classes") : Axis(static_cast<std::int64_t>(prompt.labels.size())));
  require_alike("outputs", graph.outputs, {{TensorRole::logits, "float32", logits}});
  require(classes == heads, "no head has the axis 'classes' of the logits");
}

Labelling::Labelling(const EngineState& state)
    : TaskEngine(state),
      prompt_(load_prompt(state.bundle)),
      prompt_inputs_(*state.backend, state.manifest().graph(), prompt_) {
  if (!prompt_.tensors.prefix_kv) virtual_ids_ = prompt_.virtual_ids(state.manifest().limits);
  prompt_.tensors = {};  // the engine has them
}

std::vector<Logits> Labelling::logits(const std::vector<Ids>& rows,
                                      const std::vector<Ids>& segments) const {
  std::vector<Logits> out;
  in_batches(rows, segments, rows.size(), [&](const Ids& row, const float* logits) {
    const std::size_t count = state_.kind().positions(row.size());
    out.push_back({count, columns(), std::vector<float>(logits, logits + count * columns())});
  });
  return out;
}

void Labelling::run(const std::vector<Ids>& rows, std::size_t batch_size,
                    const std::vector<Ids>& segments, const Take& take) const {
  check_batch_size(batch_size);
  check_rows(rows, state_.manifest());
  check_segments(segments, rows, state_.manifest().limits);
  const std::size_t size = fitting(batch_size);
  std::vector<std::vector<float>> answers(rows.size());
  for (const std::vector<std::size_t>& group : grouped(rows, size)) {
    std::vector<Ids> part, types;
    for (std::size_t index : group) {
      part.push_back(rows[index]);
      if (!segments.empty()) types.push_back(segments[index]);
    }
    std::size_t at = 0;
    in_batches(part, types, size, [&](const Ids& row, const float* logits) {
      answers[group[at++]].assign(
          logits, logits + state_.kind().positions(row.size()) * columns());
    });
  }
  for (std::size_t i = 0; i < rows.size(); ++i) take(rows[i], answers[i].data());
}

std::size_t Labelling::fitting(std::size_t size) const {
  if (const auto& most = state_.info.max_batch)
    size = std::min(size, static_cast<std::size_t>(std::max<std::int64_t>(*most, 1)));
  return std::max<std::size_t>(size, 1);
}

void Labelling::in_batches(const std::vector<Ids>& rows, const std::vector<Ids>& segments,
                           std::size_t size, const Take& take) const {
  size = fitting(size);
  for (std::size_t start = 0; start < rows.size(); start += size) {
    const std::size_t count = std::min(size, rows.size() - start);
    const Ids* types = segments.empty() ? nullptr : segments.data() + start;
    const std::vector<float> logits = run_rows(rows.data() + start, count, types);
    const std::size_t stride = logits.size() / count;
    // The virtual tokens' own answers are nobody's.
    const std::size_t skipped =
        state_.kind().one_answer ? 0 : virtual_ids_.size() * columns();
    for (std::size_t i = 0; i < count; ++i)
      take(rows[start + i], logits.data() + i * stride + skipped);
  }
}

std::vector<float> Labelling::run_rows(const Ids* rows, std::size_t count,
                                       const Ids* segments) const {
  auto size = [](std::size_t n) { return static_cast<std::int64_t>(n); };
  const Graph& graph = state_.manifest().graph();
  Batch batch = pack(rows, count, virtual_ids_);
  const std::vector<std::int64_t> each{size(count)}, tokens{size(count), size(batch.width)};
  std::vector<std::int64_t> type_ids, lengths(count, size(prompt_.length())),
      prompts(count, prompt_.index);
  if (segments)
    type_ids = pack(segments, count, Ids(virtual_ids_.size())).input_ids;
  else
    type_ids.resize(batch.input_ids.size());
  std::vector<Bound> inputs;
  auto give = [&](TensorRole role, const std::vector<std::int64_t>& shape,
                  std::vector<std::int64_t>& values) {
    if (const TensorSpec* spec = graph.input(role))
      inputs.push_back({spec->name, ElementType::int64, shape, values.data(), false});
  };
  give(TensorRole::ids, tokens, batch.input_ids);
  give(TensorRole::mask, tokens, batch.attention_mask);
  give(TensorRole::segments, tokens, type_ids);
  const std::vector<Bound>& placed = prompt_inputs_.bound();
  inputs.insert(inputs.end(), placed.begin(), placed.end());
  give(TensorRole::prompt, each, prompts);
  give(TensorRole::lengths, each, lengths);
  std::vector<std::int64_t> shape = state_.kind().one_answer ? each : tokens;
  shape.push_back(size(columns()));
  std::vector<float> logits(count * (state_.kind().one_answer ? 1 : batch.width) * columns());
  auto run = state_.backend->bind(
      inputs, {{graph.outputs[0].name, ElementType::float32, shape, logits.data(), false}});
  (*run)();
  return logits;
}

}  // namespace ptdeploy::detail
