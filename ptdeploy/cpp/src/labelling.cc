#include "labelling.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <numeric>
#include <set>

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

bool has_fixed_size(const Axis& axis) {
  const auto* size = std::get_if<std::int64_t>(&axis);
  return size && *size >= 1 && *size <= kMost;
}

// The shape of a head's parameters, which only the model knows, if it can be one.
Shape head_shape(const TensorSpec& spec) {
  const Axis prompts = "prompts", classes = "classes";
  const Shape& shape = spec.shape;
  auto fits = [&classes](const Axis& axis) { return axis == classes || has_fixed_size(axis); };
  if ((shape.size() == 2 || shape.size() == 3) && shape[0] == prompts &&
      std::all_of(shape.begin() + 1, shape.end(), fits) &&
      std::count(shape.begin(), shape.end(), classes) <= 1)
    return shape;
  return {prompts, classes};
}

// The width of virtual tokens: the prompt's, or where that has none any that the graph has.
Axis table_width(const TensorSpec* table, const PromptInfo& prompt) {
  if (prompt.token_dim || !table || table->shape.size() != 2) return prompt.token_dim.value_or(0);
  return has_fixed_size(table->shape[1]) ? table->shape[1] : Axis(std::int64_t{0});
}

// The shape of the prefixes of a graph: of one that takes virtual tokens too it says how many layers
// there are, whatever the prompt has.
Shape prefix_shape(const TensorSpec& prefix, bool beside_table, const PromptInfo& prompt) {
  if (prompt.prefix_kv) {
    const auto& own = *prompt.prefix_kv;
    if (beside_table) return {"prefixes", 2 * own[0], own[2], "prefix", own[4]};
    return {"prefixes", own[2], "prefix", own[4]};
  }
  Shape sizes;
  std::copy_if(prefix.shape.begin(), prefix.shape.end(), std::back_inserter(sizes), has_fixed_size);
  if (sizes.size() != 3) return {"prefixes", "prefix"};
  return {"prefixes", sizes[0], sizes[1], "prefix", sizes[2]};
}

// How much of a row comes up to its last token that is no padding; the first where all are.
std::size_t up_to_padding(const Ids& ids, std::int64_t padding) {
  std::size_t size = ids.size();
  while (size > 1 && ids[size - 1] == padding) --size;
  return size;
}

// Whether virtual tokens are looked up: they have positions whose logits are nobody's.
bool looks_up(const Graph& graph) {
  return graph.input(TensorRole::table) || !graph.input(TensorRole::prefix);
}

