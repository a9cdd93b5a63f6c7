// Generation over a KV buffer whose first slots are the prompt's frozen prefix KV.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "engine_state.hpp"
#include "generation.hpp"
#include "rows.hpp"
#include "safetensors.hpp"

namespace ptdeploy {
namespace detail {
namespace {

// Buffers of nearly the same size are kept for one another.
constexpr std::int64_t kSlots = 64;
// A prefill longer than this, or than the engine takes, runs in pieces: an engine's scratch space
// grows with its square.
constexpr std::int64_t kPrefill = 512;
// An engine built for fixed sizes has room for the logits of so many positions of one run.
constexpr std::size_t kKept = 64;

bool starts_with(const std::string& text, const char* prefix) { return text.rfind(prefix, 0) == 0; }

// One shape for all layers, of numbers alone; (0, 0) if there is none.
std::pair<std::int64_t, std::int64_t> heads_and_width(const std::vector<TensorSpec>& inputs) {
  std::set<std::pair<Axis, Axis>> shapes;
  for (const TensorSpec& spec : inputs)
    if (starts_with(spec.name, "past_key_values.") && spec.shape.size() == 4)
      shapes.emplace(spec.shape[1], spec.shape[3]);
  if (shapes.size() != 1) return {0, 0};
  const auto* heads = std::get_if<std::int64_t>(&shapes.begin()->first);
  const auto* width = std::get_if<std::int64_t>(&shapes.begin()->second);
  if (!heads || !width) return {0, 0};
  return {*heads, *width};
}

// Whether every fixed number of slots is the context; names stand for any number.
bool slots_fit(const std::vector<TensorSpec>& inputs, const Limits& limits) {
  for (const TensorSpec& spec : inputs) {
    if (!starts_with(spec.name, "past_key_values.") || spec.shape.size() != 4) continue;
    const auto* slots = std::get_if<std::int64_t>(&spec.shape[2]);
    if (slots && *slots != limits.max_context) return false;
  }
  return true;
}

bool describes_one_kv_buffer(const Manifest& manifest, KVLayout& layout) {
  const auto [heads, width] = heads_and_width(manifest.inputs);
  if (heads < 1 || width < 1) return false;
  std::set<std::string> types;
  auto take = [&types](std::vector<std::string>& names, const TensorSpec& spec,
                       const char* prefix) {
    if (!starts_with(spec.name, prefix)) return;
    names.push_back(spec.name);
    types.insert(spec.dtype);
  };
  for (const TensorSpec& spec : manifest.inputs) take(layout.past, spec, "past_key_values.");
  for (const TensorSpec& spec : manifest.outputs) take(layout.present, spec, "present.");
  const std::size_t count = layout.past.size();
  if (layout.present.size() != count || manifest.outputs.size() != count + 1) return false;
  const auto type = types.size() == 1 ? element_type(*types.begin()) : std::nullopt;
  if (!type || *type == ElementType::int64 || manifest.outputs[0].dtype != "float32") return false;
  layout.type = *type;
  const auto& logits = manifest.outputs[0].shape;
  const auto* vocabulary = logits.empty() ? nullptr : std::get_if<std::int64_t>(&logits.back());
  if (!vocabulary || *vocabulary < manifest.limits.vocab_size) return false;
  const std::int64_t prompt = manifest.prompt.num_virtual_tokens;
  if (const auto& prefix = manifest.prompt.prefix_kv)
    if (*prefix !=
        std::vector<std::int64_t>{static_cast<std::int64_t>(count / 2), 2, heads, prompt, width})
      return false;
  const Limits& limits = manifest.limits;
  constexpr std::int64_t kMost = std::int64_t{1} << 48;
  if (!slots_fit(manifest.inputs, limits) || limits.max_prefill.value_or(1) < 1) return false;
  if (prompt < 0 || limits.vocab_size < 1 || limits.max_sequence < 1 ||
      limits.max_sequence > kMost || prompt > kMost ||
      limits.max_sequence + prompt != limits.max_context)
    return false;
  layout.heads = static_cast<std::size_t>(heads);
  layout.width = static_cast<std::size_t>(width);
  layout.vocabulary = static_cast<std::size_t>(*vocabulary);
  layout.in_place = manifest.fused;
  layout.prefill =
      static_cast<std::size_t>(std::min(kPrefill, limits.max_prefill.value_or(kPrefill)));
  layout.kept = limits.max_prefill ? std::min(kKept, layout.prefill) : layout.prefill;
  for (const TensorSpec& spec : manifest.inputs)
    if (spec.name == layout.past[0] && spec.shape.size() == 4 &&
        std::holds_alternative<std::int64_t>(spec.shape[2]))
      layout.fixed_slots = static_cast<std::size_t>(limits.max_context);
  return true;
}

std::size_t longest(const std::vector<Ids>& rows) {
  std::size_t most = 0;
  for (const Ids& row : rows) most = std::max(most, row.size());
  return most;
}

// A KV buffer for rows of at most `tokens` tokens of text, the last request's if it fits.
std::unique_ptr<KVBuffer> take_buffer(const EngineState& state, std::size_t rows,
                                      std::size_t tokens) {
  const Limits& limits = state.manifest().limits;
  if (limits.max_batch && static_cast<std::int64_t>(rows) > *limits.max_batch)
    throw InputError(std::to_string(rows) + " rows at once, but the bundle was compiled for " +
                         std::to_string(*limits.max_batch) + ".",
                     "Send them in several requests, or compile with a larger --max-batch.");
  const auto needed = static_cast<std::int64_t>(tokens) + state.info.num_virtual_tokens;
  std::unique_ptr<KVBuffer> spare;
  {
    std::lock_guard<std::mutex> lock(state.spare_mutex);
    spare = std::move(state.spare);
  }
  if (spare && spare->rows() == rows && needed <= static_cast<std::int64_t>(spare->slots())) {
    spare->reset();
    return spare;
  }
  spare.reset();  // before the new one: they need not fit in memory together
  const std::int64_t slots = std::min((needed + kSlots - 1) / kSlots * kSlots, limits.max_context);
  return std::make_unique<KVBuffer>(*state.backend, state.layout, rows,
                                    static_cast<std::size_t>(slots));
}

void keep_buffer(const EngineState& state, std::unique_ptr<KVBuffer> buffer) {
  std::lock_guard<std::mutex> lock(state.spare_mutex);
  state.spare = std::move(buffer);
}

std::size_t budget_of(const EngineState& state, std::size_t longest_row,
                      const std::optional<std::int64_t>& asked, const GenerationOptions& options) {
  const Limits& limits = state.manifest().limits;
  const std::int64_t room = limits.max_sequence - static_cast<std::int64_t>(longest_row);
  if (!asked) return static_cast<std::size_t>(std::min(options.max_new_tokens, room));
  if (*asked > room)
    throw InputError(std::to_string(*asked) + " new tokens do not fit: the longest text leaves " +
                         std::to_string(room) + " of the model's " +
                         std::to_string(limits.max_context) + " positions.",
                     "Ask for at most " + std::to_string(room) + ", or shorten the text.");
  return static_cast<std::size_t>(*asked);
}

}  // namespace

void prepare_causal(EngineState& state) {
  const Manifest& manifest = state.manifest();
  if (!manifest.generation)
    throw BundleError(state.bundle.path + ": the manifest has no generation defaults.");
  if (!describes_one_kv_buffer(manifest, state.layout))
    throw BundleError(
        state.bundle.path + ": its signature, prefix KV and limits do not describe one KV buffer.",
        "Compile the checkpoint again.");
  try {
    check(*manifest.generation, manifest.limits.vocab_size);
  } catch (const InputError& error) {
    throw BundleError(state.bundle.path + ": its generation defaults: " + error.problem(),
                      "Compile the checkpoint again.");
  }
  if (!state.backend->caches(state.layout.type))
    throw TargetUnavailable("With the target " + manifest.target +
                            " the C++ library keeps keys and values in float32, not in " +
                            name_of(state.layout.type) + ".");
  state.info.columns = state.layout.vocabulary;
  if (const auto& shape = manifest.prompt.prefix_kv) {
    const std::string file = state.bundle.file("prompt");
    const FloatTensor prefix_kv = state.bundle.reading("prompt", [](const std::string& path) {
      return read_float_tensor(path, "prefix_kv");
    });
    if (prefix_kv.shape != *shape) {
      std::string found;
      for (std::int64_t size : prefix_kv.shape)
        found += (found.empty() ? "" : ", ") + std::to_string(size);
      throw BundleError(file + ": prefix KV has shape (" + found + "), not the manifest's.");
    }
    state.layout.prefix = static_cast<std::size_t>(prefix_kv.shape[3]);
    state.layout.prefix_kv = rounded(prefix_kv.values, state.layout.type);
  } else {
    state.virtual_ids.resize(static_cast<std::size_t>(manifest.prompt.num_virtual_tokens));
    std::iota(state.virtual_ids.begin(), state.virtual_ids.end(), manifest.limits.vocab_size);
  }
}

GenerationOptions chosen_options(const EngineState& state, const GenerateOptions& given) {
  GenerationOptions options = *state.manifest().generation;
  auto set = [](auto& place, const auto& value) {
    if (value) place = *value;
  };
  set(options.max_new_tokens, given.max_new_tokens);
  set(options.min_new_tokens, given.min_new_tokens);
  set(options.top_k, given.top_k);
  set(options.top_p, given.top_p);
  set(options.min_p, given.min_p);
  set(options.repetition_penalty, given.repetition_penalty);
  set(options.eos_token_ids, given.eos_token_ids);
  set(options.do_sample, given.do_sample);
  if (given.temperature && *given.temperature == 0) {
    options.temperature = 1;
    options.do_sample = false;
  } else {
    set(options.temperature, given.temperature);
    const bool samples = given.temperature || given.top_k || given.top_p || given.min_p;
    if (samples && !given.do_sample) options.do_sample = true;
  }
  check(options, state.manifest().limits.vocab_size);
  return options;
}

Ids fed_ids(const EngineState& state, const Ids& ids) {
  Ids fed = state.virtual_ids;
  fed.insert(fed.end(), ids.begin(), ids.end());
  return fed;
}

// Each row's last token runs as a step of the whole batch, those before it row by row.
std::vector<Logits> causal_logits(const EngineState& state, const std::vector<Ids>& rows) {
  auto kv = take_buffer(state, rows.size(), longest(rows));
  const std::size_t vocabulary = state.layout.vocabulary;
  const auto skip = static_cast<std::ptrdiff_t>(state.virtual_ids.size() * vocabulary);
  std::vector<Logits> out;
  std::vector<std::int64_t> last;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const Ids fed = fed_ids(state, rows[i]);
    std::vector<float> before = kv->prefill(i, fed.data(), fed.size() - 1, true);
    before.erase(before.begin(), before.begin() + skip);
    out.push_back({rows[i].size(), vocabulary, std::move(before)});
    last.push_back(rows[i].back());
  }
  const float* after = kv->decode(last);
  for (std::size_t i = 0; i < rows.size(); ++i)
    out[i].values.insert(out[i].values.end(), after + i * vocabulary, after + (i + 1) * vocabulary);
  return out;
}

}  // namespace detail

