#include "causal.hpp"

#include <algorithm>

#include "generation.hpp"
#include "kv_layout.hpp"
#include "layout.hpp"
#include "memory.hpp"
#include "rows.hpp"

namespace ptdeploy::detail {
namespace {

// Buffers of nearly the same size are kept for one another.
constexpr std::int64_t kSlots = 64;
std::size_t longest(const std::vector<Ids>& rows) {
  std::size_t most = 0;
  for (const Ids& row : rows) most = std::max(most, row.size());
  return most;
}

}  // namespace

CausalEngine::CausalEngine(const EngineState& state)
    : TaskEngine(state), layout_(layout_of(state.manifest())) {
  const Manifest& manifest = state.manifest();
  if (!state.backend->caches(layout_.type))
    throw TargetUnavailable("With the target " + state.info.target +
                            " the C++ library keeps keys and values in float32, not in " +
                            name_of(layout_.type) + ".");
  if (!manifest.default_prompt) return;  // rows start with their text
  const LoadedPrompt prompt = load_prompt(state.bundle);
  layout_.prompts = prompt_inputs_.emplace(*state.backend, manifest.graph(), prompt).bound();
  if (const auto& prefix_kv = prompt.tensors.prefix_kv) {
    layout_.prefix = prompt.length();
    layout_.prefix_kv = rounded(*prefix_kv, layout_.type);
  } else {
    virtual_ids_ = prompt.virtual_ids(manifest.limits);
  }
}

// A KV buffer for rows of at most `tokens` tokens of text, the last request's if it fits.
std::unique_ptr<KVBuffer> CausalEngine::take_buffer(std::size_t rows, std::size_t tokens) const {
  const Limits& limits = state_.manifest().limits;
  if (limits.max_batch && static_cast<std::int64_t>(rows) > *limits.max_batch)
    throw InputError(std::to_string(rows) + " rows at once, but the bundle was compiled for " +
                         std::to_string(*limits.max_batch) + ".",
                     "Send them in several requests, or compile with a larger --max-batch.");
  const auto needed = static_cast<std::int64_t>(tokens) + state_.info.num_virtual_tokens;
  std::unique_ptr<KVBuffer> spare;
  {
    std::lock_guard<std::mutex> lock(spare_mutex_);
    spare = std::move(spare_);
  }
  if (spare && spare->rows() == rows && needed <= static_cast<std::int64_t>(spare->slots())) {
    spare->reset();
    return spare;
  }
  spare.reset();  // before the new one: they need not fit in memory together
  const std::int64_t slots = std::min((needed + kSlots - 1) / kSlots * kSlots, limits.max_context);
  return std::make_unique<KVBuffer>(*state_.backend, layout_, rows,
                                    static_cast<std::size_t>(slots));
}

void CausalEngine::keep_buffer(std::unique_ptr<KVBuffer> buffer) const {
  std::lock_guard<std::mutex> lock(spare_mutex_);
  spare_ = std::move(buffer);
}

std::size_t CausalEngine::budget(std::size_t longest_row,
                                 const std::optional<std::int64_t>& asked,
                                 const GenerationOptions& options) const {
  const Limits& limits = state_.manifest().limits;
  const std::int64_t room = state_.info.max_sequence - static_cast<std::int64_t>(longest_row);
  if (!asked) return static_cast<std::size_t>(std::min(options.max_new_tokens, room));
  if (*asked > room)
    throw InputError(std::to_string(*asked) + " new tokens do not fit: the longest text leaves " +
                         std::to_string(room) + " of the model's " +
                         std::to_string(limits.max_context) + " positions.",
                     "Ask for at most " + std::to_string(room) + ", or shorten the text.");
  return static_cast<std::size_t>(*asked);
}

GenerationOptions CausalEngine::options(const GenerateOptions& given) const {
  GenerationOptions options = *state_.manifest().generation;
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
  check(options, state_.manifest().limits.vocab_size);
  return options;
}

Ids CausalEngine::fed(const Ids& ids) const {
  Ids fed = virtual_ids_;
  fed.insert(fed.end(), ids.begin(), ids.end());
  return fed;
}

// Each row's last token runs as a step of the whole batch, those before it row by row.
std::vector<Logits> CausalEngine::logits(const std::vector<Ids>& rows,
                                         const std::vector<Ids>&) const {
  const std::size_t vocabulary = layout_.vocabulary;
  std::size_t tokens = 0;
  for (const Ids& row : rows) tokens += row.size() + virtual_ids_.size();
  require_memory(std::uint64_t{tokens} * vocabulary * sizeof(float),
                 "Logits of " + std::to_string(tokens) + " tokens");
  auto kv = take_buffer(rows.size(), longest(rows));
  const auto skip = static_cast<std::ptrdiff_t>(virtual_ids_.size() * vocabulary);
  std::vector<Logits> out;
  std::vector<std::int64_t> last;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const Ids given = fed(rows[i]);
    std::vector<float> before = kv->prefill(i, given.data(), given.size() - 1, true);
    before.erase(before.begin(), before.begin() + skip);
    out.push_back({rows[i].size(), vocabulary, std::move(before)});
    last.push_back(rows[i].back());
  }
  const float* after = kv->decode(last);
  for (std::size_t i = 0; i < rows.size(); ++i)
    out[i].values.insert(out[i].values.end(), after + i * vocabulary, after + (i + 1) * vocabulary);
  return out;
}

std::vector<Generated> CausalEngine::generate(const std::vector<Ids>& rows,
                                              const GenerateOptions& given,
                                              const OnToken& on_token) const {
  check_rows(rows, state_.manifest());
  const GenerationOptions chosen = options(given);
  const std::size_t most = longest(rows);
  const std::size_t steps = budget(most, given.max_new_tokens, chosen);
  std::vector<Row> continued;
  continued.reserve(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i)
    continued.emplace_back(chosen, rows[i],
                           given.seed ? std::optional(*given.seed + i) : std::nullopt,
                           given.logprobs);
  if (steps > 0) {
    auto kv = take_buffer(rows.size(), most + steps);
    std::vector<std::vector<float>> first;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const Ids ids = fed(rows[i]);
      first.push_back(kv->prefill(i, ids.data(), ids.size()));
    }
    decode(*kv, first, continued, steps, layout_.vocabulary,
           static_cast<std::size_t>(state_.info.vocab_size), given.cancelled, on_token);
    keep_buffer(std::move(kv));
  }
  std::vector<Generated> out;
  for (Row& row : continued) out.push_back(std::move(row).result());
  return out;
}

const TaskKind kCausal = {
    "CAUSAL_LM",
    /*one_answer=*/false,
    /*writes=*/true,
    /*any_head=*/false,
    require_decoder,
    [](const EngineState& state) -> std::unique_ptr<TaskEngine> {
      return std::make_unique<CausalEngine>(state);
    },
};

}  // namespace ptdeploy::detail
