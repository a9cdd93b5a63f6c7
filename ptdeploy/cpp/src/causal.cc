#include "causal.hpp"

#include <algorithm>

#include "generation.hpp"
#include "kv_layout.hpp"
#include "layout.hpp"
#include "memory.hpp"
#include "rows.hpp"

namespace ptdeploy::detail {

CausalEngine::CausalEngine(const EngineState& state)
    : TaskEngine(state),
      layout_(layout_of(state.manifest())),
      inputs_(*state.backend, state.manifest().graph(), state.manifest().limits.vocab_size),
      buffers_(*state.backend, layout_, state.manifest().limits, inputs_) {
  if (!state.backend->caches(layout_.type))
    throw TargetUnavailable("With the target " + state.info.target +
                            " the C++ library keeps keys and values in float32, not in " +
                            name_of(layout_.type) + ".");
  inputs_.stack(HeldPrompts(*state.prompts, {}).chosen().prompts);  // not at the first request
}

void CausalEngine::forget(const RowPrompt& prompt) const {
  inputs_.forget(prompt);
  buffers_.forget(prompt);
}

std::vector<std::size_t> CausalEngine::budgets(const std::vector<Ids>& rows,
                                               const std::vector<RowPrompt>& prompts,
                                               const GenerateOptions& given,
                                               const GenerationOptions& options) const {
  const std::int64_t context = state_.manifest().limits.max_context;
  const auto& asked = given.max_new_tokens;
  std::vector<std::int64_t> rooms;
  for (std::size_t i = 0; i < rows.size(); ++i)
    rooms.push_back(context - static_cast<std::int64_t>(rows[i].size() + length_of(prompts[i])));
  const auto least = std::min_element(rooms.begin(), rooms.end());
  if (asked && *asked > *least) {
    const std::string room = std::to_string(*least);
    const std::string where =
        rooms.size() > 1 ? "row " + std::to_string(least - rooms.begin()) : "the text";
    throw InputError(std::to_string(*asked) + " new tokens do not fit: " + where + " leaves " +
                         room + " of the model's " + std::to_string(context) + " positions.",
                     *least ? "Ask for at most " + room + ", or shorten the text."
                            : "Shorten the text.");
  }
  std::vector<std::size_t> out;
  for (const std::int64_t room : rooms)
    out.push_back(static_cast<std::size_t>(asked ? *asked : std::min(options.max_new_tokens, room)));
  return out;
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

// Each row's last token runs as a step of the whole batch, those before it as a prefill.
std::vector<Logits> CausalEngine::logits(const std::vector<Ids>& rows, const Chosen& chosen,
                                         const std::vector<Ids>&) const {
  const std::size_t vocabulary = layout_.vocabulary;
  std::vector<std::size_t> lengths;
  for (const Ids& row : rows) lengths.push_back(row.size());
  const StartedRows started = buffers_.take(chosen.of(rows.size()), lengths);
  std::size_t tokens = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) tokens += started.before(i).size() + lengths[i];
  // A run's own are beside them, in the engine and as they come from it.
  const std::size_t run = std::min(layout_.kept, tokens);
  require_memory(std::uint64_t{tokens + 2 * run} * vocabulary * sizeof(float),
                 "Logits of " + std::to_string(tokens) + " tokens");
  std::vector<Logits> out;
  std::vector<std::int64_t> last;
  std::vector<Ids> fed;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    fed.push_back(started.fed(i, rows[i]));
    fed.back().pop_back();
    last.push_back(rows[i].back());
  }
  std::vector<std::vector<float>> first = started.kv->prefill_all(fed, true);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    std::vector<float>& before = first[i];
    const std::size_t skip = started.before(i).size() * vocabulary;
    before.erase(before.begin(), before.begin() + static_cast<std::ptrdiff_t>(skip));
    out.push_back({rows[i].size(), vocabulary, std::move(before)});
  }
  const float* after = started.kv->decode(last);
  for (std::size_t i = 0; i < rows.size(); ++i)
    out[i].values.insert(out[i].values.end(), after + i * vocabulary, after + (i + 1) * vocabulary);
  return out;
}

std::vector<Generated> CausalEngine::generate(const std::vector<Ids>& rows, const Chosen& chosen,
                                              const GenerateOptions& given,
                                              const OnToken& on_token) const {
  check_rows(rows, state_.manifest().limits, chosen);
  const std::vector<RowPrompt> prompts = chosen.of(rows.size());
  const GenerationOptions settled = options(given);
  const std::vector<std::size_t> most = budgets(rows, prompts, given, settled);
  const Detokenizer* tokenizer = asks_for_text(given) ? &state_.detokenizer() : nullptr;
  std::vector<Row> continued;
  continued.reserve(rows.size());
  std::vector<Row*> running;
  std::vector<RowPrompt> behind;
  std::vector<const Ids*> texts;
  std::vector<std::size_t> tokens;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    continued.emplace_back(settled, given, rows[i], i, most[i], tokenizer);
    if (most[i] == 0) continue;
    running.push_back(&continued.back());
    behind.push_back(prompts[i]);
    texts.push_back(&rows[i]);
    tokens.push_back(rows[i].size() + most[i]);
  }
  if (!running.empty()) {
    StartedRows started = buffers_.take(behind, tokens);
    std::vector<Ids> fed;
    for (std::size_t i = 0; i < texts.size(); ++i) fed.push_back(started.fed(i, *texts[i]));
    const std::vector<std::vector<float>> first = started.kv->prefill_all(fed);
    decode(*started.kv, first, running, layout_.vocabulary,
           static_cast<std::size_t>(state_.info.vocab_size), given.cancelled, on_token);
    buffers_.keep(std::move(started));
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
    /*takes_base=*/true,
    require_decoder,
    [](const EngineState& state) -> std::unique_ptr<TaskEngine> {
      return std::make_unique<CausalEngine>(state);
    },
};

}  // namespace ptdeploy::detail
