#include "generation.hpp"

#include <algorithm>

namespace ptdeploy::detail {

Row::Row(const GenerationOptions& options, const GenerateOptions& given, const Ids& prompt_ids,
         std::size_t index, std::size_t budget, const Detokenizer* tokenizer)
    : options_(options),
      given_(given),
      index_(index),
      budget_(budget),
      sampler_(options, prompt_ids, given.seed ? std::optional(*given.seed + index) : std::nullopt) {
  if (tokenizer) answer_ = std::make_unique<Answer>(*tokenizer, prompt_ids, given.stop);
}

std::int64_t Row::take(const float* logits, std::size_t vocabulary, const OnToken& on_token) {
  const std::int64_t token = sampler_.next(logits, vocabulary);
  const auto& eos = options_.eos_token_ids;
  if (std::find(eos.begin(), eos.end(), token) != eos.end()) {
    end(Stopped::eos);
    return token;
  }
  result_.token_ids.push_back(token);
  if (given_.logprobs) result_.logprobs.push_back(log_probability(logits, vocabulary, token));
  const bool watched = !given_.stop.empty() || given_.on_text;
  if (watched && answer_->push(token)) end(Stopped::stop);
  if (on_token && !on_token(index_, token)) end(Stopped::caller);
  if (!ended_) show();
  return token;
}

void Row::show() {
  if (!given_.on_text) return;
  const std::string piece = answer_->piece();
  if (piece.empty() || given_.on_text(index_, piece)) return;
  end(Stopped::caller);
  shown_ = false;  // nobody wants more of it
}

void Row::finish() {
  if (!answer_ || finished_) return;
  finished_ = true;
  result_.text = answer_->text(result_.token_ids);
  if (!given_.on_text || !shown_) return;
  const std::string rest = answer_->rest(result_.text);
  if (!rest.empty()) given_.on_text(index_, rest);
}

bool asks_for_text(const GenerateOptions& given) {
  check_stop(given.stop);
  return given.text || given.on_text || !given.stop.empty();
}

void Row::end(Stopped why) {
  if (ended_) return;
  ended_ = true;
  result_.stopped = why;
}

void decode(KVBuffer& kv, const std::vector<std::vector<float>>& first,
            const std::vector<Row*>& rows, std::size_t vocabulary, std::size_t words,
            const std::function<bool()>& cancelled, const OnToken& on_token) {
  std::vector<std::int64_t> tokens(rows.size(), 0);
  const auto ended = [](const Row* row) { return row->ended(); };
  const float* logits = nullptr;
  for (bool begun = false; !std::all_of(rows.begin(), rows.end(), ended); begun = true) {
    if (cancelled && cancelled()) {
      for (Row* row : rows)
        if (!row->ended()) row->end(Stopped::cancelled);
      break;
    }
    if (begun) logits = kv.decode(tokens);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      if (rows[i]->ended()) {
        // It stays where it is: there may be no room behind it.
        if (begun) kv.cut(i, kv.length(i) - 1);
        continue;
      }
      const float* own = logits ? logits + i * vocabulary : first[i].data();
      tokens[i] = rows[i]->take(own, words, on_token);
      if (rows[i]->ended()) rows[i]->finish();
    }
  }
  for (Row* row : rows) row->finish();
}

}  // namespace ptdeploy::detail