// What may differ from model to model is taken from where it is, and all else held against it.
std::vector<Wanted> wanted_inputs(const Manifest& manifest, bool per_token) {
  const Graph& graph = manifest.graph();
  const PromptInfo& prompt = manifest.prompt();
  const Shape text{"batch", "sequence"}, rows{"batch"};
  const TensorSpec* table = graph.input(TensorRole::table);
  const TensorSpec* prefix = graph.input(TensorRole::prefix);
  const TensorSpec* first = prefix ? prefix : table;
  const auto type = first ? element_type(first->dtype) : std::nullopt;
  const std::string dtype = type && *type != ElementType::int64 ? first->dtype : "float32";
  std::vector<Wanted> inputs{{TensorRole::ids, "int64", text}, {TensorRole::mask, "int64", text}};
  if (manifest.limits.type_vocab_size > 0) inputs.push_back({TensorRole::segments, "int64", text});
  if (per_token && looks_up(graph))
    inputs.push_back({TensorRole::positions, "int64", {"kept"}});
  if (looks_up(graph))
    inputs.push_back({TensorRole::table, dtype, {"virtual", table_width(table, prompt)}});
  if (prefix) {
    inputs.push_back({TensorRole::prefix, dtype, prefix_shape(*prefix, table != nullptr, prompt)});
    inputs.push_back({TensorRole::lengths, "int64", rows});
  }
  if (prefix || graph.input(TensorRole::head))
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

void require_classifier(const Manifest& manifest, bool per_token) {
  const Graph& graph = manifest.graph();
  const PromptInfo& prompt = manifest.prompt();
  require(manifest.default_prompt.has_value(),
          "default_prompt is null, and a head belongs to a prompt");
  const std::string where = place_of(*manifest.default_prompt) + ".";
  require(!prompt.labels.empty(), where + "labels are missing");
  if (const auto& shape = prompt.prefix_kv)
    require(shape->size() == 5 && (*shape)[1] == 2 && (*shape)[3] == prompt.num_virtual_tokens,
            where + "prefix_kv is not the shape of a prefix KV");
  // A graph that takes both has each of its prompts by one of them.
  const bool prefix = graph.input(TensorRole::prefix), table = graph.input(TensorRole::table);
  require(prefix == prompt.prefix_kv.has_value() || (prefix && table),
          where + "prefix_kv is not what the graph takes");
  require_alike("inputs", graph.inputs, wanted_inputs(manifest, per_token));
  bool heads = false, classes = false;
  for (const TensorSpec& spec : graph.inputs) {
    if (spec.role != TensorRole::head) continue;
    heads = true;
    classes = classes || std::count(spec.shape.begin(), spec.shape.end(), Axis("classes")) > 0;
  }
  Shape logits{"batch"};
  if (per_token) logits.push_back(looks_up(graph) ? "kept" : "sequence");
  logits.push_back(heads ? Axis("classes") : Axis(static_cast<std::int64_t>(prompt.labels.size())));
  require_alike("outputs", graph.outputs, {{TensorRole::logits, "float32", logits}});
  require(classes == heads, "no head has the axis 'classes' of the logits");
}

Labelling::Labelling(const EngineState& state)
    : TaskEngine(state),
      inputs_(*state.backend, state.manifest().graph(), state.manifest().limits.vocab_size) {
  inputs_.stack(HeldPrompts(*state.prompts, {}).chosen().prompts);  // not at the first request
}

std::vector<Logits> Labelling::logits(const std::vector<Ids>& rows, const Chosen& chosen,
                                      const std::vector<Ids>& segments) const {
  const Part part{rows, segments, chosen.of(rows.size())};
  Answers found = answers(part);
  std::vector<Logits> out;
  for (std::size_t i = 0; i < rows.size(); ++i)
    out.push_back({state_.kind().positions(rows[i].size()), columns(part.prompts[i]->info),
                   std::move(found[i])});
  return out;
}

void Labelling::run(const std::vector<Ids>& rows, const Chosen& chosen, std::size_t batch_size,
                    const std::vector<Ids>& segments, const Take& take) const {
  check_batch_size(batch_size);
  const Limits& limits = state_.manifest().limits;
  check_rows(rows, limits, chosen);
  check_segments(segments, rows, limits);
  const std::vector<RowPrompt> prompts = chosen.of(rows.size());
  std::vector<std::size_t> lengths;
  for (std::size_t i = 0; i < rows.size(); ++i)
    lengths.push_back(prompts[i]->length() + rows[i].size());
  Answers found(rows.size());
  for (const std::vector<std::size_t>& group : grouped(lengths, fitting(batch_size))) {
    Part part;
    for (std::size_t index : group) {
      part.rows.push_back(rows[index]);
      part.prompts.push_back(prompts[index]);
      if (!segments.empty()) part.segments.push_back(segments[index]);
    }
    Answers own = answers(part);
    for (std::size_t i = 0; i < group.size(); ++i) found[group[i]] = std::move(own[i]);
  }
  for (std::size_t i = 0; i < rows.size(); ++i) take(rows[i], prompts[i]->info, found[i].data());
}

std::size_t Labelling::fitting(std::size_t size) const {
  if (const auto& most = state_.info.max_batch)
    size = std::min(size, static_cast<std::size_t>(std::max<std::int64_t>(*most, 1)));
  return std::max<std::size_t>(size, 1);
}

Labelling::Answers Labelling::answers(const Part& whole) const {
  const std::size_t most = fitting(whole.rows.size());
  Answers out;
  Part part;
  std::set<RowPrompt> seen;
  const auto run = [&] {
    for (std::vector<float>& one : run_rows(part)) out.push_back(std::move(one));
    part = {};
    seen.clear();
  };
  for (std::size_t i = 0; i < whole.rows.size(); ++i) {
    const bool more = seen.count(whole.prompts[i]) == 0;
    if (part.rows.size() == most || seen.size() + more > kMostInARun) run();
    seen.insert(whole.prompts[i]);
    part.rows.push_back(whole.rows[i]);
    part.prompts.push_back(whole.prompts[i]);
    if (!whole.segments.empty()) part.segments.push_back(whole.segments[i]);
    const auto& padding = whole.prompts[i]->info.padding_id;
    if (!padding || !state_.kind().one_answer) continue;
    // What comes behind the token that answers, nobody reads.
    part.rows.back().resize(up_to_padding(whole.rows[i], *padding));
    if (!whole.segments.empty()) part.segments.back().resize(part.rows.back().size());
  }
  run();
  return out;
}

Labelling::Answers Labelling::run_rows(const Part& part) const {
  auto size = [](std::size_t n) { return static_cast<std::int64_t>(n); };
  const Graph& graph = state_.manifest().graph();
  const std::size_t count = part.rows.size();
  const SharedStack stack = inputs_.stack(part.prompts);
  std::vector<Ids> texts, types;
  std::vector<std::int64_t> lengths, places;
  // Logits are read from the end of the shortest prompt on, where the first text begins.
  std::size_t skipped = std::numeric_limits<std::size_t>::max();
  for (std::size_t i = 0; i < count; ++i) {
    const Ids& before = stack->before(part.prompts[i]);
    texts.push_back(before);
    texts.back().insert(texts.back().end(), part.rows[i].begin(), part.rows[i].end());
    // Virtual tokens are in segment 0.
    types.emplace_back(part.segments.empty() ? texts.back().size() : before.size());
    if (!part.segments.empty())
      types.back().insert(types.back().end(), part.segments[i].begin(), part.segments[i].end());
    lengths.push_back(before.empty() ? size(part.prompts[i]->length()) : 0);
    places.push_back(stack->index(part.prompts[i]));
    skipped = std::min(skipped, before.size());
  }
  Batch batch = pack(texts);
  std::vector<std::int64_t> segments = pack(types).input_ids;
  const std::vector<std::int64_t> each{size(count)}, tokens{size(count), size(batch.width)};
  std::vector<Bound> inputs;
  auto give = [&](TensorRole role, const std::vector<std::int64_t>& shape,
                  std::vector<std::int64_t>& values) {
    if (const TensorSpec* spec = graph.input(role))
      inputs.push_back({spec->name, ElementType::int64, shape, values.data(), false});
  };
  give(TensorRole::ids, tokens, batch.input_ids);
  give(TensorRole::mask, tokens, batch.attention_mask);
  give(TensorRole::segments, tokens, segments);
  if (!graph.input(TensorRole::positions)) skipped = 0;
  std::vector<std::int64_t> positions(batch.width - skipped);
  std::iota(positions.begin(), positions.end(), size(skipped));
  give(TensorRole::positions, {size(positions.size())}, positions);
  inputs.insert(inputs.end(), stack->bound().begin(), stack->bound().end());
  give(TensorRole::prompt, each, places);
  give(TensorRole::lengths, each, lengths);
  const bool one_answer = state_.kind().one_answer;
  const std::size_t labels = stack->labels(), lines = one_answer ? 1 : positions.size();
  std::vector<std::int64_t> shape = each;
  if (!one_answer) shape.push_back(size(lines));
  shape.push_back(size(labels));
  std::vector<float> logits(count * lines * labels);
  auto run = state_.backend->bind(
      inputs, {{graph.outputs[0].name, ElementType::float32, shape, logits.data(), false}});
  (*run)();
  Answers out(count);
  for (std::size_t i = 0; i < count; ++i) {
    // The virtual tokens' own answers are nobody's.
    const std::size_t first = one_answer ? 0 : stack->before(part.prompts[i]).size() - skipped;
    const std::size_t own = columns(part.prompts[i]->info);
    for (std::size_t at = 0; at < state_.kind().positions(part.rows[i].size()); ++at) {
      const float* line = logits.data() + (i * lines + first + at) * labels;
      out[i].insert(out[i].end(), line, line + own);
    }
  }
  return out;
}

}  // namespace ptdeploy::detail
