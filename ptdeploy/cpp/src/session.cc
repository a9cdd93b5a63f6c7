// Sessions: one sequence whose KV stays between turns.
#include <algorithm>

#include "causal.hpp"
#include "generation.hpp"
#include "out_of_memory.hpp"
#include "rows.hpp"

namespace ptdeploy {
namespace detail {

struct SessionState {
  SessionState(std::shared_ptr<const EngineState> of, const CausalEngine& writer_of,
               std::size_t tokens, StartedRows started)
      : engine(std::move(of)),
        writer(writer_of),
        room(tokens),
        rows(std::move(started)),
        kv(*rows.kv) {}

  // Keeps the KV of the first tokens of text alone.
  void cut(std::size_t tokens) { kv.cut(0, start + tokens); }
  std::size_t filled() const { return kv.length(0) - start; }

  std::shared_ptr<const EngineState> engine;
  const CausalEngine& writer;  // the engine's own
  std::size_t room, start = 0;
  StartedRows rows;  // one, with a prompt that it keeps though it was unloaded
  KVBuffer& kv;      // its own
  Ids token_ids;
};

std::unique_ptr<SessionState> CausalEngine::session(std::shared_ptr<const EngineState> owner,
                                                    const Chosen& chosen,
                                                    std::size_t max_tokens) const {
  const RowPrompt prompt = chosen.of(1)[0];
  const auto context = static_cast<std::size_t>(state_.manifest().limits.max_context);
  const std::size_t limit = context - length_of(prompt);
  if (max_tokens > limit)
    throw InputError("max_tokens is " + std::to_string(max_tokens) + "; it must be from 1 to " +
                     std::to_string(limit) + ".");
  const std::size_t room = max_tokens ? max_tokens : limit;
  auto opened = std::make_unique<SessionState>(std::move(owner), *this, room,
                                               buffers().own(prompt, room));
  const Ids& before = opened->rows.before(0);
  if (!before.empty()) opened->kv.prefill(0, before.data(), before.size());
  opened->start = opened->kv.length(0);
  return opened;
}

}  // namespace detail

Session Engine::session(const Prompt& prompt, std::size_t max_tokens) const {
  return detail::at_the_door([&] {
    const detail::HeldPrompts held(*state_->prompts, prompt);
    return Session(state_->task->session(state_, held.chosen(), max_tokens));
  });
}

Session::Session(std::unique_ptr<detail::SessionState> state) : state_(std::move(state)) {}
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;
Session::~Session() = default;

const Ids& Session::token_ids() const { return state_->token_ids; }
std::size_t Session::max_tokens() const { return state_->room; }

void Session::append(const Ids& ids) {
  detail::at_the_door([&] {
    auto& s = *state_;
    detail::check_rows({ids}, s.engine->manifest().limits, {s.rows.prompts});
    if (s.token_ids.size() + ids.size() > s.room)
      throw InputError(std::to_string(ids.size()) + " more tokens do not fit: the session has " +
                           std::to_string(s.token_ids.size()) + " of " +
                           std::to_string(s.room) + ".",
                       "Roll it back, or open one with a larger max_tokens.");
    // What goes wrong from here on leaves the session as it was.
    const std::size_t before = s.token_ids.size();
    try {
      s.token_ids.insert(s.token_ids.end(), ids.begin(), ids.end());
      // All but the last are run now; that one runs when the sequence is continued.
      const std::size_t filled = s.filled(), end = s.token_ids.size() - 1;
      if (filled < end) s.kv.prefill(0, s.token_ids.data() + filled, end - filled);
    } catch (...) {
      s.token_ids.resize(before);
      s.cut(before);
      throw;
    }
  });
}

Generated Session::generate(const GenerateOptions& given, const OnToken& on_token) {
  return detail::at_the_door([&] {
    auto& s = *state_;
    if (s.token_ids.empty()) throw InputError("The session is empty.", "Append some text first.");
    const detail::GenerationOptions options = s.writer.options(given);
    const auto room = static_cast<std::int64_t>(s.room - s.token_ids.size());
    if (given.max_new_tokens && *given.max_new_tokens > room)
      throw InputError(std::to_string(*given.max_new_tokens) +
                       " new tokens do not fit: the session has room for " + std::to_string(room) +
                       ".");
    detail::Row row(options, given, s.token_ids, 0,
                    static_cast<std::size_t>(std::min(options.max_new_tokens, room)),
                    detail::asks_for_text(given) ? &s.engine->detokenizer() : nullptr);
    // The last token runs (again, after a rollback): its logits choose the next.
    s.cut(s.token_ids.size() - 1);
    const std::size_t filled = s.filled();
    const std::vector<std::vector<float>> first{
        s.kv.prefill(0, s.token_ids.data() + filled, s.token_ids.size() - filled)};
    // What goes wrong from here on leaves the session as it was.
    const std::size_t before = s.token_ids.size();
    try {
      detail::decode(s.kv, first, {&row}, s.writer.layout().vocabulary,
                     static_cast<std::size_t>(s.engine->info.vocab_size), given.cancelled,
                     on_token);
    } catch (...) {
      s.cut(before);
      throw;
    }
    Generated result = std::move(row).result();
    s.token_ids.insert(s.token_ids.end(), result.token_ids.begin(), result.token_ids.end());
    s.cut(s.token_ids.size());
    return result;
  });
}

void Session::rollback(std::size_t tokens) {
  detail::at_the_door([&] {
    auto& s = *state_;
    if (tokens > s.token_ids.size())
      throw InputError("The session has " + std::to_string(s.token_ids.size()) + " tokens, not " +
                       std::to_string(tokens) + ".");
    s.token_ids.resize(s.token_ids.size() - tokens);
    s.cut(s.token_ids.size());
  });
}

Session Session::fork() const {
  return detail::at_the_door([&] {
    const auto& s = *state_;
    auto other = std::make_unique<detail::SessionState>(
        s.engine, s.writer, s.room,
        s.writer.buffers().own(s.rows.prompts[0], s.room, s.rows.stack));
    other->start = s.start;
    other->kv.copy_row(0, s.kv, 0, s.kv.start(0));
    other->token_ids = s.token_ids;
    return Session(std::move(other));
  });
}

}  // namespace ptdeploy
