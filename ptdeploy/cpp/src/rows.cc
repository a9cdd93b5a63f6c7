#include "rows.hpp"

#include <algorithm>
#include <numeric>

namespace ptdeploy::detail {

void check_rows(const std::vector<Ids>& rows, const Limits& limits, const Chosen& chosen) {
  if (rows.empty()) throw InputError("The batch has no rows.");
  const std::vector<RowPrompt> prompts = chosen.of(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::string row = "Row " + std::to_string(i);
    if (rows[i].empty()) throw InputError(row + " is empty: an engine needs at least one token.");
    for (std::int64_t id : rows[i])
      if (id < 0 || id >= limits.vocab_size)
        throw InputError(
            row + " holds a token id outside 0 to " + std::to_string(limits.vocab_size - 1) + ".",
            "The ids come from another tokenizer than the base model's.");
    const auto most = limits.max_context - static_cast<std::int64_t>(length_of(prompts[i]));
    if (static_cast<std::int64_t>(rows[i].size()) > most)
      throw InputError(row + " has " + std::to_string(rows[i].size()) + " tokens, but at most " +
                           std::to_string(most) + " fit beside the virtual tokens.",
                       "Shorten the text.");
  }
}

void check_row_count(std::size_t rows, const std::optional<std::int64_t>& most) {
  if (most && static_cast<std::int64_t>(rows) > *most)
    throw InputError(std::to_string(rows) + " rows at once, but the bundle was compiled for " +
                         std::to_string(*most) + ".",
                     "Send them in several requests, or compile with a larger --max-batch.");
}

void check_segments(const std::vector<Ids>& segments, const std::vector<Ids>& rows,
                    const Limits& limits) {
  if (segments.empty()) return;
  if (limits.type_vocab_size < 1)
    throw InputError(
        "The model has no segments, or the bundle does not say how many: it takes no "
        "token_type_ids.",
        "Leave them out. A pair of texts needs none: its separator tokens say where it parts.");
  if (segments.size() != rows.size())
    throw InputError("token_type_ids has " + std::to_string(segments.size()) +
                     " rows, but input_ids " + std::to_string(rows.size()) + ".");
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::string row = "Row " + std::to_string(i);
    if (segments[i].size() != rows[i].size())
      throw InputError(row + " has " + std::to_string(rows[i].size()) + " tokens, but " +
                       std::to_string(segments[i].size()) +
                       " token_type_ids: each token needs one.");
    for (std::int64_t segment : segments[i])
      if (segment < 0 || segment >= limits.type_vocab_size)
        throw InputError(row + " holds a token_type_id outside 0 to " +
                             std::to_string(limits.type_vocab_size - 1) + ".",
                         "The first text of a pair is segment 0, the second 1.");
  }
}

std::vector<std::vector<std::size_t>> grouped(const std::vector<std::size_t>& lengths,
                                              std::size_t size) {
  constexpr std::size_t kPadding = 64;
  std::vector<std::size_t> order(lengths.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&lengths](std::size_t one, std::size_t other) {
    return lengths[one] < lengths[other];
  });
  std::vector<std::vector<std::size_t>> groups;
  std::size_t longest = 0;
  for (std::size_t index : order) {
    const std::size_t length = lengths[index];
    if (!groups.empty() && groups.back().size() < size &&
        (length - longest) * groups.back().size() <= kPadding)
      groups.back().push_back(index);
    else
      groups.push_back({index});
    longest = length;
  }
  return groups;
}

Batch pack(const std::vector<Ids>& rows) {
  Batch batch;
  batch.rows = rows.size();
  for (const Ids& row : rows) batch.width = std::max(batch.width, row.size());
  batch.input_ids.assign(batch.rows * batch.width, 0);
  batch.attention_mask.assign(batch.rows * batch.width, 0);
  for (std::size_t i = 0; i < batch.rows; ++i) {
    const auto start = static_cast<std::ptrdiff_t>(i * batch.width);
    std::copy(rows[i].begin(), rows[i].end(), batch.input_ids.begin() + start);
    std::fill_n(batch.attention_mask.begin() + start, rows[i].size(), 1);
  }
  return batch;
}

}  // namespace ptdeploy::detail