std::vector<Generated> Engine::generate(const std::vector<Ids>& rows, const GenerateOptions& given,
                                        const OnToken& on_token) const {
  detail::require_task(*state_, Task::causal_lm, "generate");
  detail::check_rows(rows, state_->manifest().limits);
  const detail::GenerationOptions options = detail::chosen_options(*state_, given);
  const std::size_t most = detail::longest(rows);
  const std::size_t budget = detail::budget_of(*state_, most, given.max_new_tokens, options);
  std::vector<detail::Row> continued;
  continued.reserve(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i)
    continued.emplace_back(options, rows[i],
                           given.seed ? std::optional(*given.seed + i) : std::nullopt,
                           given.logprobs);
  if (budget > 0) {
    auto kv = detail::take_buffer(*state_, rows.size(), most + budget);
    std::vector<std::vector<float>> first;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const Ids fed = detail::fed_ids(*state_, rows[i]);
      first.push_back(kv->prefill(i, fed.data(), fed.size()));
    }
    detail::decode(*kv, first, continued, budget, state_->layout.vocabulary, given.cancelled,
                   on_token);
    detail::keep_buffer(*state_, std::move(kv));
  }
  std::vector<Generated> out;
  for (detail::Row& row : continued) out.push_back(std::move(row).result());
  return out;
}

}  // namespace ptdeploy
