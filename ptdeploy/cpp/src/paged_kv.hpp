// A KV buffer in blocks: a prompt's full blocks lie once, and rows of any length run together.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "kv_buffer.hpp"

namespace ptdeploy::detail {

// One array for each layer's keys and one for its values, as the backend's cache has them. Row i's
// tokens lie in the blocks tables_[i], one after another: first those that its prefix KV fills, which
// all rows of that prompt share, then its own.
class PagedKV final : public KVBuffer {
 public:
  // As `make_kv_buffer`.
  PagedKV(Backend& backend, const KVLayout& layout, std::vector<RowPrompt> prompts,
          SharedStack stack, std::size_t slots);

  std::size_t rows() const override { return lengths_.size(); }
  std::size_t slots() const override { return slots_; }
  std::size_t start(std::size_t row) const override { return prefix_of(prompts_[row]); }
  std::size_t length(std::size_t row) const override { return lengths_[row]; }
  bool is_sound() const override { return is_sound_; }
  bool begin(const std::vector<RowPrompt>& prompts, SharedStack stack) override;
  void cut(std::size_t row, std::size_t length) override;
  std::vector<float> prefill(std::size_t row, const std::int64_t* ids, std::size_t count,
                             bool every_position) override;
  std::vector<std::vector<float>> prefill_all(const std::vector<Ids>& ids,
                                              bool every_position) override;
  const float* decode(const std::vector<std::int64_t>& tokens) override;
  void copy_row(std::size_t row, const KVBuffer& source, std::size_t source_row,
                std::size_t first_slot) override;

 private:
  using Table = std::vector<std::int32_t>;
  // Some of a row's new tokens.
  struct Piece {
    std::size_t row;
    const std::int64_t* ids;
    std::size_t count;
  };
  // How many blocks rows of these prompts take in all.
  std::size_t blocks_for(const std::vector<RowPrompt>& prompts) const;
  // Each row's blocks.
  std::vector<Table> arranged(const std::vector<RowPrompt>& prompts) const;
  // Puts each prompt into the blocks that its rows share, the rest in each row's first.
  void fill();
  // Puts a row's prefix KV into its blocks, from the block `first` of it on.
  void write(std::size_t row, std::size_t first);
  // Runs new tokens in one pass; gives the logits of each piece's last one, or of each token.
  std::vector<float> append(const std::vector<Piece>& pieces, bool every_position);
  char* block(std::size_t array, std::size_t row, std::size_t index) const;

  Backend& backend_;
  const KVLayout& layout_;
  const BlockCache& cache_;
  std::size_t slots_, blocks_ = 0;
  std::vector<RowPrompt> prompts_;
  SharedStack stack_;  // what else every run is given
  std::vector<Table> tables_;
  std::vector<Placed> arrays_;
  std::vector<std::size_t> lengths_;
  std::vector<float> logits_;
  bool is_sound_ = true;
};

}  // namespace ptdeploy::detail
