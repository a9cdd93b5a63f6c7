// The KV buffer: what holds the keys and values of a few rows that are written together.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend.hpp"
#include "prompt_inputs.hpp"

namespace ptdeploy::detail {

// What a manifest says of a KV buffer.
struct KVLayout {
  std::string ids, lengths, positions, logits;  // names of the graph's tensors
  std::string offsets;  // by which rows may come as one sequence; "": they may not
  bool mixes = false;   // whether those may have different prompts
  std::vector<std::string> past, present;  // layer by layer, keys before values
  ElementType type{};                      // of their elements
  std::size_t heads = 0, width = 0, vocabulary = 0;
  std::size_t fixed_slots = 0;  // of every buffer; 0: as many as are asked for
  std::size_t prefill = 0;      // most tokens of one run
  std::size_t kept = 0;         // most tokens of one run that gives logits of each
  std::size_t context = 0;      // most tokens that a row holds
  bool in_place = false;
};

// How many slots a prompt's prefix KV fills.
inline std::size_t prefix_of(const RowPrompt& prompt) {
  return prompt && !prompt->tensors.prefix_kv.empty() ? prompt->length() : 0;
}

// Keys and values of a few rows in `slots` slots each, where the engine computes. Row i's first
// length(i) slots are filled: start(i) of its prompt's prefix KV, then its text. It is dense
// (dense_kv.hpp) where a row's slots lie together, or paged (paged_kv.hpp).
class KVBuffer {
 public:
  KVBuffer() = default;
  KVBuffer(const KVBuffer&) = delete;  // engines are bound to this one's memory
  KVBuffer& operator=(const KVBuffer&) = delete;
  virtual ~KVBuffer() = default;

  virtual std::size_t rows() const = 0;
  virtual std::size_t slots() const = 0;
  // Slots that a row's prefix KV fills.
  virtual std::size_t start(std::size_t row) const = 0;
  virtual std::size_t length(std::size_t row) const = 0;
  // Whether nothing it was filled with overflowed: an engine that reads all slots under a mask would
  // carry a NaN into the next request.
  virtual bool is_sound() const = 0;

  // Forgets all, and lets each row begin with its own prompt's prefix KV: those that the row does not
  // hold already are copied in. False where they do not fit.
  virtual bool begin(const std::vector<RowPrompt>& prompts, SharedStack stack) = 0;
  // Forgets a row's last tokens.
  virtual void cut(std::size_t row, std::size_t length) = 0;
  // Appends tokens to a row; gives logits (kept, vocabulary) of the last one or of each.
  virtual std::vector<float> prefill(std::size_t row, const std::int64_t* ids, std::size_t count,
                                     bool every_position = false) = 0;
  // Appends to every row its tokens, to rows that hold their prefix alone; gives of each row the
  // logits (kept, vocabulary) of the last one or of each.
  virtual std::vector<std::vector<float>> prefill_all(const std::vector<Ids>& ids,
                                                      bool every_position = false) = 0;
  // Appends one token to every row; gives logits (rows, vocabulary), overwritten next time.
  virtual const float* decode(const std::vector<std::int64_t>& tokens) = 0;
  // Makes a row what a row of another buffer of the engine is, from `first_slot` on; both begin with
  // the same prompt.
  virtual void copy_row(std::size_t row, const KVBuffer& source, std::size_t source_row,
                        std::size_t first_slot) = 0;
};

// A row for each of the prompts, null where it has none; `stack` has them all. Each has room for
// `slots` tokens, those of its prefix KV among them. Throws InputError if it does not fit in memory.
// `backend` and `layout` must outlive it.
std::unique_ptr<KVBuffer> make_kv_buffer(Backend& backend, const KVLayout& layout,
                                         std::vector<RowPrompt> prompts, SharedStack stack,
                                         std::size_t slots);

}  // namespace ptdeploy::detail
