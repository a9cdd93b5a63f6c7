// Generation over a KV buffer whose first slots are the prompt's frozen prefix KV.
#include <algorithm>
#include <numeric>

#include "engine_state.hpp"
#include "generation.hpp"
#include "memory.hpp"
#include "rows.hpp"

namespace ptdeploy {
namespace detail {
namespace {

// Buffers of nearly the same size are kept for one another.
constexpr std::int64_t kSlots = 64;
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

void prepare_causal(EngineState& state, const std::optional<std::vector<float>>& prefix_kv) {
  const Manifest& manifest = state.manifest();
  state.info.columns = state.layout.vocabulary;
  if (prefix_kv) {
    state.layout.prefix = static_cast<std::size_t>(manifest.prompt.num_virtual_tokens);
    state.layout.prefix_kv = rounded(*prefix_kv, state.layout.type);
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
  const std::size_t vocabulary = state.layout.vocabulary;
  std::size_t tokens = 0;
  for (const Ids& row : rows) tokens += row.size() + state.virtual_ids.size();
  require_memory(std::uint64_t{tokens} * vocabulary * sizeof(float),
                 "Logits of " + std::to_string(tokens) + " tokens");
  auto kv = take_buffer(state, rows.size(), longest(rows));
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
    detail::decode(*kv, first, continued, budget, state_->layout.vocabulary,
                   static_cast<std::size_t>(state_->info.vocab_size), given.cancelled, on_token);
    detail::keep_buffer(*state_, std::move(kv));
  }
  std::vector<Generated> out;
  for (detail::Row& row : continued) out.push_back(std::move(row).result());
  return out;
}

}  // namespace ptdeploy
