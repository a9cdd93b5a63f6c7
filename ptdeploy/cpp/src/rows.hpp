// Rows of token ids: checked, and packed into one batch padded on the right.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "prompt_choice.hpp"

namespace ptdeploy::detail {

// Throws InputError if there is no row, there are not as many prompts as rows, or a row is empty, too
// long beside its prompt, or holds an id outside the vocabulary.
void check_rows(const std::vector<Ids>& rows, const Limits& limits, const Chosen& chosen);

// Throws InputError if they are more than the bundle was compiled for.
void check_row_count(std::size_t rows, const std::optional<std::int64_t>& most);

// Throws InputError unless `segments` is empty, or has one of the model's for each token.
void check_segments(const std::vector<Ids>& segments, const std::vector<Ids>& rows,
                    const Limits& limits);

// Indices of rows of these lengths in batches of at most `size` that need little padding: grouped()
// of ptdeploy/runtime/batching.py. What shares a batch may change an answer's last bits.
std::vector<std::vector<std::size_t>> grouped(const std::vector<std::size_t>& lengths,
                                              std::size_t size);

struct Batch {
  std::size_t rows = 0, width = 0;
  std::vector<std::int64_t> input_ids, attention_mask;
};
Batch pack(const std::vector<Ids>& rows);

}  // namespace ptdeploy::detail
