// The KV buffer: allocated once, a row's first slots its prompt's prefix KV, updated where it lies.
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
  std::vector<std::string> past, present;       // layer by layer, keys before values
  ElementType type{};                      // of their elements
  std::size_t heads = 0, width = 0, vocabulary = 0;
  std::size_t fixed_slots = 0;  // of every buffer; 0: as many as are asked for
  std::size_t prefill = 0;      // most tokens of one run
  std::size_t kept = 0;         // most tokens of one run that gives logits of each
  bool in_place = false;
};

// Keys and values of a few rows in `slots` slots each, where the engine computes, and the engine
// bound to them. Row i's first length(i) slots are filled: start(i) of its prompt's prefix KV, then
// its text.
class KVBuffer {
 public:
  // A row for each of the prompts, null where it has none; `stack` has them all. Has `slots` slots, or
  // as many as the layout fixes. Throws InputError if it does not fit in memory. `backend` and
  // `layout` must outlive it.
  KVBuffer(Backend& backend, const KVLayout& layout, std::vector<RowPrompt> prompts,
           SharedStack stack, std::size_t slots);

  KVBuffer(const KVBuffer&) = delete;  // the engine is bound to this one's memory
  KVBuffer& operator=(const KVBuffer&) = delete;

  std::size_t rows() const { return lengths_.size(); }
  std::size_t slots() const { return slots_; }
  // Slots that a row's prefix KV fills.
  std::size_t start(std::size_t row) const;
  std::size_t length(std::size_t row) const { return static_cast<std::size_t>(lengths_[row]); }

  // Whether nothing it was filled with overflowed: an engine that reads all slots under a mask would
  // carry a NaN into the next request.
  bool is_sound() const;

  // Forgets all, and lets each row begin with its own prompt's prefix KV: those that the row does not
  // hold already are copied in.
  void begin(const std::vector<RowPrompt>& prompts, SharedStack stack);
  // Forgets a row's last tokens.
  void cut(std::size_t row, std::size_t length);
  // Appends tokens to a row; gives logits (kept, vocabulary) of the last one or of each. One row
  // at a time: a row's tokens never wait for a longer row's padding.
  std::vector<float> prefill(std::size_t row, const std::int64_t* ids, std::size_t count,
                             bool every_position = false);
  // Appends one token to every row; gives logits (rows, vocabulary), overwritten next time.
  const float* decode(const std::vector<std::int64_t>& tokens);
  // Makes a row what another buffer's row is, from `first_slot` on.
  void copy_row(std::size_t row, const KVBuffer& source, std::size_t source_row,
                std::size_t first_slot);

 private:
  // One run over bound arrays; where the engine gives new KV apart, it is put into the buffer.
  struct Step {
    std::size_t row = 0, rows = 0, fed = 0;
    std::vector<Placed> fresh;
    std::unique_ptr<Run> run;
  };
  Step bind(std::size_t row, std::size_t rows, std::int64_t* ids, std::size_t fed,
            std::vector<std::int64_t>& positions, float* logits);
  void run(Step& step);
  // Puts a row's prefix KV into its first slots, and zeros where the one before it was longer.
  void fill_prefix(std::size_t row, std::size_t before);
  Step bound_decode();
  // A row's slot of its first head; the next head's is `pitch_` bytes on.
  char* slot(std::size_t array, std::size_t row, std::size_t slot) const;

  Backend& backend_;
  const KVLayout& layout_;
  std::size_t slots_, line_, pitch_;  // line_: bytes of one head's slot
  std::vector<RowPrompt> prompts_;
  SharedStack stack_;  // what else every run is given
  std::vector<Placed> arrays_;
  std::vector<std::int64_t> lengths_, ids_, positions_{0};
  std::vector<float> logits_;
  bool prefilled_well_ = true;
  Step decode_;
};

}  // namespace ptdeploy::detail
