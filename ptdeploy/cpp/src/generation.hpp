// The decoding loop: rows that each end on their own, over one KV buffer.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "answer.hpp"
#include "kv_buffer.hpp"
#include "sampling.hpp"

namespace ptdeploy::detail {

// One row while it is being continued, by at most `budget` tokens.
class Row {
 public:
  // `options` and what is asked in `given` outlive it. `tokenizer` is null where no text is asked for.
  Row(const GenerationOptions& options, const GenerateOptions& given, const Ids& prompt_ids,
      std::size_t index, std::size_t budget, const Detokenizer* tokenizer);

  bool ended() const { return ended_ || result_.token_ids.size() >= budget_; }
  // Chooses the next token from logits (vocabulary,), and ends the row if it ends there.
  std::int64_t take(const float* logits, std::size_t vocabulary, const OnToken& on_token);
  void end(Stopped why);
  // Once no more tokens come: the whole text, and to whom it is shown what was held back of it.
  void finish();
  Generated result() && { return std::move(result_); }

 private:
  // Shows the text that no later token can change.
  void show();

  const GenerationOptions& options_;
  const GenerateOptions& given_;
  std::size_t index_, budget_;
  Sampler sampler_;
  std::unique_ptr<Answer> answer_;
  bool ended_ = false, finished_ = false, shown_ = true;
  Generated result_;
};

// Whether a request asks for text, for which the bundle needs a tokenizer. Throws InputError on stop
// strings that are none.
bool asks_for_text(const GenerateOptions& given);

// Continues every row, from the logits of its last token, until each has ended. A row that has
// ended repeats its last token. That token is not in the KV buffer, unless other rows went on.
// Only the first `words` tokens are chosen from: logits may be wider than the embedding is long.
void decode(KVBuffer& kv, const std::vector<std::vector<float>>& first,
            const std::vector<Row*>& rows, std::size_t vocabulary, std::size_t words,
            const std::function<bool()>& cancelled, const OnToken& on_token);

}  // namespace ptdeploy::detail
