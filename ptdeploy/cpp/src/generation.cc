#include "generation.hpp"

#include <algorithm>

namespace ptdeploy::detail {

std::int64_t Row::take(const float* logits, std::size_t vocabulary, std::size_t index,
                       const OnToken& on_token) {
  const std::int64_t token = sampler_.next(logits, vocabulary);
  const auto& eos = options_.eos_token_ids;
  if (std::find(eos.begin(), eos.end(), token) != eos.end()) {
    end(Stopped::eos);
    return token;
  }
  result_.token_ids.push_back(token);
  if (logprobs_) result_.logprobs.push_back(log_probability(logits, vocabulary, token));
  if (on_token && !on_token(index, token)) end(Stopped::caller);
  return token;
}

void Row::end(Stopped why) {
  if (ended_) return;
  ended_ = true;
  result_.stopped = why;
}

void decode(KVBuffer& kv, const std::vector<std::vector<float>>& first, std::vector<Row>& rows,
            std::size_t budget, std::size_t vocabulary, std::size_t words,
            const std::function<bool()>& cancelled, const OnToken& on_token) {
  std::vector<std::int64_t> tokens(rows.size(), 0);
  for (std::size_t step = 0; step < budget; ++step) {
    if (cancelled && cancelled()) {
      for (Row& row : rows) row.end(Stopped::cancelled);
      return;
    }
    const float* logits = step > 0 ? kv.decode(tokens) : nullptr;
    for (std::size_t i = 0; i < rows.size(); ++i)
      if (!rows[i].ended())
        tokens[i] = rows[i].take(logits ? logits + i * vocabulary : first[i].data(), words, i,
                                 on_token);
    if (std::all_of(rows.begin(), rows.end(), [](const Row& row) { return row.ended(); })) return;
  }
}

}  // namespace ptdeploy::detail
