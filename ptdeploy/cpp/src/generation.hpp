// The decoding loop: rows that each end on their own, over one KV buffer.
#pragma once

#include <functional>
#include <vector>

#include "kv_buffer.hpp"
#include "sampling.hpp"

namespace ptdeploy::detail {

// One row while it is being continued.
class Row {
 public:
  Row(const GenerationOptions& options, const Ids& prompt_ids, std::optional<std::uint64_t> seed,
      bool logprobs)
      : options_(options), sampler_(options, prompt_ids, seed), logprobs_(logprobs) {}

  bool ended() const { return ended_; }
  // Chooses the next token from logits (vocabulary,), and ends the row if it ends there.
  std::int64_t take(const float* logits, std::size_t vocabulary, std::size_t index,
                    const OnToken& on_token);
  void end(Stopped why);
  Generated result() && { return std::move(result_); }

 private:
  const GenerationOptions& options_;
  Sampler sampler_;
  bool logprobs_, ended_ = false;
  Generated result_;
};

// Continues every row, from the logits of its last token, by at most `budget` tokens. A row that
// has ended repeats its last one. The last step's tokens are not in the KV buffer.
// Only the first `words` tokens are chosen from: logits may be wider than the embedding is long.
void decode(KVBuffer& kv, const std::vector<std::vector<float>>& first, std::vector<Row>& rows,
            std::size_t budget, std::size_t vocabulary, std::size_t words,
            const std::function<bool()>& cancelled, const OnToken& on_token);

}  // namespace ptdeploy::detail
