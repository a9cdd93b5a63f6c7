// A KV buffer in which a row's slots lie together, updated where it lies.
#pragma once

#include <memory>
#include <vector>

#include "joined.hpp"
#include "kv_buffer.hpp"

namespace ptdeploy::detail {

// Keys and values of a few rows in `slots` slots each, where the engine computes, and the engine
// bound to them. Row i's first length(i) slots are filled: start(i) of its prompt's prefix KV, then
// its text.
class DenseKV final : public KVBuffer {
 public:
  // As `make_kv_buffer`; has as many slots as the layout fixes, where it does.
  DenseKV(Backend& backend, const KVLayout& layout, std::vector<RowPrompt> prompts,
          SharedStack stack, std::size_t slots);

  std::size_t rows() const override { return lengths_.size(); }
  std::size_t slots() const override { return slots_; }
  std::size_t start(std::size_t row) const override { return prefix_of(prompts_[row]); }
  std::size_t length(std::size_t row) const override {
    return static_cast<std::size_t>(lengths_[row]);
  }
  bool is_sound() const override;
  bool begin(const std::vector<RowPrompt>& prompts, SharedStack stack) override;
  void cut(std::size_t row, std::size_t length) override;
  std::vector<float> prefill(std::size_t row, const std::int64_t* ids, std::size_t count,
                             bool every_position) override;
  // Row by row, but short rows together, where the engine keeps them apart.
  std::vector<std::vector<float>> prefill_all(const std::vector<Ids>& ids,
                                              bool every_position) override;
  const float* decode(const std::vector<std::int64_t>& tokens) override;
  void copy_row(std::size_t row, const KVBuffer& source, std::size_t source_row,
                std::size_t first_slot) override;

 private:
  // One run over bound arrays; where the engine gives new KV apart, it is put into the buffer.
  struct Step {
    std::size_t row = 0, rows = 0, fed = 0;
    std::vector<Placed> fresh;
    std::unique_ptr<Run> run;
  };
  Step bind(std::size_t row, std::size_t rows, std::int64_t* ids, std::size_t fed,
            std::vector<std::int64_t>& positions, Offsets& offsets, float* logits);
  void run(Step& step);
  // Runs rows as one sequence behind their prefixes, in a buffer of its own, and takes its slots.
  // False, and nothing is taken, where its logits are not finite.
  bool prefill_joined(const std::vector<std::size_t>& rows, const std::vector<Ids>& ids,
                      bool every_position, std::vector<std::vector<float>>& out);
  // Makes `count` slots of a row, from `at` on, what another buffer's row has from `first` on.
  void copy_slots(std::size_t row, std::size_t at, const DenseKV& source, std::size_t source_row,
                  std::size_t first, std::size_t count);
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
  Offsets offsets_{1};
  std::vector<float> logits_;
  bool prefilled_well_ = true;
  Step decode_;
};

}  // namespace ptdeploy::detail
