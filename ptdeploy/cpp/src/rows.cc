#include "rows.hpp"

#include <algorithm>

namespace ptdeploy::detail {

void check_rows(const std::vector<Ids>& rows, const Limits& limits) {
  if (rows.empty()) throw InputError("The batch has no rows.");
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::string row = "Row " + std::to_string(i);
    if (rows[i].empty()) throw InputError(row + " is empty: an engine needs at least one token.");
    for (std::int64_t id : rows[i])
      if (id < 0 || id >= limits.vocab_size)
        throw InputError(
            row + " holds a token id outside 0 to " + std::to_string(limits.vocab_size - 1) + ".",
            "The ids come from another tokenizer than the base model's.");
    if (static_cast<std::int64_t>(rows[i].size()) > limits.max_sequence)
      throw InputError(row + " has " + std::to_string(rows[i].size()) + " tokens, but at most " +
                           std::to_string(limits.max_sequence) + " fit beside the virtual tokens.",
                       "Shorten the text.");
  }
}

Batch pack(const Ids* rows, std::size_t count) {
  Batch batch;
  batch.rows = count;
  for (std::size_t i = 0; i < count; ++i) batch.width = std::max(batch.width, rows[i].size());
  batch.input_ids.assign(count * batch.width, 0);
  batch.attention_mask.assign(count * batch.width, 0);
  for (std::size_t i = 0; i < count; ++i) {
    const auto start = static_cast<std::ptrdiff_t>(i * batch.width);
    std::copy(rows[i].begin(), rows[i].end(), batch.input_ids.begin() + start);
    std::fill_n(batch.attention_mask.begin() + start, rows[i].size(), 1);
  }
  return batch;
}

}  // namespace ptdeploy::detail
